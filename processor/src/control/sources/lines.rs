//! Lines of a stream of bytes, whatever pieces it comes in.

/// Bytes of a line; a longer one is not read.
pub(super) const LONGEST: usize = 64 << 10;
/// Bytes read at once.
pub(super) const CHUNK: usize = 64 << 10;

/// The beginning of a line whose end has not come yet.
#[derive(Debug, Default)]
pub(super) struct Partial {
    rest: Vec<u8>,
    /// Bytes of it that were thrown away, because it is too long.
    skipped: u64,
}

impl Partial {
    /// Takes bytes. Gives each line that becomes whole without its end, nothing for one that is too long, and the bytes that it
    /// and its end took.
    pub(super) fn take(&mut self, bytes: &[u8], mut each: impl FnMut(Option<String>, u64)) {
        self.rest.extend_from_slice(bytes);
        let mut taken = 0;
        while let Some(length) = self.rest[taken..].iter().position(|byte| *byte == b'\n') {
            let line = &self.rest[taken..taken + length];
            taken += length + 1;
            let skipped = std::mem::take(&mut self.skipped);
            let whole = skipped == 0 && length <= LONGEST;
            let text = whole.then(|| String::from_utf8_lossy(line).into_owned());
            each(text, skipped + length as u64 + 1);
        }
        self.rest.drain(..taken);
        if self.rest.len() > LONGEST {
            self.skipped += self.rest.len() as u64;
            self.rest.clear();
        }
    }

    /// Forgets what has come of the line.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Bytes that are kept.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.rest.len()
    }
}
