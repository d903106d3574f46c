//! Response bodies in pieces of bounded size: lines of a watch, items of a list.
//!
//! A list of 30,000 objects may come as one response of 60 MB, because API servers ignore `limit` for cached reads.
//! Its items are cut out as the bytes arrive, so no more than one item is held.

/// The longest line or item that is looked at. etcd refuses objects far smaller (1.5 MiB unless configured otherwise),
/// so what is longer is broken or hostile; it is skipped without being held.
pub(super) const LONGEST: usize = 32 << 20;

/// What a list says besides its items is a few hundred bytes; more is cut off and then no valid JSON.
const LONGEST_ENVELOPE: usize = 1 << 20;

/// Cuts a body into lines.
#[derive(Debug, Default)]
pub(super) struct Lines {
    buffer: Vec<u8>,
    /// Bytes of `buffer` known to hold no line end.
    searched: usize,
    /// In the middle of a line that is too long.
    skipping: bool,
}

/// One line, or the place where one was left out.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line {
    Text(Vec<u8>),
    TooLong,
}

impl Lines {
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether everything fed so far has come out as whole lines.
    pub(super) fn is_empty(&self) -> bool {
        self.buffer.is_empty() && !self.skipping
    }

    /// The next whole line without its end; empty lines are left out.
    pub(super) fn next(&mut self) -> Option<Line> {
        loop {
            let rest = self.buffer.get(self.searched..).unwrap_or_default();
            let Some(found) = memchr::memchr(b'\n', rest) else {
                self.searched = self.buffer.len();
                if self.searched > LONGEST {
                    self.skipping = true;
                    self.buffer = Vec::new();
                    self.searched = 0;
                }
                return None;
            };
            let tail = self.buffer.split_off(self.searched + found + 1);
            let mut line = std::mem::replace(&mut self.buffer, tail);
            line.pop();
            self.searched = 0;
            if std::mem::take(&mut self.skipping) {
                return Some(Line::TooLong);
            }
            if !line.is_empty() {
                return Some(Line::Text(line));
            }
        }
    }
}

/// Cuts the items out of a list response (`{"metadata": {...}, "items": [{...}, ...]}`).
///
/// It follows braces and strings only. Whether an item is valid JSON is for its reader to find out; whether the rest is,
/// shows when [`Items::envelope`] is parsed: it is the response with its items taken out.
#[derive(Debug, Default)]
pub(super) struct Items {
    envelope: Vec<u8>,
    item: Vec<u8>,
    depth: u32,
    string: Option<StringState>,
    /// The last string at depth 1: a key or a value. Followed by `[` it can only have been a key.
    last: Vec<u8>,
    in_items: bool,
    too_long: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StringState {
    Plain,
    Escaped,
}

impl Items {
    /// Takes bytes in; calls `found` for every item that they complete.
    pub(super) fn feed(&mut self, bytes: &[u8], mut found: impl FnMut(Line)) {
        for byte in bytes {
            if self.keep(*byte) {
                let item = std::mem::take(&mut self.item);
                let too_long = std::mem::take(&mut self.too_long);
                found(if too_long { Line::TooLong } else { Line::Text(item) });
            }
        }
    }

    /// Whether the response broke off in the middle.
    pub(super) fn is_cut(&self) -> bool {
        self.depth > 0 || self.string.is_some()
    }

    /// The response without its items.
    pub(super) fn envelope(&self) -> &[u8] {
        &self.envelope
    }

    /// Takes one byte in; whether it completes an item.
    fn keep(&mut self, byte: u8) -> bool {
        let was_item = self.in_items && self.depth > 2;
        self.advance(byte);
        let is_item = self.in_items && self.depth > 2;
        if !(was_item || is_item) {
            // Between the items there are only commas and white space.
            let between = self.in_items && byte != b'[';
            if !between && self.envelope.len() < LONGEST_ENVELOPE {
                self.envelope.push(byte);
            }
            return false;
        }
        if self.item.len() < LONGEST {
            self.item.push(byte);
        } else {
            self.too_long = true;
        }
        !is_item
    }

