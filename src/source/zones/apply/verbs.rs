//! What is done with a whole VM.

use serde_json::Value;

use super::runtime::{self, Manner};
use super::session::Session;
use super::update::xml_draft;
use super::{Progress, delete, failed, snapshots};
use crate::source::{Failed, FailedKind};
use crate::vm::verb::Verb;

/// Does it. Does not read the VM again.
pub(super) fn run(session: &mut Session<'_>, verb: &Verb) -> Result<(), Failed> {
    match verb {
        Verb::Start => start(session),
        Verb::Stop { .. } => stop(session, Manner::of(verb)),
        Verb::Reboot { .. } => {
            running(session, "rebooted")?;
            runtime::reboot(session, Manner::of(verb))
        }
        Verb::Kill(signal) => {
            running(session, "sent a signal")?;
            runtime::signal(session, signal)
        }
        Verb::Delete => delete::delete(session),
        Verb::Snapshot(name) => snapshots::take(session, name),
        Verb::Rollback(name) => rollback(session, name),
        Verb::DeleteSnapshot(name) => snapshots::remove(session, name),
        Verb::Suspend | Verb::Resume => {
            let reason = format!("{verb}: only the domains of a libvirt can");
            Err(failed(FailedKind::Invalid, &reason))
        }
        Verb::Sync | Verb::Revert => {
            let reason = "sync and revert change nothing at a source";
            Err(failed(FailedKind::Invalid, &reason))
        }
    }
}

/// Boots it.
pub(super) fn start(session: &Session<'_>) -> Result<(), Failed> {
    let state = zone_state(session);
    if state != "installed" && state != "ready" {
        let reason = format!("a zone that is {state} cannot be started");
        return Err(failed(FailedKind::Busy, &reason));
    }
    let mut progress = Progress::new(session.applier);
    remember(session, Remembered::Running, &mut progress)?;
    progress.step("start", || runtime::start(session))
}

/// Ends it.
pub(super) fn stop(session: &Session<'_>, manner: Manner) -> Result<(), Failed> {
    running(session, "stopped")?;
    let mut progress = Progress::new(session.applier);
    remember(session, Remembered::Stopped, &mut progress)?;
    progress.step("stop", || runtime::stop(session, manner))
}

/// Whether it runs, or is on its way up or down.
pub(super) fn is_running(session: &Session<'_>) -> bool {
    matches!(
        zone_state(session),
        "running" | "ready" | "shutting_down" | "down"
    )
}

fn rollback(session: &mut Session<'_>, name: &str) -> Result<(), Failed> {
    snapshots::check(session, name)?;
    let was_running = is_running(session);
    if was_running {
        stop(session, Manner::Asked(None))?;
    }
    snapshots::rollback(session, name).map_err(|mut error| {
        if was_running {
            error.applied.insert(0, "stop".to_owned());
        }
        error
    })?;
    if was_running {
        session.read()?;
        start(session).map_err(|mut error| {
            error
                .applied
                .splice(0..0, ["stop".to_owned(), "rollback".to_owned()]);
            error
        })?;
    }
    Ok(())
}

fn zone_state<'a>(session: &'a Session<'_>) -> &'a str {
    session.text("zone_state").unwrap_or("")
}

fn running(session: &Session<'_>, what: &str) -> Result<(), Failed> {
    match is_running(session) {
        true => Ok(()),
        false => {
            let reason = format!("a zone that is {} cannot be {what}", zone_state(session));
            Err(failed(FailedKind::Busy, &reason))
        }
    }
}

/// What a kvm zone's `vm-autoboot` says.
enum Remembered {
    Running,
    Stopped,
}

/// A kvm zone does not boot by itself; whoever boots it looks whether it was running.
fn remember(
    session: &Session<'_>,
    remembered: Remembered,
    progress: &mut Progress<'_>,
) -> Result<(), Failed> {
    if session.text("brand") != Some("kvm") {
        return Ok(());
    }
    let mut vm = session.vm().clone();
    let autoboot = matches!(remembered, Remembered::Running);
    vm.insert("autoboot".to_owned(), Value::Bool(autoboot));
    match xml_draft(session, &vm)? {
        Some(draft) => progress.step("autoboot", || Ok(draft.place()?)),
        None => Ok(()),
    }
}
