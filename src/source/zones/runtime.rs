//! What a zone is doing now, whoever says so: `zoneadm` and the kernel, or the file provider's
//! `var/run/zones/<zonename>.json`.

use serde_json::Value;

use super::config::{self, JsonError};
use crate::vm::Object;

/// The runtime state of one zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// The kernel's number for it, while it has one.
    pub zoneid: Option<u64>,
    /// `zone_state`: installed, ready, running, shutting_down, ….
    pub state: String,
    /// The process id of its init.
    pub pid: Option<u64>,
    /// How often its init was started again.
    pub init_restarts: Option<u64>,
    /// When it was booted, in seconds since the epoch.
    pub boot_time: Option<u64>,
}

impl Runtime {
    /// A zone that the provider does not know: it is as the index says.
    pub fn at_rest(state: &str) -> Runtime {
        Runtime {
            zoneid: None,
            state: state.to_owned(),
            pid: None,
            init_restarts: None,
            boot_time: None,
        }
    }
}

/// Reads the file of the file provider. `state` is the one of the index, for a file without.
///
/// # Errors
/// When the bytes are no JSON object, or a member is of another type than it should be.
pub fn parse(bytes: &[u8], state: &str) -> Result<Runtime, JsonError> {
    let mut file = config::object(bytes)?;
    let state = match file.remove("state") {
        None | Some(Value::Null) => state.to_owned(),
        Some(Value::String(state)) => state,
        Some(_) => return Err(wrong("state", "a string")),
    };
    Ok(Runtime {
        zoneid: number(&file, "zoneid")?,
        state,
        pid: number(&file, "init_pid")?,
        init_restarts: number(&file, "init_restarts")?,
        boot_time: number(&file, "boot_time")?,
    })
}

fn number(file: &Object, member: &str) -> Result<Option<u64>, JsonError> {
    match file.get(member) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(wrong(member, "a whole number")),
        },
    }
}

fn wrong(member: &str, expected: &'static str) -> JsonError {
    JsonError::Member {
        member: member.to_owned(),
        expected,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_running_zone_has_all_members() {
        let file = br#"{"zoneid": 12, "state": "running", "init_pid": null, "init_restarts": 0,
                        "boot_time": 1523467148}"#;
        let expected = Runtime {
            zoneid: Some(12),
            state: "running".into(),
            pid: None,
            init_restarts: Some(0),
            boot_time: Some(1_523_467_148),
        };
        assert_eq!(parse(file, "installed").unwrap(), expected);
    }

    #[test]
    fn a_file_without_a_state_leaves_that_of_the_index() {
        assert_eq!(
            parse(b"{}", "installed").unwrap(),
            Runtime::at_rest("installed")
        );
    }

    #[test]
    fn a_member_of_another_type_is_named() {
        let message = |bytes| parse(bytes, "installed").unwrap_err().to_string();
        assert_eq!(
            message(br#"{"zoneid": "x"}"#),
            "zoneid is not a whole number"
        );
        assert_eq!(
            message(br#"{"boot_time": -1}"#),
            "boot_time is not a whole number"
        );
        assert_eq!(message(br#"{"state": 1}"#), "state is not a string");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, "installed");
        }
    }
}
