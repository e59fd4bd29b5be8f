//! Tag, type, length, value: how KMIP writes its messages (KMIP 1.4, 9.1).
//!
//! Our own, since what is read here is keys: the message is one piece of memory that is wiped, and items borrow from it.
//! Only the types that the requests of [`super`] need.

/// What an item is called, 24 bits (KMIP 1.4, 9.1.3.1).
pub(super) type Tag = u32;

const STRUCTURE: u8 = 1;
const INTEGER: u8 = 2;
const ENUMERATION: u8 = 5;
const TEXT: u8 = 7;
const BYTES: u8 = 8;

/// Bytes in front of a value: tag, type and length.
pub(super) const HEAD: usize = 8;

/// A message being written.
#[derive(Debug, Default)]
pub(super) struct Writer(Vec<u8>);

impl Writer {
    pub(super) fn structure(&mut self, tag: Tag, inside: impl FnOnce(&mut Self)) -> &mut Self {
        let begin = self.0.len();
        self.head(tag, STRUCTURE, 0);
        inside(self);
        let length = (self.0.len() - begin - HEAD) as u32;
        self.0[begin + 4..begin + HEAD].copy_from_slice(&length.to_be_bytes());
        self
    }

    pub(super) fn integer(&mut self, tag: Tag, value: u32) -> &mut Self {
        self.value(tag, INTEGER, &value.to_be_bytes())
    }

    pub(super) fn enumeration(&mut self, tag: Tag, value: u32) -> &mut Self {
        self.value(tag, ENUMERATION, &value.to_be_bytes())
    }

    pub(super) fn text(&mut self, tag: Tag, value: &str) -> &mut Self {
        self.value(tag, TEXT, value.as_bytes())
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    fn head(&mut self, tag: Tag, kind: u8, length: u32) {
        self.0.extend(&tag.to_be_bytes()[1..]);
        self.0.push(kind);
        self.0.extend(length.to_be_bytes());
    }

    fn value(&mut self, tag: Tag, kind: u8, value: &[u8]) -> &mut Self {
        self.head(tag, kind, value.len() as u32);
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }
}

/// The length of the value behind a head.
pub(super) fn length(head: &[u8; HEAD]) -> usize {
    let [.., a, b, c, d] = *head;
    u32::from_be_bytes([a, b, c, d]) as usize
}

/// The items of a structure, or of a message.
#[derive(Copy, Clone)]
pub(super) struct Items<'a>(&'a [u8]);

/// One item.
#[derive(Copy, Clone)]
struct Item<'a> {
    tag: Tag,
    kind: u8,
    value: &'a [u8],
}

impl<'a> Items<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// One after the other, up to the first that is no item.
    fn iter(self) -> impl Iterator<Item = Item<'a>> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (head, behind) = rest.split_first_chunk::<HEAD>()?;
            let length = length(head);
            let value = behind.get(..length)?;
            rest = behind.get(length.next_multiple_of(8)..).unwrap_or_default();
            let [a, b, c, kind, ..] = *head;
            Some(Item {
                tag: Tag::from_be_bytes([0, a, b, c]),
                kind,
                value,
            })
        })
    }

    fn all(self, tag: Tag, kind: u8) -> impl Iterator<Item = &'a [u8]> {
        self.iter()
            .filter(move |item| item.tag == tag && item.kind == kind)
            .map(|item| item.value)
    }

    /// The structures of a tag.
    pub(super) fn structures(self, tag: Tag) -> impl Iterator<Item = Items<'a>> {
        self.all(tag, STRUCTURE).map(Items)
    }

    /// The first structure of a tag.
    pub(super) fn structure(self, tag: Tag) -> Option<Items<'a>> {
        self.structures(tag).next()
    }

    /// The texts of a tag.
    pub(super) fn texts(self, tag: Tag) -> impl Iterator<Item = &'a str> {
        self.all(tag, TEXT)
            .filter_map(|value| std::str::from_utf8(value).ok())
    }

    /// The first enumeration of a tag.
    pub(super) fn enumeration(self, tag: Tag) -> Option<u32> {
        let value = self.all(tag, ENUMERATION).next()?;
        Some(u32::from_be_bytes(*value.first_chunk()?))
    }

    /// The first byte string of a tag.
    pub(super) fn bytes(self, tag: Tag) -> Option<&'a [u8]> {
        self.all(tag, BYTES).next()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The examples of KMIP 1.4, 9.1.2.
    #[test]
    fn items_are_written_as_published() {
        let mut text = Writer::default();
        text.text(0x42_0020, "Hello World");
        assert_eq!(
            text.into_bytes(),
            [
                0x42, 0x00, 0x20, 7, 0, 0, 0, 0x0b, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x20, 0x57, 0x6f, 0x72,
                0x6c, 0x64, 0, 0, 0, 0, 0
            ]
        );
        let mut structure = Writer::default();
        structure.structure(0x42_0020, |inside| {
            inside.enumeration(0x42_0004, 254).integer(0x42_0005, 255);
        });
        assert_eq!(
            structure.into_bytes(),
            [
                0x42, 0x00, 0x20, 1, 0, 0, 0, 0x20, 0x42, 0x00, 0x04, 5, 0, 0, 0, 4, 0, 0, 0, 0xfe, 0, 0, 0,
                0, 0x42, 0x00, 0x05, 2, 0, 0, 0, 4, 0, 0, 0, 0xff, 0, 0, 0, 0
            ]
        );
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(name in ".{0,40}", number in any::<u32>()) {
            let mut writer = Writer::default();
            writer.structure(1, |inside| {
                inside.integer(2, 7).text(3, &name).text(3, "second").enumeration(4, number);
            });
            let bytes = writer.into_bytes();
            let inside = Items::of(&bytes).structure(1).unwrap();
            prop_assert_eq!(inside.texts(3).collect::<Vec<_>>(), [&*name, "second"]);
            prop_assert_eq!(inside.enumeration(4), Some(number));
            prop_assert_eq!(inside.enumeration(3), None);
        }

        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            fn count(items: Items<'_>) -> usize {
                items.iter().map(|item| 1 + if item.kind == STRUCTURE { count(Items(item.value)) } else { 0 }).sum()
            }
            prop_assert!(count(Items::of(&bytes)) <= bytes.len() / HEAD);
        }
    }
}
