//! Files to model: YAML with the place of every value, and every mistake named with what was expected.

use std::fmt;
use std::sync::Arc;

use miette::{Diagnostic, LabeledSpan, NamedSource, SourceCode};
use serde::de::DeserializeOwned;
use serde_saphyr::Location;

use crate::model::{Place, Policy};

mod criteria;
mod names;
mod raw;
mod resolve;
mod rules;
mod sources;
mod words;
mod written;

use resolve::Resolver;
pub use sources::{SOURCES_SCHEMA, load_sources};
use words::nearest;
pub(crate) use words::parse_mac;
pub use words::{duration, port_range, protocol_number};

/// The JSON Schema of policy files, for editors.
pub const SCHEMA: &str = include_str!("../policy.schema.json");

/// A file's name and text.
#[derive(Clone, Debug)]
pub struct Source {
    /// The name to show.
    pub name: String,
    /// The text.
    pub text: String,
}

/// A mistake in a file.
#[derive(Clone, Debug)]
pub struct FileError(Box<Mistake>);

#[derive(Clone, Debug)]
struct Mistake {
    place: Place,
    /// What is wrong, and what was expected.
    message: String,
    /// What may have been meant.
    help: Option<String>,
    span: (usize, usize),
    source: Arc<NamedSource<String>>,
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.place, self.0.message)?;
        self.0.help.as_ref().map_or(Ok(()), |help| write!(f, " ({help})"))
    }
}

impl std::error::Error for FileError {}

impl Diagnostic for FileError {
    fn source_code(&self) -> Option<&dyn SourceCode> {
        Some(&*self.0.source)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(LabeledSpan::new(
            Some("here".into()),
            self.0.span.0,
            self.0.span.1,
        ))))
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.0
            .help
            .as_ref()
            .map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }
}

/// All mistakes that were found.
#[derive(Clone, Debug)]
pub struct FileErrors(pub Vec<FileError>);

impl fmt::Display for FileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if number > 0 { "\n" } else { "" })?;
        }
        Ok(())
    }
}

impl std::error::Error for FileErrors {}

impl Source {
    /// A mistake at a place of this file.
    #[must_use]
    pub fn error(&self, at: &Location, message: impl Into<String>) -> FileError {
        File::new(self).error(at, message)
    }
}

/// A file whose text its mistakes share.
struct File {
    text: Arc<NamedSource<String>>,
}

impl File {
    fn new(source: &Source) -> Self {
        Self {
            text: Arc::new(NamedSource::new(&source.name, source.text.clone())),
        }
    }

    fn error(&self, at: &Location, message: impl Into<String>) -> FileError {
        let known = at.line() > 0;
        let text = self.text.inner();
        let offset = at.span().byte_offset().filter(|_| known).unwrap_or(0) as usize;
        let offset = offset.min(text.len());
        let length = at.span().byte_len().filter(|_| known).unwrap_or(0) as usize;
        FileError(Box::new(Mistake {
            place: self.place(at),
            message: message.into(),
            help: None,
            span: (offset, length.min(text.len() - offset)),
            source: Arc::clone(&self.text),
        }))
    }

    fn place(&self, at: &Location) -> Place {
        Place {
            file: self.text.name().to_owned(),
            line: (at.line() as u32).max(1),
            column: (at.column() as u32).max(1),
        }
    }
}

/// Lists and maps within each other.
const MOST_NESTED: usize = 40;

/// What files may come to: fleets of 100,000 guests, but no nesting that a stack would not hold.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 50_000_000,
            max_nodes: 20_000_000,
            max_depth: MOST_NESTED,
        },
        // `yes` is a word; of numbers that are names nothing is lost.
        strict_booleans: true,
        leading_zero_numbers_as_strings: true,
        underscored_numbers_as_strings: true,
    }
}

/// Reads one file as a `T`.
///
/// # Errors
/// The first mistake in it.
pub fn parse<T: DeserializeOwned>(source: &Source) -> Result<T, FileError> {
    read(source, &File::new(source))
}

fn read<T: DeserializeOwned>(source: &Source, file: &File) -> Result<T, FileError> {
    serde_saphyr::from_str_with_options(&source.text, options()).map_err(|error| {
        let text = error.without_snippet().to_string();
        // The place is said once, in front.
        let message = match text.rfind(" at line ") {
            Some(end) => text[..end].to_owned(),
            None => text,
        };
        let mut error = file.error(&error.location().unwrap_or(Location::UNKNOWN), reworded(message));
        error.0.help = meant(&error.0.message);
        error
    })
}

/// The parser's words in an operator's.
fn reworded(message: String) -> String {
    match message.as_str() {
        "expected sequence start" => "expected a list, such as [one, two]".to_owned(),
        "expected mapping start" => "expected a map, such as {name: value}".to_owned(),
        "expected string scalar" => "expected one word or number".to_owned(),
        "invalid u8" => "expected a number from 0 to 255".to_owned(),
        "invalid u32" => "expected a number from 0 to 4294967295".to_owned(),
        "invalid i32" => "expected a number from -2147483648 to 2147483647".to_owned(),
        "invalid boolean (strict mode expects true/false)" => "expected true or false".to_owned(),
        _ if message.starts_with("cannot deserialize null") => {
            "a field without a value: expected one, or no such field".to_owned()
        }
        _ if message == "recursion limit exceeded" || message.starts_with("budget breached: Depth") => {
            format!("nested too deep: expected at most {MOST_NESTED} levels")
        }
        _ => message
            .replace(
                ", set DuplicateKeyPolicy in Options if acceptable",
                ": expected once",
            )
            .replace("unknown variant ", "unknown word "),
    }
}

/// Of ``unknown field `x`, expected one of a, b``: the one that was probably meant.
fn meant(message: &str) -> Option<String> {
    let rest = message.strip_prefix("unknown ")?;
    let (name, expected) = rest.split_once('`')?.1.split_once("`, expected one of ")?;
    nearest(name, expected.split(", ")).map(|near| format!("did you mean \"{near}\"?"))
}

/// Reads policy files; their lists are put together in the files' order.
///
/// # Errors
/// Every mistake that was found.
pub fn load_policy(sources: &[Source]) -> Result<Policy, FileErrors> {
    load_policy_after(&Policy::default(), sources)
}

/// Reads policy files that replace an earlier policy. What is the same host, logical network or key keeps its number; what
/// is no more leaves its number to nobody, so that whoever still holds a number means the same, or nothing, by it.
///
/// # Errors
/// Every mistake that was found.
pub fn load_policy_after(before: &Policy, sources: &[Source]) -> Result<Policy, FileErrors> {
    let mut errors = Vec::new();
    let mut files = Vec::new();
    for source in sources {
        let file = File::new(source);
        match read::<raw::RawPolicy>(source, &file) {
            Ok(policy) => files.push((file, policy)),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() {
        match Resolver::resolve(&files, before) {
            Ok(policy) => return Ok(policy),
            Err(found) => errors = found,
        }
    }
    Err(FileErrors(errors))
}

#[cfg(test)]
mod schema;
#[cfg(test)]
mod tests;
