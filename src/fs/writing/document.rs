//! Finds the end of a JSON object that arrives in pieces, in one pass over its bytes.
//!
//! It looks at brackets and strings only: what it calls complete may still be no JSON, which is
//! for the parser to say. An object that the parser accepts is complete at its last byte and
//! not before.

/// How deep an object may be nested: as deep as the parser goes.
const DEPTH: u32 = 127;

/// How far an object has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Extent {
    /// Nothing but white space.
    #[default]
    Empty,
    /// Its end has not come.
    Open,
    /// It has ended; only white space followed.
    Complete,
    /// It cannot become an object any more.
    Wrong,
}

/// Where the scanner is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Outside,
    String,
    /// Behind a backslash.
    Escape,
}

/// Looks for the end of one object.
#[derive(Clone, Debug, Default)]
pub struct Scanner {
    extent: Extent,
    at: At,
    depth: u32,
    /// A bit for each open bracket, the innermost lowest: set for `[`.
    lists: u128,
}

impl Scanner {
    /// How far the object has come with what was fed.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// Takes the next bytes.
    pub fn feed(&mut self, bytes: &[u8]) -> Extent {
        for byte in bytes {
            self.take(*byte);
        }
        self.extent
    }

    fn take(&mut self, byte: u8) {
        let blank = matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
        match self.extent {
            Extent::Wrong => {}
            Extent::Empty | Extent::Complete if blank => {}
            Extent::Empty if byte == b'{' => {
                self.extent = Extent::Open;
                self.depth = 1;
            }
            Extent::Empty | Extent::Complete => self.extent = Extent::Wrong,
            Extent::Open => self.take_inside(byte),
        }
    }

    fn take_inside(&mut self, byte: u8) {
        match (self.at, byte) {
            (At::Escape, _) => self.at = At::String,
            (At::String, b'\\') => self.at = At::Escape,
            (At::String, b'"') => self.at = At::Outside,
            (At::String, _) => {}
            (At::Outside, b'"') => self.at = At::String,
            (At::Outside, b'{' | b'[') if self.depth == DEPTH => self.extent = Extent::Wrong,
            (At::Outside, b'{' | b'[') => {
                self.depth += 1;
                self.lists = self.lists << 1 | u128::from(byte == b'[');
            }
            (At::Outside, b'}' | b']') => {
                if (self.lists & 1 == 1) != (byte == b']') {
                    self.extent = Extent::Wrong;
                    return;
                }
                self.lists >>= 1;
                self.depth -= 1;
                if self.depth == 0 {
                    self.extent = Extent::Complete;
                }
            }
            (At::Outside, _) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value};

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<i32>().prop_map(Value::from),
            "[a{}\\[\\]\"\\\\,:\u{1}é ]{0,6}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a\"\\\\{}]{0,3}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    fn object() -> impl Strategy<Value = Map<String, Value>> {
        prop::collection::btree_map("[a\"\\\\{}]{0,3}", value(), 0..4)
            .prop_map(|map| map.into_iter().collect())
    }

    /// Where the parser finds the first whole object, and whether only white space follows.
    fn model(text: &str) -> Option<usize> {
        (0..=text.len())
            .filter(|end| text.is_char_boundary(*end))
            .find(|end| serde_json::from_str::<Map<String, Value>>(&text[..*end]).is_ok())
    }

    proptest! {
        #[test]
        fn an_object_is_complete_at_its_last_byte_however_it_is_cut(
            object in object(),
            indented in any::<bool>(),
            before in "[ \n\t\r]{0,3}",
            after in "[ \n\t\r]{0,3}",
            cut in 1usize..9,
        ) {
            let text = if indented {
                serde_json::to_string_pretty(&object).unwrap()
            } else {
                serde_json::to_string(&object).unwrap()
            };
            let text = before.clone() + &text;
            let mut scanner = Scanner::default();
            let (last, rest) = text.as_bytes().split_last().unwrap();
            for piece in rest.chunks(cut) {
                prop_assert!(matches!(scanner.feed(piece), Extent::Empty | Extent::Open));
            }
            prop_assert_eq!(scanner.feed(&[*last]), Extent::Complete);
            prop_assert_eq!(scanner.feed(after.as_bytes()), Extent::Complete);
            prop_assert_eq!(scanner.feed(b"{"), Extent::Wrong);
        }

        #[test]
        fn what_the_parser_accepts_ends_where_the_scanner_says(text in "\\{[{}\\[\\]\"\\\\a1:, ]{0,12}") {
            if let Some(end) = model(&text) {
                let mut scanner = Scanner::default();
                prop_assert_eq!(scanner.feed(&text.as_bytes()[..end - 1]), Extent::Open);
                prop_assert_eq!(scanner.feed(&text.as_bytes()[end - 1..end]), Extent::Complete);
            }
        }
    }

    #[test]
    fn what_is_no_object_is_wrong_at_once() {
        for text in ["20", "[1]", "\"x\"", "{]", "{\"a\":[}", "{} x", "null"] {
            assert_eq!(
                Scanner::default().feed(text.as_bytes()),
                Extent::Wrong,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_nested_too_deeply_for_the_parser_is_wrong() {
        let nested = |depth: usize| {
            format!(
                "{{\"a\":{}1{}}}",
                "[".repeat(depth - 1),
                "]".repeat(depth - 1)
            )
        };
        let (fits, too_deep) = (nested(DEPTH as usize), nested(DEPTH as usize + 1));
        assert!(serde_json::from_str::<Value>(&fits).is_ok());
        assert_eq!(Scanner::default().feed(fits.as_bytes()), Extent::Complete);
        assert!(serde_json::from_str::<Value>(&too_deep).is_err());
        assert_eq!(Scanner::default().feed(too_deep.as_bytes()), Extent::Wrong);
    }
}
