//! File names for keys that users choose: tags, metadata, aliases.

use std::borrow::Cow;

/// The longest name Linux allows, in bytes.
pub const MAX: usize = 255;

/// The file name for a key: `/`, `%`, NUL and a leading `.` are percent-encoded, all else stays.
/// `None` for a key that cannot be a name: an empty one, or one longer than 255 bytes encoded.
///
/// Different keys have different names.
pub fn encode(key: &str) -> Option<Cow<'_, str>> {
    let plain = !key.starts_with('.') && !key.bytes().any(|byte| matches!(byte, b'/' | b'%' | 0));
    let name = if plain {
        Cow::Borrowed(key)
    } else {
        let mut name = String::with_capacity(key.len() + 8);
        for (at, character) in key.char_indices() {
            match character {
                '/' => name.push_str("%2F"),
                '%' => name.push_str("%25"),
                '\0' => name.push_str("%00"),
                '.' if at == 0 => name.push_str("%2E"),
                other => name.push(other),
            }
        }
        Cow::Owned(name)
    };
    (!name.is_empty() && name.len() <= MAX).then_some(name)
}

/// The key of a file name: the inverse of [`encode`]. Other percent sequences are decoded too, so
/// several names have one key; a broken sequence stands for itself.
pub fn decode(name: &str) -> Cow<'_, str> {
    if !name.contains('%') {
        return Cow::Borrowed(name);
    }
    let bytes = name.as_bytes();
    let mut key = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |index: usize| {
            bytes
                .get(index)
                .and_then(|digit| char::from(*digit).to_digit(16))
        };
        match (bytes[at], hex(at + 1), hex(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                key.push((high * 16 + low) as u8);
                at += 3;
            }
            (byte, ..) => {
                key.push(byte);
                at += 1;
            }
        }
    }
    match String::from_utf8(key) {
        Ok(key) => Cow::Owned(key),
        Err(_) => Cow::Borrowed(name),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_cannot_be_files_are_encoded() {
        assert_eq!(encode("a/b").as_deref(), Some("a%2Fb"));
        assert_eq!(encode("100%").as_deref(), Some("100%25"));
        assert_eq!(encode("..").as_deref(), Some("%2E."));
        assert_eq!(encode("a.b").as_deref(), Some("a.b"));
        assert_eq!(encode(""), None);
        assert_eq!(encode(&"x".repeat(256)), None);
    }

    proptest! {
        #[test]
        fn a_key_comes_back_from_its_name(key in "\\PC*|[./%a2F\0]*") {
            if let Some(name) = encode(&key) {
                prop_assert!(!name.contains('/') && !name.contains('\0') && name != "." && name != "..");
                prop_assert_eq!(decode(&name), key.as_str());
            }
        }
    }
}
