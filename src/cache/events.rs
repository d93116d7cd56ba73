//! The events: one line of JSON for each change, numbered, kept up to a number of bytes.
//!
//! An event shares the VM's JSON text with the version it announces, so that history costs little
//! more than what changed. Lines have positions in the stream of all lines ever written, which is
//! how `.history` goes on where a reader stopped.

use std::collections::VecDeque;
use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use crate::vm::diff::Change as Difference;
use crate::vm::{Nanos, Vm, system_time};

/// What an event says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A VM that was not there before.
    Create,
    /// A VM that changed.
    Modify,
    /// A VM that is gone.
    Delete,
}

impl Kind {
    /// The word in the event's `type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Create => "create",
            Kind::Modify => "modify",
            Kind::Delete => "delete",
        }
    }
}

/// One change, as a line of JSON in three pieces: before the VM, the VM, after it.
#[derive(Debug)]
pub struct Event {
    /// Its number.
    pub seq: u64,
    /// The VM it is about.
    pub uuid: Uuid,
    head: Box<str>,
    vm: Option<Arc<str>>,
    tail: Box<str>,
}

/// A date as events show it: ISO 8601 in UTC with milliseconds.
pub fn date(at: Nanos) -> String {
    humantime::format_rfc3339_millis(system_time(at)).to_string()
}

impl Event {
    /// An event in the format of RFD 39: `type`, `date`, `zonename`, `uuid`, `vm` (not of a
    /// deletion), `changes` (of a modification), then `seq`, `txn` if a write through us caused
    /// it, and `via`.
    pub fn new(
        seq: u64,
        at: Nanos,
        kind: Kind,
        vm: &Vm,
        differences: &[Difference],
        txn: Option<&str>,
        via: &str,
    ) -> Event {
        let mut head = format!(
            r#"{{"type":"{}","date":"{}","zonename":{},"uuid":"{}""#,
            kind.as_str(),
            date(at),
            Value::from(&*vm.zonename),
            vm.uuid
        );
        let mut tail = String::new();
        if kind != Kind::Delete {
            head.push_str(r#","vm":"#);
        }
        if kind == Kind::Modify {
            let changes: Vec<Value> = differences.iter().map(Difference::to_json).collect();
            tail.push_str(&format!(r#","changes":{}"#, Value::from(changes)));
        }
        tail.push_str(&format!(r#","seq":{seq}"#));
        if let Some(txn) = txn {
            tail.push_str(&format!(r#","txn":{}"#, Value::from(txn)));
        }
        tail.push_str(&format!(",\"via\":\"{via}\"}}\n"));
        Event {
            seq,
            uuid: vm.uuid,
            head: head.into(),
            vm: (kind != Kind::Delete).then(|| vm.rendered.json().clone()),
            tail: tail.into(),
        }
    }

    /// The length of its line, newline included.
    pub fn len(&self) -> usize {
        self.head.len() + self.vm.as_ref().map_or(0, |vm| vm.len()) + self.tail.len()
    }

    /// No event is empty; here because there is a `len`.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Appends its line to `out`, newline included, without its first `skip` bytes.
    pub fn write(&self, mut skip: usize, out: &mut Vec<u8>) {
        let vm = self.vm.as_deref().unwrap_or_default();
        for piece in [self.head.as_bytes(), vm.as_bytes(), self.tail.as_bytes()] {
            out.extend_from_slice(piece.get(skip..).unwrap_or_default());
            skip = skip.saturating_sub(piece.len());
        }
    }
}

/// The line that begins every stream: the listener's own uuid, and the number of the last event
/// before the stream.
pub fn ready(at: Nanos, listener: Uuid, seq: u64) -> String {
    let date = date(at);
    format!(
        "{}\n",
        json!({"type": "ready", "date": date, "uuid": listener.to_string(), "seq": seq})
    )
}

/// The line that says that events are missing before the one numbered `seq`; `None` for `missed`
/// when nobody can know how many.
pub fn gap(seq: u64, missed: Option<u64>) -> String {
    format!("{}\n", json!({"type": "gap", "seq": seq, "missed": missed}))
}

/// An event and where its line begins in the stream of all lines ever.
#[derive(Clone, Debug)]
pub struct Kept {
    /// The event.
    pub event: Arc<Event>,
    /// How many bytes of lines came before it.
    pub position: u64,
}

impl Kept {
    /// Where the next line begins.
    pub fn end(&self) -> u64 {
        self.position + self.event.len() as u64
    }
}

/// The newest events, as many as fit into a number of bytes; always at least the last one.
///
/// When they fit no more the older half goes at once. `.history` is this file: whoever follows it
/// by its size, as tail(1) does, then sees a file that only grows, and now and then one that was
/// cut. A size that went up and down by some bytes with each event would look to him like a
/// line that is half written, or like no change at all.
#[derive(Debug)]
pub struct Ring {
    kept: VecDeque<Kept>,
    limit: usize,
    /// The number before that of the first event ever pushed.
    base: u64,
    /// The number of the last event pushed.
    seq: u64,
    /// Where the next line begins.
    end: u64,
}

impl Ring {
    /// A ring that keeps `limit` bytes of lines; the first will be numbered `base` + 1.
    pub fn new(limit: usize, base: u64) -> Ring {
        Ring {
            kept: VecDeque::new(),
            limit,
            base,
            seq: base,
            end: 0,
        }
    }

    /// Adds the next event.
    pub fn push(&mut self, event: Event) {
        self.seq = event.seq;
        let kept = Kept {
            event: Arc::new(event),
            position: self.end,
        };
        self.end = kept.end();
        self.kept.push_back(kept);
        if self.bytes() > self.limit as u64 {
            while self.kept.len() > 1 && self.bytes() > self.limit as u64 / 2 {
                self.kept.pop_front();
            }
        }
    }

    /// How many bytes of lines are kept.
    pub fn bytes(&self) -> u64 {
        self.end - self.start()
    }

    /// Where the oldest line kept begins.
    pub fn start(&self) -> u64 {
        self.kept.front().map_or(self.end, |kept| kept.position)
    }

    /// The number before that of the first event there ever was. What has a lower number was
    /// before this daemon.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The number of the oldest event kept; one past the newest when there is none.
    pub fn oldest(&self) -> u64 {
        self.kept
            .front()
            .map_or(self.seq + 1, |kept| kept.event.seq)
    }

    /// The number of the newest event.
    pub fn newest(&self) -> u64 {
        self.seq
    }

    /// The event with this number, if it is kept.
    pub fn get(&self, seq: u64) -> Option<&Kept> {
        self.kept
            .get(usize::try_from(seq.checked_sub(self.oldest())?).ok()?)
    }

    /// Where the line behind event `seq` begins; where all lines kept begin, for an older one.
    pub fn position_after(&self, seq: u64) -> u64 {
        self.get(seq).map_or_else(
            || {
                if seq >= self.newest() {
                    self.end
                } else {
                    self.start()
                }
            },
            Kept::end,
        )
    }

    /// The events kept from number `seq` on.
    pub fn from(&self, seq: u64) -> impl Iterator<Item = &Kept> {
        let skip = usize::try_from(seq.saturating_sub(self.oldest())).unwrap_or(usize::MAX);
        self.kept.range(skip.min(self.kept.len())..)
    }

    /// The event whose line holds this position.
    pub fn at(&self, position: u64) -> Option<&Kept> {
        let after = self.kept.partition_point(|kept| kept.position <= position);
        self.kept
            .get(after.checked_sub(1)?)
            .filter(|kept| position < kept.end())
    }
}
