//! Payloads as users give them: a file, standard input, or words like `quota=20`.
//!
//! What a payload may hold is not decided here. Only the kind of a property decides what its word
//! becomes, since `alias=1` is meant as text and `quota=1` as a number.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;

use crate::vm::Object;
use crate::vm::property::{Kind, property};

/// Where standard input can be read as a file; names it in messages.
const STDIN: &str = "/dev/stdin";

/// Where a payload comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// A file.
    File(PathBuf),
    /// Standard input.
    Stdin,
}

/// One `property=value` of a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    name: String,
    text: String,
}

/// A word that assigns nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} sets nothing; write property=value")]
pub struct NoAssignment(String);

/// Why there is no payload. The words are those of SmartOS's tool.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// There is no such file.
    #[error("File: {} does not exist.", .0.display())]
    Missing(PathBuf),
    /// It cannot be read.
    #[error("Error reading: {} {error}", file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// It is not a JSON object.
    #[error("Invalid JSON payload: {0}")]
    NotJson(#[from] serde_json::Error),
}

impl Input {
    /// What the option `-f` means, a `-` or nothing being standard input.
    pub fn new(file: Option<PathBuf>) -> Input {
        match file {
            Some(file) if file != Path::new("-") => Input::File(file),
            _ => Input::Stdin,
        }
    }

    /// Reads it to its end.
    ///
    /// # Errors
    /// When it cannot be read, or is not a JSON object.
    pub fn payload(&self) -> Result<Object, InputError> {
        let (file, bytes) = match self {
            Input::File(file) => (file.as_path(), fs::read(file)),
            Input::Stdin => {
                let mut bytes = Vec::new();
                let read = io::stdin().lock().read_to_end(&mut bytes);
                (Path::new(STDIN), read.map(|_| bytes))
            }
        };
        let bytes = bytes.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => InputError::Missing(file.to_owned()),
            _ => InputError::Unreadable {
                file: file.to_owned(),
                error,
            },
        })?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}

impl FromStr for Assignment {
    type Err = NoAssignment;

    fn from_str(text: &str) -> Result<Assignment, NoAssignment> {
        match text.split_once('=') {
            Some((name, text)) if !name.is_empty() => Ok(Assignment {
                name: name.to_owned(),
                text: text.to_owned(),
            }),
            _ => Err(NoAssignment(text.to_owned())),
        }
    }
}

impl Assignment {
    /// The payload that some words make. Of two for one property the last counts.
    pub fn payload(words: &[Assignment]) -> Object {
        let members = words.iter().map(|word| (word.name.clone(), word.value()));
        members.collect()
    }

    /// What the text stands for. One that is not what its property takes stays text, so that who
    /// checks the payload can name it.
    fn value(&self) -> Value {
        if self.text.is_empty() {
            return Value::Null;
        }
        let json = serde_json::from_str(&self.text).ok();
        let value = match property(&self.name).map(|property| property.kind) {
            Some(Kind::String) => None,
            Some(Kind::Bool) => json.filter(Value::is_boolean),
            Some(Kind::Number) => json.filter(Value::is_number),
            Some(Kind::List) => Some(list(&self.text, json)),
            // Lists of names: remove_tags, remove_nics and so on.
            None if self.name.starts_with("remove_") => Some(list(&self.text, json)),
            Some(Kind::Map | Kind::Objects(_)) | None => json,
        };
        value.unwrap_or_else(|| self.text.clone().into())
    }
}

/// A JSON list, or texts with commas between them.
fn list(text: &str, json: Option<Value>) -> Value {
    match json {
        Some(Value::Array(elements)) => Value::Array(elements),
        _ => text.split(',').map(Value::from).collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn payload(words: &[&str]) -> String {
        let words: Vec<Assignment> = words.iter().map(|word| word.parse().unwrap()).collect();
        Value::Object(Assignment::payload(&words)).to_string()
    }

    #[test]
    fn a_word_becomes_what_its_property_is() {
        let cases = [
            ("quota=20", json!({"quota": 20})),
            ("quota=10.5", json!({"quota": 10.5})),
            ("alias=20", json!({"alias": "20"})),
            ("alias=true", json!({"alias": "true"})),
            ("alias=a=b", json!({"alias": "a=b"})),
            ("autoboot=false", json!({"autoboot": false})),
            (
                "resolvers=8.8.8.8,1.1.1.1",
                json!({"resolvers": ["8.8.8.8", "1.1.1.1"]}),
            ),
            (
                r#"resolvers=["8.8.8.8"]"#,
                json!({"resolvers": ["8.8.8.8"]}),
            ),
            (
                r#"set_tags={"role":"web","n":1}"#,
                json!({"set_tags": {"role": "web", "n": 1}}),
            ),
            ("remove_tags=role,5", json!({"remove_tags": ["role", "5"]})),
            (
                "remove_nics=02:08:20:00:00:01",
                json!({"remove_nics": ["02:08:20:00:00:01"]}),
            ),
            ("if_generation=7", json!({"if_generation": 7})),
        ];
        for (word, expected) in cases {
            assert_eq!(payload(&[word]), expected.to_string());
        }
    }

    #[test]
    fn an_empty_value_is_null() {
        assert_eq!(payload(&["alias="]), r#"{"alias":null}"#);
    }

    #[test]
    fn what_is_no_value_of_its_property_stays_text_to_be_refused_by_name() {
        assert_eq!(payload(&["quota=lots"]), r#"{"quota":"lots"}"#);
        assert_eq!(payload(&["autoboot=1"]), r#"{"autoboot":"1"}"#);
        assert_eq!(payload(&["colour=red"]), r#"{"colour":"red"}"#);
        assert_eq!(payload(&["set_tags={"]), r#"{"set_tags":"{"}"#);
    }

    #[test]
    fn the_last_word_for_a_property_counts() {
        assert_eq!(
            payload(&["quota=1", "ram=2", "quota=3"]),
            r#"{"quota":3,"ram":2}"#
        );
    }

    #[test]
    fn a_word_without_a_name_or_a_value_assigns_nothing() {
        for word in ["quota", "", "=5"] {
            assert!(word.parse::<Assignment>().is_err(), "{word}");
        }
    }

    #[test]
    fn a_dash_is_standard_input() {
        assert_eq!(Input::new(None), Input::Stdin);
        assert_eq!(Input::new(Some("-".into())), Input::Stdin);
        assert_eq!(Input::new(Some("x".into())), Input::File("x".into()));
    }

    #[test]
    fn messages_are_those_of_smartos() {
        let read = |file: &str| Input::File(file.into()).payload().unwrap_err().to_string();
        assert_eq!(read("/nowhere.json"), "File: /nowhere.json does not exist.");
        assert!(read("/").starts_with("Error reading: / "));
        assert!(read("/dev/null").starts_with("Invalid JSON payload: "));
    }

    proptest! {
        #[test]
        fn a_text_property_takes_every_text_as_it_is(text in ".+") {
            let word = format!("alias={text}");
            let word: Assignment = word.parse().unwrap();
            prop_assert_eq!(word.value(), Value::from(text));
        }

        #[test]
        fn numbers_are_kept(number in any::<u32>()) {
            prop_assert_eq!(payload(&[&format!("quota={number}")]), format!("{{\"quota\":{number}}}"));
        }
    }
}
