//! Netlink framing: messages and attributes, written and read.
//!
//! Reading never fails and never panics: what is cut off or has an impossible length ends the sequence, and whoever
//! needs an attribute that did not come says so.

/// Length of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;

pub(crate) const NLM_F_REQUEST: u16 = 0x01;
pub(crate) const NLM_F_ACK: u16 = 0x04;
/// In an answer: something changed while the dump ran.
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;

pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;

/// Set in the type of an attribute that contains attributes.
const NLA_F_NESTED: u16 = 0x8000;
/// Both flag bits of an attribute's type.
const NLA_FLAGS: u16 = 0xc000;

/// The most bytes an attribute can have, its own header included.
pub(crate) const ATTRIBUTE_MAX: usize = 65_535;

/// Bytes of messages under construction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// With room for so many bytes.
    pub(crate) fn with_capacity(bytes: usize) -> Writer {
        Writer { bytes: Vec::with_capacity(bytes) }
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes a message whose payload `fill` writes.
    pub(crate) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        seq: u32,
        fill: impl FnOnce(&mut Writer),
    ) {
        let start = self.begin_message(kind, flags, seq);
        fill(self);
        self.end_message(start);
    }

    /// Begins a message; its length is filled in by [`Writer::end_message`].
    pub(crate) fn begin_message(&mut self, kind: u16, flags: u16, seq: u32) -> usize {
        let start = self.bytes.len();
        self.raw(&0u32.to_ne_bytes());
        self.raw(&kind.to_ne_bytes());
        self.raw(&flags.to_ne_bytes());
        self.raw(&seq.to_ne_bytes());
        self.raw(&0u32.to_ne_bytes());
        start
    }

    pub(crate) fn end_message(&mut self, start: usize) {
        self.pad();
        let length = u32::try_from(self.bytes.len() - start).expect("a message is below 4 GiB");
        self.patch(start, &length.to_ne_bytes());
    }

    /// Adds flags to the message that begins at `start`.
    pub(crate) fn add_flags(&mut self, start: usize, flags: u16) {
        let at = start + 6;
        let old = self.bytes.get(at..at + 2).and_then(|it| it.try_into().ok());
        let old = u16::from_ne_bytes(old.unwrap_or_default());
        self.patch(at, &(old | flags).to_ne_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.begin_attribute(kind);
        self.raw(value);
        self.end_attribute(start);
    }

    /// A string with the NUL that the kernel's `NLA_STRING` of nf_tables and nft expect.
    pub(crate) fn string(&mut self, kind: u16, value: &str) {
        let start = self.begin_attribute(kind);
        self.raw(value.as_bytes());
        self.raw(&[0]);
        self.end_attribute(start);
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// Writes an attribute that contains what `fill` writes.
    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Writer)) {
        let start = self.begin_nest(kind);
        fill(self);
        self.end_attribute(start);
    }

    pub(crate) fn begin_nest(&mut self, kind: u16) -> usize {
        self.begin_attribute(kind | NLA_F_NESTED)
    }

    fn begin_attribute(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.raw(&0u16.to_ne_bytes());
        self.raw(&kind.to_ne_bytes());
        start
    }

    pub(crate) fn end_attribute(&mut self, start: usize) {
        let length = u16::try_from(self.bytes.len() - start)
            .expect("lists of elements are cut to fit, every other attribute is short");
        self.patch(start, &length.to_ne_bytes());
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        if let Some(place) = self.bytes.get_mut(at..at + value.len()) {
            place.copy_from_slice(value);
        }
    }
}

/// One message of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) seq: u32,
    pub(crate) payload: &'a [u8],
}

/// The messages of a datagram.
#[derive(Clone, Debug)]
pub(crate) struct Messages<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = usize::try_from(ne32(self.0.get(0..4)?)?).ok()?;
        let message = Message {
            kind: ne16(self.0.get(4..6)?)?,
            flags: ne16(self.0.get(6..8)?)?,
            seq: ne32(self.0.get(8..12)?)?,
            payload: self.0.get(HEADER..length)?,
        };
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

/// Attributes as (type without flag bits, value).
#[derive(Clone, Debug)]
pub(crate) struct Attributes<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<(u16, &'a [u8])> {
        let length = usize::from(ne16(self.0.get(0..2)?)?);
        let kind = ne16(self.0.get(2..4)?)? & !NLA_FLAGS;
        let value = self.0.get(4..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    }
}

/// The first attribute of that type.
pub(crate) fn find(attributes: &[u8], kind: u16) -> Option<&[u8]> {
    Attributes(attributes).find(|(it, _)| *it == kind).map(|(_, value)| value)
}

pub(crate) fn find_be32(attributes: &[u8], kind: u16) -> Option<u32> {
    find(attributes, kind).and_then(be32)
}

pub(crate) fn find_string(attributes: &[u8], kind: u16) -> Option<&str> {
    find(attributes, kind).and_then(string)
}

pub(crate) fn be16(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.try_into().ok()?))
}

pub(crate) fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.try_into().ok()?))
}

pub(crate) fn be64(value: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(value.try_into().ok()?))
}

pub(crate) fn ne16(value: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(value.try_into().ok()?))
}

pub(crate) fn ne32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// A string up to its NUL, if it has one.
pub(crate) fn string(value: &[u8]) -> Option<&str> {
    let text = value.split(|byte| *byte == 0).next()?;
    std::str::from_utf8(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_padded_but_not_their_length() {
        let mut writer = Writer::default();
        writer.nest(7, |writer| writer.string(1, "ab"));
        assert_eq!(writer.into_bytes(), [12, 0, 7, 0x80, 7, 0, 1, 0, b'a', b'b', 0, 0]);
    }

    #[test]
    fn a_cut_off_message_is_no_message() {
        let mut writer = Writer::default();
        writer.message(9, NLM_F_REQUEST, 3, |writer| writer.be32(1, 5));
        let bytes = writer.into_bytes();
        assert_eq!(Messages(&bytes).count(), 1);
        assert_eq!(Messages(&bytes[..bytes.len() - 1]).count(), 0);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(values in prop::collection::vec((0u16..0x4000, prop::collection::vec(any::<u8>(), 0..20)), 0..8)) {
            let mut writer = Writer::default();
            writer.message(3, 5, 7, |writer| values.iter().for_each(|(kind, value)| writer.bytes(*kind, value)));
            let bytes = writer.into_bytes();
            let messages: Vec<Message<'_>> = Messages(&bytes).collect();
            prop_assert_eq!(messages.len(), 1);
            prop_assert_eq!((messages[0].kind, messages[0].flags, messages[0].seq), (3, 5, 7));
            let read: Vec<(u16, Vec<u8>)> =
                Attributes(messages[0].payload).map(|(kind, value)| (kind, value.to_vec())).collect();
            prop_assert_eq!(read, values);
        }

        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(Messages(&bytes).count() <= bytes.len() / HEADER);
            prop_assert!(Attributes(&bytes).count() <= bytes.len() / 4);
        }
    }
}
