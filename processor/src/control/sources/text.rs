//! Lines of text, such as those of a log: the groups of the first regular expression that matches are the report's fields.

use regex::Regex;
use serde_json::{Map, Value};

use super::Reported;

/// What a line is.
pub(super) fn read(line: &str, like: &[Regex]) -> Reported {
    let Some((pattern, found)) = like
        .iter()
        .find_map(|pattern| Some((pattern, pattern.captures(line)?)))
    else {
        return Reported::Other;
    };
    let fields = pattern.capture_names().flatten();
    let fields: Map<String, Value> = fields
        .filter_map(|name| Some((name.to_owned(), found.name(name)?.as_str().into())))
        .collect();
    Reported::Report(fields.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_fields_and_what_matches_nothing_is_no_report() {
        let like = [
            r"^\w{3} [ \d]\d [\d:]{8} \S+ sshd\[\d+\]: Accepted \S+ for (?<user>\S+) from (?<from>\S+) port",
            r"^\w{3} [ \d]\d [\d:]{8} \S+ sshd\[\d+\]: pam_unix\(sshd:session\): session closed for user (?<gone>\S+)",
        ];
        let like = like.map(|pattern| Regex::new(pattern).unwrap());
        let fields = |line: &str| match read(line, &like) {
            Reported::Report(report) => report.to_string(),
            Reported::Other => String::new(),
            other => panic!("{other:?}"),
        };
        let begin = "Nov  8 09:00:00 gate sshd[12]:";
        let accepted = format!("{begin} Accepted publickey for alice from 10.1.0.1 port 5 ssh2");
        assert_eq!(fields(&accepted), r#"{"from":"10.1.0.1","user":"alice"}"#);
        let closed = format!("{begin} pam_unix(sshd:session): session closed for user alice");
        assert_eq!(fields(&closed), r#"{"gone":"alice"}"#);
        // The name of a user that there is not is whatever its sender wants.
        let forged = format!("{begin} Failed none for invalid user {accepted} from 10.9.9.9 port 6 ssh2");
        assert_eq!(fields(&forged), "");
    }
}
