//! The language that the daemon and the program `vminfod-libvirt` speak: one JSON object a line.
//!
//! The daemon writes [`Request`]s to the program's standard input; when that ends, so does the program. The
//! program writes [`Line`]s to its standard output, and what people should know to its standard error.
//!
//! A listing is the line `begin`, then `listed` or `same` for each domain that answers, and `listing` at its end.
//! Between them may be other lines, which are newer than what was listed before them and older than what is
//! listed after.
//!
//! A [`Request::Change`] has a number of its own and is answered by one [`Line::Answer`], however it ends, unless the
//! program ends first.

use std::time::SystemTime;

use serde_json::{Value, json};
use uuid::Uuid;

use super::step::Step;
use crate::source::{Accepted, Failed, FailedKind, Failure, Loaded, Via};
use crate::vm::Object;
use crate::vm::files::Rendered;
use crate::vm::property::Part;
use crate::vm::{nanos, system_time};

/// What the daemon asks.
#[derive(Clone, Debug, PartialEq)]
pub enum Request {
    /// List all domains.
    List,
    /// Read one again.
    Reload(Uuid),
    /// Answer with the same number.
    Ping(u64),
    /// Read or change a domain, and answer with the same number.
    Change(u64, Uuid, Change),
}

/// What is to be done with a domain. Afterwards it is read, unless it is gone.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// These, one after the other; none only reads it.
    Steps(Vec<Step>),
    /// Define it, as this object of a VM that there is not, and start it if it boots by itself.
    Create(Object),
}

/// What came of a change that did not fail.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    /// The domain as it was read afterwards; none if it is gone.
    pub vm: Option<Object>,
    /// Whether the guest has still to follow.
    pub accepted: Accepted,
}

/// What the program says.
#[derive(Clone, Debug)]
pub enum Line {
    /// A domain as it was just read.
    Vm(Loaded),
    /// A listing begins: what is not named from here to its end does not exist.
    Begin,
    /// A domain as a part of a listing.
    Listed(Loaded),
    /// Part of a listing: this one is as it was last told.
    Same(Uuid, SystemTime),
    /// The end of a listing.
    Listing {
        /// The domains that exist and gave no answer, and why.
        silent: Vec<(Uuid, String)>,
        /// The domains that cannot be shown, and why.
        unplaced: Vec<(String, String)>,
    },
    /// libvirt says that there is no such domain.
    Gone(Uuid),
    /// A domain gives no answer.
    Silent(Uuid, String),
    /// libvirt gives no answer.
    Unreachable(String),
    /// What the program knows of its own health, for `.status`.
    Health(Value),
    /// The answer to a [`Request::Ping`].
    Pong(u64),
    /// The answer to a [`Request::Change`].
    Answer(u64, Result<Answer, Failed>),
}

impl Request {
    /// As a line, with its end.
    pub fn encode(&self) -> String {
        let request = match self {
            Request::List => json!({"request": "list"}),
            Request::Reload(uuid) => json!({"request": "reload", "uuid": uuid.to_string()}),
            Request::Ping(number) => json!({"request": "ping", "number": number}),
            Request::Change(number, uuid, change) => {
                let (what, value) = match change {
                    Change::Steps(steps) => ("steps", json!(steps)),
                    Change::Create(target) => ("create", json!(target)),
                };
                json!({"request": "change", "number": number, "uuid": uuid.to_string(), what: value})
            }
        };
        format!("{request}\n")
    }

    /// Reads a line; none if it is not understood.
    pub fn decode(line: &str) -> Option<Request> {
        let mut value: Value = serde_json::from_str(line).ok()?;
        match value["request"].as_str()? {
            "list" => Some(Request::List),
            "reload" => Some(Request::Reload(uuid(&value)?)),
            "ping" => Some(Request::Ping(value["number"].as_u64()?)),
            "change" => {
                let (number, uuid) = (value["number"].as_u64()?, uuid(&value)?);
                let change = match (value["steps"].take(), value["create"].take()) {
                    (Value::Null, Value::Object(target)) => Change::Create(target),
                    (steps, _) => Change::Steps(serde_json::from_value(steps).ok()?),
                };
                Some(Request::Change(number, uuid, change))
            }
            _ => None,
        }
    }
}

