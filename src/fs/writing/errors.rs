//! The writes that failed: the last ones of all, for `.errors`, and the last one of each VM, for its
//! `last_error`.
//!
//! Memory is bounded: a line has at most a few KiB, `.errors` has [`KEPT`] of them, and a VM's
//! goes with the VM. What a secret property was to become is in none of them.

use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

use fuser::Errno;
use parking_lot::Mutex;
use serde_json::json;
use uuid::Uuid;

use crate::cache::events;
use crate::fs::errno;
use crate::vm::{Nanos, nanos};

/// How many lines `.errors` has.
const KEPT: usize = 256;

/// How long the text of an error may be, in bytes.
const MESSAGE: usize = 4096;

/// How many parts that were applied before a failure are named.
const APPLIED: usize = 64;

/// What is named as the file of a creation.
const CREATE: &str = "create";

/// A write that failed.
#[derive(Clone, Debug)]
pub struct Failed {
    /// The VM, if there is one.
    pub uuid: Option<Uuid>,
    /// The file's path within the VM's directory, or `create`.
    pub file: String,
    /// What the caller was told.
    pub errno: Errno,
    /// Why.
    pub message: String,
    /// What was applied before it failed.
    pub applied: Vec<String>,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    bytes: u64,
    at: Nanos,
    last: HashMap<Uuid, (String, Nanos)>,
}

/// The writes that failed.
#[derive(Debug, Default)]
pub struct Errors(Mutex<Kept>);

impl Errors {
    /// Records a failure, also as the last one of its VM; returns its line.
    pub fn record(&self, failed: &Failed) -> String {
        let line = line(failed);
        let mut kept = self.0.lock();
        // Two failures never have one time, so that watchers of the time see each.
        kept.at = nanos(SystemTime::now()).max(kept.at + 1);
        if kept.lines.len() == KEPT
            && let Some(oldest) = kept.lines.pop_front()
        {
            kept.bytes -= oldest.len() as u64;
        }
        kept.bytes += line.len() as u64;
        kept.lines.push_back(line.clone());
        // A VM that was not made has no file for it.
        if let Some(uuid) = failed.uuid.filter(|_| failed.file != CREATE) {
            let at = kept.at;
            kept.last.insert(uuid, (line.clone(), at));
        }
        line
    }

    /// Forgets the last error of a VM that is gone.
    pub fn forget(&self, uuid: &Uuid) {
        self.0.lock().last.remove(uuid);
    }

    /// The text of `.errors`.
    pub fn write(&self, out: &mut Vec<u8>) {
        let kept = self.0.lock();
        kept.lines
            .iter()
            .for_each(|line| out.extend_from_slice(line.as_bytes()));
    }

    /// The size of `.errors`, and when it last changed; 0 if it never did.
    pub fn size(&self) -> (u64, Nanos) {
        let kept = self.0.lock();
        (kept.bytes, kept.at)
    }

    /// The text of a VM's `last_error`: empty if no write failed.
    pub fn write_last(&self, uuid: &Uuid, out: &mut Vec<u8>) {
        if let Some((line, _)) = self.0.lock().last.get(uuid) {
            out.extend_from_slice(line.as_bytes());
        }
    }

    /// The size of a VM's `last_error`, and when it last changed; 0 if it never did.
    pub fn last_size(&self, uuid: &Uuid) -> (u64, Nanos) {
        let kept = self.0.lock();
        kept.last
            .get(uuid)
            .map_or((0, 0), |(line, at)| (line.len() as u64, *at))
    }
}

fn line(failed: &Failed) -> String {
    let mut applied = failed.applied.clone();
    applied.truncate(APPLIED);
    let line = json!({
        "date": events::date(nanos(SystemTime::now())),
        "uuid": failed.uuid.map(|uuid| uuid.to_string()),
        "file": failed.file,
        "errno": errno::name(failed.errno),
        "message": shortened(&failed.message),
        "applied": applied,
    });
    format!("{line}\n")
}

/// The beginning of a text that is too long.
fn shortened(text: &str) -> String {
    match text.char_indices().find(|(at, _)| *at >= MESSAGE) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(number: u128, message: &str) -> Failed {
        Failed {
            uuid: Some(Uuid::from_u128(number)),
            file: "quota".to_owned(),
            errno: Errno::EINVAL,
            message: message.to_owned(),
            applied: Vec::new(),
        }
    }

    fn all(errors: &Errors) -> String {
        let mut out = Vec::new();
        errors.write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn sizes_are_those_of_the_texts_and_only_the_last_are_kept() {
        let errors = Errors::default();
        for number in 0..300 {
            errors.record(&failed(number % 3, &format!("quota: failure {number}")));
            assert_eq!(errors.size().0, all(&errors).len() as u64);
        }
        let all = all(&errors);
        assert_eq!(all.lines().count(), KEPT);
        assert!(all.contains("failure 299") && !all.contains("failure 43\""));
        let uuid = Uuid::from_u128(2);
        let mut last = Vec::new();
        errors.write_last(&uuid, &mut last);
        assert_eq!(errors.last_size(&uuid).0, last.len() as u64);
        assert!(String::from_utf8(last).unwrap().contains("failure 299"));
        errors.forget(&uuid);
        assert_eq!(errors.last_size(&uuid), (0, 0));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let errors = Errors::default();
        errors.record(&failed(1, &"é".repeat(1 << 20)));
        assert!(errors.size().0 < 2 * MESSAGE as u64);
    }
}
