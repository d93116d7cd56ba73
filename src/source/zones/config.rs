//! The small files beside a zone: its metadata, tags and routes, how it ended, and the host's
//! `.sysinfo.json`. Only what their bytes mean; reading them is [`super::load`]'s.

use serde_json::{Map, Value};

use super::units;
use crate::vm::Object;

/// How many objects and arrays may be within each other, the file's own counted.
const NESTED: usize = 32;

/// What is wrong with a file that should hold a JSON object. The text goes after its name.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Nothing is in it: a file that is being rewritten, or was cut by a full disk.
    #[error("empty, where a JSON object belongs")]
    Empty,
    /// It ends too early, or is something else.
    #[error("not JSON: {0}")]
    Syntax(#[from] serde_json::Error),
    /// It is JSON of another type.
    #[error("not a JSON object")]
    NotAnObject,
    /// Lists in lists in lists: `vm.json` indents each line of it, so it would show far more than
    /// was read.
    #[error("nested deeper than {NESTED} levels")]
    Nested,
    /// A member is of another type than it should be.
    #[error("{member} is not {expected}")]
    Member {
        /// The member's name.
        member: String,
        /// What belongs there, with its article.
        expected: &'static str,
    },
}

/// The object that a file holds: `tags.json` and `routes.json` are no more than that.
///
/// # Errors
/// When the bytes are no JSON, not an object, or nested too deeply.
pub fn object(bytes: &[u8]) -> Result<Object, JsonError> {
    if bytes.trim_ascii().is_empty() {
        return Err(JsonError::Empty);
    }
    match serde_json::from_slice(bytes)? {
        value if levels(&value) > NESTED => Err(JsonError::Nested),
        Value::Object(object) => Ok(object),
        _ => Err(JsonError::NotAnObject),
    }
}

/// How many objects and arrays are within each other; the parser has bounded them.
fn levels(value: &Value) -> usize {
    let deepest = match value {
        Value::Object(members) => members.values().map(levels).max(),
        Value::Array(elements) => elements.iter().map(levels).max(),
        _ => return 0,
    };
    1 + deepest.unwrap_or(0)
}

/// The two maps of `metadata.json`; each is empty where the file has none.
#[derive(Debug, Default, PartialEq)]
pub struct Metadata {
    /// What the customer set.
    pub customer: Object,
    /// What the operator set.
    pub internal: Object,
}

/// Reads `metadata.json`.
///
/// # Errors
/// When it is no JSON object, or one of its maps is none.
pub fn metadata(bytes: &[u8]) -> Result<Metadata, JsonError> {
    let mut file = object(bytes)?;
    Ok(Metadata {
        customer: map(&mut file, "customer_metadata")?,
        internal: map(&mut file, "internal_metadata")?,
    })
}

fn map(file: &mut Object, member: &str) -> Result<Object, JsonError> {
    match file.remove(member) {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(_) => Err(JsonError::Member {
            member: member.to_owned(),
            expected: "an object",
        }),
    }
}

/// How the last run of a zone ended.
#[derive(Debug, PartialEq, Eq)]
pub struct Exit {
    /// As a shell would say it; killed by a signal, the signal's number below zero.
    pub status: i64,
    /// When, as ISO 8601.
    pub timestamp: String,
}

/// `lastexited` holds something else than `epoch status`.
#[derive(Debug, thiserror::Error)]
#[error("does not hold two numbers: seconds since the epoch, and a wait status")]
pub struct NotAnExit;

/// Reads `lastexited`: the seconds, which may have a fraction, and what wait(2) reported.
///
/// # Errors
/// When that is not what the bytes hold.
pub fn last_exit(bytes: &[u8]) -> Result<Exit, NotAnExit> {
    let text = std::str::from_utf8(bytes).map_err(|_| NotAnExit)?;
    let mut words = text.split_whitespace();
    let (Some(seconds), Some(status), None) = (words.next(), words.next(), words.next()) else {
        return Err(NotAnExit);
    };
    let status = status.parse().map_err(|_| NotAnExit)?;
    Ok(Exit {
        status: exit_status(status),
        timestamp: millis(seconds)
            .and_then(units::iso_millis)
            .ok_or(NotAnExit)?,
    })
}

/// What a wait status says, in one number.
fn exit_status(wait_status: i64) -> i64 {
    match wait_status {
        -1 => 0,
        status if status & 0xff == 0 => status >> 8,
        status => -(status & 0xff),
    }
}

/// `1523467148.07` as milliseconds. Not by way of a float, which would round the last digits.
fn millis(seconds: &str) -> Option<u64> {
    let (whole, fraction) = seconds.split_once('.').unwrap_or((seconds, "0"));
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths = fraction
        .bytes()
        .chain(*b"00")
        .take(3)
        .fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    let whole: u64 = whole.parse().ok()?;
    whole.checked_mul(1000)?.checked_add(thousandths)
}