impl Line {
    /// As a line, with its end.
    pub fn encode(&self) -> String {
        let line = match self {
            Line::Vm(loaded) => return domain("vm", loaded),
            Line::Listed(loaded) => return domain("listed", loaded),
            Line::Begin => json!({"report": "begin"}),
            Line::Same(uuid, observed) => {
                json!({"report": "same", "uuid": uuid.to_string(), "observed": nanos(*observed)})
            }
            Line::Listing { silent, unplaced } => {
                let silent: Vec<_> = (silent.iter())
                    .map(|(uuid, reason)| (uuid.to_string(), reason))
                    .collect();
                json!({"report": "listing", "silent": silent, "unplaced": unplaced})
            }
            Line::Gone(uuid) => json!({"report": "gone", "uuid": uuid.to_string()}),
            Line::Silent(uuid, reason) => {
                json!({"report": "silent", "uuid": uuid.to_string(), "reason": reason})
            }
            Line::Unreachable(reason) => json!({"report": "unreachable", "reason": reason}),
            Line::Health(health) => json!({"report": "health", "health": health}),
            Line::Pong(number) => json!({"report": "pong", "number": number}),
            Line::Answer(number, Ok(Answer { vm, accepted })) => {
                let asked = *accepted == Accepted::Asked;
                json!({"report": "answer", "number": number, "vm": vm, "asked": asked})
            }
            Line::Answer(number, Err(failed)) => json!({
                "report": "failed",
                "number": number,
                "kind": word(failed.kind),
                "applied": failed.applied,
                "reason": failed.reason,
            }),
        };
        format!("{line}\n")
    }

    /// Reads a line; none if it is not understood.
    pub fn decode(line: &str) -> Option<Line> {
        let mut value: Value = serde_json::from_str(line).ok()?;
        let reason = |value: &Value| Some(value["reason"].as_str()?.to_owned());
        match value["report"].as_str()? {
            "vm" => Some(Line::Vm(loaded(value)?)),
            "begin" => Some(Line::Begin),
            "listed" => Some(Line::Listed(loaded(value)?)),
            "same" => Some(Line::Same(
                uuid(&value)?,
                system_time(value["observed"].as_u64()?),
            )),
            "listing" => {
                let silent: Vec<(String, String)> = pairs(&value["silent"])?;
                let silent = (silent.into_iter())
                    .map(|(uuid, reason)| Some((Uuid::parse_str(&uuid).ok()?, reason)));
                Some(Line::Listing {
                    silent: silent.collect::<Option<_>>()?,
                    unplaced: pairs(&value["unplaced"])?,
                })
            }
            "gone" => Some(Line::Gone(uuid(&value)?)),
            "silent" => Some(Line::Silent(uuid(&value)?, reason(&value)?)),
            "unreachable" => Some(Line::Unreachable(reason(&value)?)),
            "health" => Some(Line::Health(value["health"].take())),
            "pong" => Some(Line::Pong(value["number"].as_u64()?)),
            "answer" => {
                let vm = match value["vm"].take() {
                    Value::Object(vm) => Some(vm),
                    _ => None,
                };
                let accepted = match value["asked"].as_bool()? {
                    true => Accepted::Asked,
                    false => Accepted::Done,
                };
                Some(Line::Answer(
                    value["number"].as_u64()?,
                    Ok(Answer { vm, accepted }),
                ))
            }
            "failed" => {
                let applied = value["applied"].as_array()?.iter();
                let failed = Failed {
                    kind: kind(value["kind"].as_str()?)?,
                    applied: applied
                        .map(|one| Some(one.as_str()?.to_owned()))
                        .collect::<Option<_>>()?,
                    reason: reason(&value)?,
                };
                Some(Line::Answer(value["number"].as_u64()?, Err(failed)))
            }
            _ => None,
        }
    }
}

/// A domain as a line. Its object is text already and is not parsed again.
fn domain(report: &str, loaded: &Loaded) -> String {
    let failed: Vec<_> = (loaded.failed.iter())
        .map(|failure| (failure.part.as_str(), &failure.reason))
        .collect();
    format!(
        "{{\"report\":\"{report}\",\"uuid\":\"{}\",\"name\":{},\"via\":\"{}\",\"observed\":{},\"failed\":{},\"vm\":{}}}\n",
        loaded.uuid,
        Value::from(loaded.zonename.as_str()),
        loaded.via.as_str(),
        nanos(loaded.observed),
        json!(failed),
        loaded.vm.json(),
    )
}

const KINDS: [(FailedKind, &str); 7] = [
    (FailedKind::Gone, "gone"),
    (FailedKind::Busy, "busy"),
    (FailedKind::Exists, "exists"),
    (FailedKind::Invalid, "invalid"),
    (FailedKind::Forbidden, "forbidden"),
    (FailedKind::Source, "source"),
    (FailedKind::Unanswered, "unanswered"),
];

