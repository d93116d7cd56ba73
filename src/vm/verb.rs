//! What can be done with a whole VM: the verbs of `ctl`.
//!
//! Owns their texts, when a VM can do one, and how one sees that it has been done. Doing them is a
//! source's. What is otherwise for the domains of a libvirt is in `verb/domain.rs`: they have words of
//! their own, and their own states.

use std::fmt;

use serde_json::Value;

use super::payload::{Invalid, InvalidKind};
use super::{Object, property};

mod domain;

/// A verb of `ctl`, as `vmadm` has them too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Boot it.
    Start,
    /// Shut it down, or with force halt it at once.
    Stop {
        /// Without asking the guest.
        force: bool,
        /// How many seconds the guest may take, if that was said.
        timeout: Option<u64>,
    },
    /// Stop and start it.
    Reboot {
        /// Without asking the guest.
        force: bool,
    },
    /// Halt the CPUs of a domain where they are.
    Suspend,
    /// Let a paused domain go on.
    Resume,
    /// Send its init a signal, by its name without `SIG`: `TERM`.
    Kill(&'static str),
    /// Remove it with its datasets.
    Delete,
    /// Read it again from its source.
    Sync,
    /// Undo the last confirmed change.
    Revert,
    /// Take a snapshot of its datasets.
    Snapshot(String),
    /// Go back to a snapshot.
    Rollback(String),
    /// Remove a snapshot.
    DeleteSnapshot(String),
}

/// Whose words are read: `destroy` deletes a zone and halts a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A zone of SmartOS.
    Zone,
    /// A domain of a libvirt.
    Domain,
}

impl Kind {
    /// What a VM is.
    pub fn of(vm: &Object) -> Kind {
        match property::brand(vm) {
            Some(property::LIBVIRT) => Kind::Domain,
            _ => Kind::Zone,
        }
    }
}

/// The signals by name, with their numbers where all systems have the same one.
const SIGNALS: [(&str, Option<&str>); 31] = [
    ("HUP", Some("1")),
    ("INT", Some("2")),
    ("QUIT", Some("3")),
    ("ILL", Some("4")),
    ("TRAP", Some("5")),
    ("ABRT", Some("6")),
    ("FPE", Some("8")),
    ("KILL", Some("9")),
    ("SEGV", Some("11")),
    ("PIPE", Some("13")),
    ("ALRM", Some("14")),
    ("TERM", Some("15")),
    ("BUS", None),
    ("SYS", None),
    ("USR1", None),
    ("USR2", None),
    ("CHLD", None),
    ("PWR", None),
    ("WINCH", None),
    ("URG", None),
    ("IO", None),
    ("POLL", None),
    ("STOP", None),
    ("TSTP", None),
    ("CONT", None),
    ("TTIN", None),
    ("TTOU", None),
    ("VTALRM", None),
    ("PROF", None),
    ("XCPU", None),
    ("XFSZ", None),
];

impl Verb {
    /// Reads a verb and its arguments. The names that `vmadm` has besides (`boot`, `halt`,
    /// `destroy`) and its options are understood too, and for domains those of `virsh`.
    ///
    /// # Errors
    /// When there is no such verb, or its arguments are not what it takes.
    pub fn parse(kind: Kind, text: &str) -> Result<Verb, Invalid> {
        let mut words = text.split_whitespace();
        let Some(verb) = words.next() else {
            return Err(InvalidKind::Value.refuse("ctl", "no verb; read ctl for those there are"));
        };
        let arguments: Vec<&str> = words.collect();
        if kind == Kind::Domain {
            return domain::parse(text, verb, &arguments);
        }
        let parsed = match (verb, arguments.as_slice()) {
            ("start" | "boot", []) => Some(Verb::Start),
            ("stop" | "halt", arguments) => stop(arguments),
            ("reboot", []) => Some(Verb::Reboot { force: false }),
            ("reboot", [word]) if is_force(word) => Some(Verb::Reboot { force: true }),
            ("kill", []) => Some(Verb::Kill("TERM")),
            ("kill", ["-s", name] | [name]) => return signal(name).map(Verb::Kill),
            ("delete" | "destroy", []) => Some(Verb::Delete),
            ("sync", []) => Some(Verb::Sync),
            ("revert", []) => Some(Verb::Revert),
            ("snapshot", [name]) => Some(Verb::Snapshot(snapshot(verb, name)?)),
            ("rollback", [name]) => Some(Verb::Rollback(snapshot(verb, name)?)),
            ("delete-snapshot", [name]) => Some(Verb::DeleteSnapshot(snapshot(verb, name)?)),
            _ => None,
        };
        parsed.ok_or_else(|| not_read(text, verb, usage(verb)))
    }

