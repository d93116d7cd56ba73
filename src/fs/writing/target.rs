//! What an open file does with what is written to it: the state of one handle. No IO.

use fuser::Errno;
use parking_lot::Mutex;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::document::{Extent, Scanner};
use super::parked::Told;
use crate::fs::errno::Refused;
use crate::mutation::{Failure, Wait, Wish};
use crate::vm::Object;
use crate::vm::drift::{self, DRIFT};
use crate::vm::files::scalar_text;
use crate::vm::payload::InvalidKind;
use crate::vm::property::{self, Kind};
use crate::vm::verb::{self, Verb};

/// The longest one-line value or verb, in bytes.
const VALUE: usize = 64 << 10;

/// The longest free text: 1 MiB and some room for its last line.
const TEXT: usize = (1 << 20) + (64 << 10);

/// The longest document.
const DOCUMENT: usize = 16 << 20;

/// What is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A one-line value; the names of its file's path, decoded.
    Value(Vec<String>),
    /// Text of many lines; the names of its file's path, decoded.
    Text(Vec<String>),
    /// A verb for such a VM.
    Verb(verb::Kind),
    /// A document about one VM.
    Document,
    /// A document about a new VM.
    Create,
}

impl What {
    /// The file of a property, or of an entry of a map, which is free text.
    pub fn of_property(keys: Vec<String>) -> What {
        let known = keys.first().and_then(|first| property::property(first));
        let map = known.is_some_and(|property| matches!(property.kind, Kind::Map));
        if map {
            What::Text(keys)
        } else {
            What::Value(keys)
        }
    }

    /// Whether it is collected until the file is closed.
    pub fn is_text(&self) -> bool {
        matches!(self, What::Text(_))
    }

    /// Whether close(2) has something to do.
    fn needs_flush(&self) -> bool {
        match self {
            What::Value(_) | What::Verb(_) => false,
            What::Text(_) | What::Document | What::Create => true,
        }
    }

    /// The most that can be written.
    fn limit(&self) -> usize {
        match self {
            What::Value(_) | What::Verb(_) => VALUE,
            What::Text(_) => TEXT,
            What::Document | What::Create => DOCUMENT,
        }
    }
}

/// What is asked for by what was written.
#[derive(Clone, Debug)]
pub enum Asked {
    /// A change of a VM.
    Change(Uuid, Wish),
    /// A new VM.
    Create(Object),
}

/// Why a change was not made, as it is recorded and told.
#[derive(Debug)]
pub struct Refusal {
    /// What the caller is told.
    pub errno: Errno,
    /// Why.
    pub message: String,
    /// What was applied before.
    pub applied: Vec<String>,
}

impl Refusal {
    /// What was written is no value or document.
    fn invalid(message: String) -> Refusal {
        Refusal {
            errno: InvalidKind::Value.into(),
            message,
            applied: Vec::new(),
        }
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal {
            errno: Errno::from(&failure),
            message: failure.to_string(),
            applied: match failure {
                Failure::Source { applied, .. } => applied,
                _ => Vec::new(),
            },
        }
    }
}

/// What became of a write.
#[derive(Debug)]
pub enum Collected {
    /// More is to come.
    More,
    /// It is whole, or wrong.
    Whole(Result<Asked, Refusal>),
    /// An earlier write was wrong, and was told so.
    Broken(Errno),
}

/// A change that a handle has asked for.
#[derive(Debug)]
pub struct Attempt {
    /// Tells changes apart.
    pub id: u64,
    /// The write that began it.
    pub bytes: Vec<u8>,
    /// How it ended, if nobody was there to be told, or if it may be tried again.
    pub told: Option<Told>,
    /// What it asked for, if it may end without having been tried.
    pub again: Option<Asked>,
}

/// What was written so far, and what became of it.
#[derive(Debug)]
pub struct State {
    /// Text or a document, as far as it has come.
    bytes: Vec<u8>,
    /// Whether there are bytes that no FLUSH has seen.
    pub fresh: bool,
    scanner: Scanner,
    /// Whether the last value or verb came without the newline that ends it: it may still come.
    is_unended: bool,
    /// Why nothing more can be written: what came was wrong.
    broken: Option<Errno>,
    /// The last change, until its caller has been told.
    pub attempt: Option<Attempt>,
    /// What the last write said of waiting.
    pub wait: Wait,
    /// What a read of `create` gives.
    answer: String,
    /// The offset of its first read: the position is behind what was written.
    answer_at: Option<u64>,
}

/// A file that is open for writing.
#[derive(Debug)]
pub struct Writing {
    /// The VM; `None` for `create`.
    pub uuid: Option<Uuid>,
    /// The file's path below the VM's directory.
    pub path: String,
    /// What is written to it.
    pub what: What,
    pending: bool,
    /// What has been written.
    pub state: Mutex<State>,
}