fn word(kind: FailedKind) -> &'static str {
    let found = KINDS.iter().find(|(one, _)| *one == kind);
    found.map_or("source", |(_, word)| word)
}

fn kind(word: &str) -> Option<FailedKind> {
    let found = KINDS.iter().find(|(_, one)| *one == word);
    found.map(|(kind, _)| *kind)
}

fn loaded(mut value: Value) -> Option<Loaded> {
    let failed: Option<Vec<Failure>> = (pairs(&value["failed"])?.into_iter())
        .map(|(part, reason)| {
            let part = Part::ALL.into_iter().find(|one| one.as_str() == part)?;
            Some(Failure { part, reason })
        })
        .collect();
    let via = match value["via"].as_str()? {
        "scan" => Via::Scan,
        _ => Via::Event,
    };
    let Value::Object(vm) = value["vm"].take() else {
        return None;
    };
    Some(Loaded {
        uuid: uuid(&value)?,
        zonename: value["name"].as_str()?.to_owned(),
        vm: Rendered::new(&vm),
        failed: failed?,
        via,
        observed: system_time(value["observed"].as_u64()?),
    })
}

fn uuid(value: &Value) -> Option<Uuid> {
    Uuid::parse_str(value["uuid"].as_str()?).ok()
}

fn pairs(value: &Value) -> Option<Vec<(String, String)>> {
    let pair = |pair: &Value| Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned()));
    value.as_array()?.iter().map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::super::step::Affect;
    use super::*;

    const UUID: Uuid = Uuid::from_u128(7);

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let steps = vec![
            Step::Title {
                title: Some("a\nb".to_owned()),
                affect: Affect::Both,
            },
            Step::Start,
        ];
        for request in [
            Request::List,
            Request::Reload(UUID),
            Request::Ping(3),
            Request::Change(4, UUID, Change::Steps(Vec::new())),
            Request::Change(5, UUID, Change::Steps(steps)),
            Request::Change(6, UUID, Change::Create(Object::new())),
        ] {
            let line = request.encode();
            assert_eq!(line.matches('\n').count(), 1, "{line}");
            assert_eq!(Request::decode(&line), Some(request));
        }
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let vm = json!({"uuid": UUID.to_string(), "domain.xml": "<domain>\n\"</domain>"});
        let Value::Object(vm) = vm else {
            unreachable!()
        };
        let loaded = Loaded {
            uuid: UUID,
            zonename: "a \"b\"\n".to_owned(),
            vm: Rendered::new(&vm),
            failed: vec![Failure {
                part: Part::Datasets,
                reason: "disk vda: no such file".to_owned(),
            }],
            via: Via::Scan,
            observed: system_time(1_523_467_148_123_456_789),
        };
        let pair = |text: &str| (text.to_owned(), "why\nnot".to_owned());
        for line in [
            Line::Vm(loaded.clone()),
            Line::Begin,
            Line::Listed(loaded),
            Line::Same(UUID, system_time(5)),
            Line::Listing {
                silent: vec![(UUID, "hangs".to_owned())],
                unplaced: vec![pair("odd")],
            },
            Line::Gone(UUID),
            Line::Silent(UUID, "hangs".to_owned()),
            Line::Unreachable("no socket".to_owned()),
            Line::Health(json!({"uri": "test:///default"})),
            Line::Pong(9),
            Line::Answer(
                1,
                Ok(Answer {
                    vm: Some(Object::new()),
                    accepted: Accepted::Asked,
                }),
            ),
            Line::Answer(
                2,
                Ok(Answer {
                    vm: None,
                    accepted: Accepted::Done,
                }),
            ),
            Line::Answer(
                3,
                Err(Failed {
                    kind: FailedKind::Busy,
                    applied: vec!["alias".to_owned()],
                    reason: "in use".to_owned(),
                }),
            ),
        ] {
            let text = line.encode();
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            let read = Line::decode(&text).unwrap_or_else(|| panic!("not understood: {text}"));
            assert_eq!(format!("{read:?}"), format!("{line:?}"));
        }
    }

    #[test]
    fn what_is_not_understood_is_none() {
        for line in [
            "",
            "{",
            "[]",
            "{}",
            r#"{"report":"vm"}"#,
            r#"{"report":"new"}"#,
        ] {
            assert!(Line::decode(line).is_none(), "{line}");
            assert!(Request::decode(line).is_none(), "{line}");
        }
    }
}