    fn advance(&mut self, byte: u8) {
        match (self.string, byte) {
            (Some(StringState::Escaped), _) => self.string = Some(StringState::Plain),
            (Some(StringState::Plain), b'\\') => self.string = Some(StringState::Escaped),
            (Some(StringState::Plain), b'"') => self.string = None,
            (Some(StringState::Plain), _) => {
                if self.depth == 1 && self.last.len() < 64 {
                    self.last.push(byte);
                }
            }
            (None, b'"') => {
                self.string = Some(StringState::Plain);
                if self.depth == 1 {
                    self.last.clear();
                }
            }
            (None, b'{' | b'[') => {
                self.in_items |= byte == b'[' && self.depth == 1 && self.last == b"items";
                self.depth = self.depth.saturating_add(1);
            }
            (None, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                self.in_items &= self.depth > 1;
            }
            (None, _) => (),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_are_cut_wherever_the_pieces_end() {
        let mut lines = Lines::default();
        lines.feed(b"{\"a\":1}\n\n{\"b\"");
        assert_eq!(lines.next(), Some(Line::Text(b"{\"a\":1}".to_vec())));
        assert_eq!(lines.next(), None);
        lines.feed(b":2}\nrest");
        assert_eq!(lines.next(), Some(Line::Text(b"{\"b\":2}".to_vec())));
        assert_eq!(lines.next(), None);
    }

    #[test]
    fn a_line_beyond_all_measure_is_skipped_without_being_held() {
        let mut lines = Lines::default();
        for _ in 0..40 {
            lines.feed(&vec![b'x'; 1 << 20]);
            assert_eq!(lines.next(), None);
            assert!(lines.buffer.len() <= LONGEST);
        }
        lines.feed(b"\n{}\n");
        assert_eq!(lines.next(), Some(Line::TooLong));
        assert_eq!(lines.next(), Some(Line::Text(b"{}".to_vec())));
    }

    #[test]
    fn items_are_cut_out_of_their_list() {
        check(
            r#"{"kind":"L","metadata":{"items":[1],"x":"\"]}"},"items":[{"a":"}"},{"b":[{}]} , {}],"z":[{}]}"#,
            &[r#"{"a":"}"}"#, r#"{"b":[{}]}"#, "{}"],
            r#"{"kind":"L","metadata":{"items":[1],"x":"\"]}"},"items":[],"z":[{}]}"#,
        );
    }

    #[test]
    fn a_list_may_be_empty_or_null() {
        check(r#"{"items":[]}"#, &[], r#"{"items":[]}"#);
        check(r#"{"items":null}"#, &[], r#"{"items":null}"#);
        check(r#"{"kind":"items","more":[{}]}"#, &[], r#"{"kind":"items","more":[{}]}"#);
    }

    #[track_caller]
    fn check(list: &str, items: &[&str], envelope: &str) {
        for size in [1, 2, 7, list.len()] {
            let mut scanner = Items::default();
            let mut found = Vec::new();
            for piece in list.as_bytes().chunks(size) {
                scanner.feed(piece, |item| found.push(item));
            }
            let expected: Vec<Line> =
                items.iter().map(|it| Line::Text(it.as_bytes().to_vec())).collect();
            assert_eq!(found, expected, "in pieces of {size}");
            assert_eq!(str::from_utf8(scanner.envelope()).unwrap(), envelope);
        }
    }

    proptest! {
        /// Whatever the items hold, they come out as they went in.
        #[test]
        fn any_items_come_out_whole(texts in proptest::collection::vec(".{0,20}", 0..8), size in 1..50_usize) {
            let items: Vec<serde_json::Value> = texts
                .iter()
                .map(|it| serde_json::json!({ it: [it, { "items": [it] }] }))
                .collect();
            let list = serde_json::json!({ "metadata": { "name": texts }, "items": items }).to_string();
            let mut scanner = Items::default();
            let mut found: Vec<serde_json::Value> = Vec::new();
            for piece in list.as_bytes().chunks(size) {
                scanner.feed(piece, |item| match item {
                    Line::Text(text) => found.push(serde_json::from_slice(&text).unwrap()),
                    Line::TooLong => unreachable!(),
                });
            }
            prop_assert_eq!(found, items);
            let envelope: serde_json::Value = serde_json::from_slice(scanner.envelope()).unwrap();
            prop_assert_eq!(&envelope["items"], &serde_json::json!([]));
            prop_assert_eq!(&envelope["metadata"]["name"], &serde_json::json!(texts));
        }
    }
}
