//! A VM object as text: compact JSON, and the same text indented for people.

/// Appends `compact` JSON to `out` as `serde_json` would pretty-print it, two spaces a level,
/// without parsing it: the text is copied and broken after each member.
///
/// `compact` must be what `serde_json` wrote; anything else comes out in an unspecified shape.
pub fn pretty(compact: &str, out: &mut Vec<u8>) {
    let bytes = compact.as_bytes();
    let mut depth = 0;
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let end = end_of_string(bytes, at);
                out.extend_from_slice(&bytes[at..end]);
                at = end;
                continue;
            }
            open @ (b'{' | b'[') => {
                out.push(open);
                if matches!(bytes.get(at + 1), Some(b'}' | b']')) {
                    out.push(bytes[at + 1]);
                    at += 2;
                    continue;
                }
                depth += 1;
                break_line(depth, out);
            }
            close @ (b'}' | b']') => {
                depth -= 1;
                break_line(depth, out);
                out.push(close);
            }
            b',' => {
                out.push(b',');
                break_line(depth, out);
            }
            b':' => out.extend_from_slice(b": "),
            other => out.push(other),
        }
        at += 1;
    }
}

/// How many bytes [`pretty`] appends.
pub fn pretty_len(compact: &str) -> usize {
    let bytes = compact.as_bytes();
    let (mut depth, mut at, mut len) = (0usize, 0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                let end = end_of_string(bytes, at);
                len += end - at;
                at = end;
                continue;
            }
            b'{' | b'[' => {
                if matches!(bytes.get(at + 1), Some(b'}' | b']')) {
                    len += 2;
                    at += 2;
                    continue;
                }
                depth += 1;
                len += 2 + 2 * depth;
            }
            b'}' | b']' => {
                depth -= 1;
                len += 2 + 2 * depth;
            }
            b',' => len += 2 + 2 * depth,
            b':' => len += 2,
            _ => len += 1,
        }
        at += 1;
    }
    len
}

/// The index behind the closing quote of the string that begins at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

fn break_line(depth: usize, out: &mut Vec<u8>) {
    out.push(b'\n');
    out.resize(out.len() + 2 * depth, b' ');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            ".*".prop_map(Value::from),
            "[{}\\[\\],:\"\\\\]*".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((".*", inner), 0..5)
                    .prop_map(|members| Value::Object(members.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_looks_as_serde_prints_it(value in value()) {
            let compact = serde_json::to_string(&value).unwrap();
            let mut out = Vec::new();
            pretty(&compact, &mut out);
            prop_assert_eq!(out.len(), pretty_len(&compact));
            prop_assert_eq!(String::from_utf8(out).unwrap(), serde_json::to_string_pretty(&value).unwrap());
        }
    }
}