impl State {
    /// What a write(2) with these bytes tries again: the one before it was not to wait, and had to.
    pub fn tried_again(&mut self, bytes: &[u8]) -> Option<Asked> {
        let is_again = |attempt: &mut Attempt| {
            attempt.bytes == bytes && attempt.told == Some(Err(Errno::EAGAIN))
        };
        self.attempt.take_if(is_again)?.again
    }
}

impl Writing {
    /// A file to which nothing has been written yet.
    pub fn new(uuid: Option<Uuid>, path: String, what: What) -> Writing {
        Writing {
            uuid,
            path,
            what,
            pending: false,
            state: Mutex::new(State {
                bytes: Vec::new(),
                fresh: false,
                scanner: Scanner::default(),
                is_unended: false,
                broken: None,
                attempt: None,
                wait: Wait::Confirmed,
                answer: String::new(),
                answer_at: None,
            }),
        }
    }

    /// The same, of a file that is not there yet.
    pub fn pending(self) -> Writing {
        Writing {
            pending: true,
            ..self
        }
    }

    /// Whether the file was not there when it was opened.
    pub fn is_pending(&self) -> bool {
        self.pending
    }

    /// Whether close(2) is to be told of.
    pub fn needs_flush(&self) -> bool {
        self.what.needs_flush()
    }

    /// Takes what a write carries.
    pub fn take(&self, state: &mut State, data: &[u8]) -> Collected {
        if let Some(errno) = state.broken {
            return Collected::Broken(errno);
        }
        if state.bytes.len() + data.len() > self.what.limit() {
            let limit = self.what.limit();
            let refusal = Refusal {
                errno: Refused::TooLong.into(),
                ..Refusal::invalid(format!("{}: longer than {limit} bytes", self.path))
            };
            return self.broken(state, refusal);
        }
        if matches!(self.what, What::Value(_) | What::Verb(_)) {
            let is_ended = data.ends_with(b"\n");
            // The newline alone, as of a program that writes byte by byte, is no empty value.
            if std::mem::replace(&mut state.is_unended, !is_ended) && data == b"\n" {
                return Collected::More;
            }
        }
        match &self.what {
            What::Value(keys) => {
                let text = self.text(data);
                Collected::Whole(text.and_then(|text| self.file(keys, text)))
            }
            What::Verb(kind) => {
                let verb = self.text(data).and_then(|text| {
                    Verb::parse(*kind, text.trim()).map_err(|invalid| Failure::from(invalid).into())
                });
                let uuid = self.uuid.unwrap_or_default();
                Collected::Whole(verb.map(|verb| Asked::Change(uuid, Wish::Verb(verb))))
            }
            What::Text(_) => {
                state.bytes.extend_from_slice(data);
                state.fresh = true;
                Collected::More
            }
            What::Document | What::Create => self.take_document(state, data),
        }
    }

    fn take_document(&self, state: &mut State, data: &[u8]) -> Collected {
        let before = state.scanner.extent();
        if before != Extent::Complete {
            state.bytes.extend_from_slice(data);
        }
        match state.scanner.feed(data) {
            Extent::Empty => Collected::More,
            Extent::Open => {
                state.fresh = true;
                Collected::More
            }
            // White space behind it.
            Extent::Complete if before == Extent::Complete => Collected::More,
            Extent::Complete => {
                state.fresh = false;
                match self.document(&std::mem::take(&mut state.bytes)) {
                    Ok(asked) => Collected::Whole(Ok(asked)),
                    Err(refusal) => self.broken(state, refusal),
                }
            }
            Extent::Wrong if before == Extent::Complete => {
                let message = format!("{}: more than one JSON object", self.path);
                self.broken(state, Refusal::invalid(message))
            }
            Extent::Wrong => {
                let refusal = match self.document(&state.bytes) {
                    Err(refusal) => refusal,
                    Ok(_) => Refusal::invalid(format!("{}: more than one JSON object", self.path)),
                };
                self.broken(state, refusal)
            }
        }
    }

    /// What a close(2) asks for: free text is whole then, and a document must be.
    pub fn finish(&self, state: &mut State) -> Option<Result<Asked, Refusal>> {
        if !std::mem::take(&mut state.fresh) {
            return None;
        }
        Some(match &self.what {
            What::Text(keys) => {
                let text = self.text(&state.bytes);
                text.and_then(|text| self.file(keys, text))
            }
            _ => Err(Refusal::invalid(format!(
                "{}: the document ends before its last bracket; nothing was applied",
                self.path
            ))),
        })
    }

