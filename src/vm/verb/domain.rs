//! What is otherwise for the domains of a libvirt: the words of `virsh`, their states, and that one which
//! is not defined is gone when it stops.

use super::{Verb, is_force, member, not_read, stop};
use crate::vm::Object;
use crate::vm::payload::{Invalid, InvalidKind};

/// Reads a verb and its arguments.
pub(super) fn parse(text: &str, verb: &str, arguments: &[&str]) -> Result<Verb, Invalid> {
    let parsed = match (verb, arguments) {
        ("start" | "boot" | "create", []) => Some(Verb::Start),
        ("stop" | "halt" | "shutdown", arguments) => stop(arguments),
        // What it is to virsh: the plug is pulled, and nothing is lost but what was in memory.
        ("destroy", []) => Some(Verb::Stop {
            force: true,
            timeout: None,
        }),
        ("reboot", []) => Some(Verb::Reboot { force: false }),
        ("reboot", [word]) if is_force(word) => Some(Verb::Reboot { force: true }),
        ("reset", []) => Some(Verb::Reboot { force: true }),
        ("suspend", []) => Some(Verb::Suspend),
        ("resume", []) => Some(Verb::Resume),
        ("delete" | "undefine", []) => Some(Verb::Delete),
        ("sync", []) => Some(Verb::Sync),
        ("revert", []) => Some(Verb::Revert),
        _ => None,
    };
    parsed.ok_or_else(|| match cannot(verb) {
        Some(reason) => InvalidKind::Fixed.refuse(verb, reason),
        None => not_read(text, verb, usage(verb)),
    })
}

fn usage(verb: &str) -> Option<&'static str> {
    Some(match verb {
        "start" | "boot" | "create" => "start",
        "stop" | "halt" | "shutdown" => "stop, stop force or stop SECONDS",
        "destroy" => "destroy, which is stop force",
        "reboot" => "reboot or reboot force",
        "reset" => "reset, which is reboot force",
        "suspend" => "suspend",
        "resume" => "resume",
        "delete" | "undefine" => "delete",
        "sync" => "sync",
        "revert" => "revert",
        _ => return None,
    })
}

/// Why no domain can do this.
fn cannot(verb: &str) -> Option<&'static str> {
    match verb {
        "kill" => Some("a domain has no init to signal; use stop force"),
        "snapshot" => Some("snapshots of domains are only shown; use virsh snapshot-create-as"),
        "rollback" => Some("snapshots of domains are only shown; use virsh snapshot-revert"),
        "delete-snapshot" => Some("snapshots of domains are only shown; use virsh snapshot-delete"),
        _ => None,
    }
}

/// Whether a domain as it is now can do this, or is so already.
pub(super) fn check(verb: &Verb, vm: &Object) -> Result<(), Invalid> {
    let state = member(vm, "state");
    let refuse = |reason: &str| Err(InvalidKind::State.refuse(verb.word(), reason));
    let not = |wanted: &str| refuse(&format!("the domain is {state}, and not {wanted}"));
    match (verb, state) {
        (Verb::Start, "running" | "stopped" | "crashed") => Ok(()),
        (Verb::Start, "paused") => refuse("the domain is paused; resume it"),
        (Verb::Start | Verb::Resume, "suspended") => {
            refuse("the guest has suspended itself; use virsh dompmwakeup")
        }
        (Verb::Start, _) => not("stopped"),
        // Its process may still be there, and then nothing else ends it.
        (Verb::Stop { force: false, .. }, "crashed") => {
            refuse("the guest has crashed and cannot be asked; use stop force")
        }
        (Verb::Stop { .. }, _) => Ok(()),
        (Verb::Suspend | Verb::Resume, "running" | "paused")
        | (Verb::Reboot { .. }, "running")
        | (Verb::Delete | Verb::Sync | Verb::Revert, _) => Ok(()),
        (Verb::Suspend | Verb::Reboot { .. }, _) => not("running"),
        (Verb::Resume, _) => not("paused"),
        (Verb::Kill(_) | Verb::Snapshot(_) | Verb::Rollback(_) | Verb::DeleteSnapshot(_), _) => {
            let reason = cannot(verb.word()).unwrap_or_default();
            Err(InvalidKind::Fixed.refuse(verb.word(), reason))
        }
    }
}

/// Whether a domain that was as `before` shows now that this has been done; `None` is one that is gone.
pub(super) fn confirmed(verb: &Verb, before: &Object, now: Option<&Object>) -> bool {
    let Some(now) = now else {
        // One that is not defined goes when it stops.
        let is_transient = before.get("persistent").is_some_and(|it| *it == false);
        return match verb {
            Verb::Delete => true,
            Verb::Stop { .. } => is_transient,
            _ => false,
        };
    };
    let state = member(now, "state");
    match verb {
        Verb::Start | Verb::Resume => state == "running",
        Verb::Stop { .. } => state == "stopped",
        Verb::Suspend => state == "paused",
        Verb::Reboot { .. } => {
            // A guest that was reset has the same process as before.
            let traces = ["reboot_timestamp", "boot_timestamp", "pid"];
            let is_new = |trace: &&str| {
                now.get(*trace)
                    .is_some_and(|it| Some(it) != before.get(*trace))
            };
            state == "running" && traces.iter().any(is_new)
        }
        Verb::Delete
        | Verb::Kill(_)
        | Verb::Snapshot(_)
        | Verb::Rollback(_)
        | Verb::DeleteSnapshot(_) => false,
        Verb::Sync | Verb::Revert => true,
    }
}

/// The verbs that a domain would accept now and that would change something.
pub(super) fn accepted(vm: &Object) -> Vec<String> {
    let lines: &[&str] = match member(vm, "state") {
        "stopped" => &["start"],
        "crashed" => &["start", "stop force"],
        "running" => &["stop", "stop force", "reboot", "reboot force", "suspend"],
        "paused" => &["resume", "stop", "stop force"],
        _ => &["stop", "stop force"],
    };
    let always = ["delete", "sync", "revert"];
    lines
        .iter()
        .chain(&always)
        .map(|&line| line.to_owned())
        .collect()
}