/// The host's members of every VM, from `.sysinfo.json`.
///
/// # Errors
/// When the bytes are no JSON object.
pub fn sysinfo(bytes: &[u8]) -> Result<Object, JsonError> {
    let mut file = object(bytes)?;
    let mut members = Object::new();
    for (property, name) in [
        ("server_uuid", "UUID"),
        ("datacenter_name", "Datacenter Name"),
        ("platform_buildstamp", "Live Image"),
        ("headnode_id", "Headnode ID"),
    ] {
        if let Some(value @ Value::String(_)) = file.remove(name) {
            members.insert(property.to_owned(), value);
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn metadata_has_two_maps_that_may_be_missing() {
        let both = metadata(br#"{"customer_metadata":{"a":"1"},"internal_metadata":{"b":2}}"#);
        let both = both.unwrap();
        assert_eq!(Value::Object(both.customer), json!({"a": "1"}));
        assert_eq!(Value::Object(both.internal), json!({"b": 2}));
        assert_eq!(metadata(b"{}").unwrap(), Metadata::default());
    }

    #[test]
    fn a_map_that_is_no_object_is_named() {
        let error = metadata(br#"{"customer_metadata":[]}"#).unwrap_err();
        assert_eq!(error.to_string(), "customer_metadata is not an object");
    }

    #[test]
    fn values_of_tags_are_kept_as_they_are() {
        let tags = br#"{"role":"web","n":1.5,"on":true,"odd":{"a":[null]}}"#;
        let expected = json!({"role": "web", "n": 1.5, "on": true, "odd": {"a": [null]}});
        assert_eq!(Value::Object(object(tags).unwrap()), expected);
    }

    #[test]
    fn bad_json_is_refused_with_its_position() {
        let message = |bytes| object(bytes).unwrap_err().to_string();
        assert_eq!(message(b""), "empty, where a JSON object belongs");
        assert_eq!(message(b"[]"), "not a JSON object");
        assert_eq!(
            message(b"{\n \"a\":"),
            "not JSON: EOF while parsing a value at line 2 column 5"
        );
        assert!(message(b"\x7fELF").starts_with("not JSON: "));
        assert!(message("[".repeat(100_000).as_bytes()).starts_with("not JSON: recursion limit"));
    }

    #[test]
    fn json_that_is_nested_too_deeply_is_refused() {
        let nested = |levels: usize| {
            let (open, close) = ("[".repeat(levels - 1), "]".repeat(levels - 1));
            object(format!("{{\"a\":{open}{close}}}").as_bytes())
        };
        assert!(nested(32).is_ok());
        let message = nested(33).unwrap_err().to_string();
        assert_eq!(message, "nested deeper than 32 levels");
    }

    #[test]
    fn a_wait_status_becomes_what_a_shell_would_say() {
        for (raw, status) in [
            (-1, 0),
            (0, 0),
            (256, 1),
            (0x7f00, 127),
            (9, -9),
            (134, -134),
        ] {
            assert_eq!(exit_status(raw), status, "{raw}");
        }
    }

    #[test]
    fn lastexited_gives_status_and_time() {
        let exit = last_exit(b"1523467256 256\n").unwrap();
        assert_eq!(exit.status, 1);
        assert_eq!(exit.timestamp, "2018-04-11T17:20:56.000Z");
        let exit = last_exit(b"1523467256.070999 15").unwrap();
        assert_eq!(exit.status, -15);
        assert_eq!(exit.timestamp, "2018-04-11T17:20:56.070Z");
    }

    #[test]
    fn a_lastexited_that_is_something_else_is_refused() {
        for bytes in [
            "",
            "1523467256",
            "a b",
            "1 2 3",
            "1. 0",
            "-5 0",
            "99999999999999 0",
        ] {
            assert!(last_exit(bytes.as_bytes()).is_err(), "{bytes}");
        }
    }

    #[test]
    fn sysinfo_gives_the_members_of_the_host() {
        let file = br#"{"UUID":"u","Datacenter Name":"dc","Live Image":"2026","Boot Time":"1"}"#;
        assert_eq!(
            Value::Object(sysinfo(file).unwrap()),
            json!({"server_uuid": "u", "datacenter_name": "dc", "platform_buildstamp": "2026"})
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = object(&bytes);
            let _ = metadata(&bytes);
            let _ = last_exit(&bytes);
            let _ = sysinfo(&bytes);
        }

        #[test]
        fn no_two_words_make_lastexited_panic(text in "-?[0-9]{0,20}(\\.[0-9]{0,5})? -?[0-9]{1,20}") {
            let _ = last_exit(text.as_bytes());
        }
    }
}