    /// Whether a VM as it is now can do this. What is so already can be asked for: a running VM can
    /// be started, and a stopped one stopped.
    ///
    /// # Errors
    /// When it cannot, with the reason.
    pub fn check(&self, vm: &Object) -> Result<(), Invalid> {
        if Kind::of(vm) == Kind::Domain {
            return domain::check(self, vm);
        }
        let refuse = |reason: String| Err(InvalidKind::State.refuse(self.word(), reason));
        let state = member(vm, "state");
        match self {
            Verb::Start if is_running(vm) || state == "stopped" => Ok(()),
            Verb::Start => refuse(format!("the VM is {state}, and not stopped")),
            Verb::Stop { .. } if is_stopped(vm) || is_up(vm) => Ok(()),
            Verb::Reboot { .. } | Verb::Kill(_) if is_running(vm) => Ok(()),
            Verb::Stop { .. } | Verb::Reboot { .. } | Verb::Kill(_) => {
                refuse(format!("the VM is {state}, and not running"))
            }
            Verb::Suspend | Verb::Resume => refuse("only the domains of a libvirt can".to_owned()),
            Verb::Delete => match indestructible(vm) {
                Some(property) => refuse(format!("{property} is set; remove it first")),
                None => Ok(()),
            },
            Verb::Sync | Verb::Revert => Ok(()),
            Verb::Snapshot(name) if has_snapshot(vm, name) => {
                refuse(format!("there is a snapshot {name} already"))
            }
            Verb::Snapshot(_) if !vm.contains_key("zfs_filesystem") => {
                refuse("the VM has no dataset".to_owned())
            }
            Verb::Snapshot(_) => Ok(()),
            Verb::Rollback(name) | Verb::DeleteSnapshot(name) => match has_snapshot(vm, name) {
                true => Ok(()),
                false => refuse(format!("there is no snapshot {name}")),
            },
        }
    }

    /// Whether a VM that was as `before` shows now that this has been done; `None` is a VM that is
    /// gone. What leaves no trace counts as done while the VM is there.
    pub fn confirmed(&self, before: &Object, now: Option<&Object>) -> bool {
        if Kind::of(before) == Kind::Domain {
            return domain::confirmed(self, before, now);
        }
        let Some(now) = now else {
            return *self == Verb::Delete;
        };
        match self {
            Verb::Start => is_running(now),
            Verb::Stop { .. } => is_stopped(now),
            Verb::Reboot { .. } => {
                let differs = |name| now.get(name) != before.get(name);
                is_running(now) && (differs("zoneid") || differs("boot_timestamp"))
            }
            Verb::Delete | Verb::Suspend | Verb::Resume => false,
            Verb::Snapshot(name) => has_snapshot(now, name),
            Verb::DeleteSnapshot(name) => !has_snapshot(now, name),
            Verb::Kill(_) | Verb::Sync | Verb::Revert | Verb::Rollback(_) => true,
        }
    }

    /// The verb without its arguments.
    pub fn word(&self) -> &'static str {
        match self {
            Verb::Start => "start",
            Verb::Stop { .. } => "stop",
            Verb::Reboot { .. } => "reboot",
            Verb::Suspend => "suspend",
            Verb::Resume => "resume",
            Verb::Kill(_) => "kill",
            Verb::Delete => "delete",
            Verb::Sync => "sync",
            Verb::Revert => "revert",
            Verb::Snapshot(_) => "snapshot",
            Verb::Rollback(_) => "rollback",
            Verb::DeleteSnapshot(_) => "delete-snapshot",
        }
    }
}

/// The text that [`Verb::parse`] reads as this verb.
impl fmt::Display for Verb {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())?;
        match self {
            Verb::Stop { force: true, .. } | Verb::Reboot { force: true } => {
                out.write_str(" force")
            }
            Verb::Stop {
                timeout: Some(seconds),
                ..
            } => write!(out, " {seconds}"),
            Verb::Kill(signal) => write!(out, " {signal}"),
            Verb::Snapshot(name) | Verb::Rollback(name) | Verb::DeleteSnapshot(name) => {
                write!(out, " {name}")
            }
            _ => Ok(()),
        }
    }
}