    fn broken(&self, state: &mut State, refusal: Refusal) -> Collected {
        state.broken = Some(refusal.errno);
        state.fresh = false;
        state.bytes = Vec::new();
        Collected::Whole(Err(refusal))
    }

    /// A change has ended. Of a document that failed nothing more is taken: a write(2) that came
    /// in several parts goes on with the rest of it.
    pub fn ended(&self, state: &mut State, told: Told) {
        if let (What::Document | What::Create, Err(errno)) = (&self.what, told)
            && errno != Errno::EAGAIN
        {
            state.broken = Some(errno);
        }
    }

    /// The text of bytes, less one newline at its end.
    fn text(&self, bytes: &[u8]) -> Result<String, Refusal> {
        let text = std::str::from_utf8(bytes)
            .map_err(|error| Refusal::invalid(format!("{}: not UTF-8: {error}", self.path)))?;
        Ok(text.strip_suffix('\n').unwrap_or(text).to_owned())
    }

    fn file(&self, keys: &[String], text: String) -> Result<Asked, Refusal> {
        let wish = Wish::File {
            path: keys.to_vec(),
            text,
        };
        Ok(Asked::Change(self.uuid.unwrap_or_default(), wish))
    }

    fn document(&self, bytes: &[u8]) -> Result<Asked, Refusal> {
        let value: Value = serde_json::from_slice(bytes)
            .map_err(|error| Refusal::invalid(format!("{}: not JSON: {error}", self.path)))?;
        let Value::Object(object) = value else {
            return Err(Refusal::invalid(format!(
                "{}: a JSON object is expected",
                self.path
            )));
        };
        Ok(match self.uuid {
            Some(uuid) => Asked::Change(uuid, Wish::Document(object)),
            None => Asked::Create(object),
        })
    }

    /// What the next read of `create` gives.
    pub fn answer_with(&self, text: &str) {
        let mut state = self.state.lock();
        state.answer = text.to_owned();
        state.answer_at = None;
    }

    /// Reads the answer of `create`. It begins where its first read does, or at 0.
    pub fn read_answer(&self, offset: u64, size: usize, out: &mut Vec<u8>) {
        let mut state = self.state.lock();
        let begin = match state.answer_at {
            Some(at) if at <= offset && offset > 0 => at,
            _ => offset,
        };
        state.answer_at = Some(begin);
        let skip = usize::try_from(offset - begin).unwrap_or(usize::MAX);
        let rest = state.answer.as_bytes().get(skip..).unwrap_or_default();
        out.extend_from_slice(&rest[..rest.len().min(size)]);
    }
}

/// The secret values in what was written: no message may hold them.
pub fn secrets(wish: &Wish) -> Vec<String> {
    let mut found = Vec::new();
    match wish {
        Wish::File { path, text } if property::is_secret(path) => found.push(text.clone()),
        Wish::File { .. } | Wish::Verb(_) => {}
        Wish::Document(payload) => {
            for (name, value) in payload {
                if name == DRIFT {
                    gather_drift(value, &mut found);
                    continue;
                }
                let property = name.strip_prefix("set_").unwrap_or(name);
                gather(&mut vec![property.to_owned()], value, &mut found);
            }
        }
    }
    found.retain(|secret| !secret.is_empty());
    // One may be part of another.
    found.sort_unstable_by_key(|secret| std::cmp::Reverse(secret.len()));
    found
}

fn gather(path: &mut Vec<String>, value: &Value, found: &mut Vec<String>) {
    let mut members = |path: &mut Vec<String>, members: &Map<String, Value>| {
        for (name, value) in members {
            path.push(name.clone());
            gather(path, value, found);
            path.pop();
        }
    };
    match value {
        Value::Object(map) => members(path, map),
        Value::Array(elements) => {
            for element in elements {
                gather(path, element, found);
            }
        }
        Value::Null => {}
        scalar if property::is_secret(path) => {
            found.push(scalar_text(scalar).into_owned());
        }
        _ => {}
    }
}

/// What differs between two configurations is a secret where the property is one.
fn gather_drift(entries: &Value, found: &mut Vec<String>) {
    for entry in entries.as_array().into_iter().flatten() {
        let Some(mut path) = drift::path(entry) else {
            continue;
        };
        for value in ["live", "config"].map(|name| entry.get(name)) {
            gather(&mut path, value.unwrap_or(&Value::Null), found);
        }
    }
}

/// A text without these secrets.
pub fn without(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        text = text.replace(secret.as_str(), "(secret)");
        // As it stands where it was quoted.
        let quoted = Value::from(secret.as_str()).to_string();
        text = text.replace(&quoted[1..quoted.len() - 1], "(secret)");
    }
    text
}
