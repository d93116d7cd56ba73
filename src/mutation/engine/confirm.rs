//! Waiting until what was applied is shown.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use uuid::Uuid;

use super::{Applied, Inner, gone};
use crate::mutation::goal::Goal;
use crate::mutation::turns::Turn;
use crate::mutation::{Done, Failure, Outcome};
use crate::source::{Accepted, Extent, FailedKind};
use crate::vm::{self, Object};

/// How long a change that was applied keeps the others of its VM waiting for its confirmation.
const HANDOVER: Duration = Duration::from_secs(5);

/// After how long the source is asked to look again, and looked at, while nothing is confirmed; the last one is
/// repeated.
const LOOK: [Duration; 4] = [
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(3),
    Duration::from_secs(10),
];

/// How often a goal that a reading meets without a change is looked at.
const SEEN: Duration = Duration::from_millis(5);

/// How long the lock of a VM is tried when it is only to be looked at, and how long it may take to read it then.
const GLANCE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

impl Inner {
    /// Waits until the mount shows what was applied.
    pub(super) fn confirm(
        &self,
        uuid: Uuid,
        applied: &Applied,
        turn: &mut Option<Turn>,
        deadline: Instant,
    ) -> Outcome {
        let Applied {
            goal,
            accepted,
            since,
            ..
        } = applied;
        let watch = self.shown.watch(uuid);
        let began = Instant::now();
        let mut looks = 0;
        let mut was_there = false;
        let mut is_first = true;
        loop {
            let look_at = began + look_after(looks);
            let mut until = deadline.min(look_at);
            if turn.is_some() {
                until = until.min(began + HANDOVER);
            }
            if goal.is_of_time() {
                until = until.min(Instant::now() + SEEN);
            }
            let (vm, is_new) = watch.next(until);
            if goal.is_met(vm.as_deref(), *since) {
                return Ok(Done::Confirmed);
            }
            if self.ended.load(Ordering::Acquire) {
                return Err(Failure::Ended(
                    "the daemon ends: applied, but not confirmed; read it after the next start"
                        .into(),
                ));
            }
            let is_there = vm.is_some();
            if was_there && !is_there {
                return Err(gone(uuid));
            }
            was_there |= is_there;
            let now = Instant::now();
            if now >= began + HANDOVER {
                *turn = None;
            }
            // Another version that is not what we want may mean that somebody was faster.
            let is_another = is_new && !std::mem::take(&mut is_first) && !goal.is_of_time();
            if is_another || now >= look_at {
                if !is_another {
                    looks += 1;
                }
                self.look(uuid, goal, *accepted)?;
            }
            if now >= deadline {
                let object = vm.map(|vm| vm.rendered.object());
                return Err(match accepted {
                    Accepted::Done => self.unconfirmed(goal, object.as_ref()),
                    Accepted::Asked => unfollowed(goal, object.as_ref()),
                });
            }
        }
    }

    /// Waits until the mount shows the VM as it was read after `since`, when a change of it had failed: that may have
    /// left something, and what was read meanwhile may be of its midst. Nobody waits for a VM that gives no answer, has
    /// gone, or takes too long.
    pub(super) fn see(&self, uuid: Uuid, since: SystemTime, deadline: Instant) {
        let deadline = deadline.min(Instant::now() + HANDOVER);
        let watch = self.shown.watch(uuid);
        let mut was_there = false;
        while Instant::now() < deadline && !self.ended.load(Ordering::Acquire) {
            // A reading that finds nothing new is told to nobody.
            let (vm, _) = watch.next(deadline.min(Instant::now() + SEEN));
            match vm {
                Some(vm) if vm.stale.is_some() || vm.observed() >= vm::nanos(since) => return,
                None if was_there => return,
                vm => was_there |= vm.is_some(),
            }
        }
    }

    /// Looks at the source whether it still has what was applied, and asks it to report.
    fn look(&self, uuid: Uuid, goal: &Goal, accepted: Accepted) -> Result<(), Failure> {
        self.source.reload(uuid);
        // Of a guest that was asked the source says nothing that the mount does not show.
        if accepted == Accepted::Asked && self.shown.vm(&uuid).is_some() {
            return Ok(());
        }
        let now = Instant::now();
        let (until, deadline) = (now + GLANCE.0, now + GLANCE.1);
        match (self.apply).lock_for(uuid, Extent::Whole, until, deadline) {
            // What a VM does takes its time; values are there or are not.
            Ok(locked)
                if matches!(goal, Goal::Values(_))
                    && accepted == Accepted::Done
                    && !goal.is_met_by(Some(locked.vm())) =>
            {
                Err(overtaken(goal, Some(locked.vm())))
            }
            Err(failed) if failed.kind == FailedKind::Gone && !goal.is_met_by(None) => {
                Err(gone(uuid))
            }
            // Somebody works on it, or it cannot be read now: the next look will tell.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    fn unconfirmed(&self, goal: &Goal, vm: Option<&Object>) -> Failure {
        let (missing, parts) = goal.missing(vm);
        let watchers: Vec<String> = parts
            .into_iter()
            .map(|part| self.apply.watcher(part))
            .collect();
        Failure::Unconfirmed(format!(
            "{missing}: applied, but not confirmed in time; silent: {}; see .status",
            watchers.join(", ")
        ))
    }
}

/// How long after the beginning the source is looked at for this time.
fn look_after(number: u32) -> Duration {
    let last = LOOK.len() - 1;
    let repeated = number.saturating_sub(last as u32);
    LOOK[last.min(number as usize)] + LOOK[last] * repeated
}

/// A guest was asked, and nothing has come of it.
fn unfollowed(goal: &Goal, vm: Option<&Object>) -> Failure {
    let (missing, _) = goal.missing(vm);
    let applied = match vm.map(|vm| goal.met(vm)).as_deref() {
        None | Some("") => String::new(),
        Some(met) => format!("; applied, and stays: {met}"),
    };
    Failure::Unconfirmed(format!(
        "{missing}: asked; the guest has not followed. It may still do so{applied}"
    ))
}

/// What was applied is no longer so at the source, which has this.
pub(super) fn overtaken(goal: &Goal, vm: Option<&Object>) -> Failure {
    let (missing, _) = goal.missing(vm);
    Failure::Overtaken(format!(
        "{missing}: applied, but the source now has something else: somebody has changed it since"
    ))
}