/// The verbs that a VM would accept now and that would change something, one for each line of
/// `ctl`. What is in capitals is to be filled in, what is in brackets may be left out.
pub fn accepted(vm: &Object) -> Vec<String> {
    if Kind::of(vm) == Kind::Domain {
        return domain::accepted(vm);
    }
    let mut lines = Vec::new();
    if !is_running(vm) && Verb::Start.check(vm).is_ok() {
        lines.push("start");
    }
    if is_up(vm) {
        lines.extend(["stop", "stop force"]);
    }
    if is_running(vm) {
        lines.extend(["reboot", "reboot force", "kill [SIGNAL]"]);
    }
    if indestructible(vm).is_none() {
        lines.push("delete");
    }
    lines.extend(["sync", "revert"]);
    if vm.contains_key("zfs_filesystem") {
        lines.push("snapshot NAME");
    }
    if snapshots(vm).next().is_some() {
        lines.extend(["rollback NAME", "delete-snapshot NAME"]);
    }
    lines.into_iter().map(str::to_owned).collect()
}

fn stop(arguments: &[&str]) -> Option<Verb> {
    let seconds = match arguments {
        [] => {
            return Some(Verb::Stop {
                force: false,
                timeout: None,
            });
        }
        [word] if is_force(word) => {
            return Some(Verb::Stop {
                force: true,
                timeout: None,
            });
        }
        ["-t", seconds] | [seconds] => seconds,
        _ => return None,
    };
    Some(Verb::Stop {
        force: false,
        timeout: Some(seconds.parse().ok()?),
    })
}

fn is_force(word: &str) -> bool {
    matches!(word, "force" | "-F" | "--force")
}

/// A signal by its name, with `SIG` or without, or by its number.
fn signal(given: &str) -> Result<&'static str, Invalid> {
    let name = given.strip_prefix('-').unwrap_or(given).to_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    SIGNALS
        .iter()
        .find(|(known, number)| *known == name || *number == Some(name))
        .map(|(known, _)| *known)
        .ok_or_else(|| {
            let reason = format!("no signal {given:?}; give its name, such as TERM");
            InvalidKind::Value.refuse("kill", reason)
        })
}

/// The name of a snapshot, which becomes part of a dataset's name.
fn snapshot(verb: &str, name: &str) -> Result<String, Invalid> {
    let good = (1..=50).contains(&name.len())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    match good {
        true => Ok(name.to_owned()),
        false => {
            let reason = format!("not 1 to 50 of the characters A-Z a-z 0-9 . _ -: {name:?}");
            Err(InvalidKind::Value.refuse(verb, reason))
        }
    }
}

/// The refusal of a text that is no verb, or not with these arguments.
fn not_read(text: &str, verb: &str, usage: Option<&str>) -> Invalid {
    let reason = match usage {
        Some(usage) => format!("write {usage}: {text:?}"),
        None => "no such verb; read ctl for those there are".to_owned(),
    };
    InvalidKind::Value.refuse(verb, reason)
}

fn usage(verb: &str) -> Option<&'static str> {
    Some(match verb {
        "start" | "boot" => "start",
        "stop" | "halt" => "stop, stop force or stop SECONDS",
        "reboot" => "reboot or reboot force",
        "kill" => "kill or kill SIGNAL",
        "delete" | "destroy" => "delete",
        "sync" => "sync",
        "revert" => "revert",
        "snapshot" => "snapshot NAME",
        "rollback" => "rollback NAME",
        "delete-snapshot" => "delete-snapshot NAME",
        _ => return None,
    })
}

fn member<'a>(vm: &'a Object, name: &str) -> &'a str {
    vm.get(name).and_then(Value::as_str).unwrap_or("unknown")
}

fn is_running(vm: &Object) -> bool {
    member(vm, "state") == "running"
}

/// Whether the zone is down, whatever else may be wrong with the VM.
fn is_stopped(vm: &Object) -> bool {
    member(vm, "state") == "stopped" || member(vm, "zone_state") == "installed"
}

/// Whether there is something to stop.
fn is_up(vm: &Object) -> bool {
    is_running(vm)
        || matches!(
            member(vm, "zone_state"),
            "running" | "ready" | "shutting_down" | "down"
        )
}

/// The property that keeps a VM from being deleted.
fn indestructible(vm: &Object) -> Option<&'static str> {
    ["indestructible_zoneroot", "indestructible_delegated"]
        .into_iter()
        .find(|property| vm.get(*property).is_some_and(|set| *set == true))
}

fn snapshots(vm: &Object) -> impl Iterator<Item = &str> {
    let snapshots = vm.get("snapshots").and_then(Value::as_array);
    let names = snapshots.into_iter().flatten();
    names.filter_map(|snapshot| snapshot.get("name")?.as_str())
}

fn has_snapshot(vm: &Object, name: &str) -> bool {
    snapshots(vm).any(|snapshot| snapshot == name)
}
