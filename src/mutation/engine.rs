//! How a change goes its way, on its own thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;
use tracing::{debug, info};
use uuid::Uuid;

use super::goal::Goal;
use super::shown::Shown;
use super::turns::{NoTurn, Turn, Turns};
use super::txns::{Txn, Txns};
use super::{Changed, Changes, Created, Done, Failure, Outcome, Wait, Wish};
use crate::cache::{Cache, Snapshot};
use crate::source::{Accepted, Apply, Extent, Failed, FailedKind, Locked, Source};
use crate::vm::files::Rendered;
use crate::vm::payload::{self, Invalid, InvalidKind};
use crate::vm::verb::Verb;
use crate::vm::{self, Object};
use confirm::overtaken;
use revert::{Last, Reverted};

mod confirm;
mod revert;

/// How long a change may take from its beginning to its confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Of values, snapshots and the like.
    pub change: Duration,
    /// Of what waits for a guest: start, stop, reboot, creation and deletion.
    pub life: Duration,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            change: Duration::from_secs(60),
            life: Duration::from_secs(300),
        }
    }
}

/// The changes in progress. Cheap to clone.
#[derive(Clone)]
pub struct Mutations(Arc<Inner>);

struct Inner {
    cache: Arc<Cache>,
    source: Arc<dyn Source>,
    apply: Arc<dyn Apply>,
    timeouts: Timeouts,
    turns: Arc<Turns>,
    shown: Shown,
    txns: Arc<Txns>,
    /// What the last confirmed change of each VM did, for `revert`.
    last: Mutex<HashMap<Uuid, Last>>,
    ended: AtomicBool,
    /// How many changes are being applied.
    applying: Mutex<usize>,
    applied: Condvar,
}

/// Counts a change as being applied, until this is dropped.
struct Applying<'a>(&'a Inner);

/// A change that was applied, and what it waits for.
struct Applied {
    goal: Arc<Goal>,
    /// Whether a guest has still to follow.
    accepted: Accepted,
    /// Its number in events, if it did anything.
    _txn: Option<Txn>,
    /// When it had been applied.
    since: SystemTime,
    last: Option<Last>,
}

/// A change that was not applied, or not wholly.
struct Unapplied {
    failure: Failure,
    /// When the source had tried it, if it did: it may have left something.
    tried: Option<SystemTime>,
}

impl Unapplied {
    fn tried(uuid: Uuid, failed: Failed, at: SystemTime) -> Unapplied {
        Unapplied {
            failure: failure(uuid, failed),
            tried: Some(at),
        }
    }
}

impl From<Failure> for Unapplied {
    fn from(failure: Failure) -> Unapplied {
        Unapplied {
            failure,
            tried: None,
        }
    }
}

impl Mutations {
    /// Nothing in progress. What the cache has now counts as shown.
    pub fn new(
        cache: Arc<Cache>,
        source: Arc<dyn Source>,
        apply: Arc<dyn Apply>,
        timeouts: Timeouts,
    ) -> Mutations {
        Mutations(Arc::new(Inner {
            shown: Shown::new(cache.now()),
            cache,
            source,
            apply,
            timeouts,
            turns: Arc::default(),
            txns: Arc::default(),
            last: Mutex::default(),
            ended: AtomicBool::new(false),
            applying: Mutex::new(0),
            applied: Condvar::new(),
        }))
    }

    /// The number of the change of ours that made `new` of `old`, if one did.
    pub fn txn(
        &self,
        uuid: &Uuid,
        old: Option<&Rendered>,
        new: Option<&Rendered>,
    ) -> Option<String> {
        self.0.txns.of(uuid, old, new)
    }
}

impl Changes for Mutations {
    fn change(&self, uuid: Uuid, wish: Wish, wait: Wait, done: Changed) {
        let inner = self.0.clone();
        let done = Arc::new(Mutex::new(Some(done)));
        let answer = {
            let done = done.clone();
            move |outcome| {
                if let Some(done) = done.lock().take() {
                    done(outcome);
                }
            }
        };
        let run = {
            let answer = answer.clone();
            move || inner.change(uuid, wish, wait, &answer)
        };
        if let Err(error) = thread::Builder::new().name("change".into()).spawn(run) {
            answer(Err(Failure::Busy(no_thread(&error))));
        }
    }

    fn create(&self, payload: Object, wait: Wait, done: Created) {
        let created = match self.0.apply.created(&payload) {
            Ok(created) => created,
            Err(invalid) => return done(None, Err(invalid.into())),
        };
        let inner = self.0.clone();
        let uuid = created.uuid;
        let done = Arc::new(Mutex::new(Some(done)));
        let answer = {
            let done = done.clone();
            move |outcome| {
                if let Some(done) = done.lock().take() {
                    done(Some(uuid), outcome);
                }
            }
        };
        let run = {
            let answer = answer.clone();
            move || inner.create(uuid, &created.target, wait, &answer)
        };
        if let Err(error) = thread::Builder::new().name("change".into()).spawn(run) {
            answer(Err(Failure::Busy(no_thread(&error))));
        }
    }

    fn shown(&self, snapshot: &Arc<Snapshot>) {
        self.0.shown.show(snapshot);
    }

    fn end(&self, patience: Duration) {
        self.0.ended.store(true, Ordering::Release);
        self.0.turns.end();
        self.0.shown.wake();
        let deadline = Instant::now() + patience;
        let mut applying = self.0.applying.lock();
        while *applying > 0
            && !self
                .0
                .applied
                .wait_until(&mut applying, deadline)
                .timed_out()
        {}
    }
}

impl Inner {
    /// Changes a VM from the first step to the last, and answers as soon as the outcome is known.
    fn change(&self, uuid: Uuid, wish: Wish, wait: Wait, answer: &dyn Fn(Outcome)) {
        let timeout = match &wish {
            Wish::Verb(Verb::Start | Verb::Stop { .. } | Verb::Reboot { .. } | Verb::Delete) => {
                self.timeouts.life
            }
            _ => self.timeouts.change,
        };
        let deadline = Instant::now() + timeout;
        let what = wish.to_string();
        let turn = self.take_turn(uuid, &what, wait, deadline);
        let result = turn.map_err(Unapplied::from).and_then(|turn| {
            let _applying = self.applying()?;
            let applied = self.apply(uuid, wish, wait, deadline)?;
            Ok((turn, applied))
        });
        match result {
            Err(unapplied) => {
                debug!(vm = %uuid, what, failure = %unapplied.failure, "not changed");
                answer(Err(self.failed(uuid, unapplied, wait, deadline)));
            }
            Ok((turn, None)) => {
                drop(turn);
                answer(Ok(Done::Already));
            }
            Ok((turn, Some(applied))) => {
                if wait != Wait::Confirmed {
                    answer(Ok(Done::Applied));
                }
                // Whoever has the next turn may want to undo this one, so it ends when that is known.
                let mut turn = Some(turn);
                let outcome = self.confirm(uuid, &applied, &mut turn, deadline);
                debug!(vm = %uuid, what, ?outcome, "changed");
                if outcome.is_ok() {
                    self.remember(uuid, applied.last);
                }
                drop(turn);
                answer(outcome);
            }
        }
    }

    fn create(&self, uuid: Uuid, target: &Object, wait: Wait, answer: &dyn Fn(Outcome)) {
        let deadline = Instant::now() + self.timeouts.life;
        let turn = self.take_turn(uuid, "create", wait, deadline);
        let result = turn.map_err(Unapplied::from).and_then(|turn| {
            let _applying = self.applying()?;
            if self.shown.vm(&uuid).is_some() || self.cache.vm(&uuid).is_some() {
                return Err(Failure::Exists(format!("{uuid}: this VM exists already")).into());
            }
            let goal = Arc::new(Goal::There);
            let txn = self.txns.enter(uuid, goal.clone());
            let made = self.apply.create(uuid, target, deadline);
            let since = vm::now();
            self.source.reload(uuid);
            made.map_err(|failed| {
                // What was taken back never shows.
                let tried = (!failed.applied.is_empty()).then_some(since);
                let failure = failure(uuid, failed);
                Unapplied { failure, tried }
            })?;
            info!(vm = %uuid, "created");
            Ok((
                turn,
                Applied {
                    goal,
                    accepted: Accepted::Done,
                    _txn: Some(txn),
                    since: vm::now(),
                    last: None,
                },
            ))
        });
        match result {
            Err(unapplied) => answer(Err(self.failed(uuid, unapplied, wait, deadline))),
            Ok((turn, applied)) => {
                if wait != Wait::Confirmed {
                    answer(Ok(Done::Applied));
                }
                answer(self.confirm(uuid, &applied, &mut Some(turn), deadline));
            }
        }
    }

    /// Why a change failed, when the mount shows what it has left.
    fn failed(&self, uuid: Uuid, unapplied: Unapplied, wait: Wait, deadline: Instant) -> Failure {
        if wait == Wait::Confirmed
            && let Some(since) = unapplied.tried
        {
            self.see(uuid, since, deadline);
        }
        unapplied.failure
    }

    /// Everything up to and including the last step at the source; `None` if nothing had to be done
    /// and the mount shows it.
    fn apply(
        &self,
        uuid: Uuid,
        wish: Wish,
        wait: Wait,
        deadline: Instant,
    ) -> Result<Option<Applied>, Unapplied> {
        let extent = match wish.is_of_files() {
            true => Extent::Files,
            false => Extent::Whole,
        };
        let until = match wait {
            Wait::AtOnce => Instant::now(),
            Wait::Applied | Wait::Confirmed => deadline,
        };
        let locked = match self.apply.lock_for(uuid, extent, until, deadline) {
            Ok(locked) => locked,
            // Nobody could get rid of a broken VM otherwise.
            Err(failed) if matches!(failed.kind, FailedKind::Source | FailedKind::Unanswered) => {
                return self.run_unread(uuid, wish, failed, deadline).map(Some);
            }
            Err(failed) if failed.kind == FailedKind::Busy && wait == Wait::AtOnce => {
                return Err(Failure::WouldBlock(failed.reason).into());
            }
            Err(failed) => return Err(failure(uuid, failed).into()),
        };
        let before = locked.vm().clone();
        let wish = match wish {
            Wish::Verb(Verb::Revert) => match self.revert(uuid, &before)? {
                Reverted::To(target) => {
                    return self.update(uuid, locked, before, |_| Ok(target.clone()));
                }
                Reverted::By(verb) => Wish::Verb(verb),
            },
            wish => wish,
        };
        match wish {
            Wish::Verb(verb) => self.run(uuid, locked, before, verb),
            wish => {
                if let Wish::Document(document) = &wish
                    && let Some(expected) = document.get("if_generation")
                {
                    self.check_generation(uuid, &before, expected)?;
                }
                self.update(uuid, locked, before, |vm| wish.target(vm))
            }
        }
    }

    /// Makes a VM what `target` makes of it.
    fn update(
        &self,
        uuid: Uuid,
        mut locked: Box<dyn Locked + '_>,
        before: Object,
        target: impl Fn(&Object) -> Result<Object, Invalid>,
    ) -> Result<Option<Applied>, Unapplied> {
        let made = target(&before).map_err(Failure::from)?;
        let wanted = payload::wanted(&before, &made);
        if wanted.is_empty() {
            drop(locked);
            return Ok(self.unless_shown(uuid, |shown| {
                // What others have changed beside is not waited for.
                let mut own = payload::wanted(shown, &target(shown).unwrap_or(made));
                own.retain(|one| one.holds(&before));
                (!own.is_empty()).then_some(Goal::Values(own))
            }));
        }
        let goal = Arc::new(Goal::Values(wanted));
        let txn = self.txns.enter(uuid, goal.clone());
        let written = locked.update(&made);
        let since = vm::now();
        match &written {
            Ok(_) => self.source.reload_files(uuid),
            // Some of it may have been written, and is to be seen.
            Err(_) => self.source.reload(uuid),
        }
        let accepted = written.map_err(|failed| Unapplied::tried(uuid, failed, since))?;
        if accepted == Accepted::Done && !goal.is_met_by(Some(locked.vm())) {
            return Err(overtaken(&goal, Some(locked.vm())).into());
        }
        let after = match accepted {
            Accepted::Done => locked.vm().clone(),
            Accepted::Asked => made,
        };
        let last = Some(Last::Values { before, after });
        Ok(Some(Applied {
            goal,
            accepted,
            _txn: Some(txn),
            since: vm::now(),
            last,
        }))
    }

    fn run(
        &self,
        uuid: Uuid,
        mut locked: Box<dyn Locked + '_>,
        before: Object,
        verb: Verb,
    ) -> Result<Option<Applied>, Unapplied> {
        verb.check(&before).map_err(Failure::from)?;
        let can_be_so = matches!(
            verb,
            Verb::Start | Verb::Stop { .. } | Verb::Suspend | Verb::Resume
        );
        if can_be_so && verb.confirmed(&before, Some(&before)) {
            drop(locked);
            return Ok(self.unless_shown(uuid, |shown| {
                let is_shown = verb.confirmed(&before, Some(shown));
                (!is_shown).then_some(Goal::Verb { verb, before })
            }));
        }
        let is_sync = verb == Verb::Sync;
        let last = Some(Last::Verb(verb.clone()));
        let goal = Arc::new(Goal::Verb {
            verb: verb.clone(),
            before,
        });
        let txn = self.txns.enter(uuid, goal.clone());
        let since = vm::now();
        let ran = match is_sync {
            true => Ok(Accepted::Done),
            false => locked.run(&verb),
        };
        let ended = vm::now();
        self.source.reload(uuid);
        let accepted = ran.map_err(|failed| Unapplied::tried(uuid, failed, ended))?;
        Ok(Some(Applied {
            goal,
            accepted,
            _txn: Some(txn),
            since: if is_sync { since } else { ended },
            last: last.filter(|_| !is_sync),
        }))
    }

    /// Does what can be done with a VM that could not be read, as `failed` says.
    fn run_unread(
        &self,
        uuid: Uuid,
        wish: Wish,
        failed: Failed,
        deadline: Instant,
    ) -> Result<Applied, Unapplied> {
        let Wish::Verb(verb) = wish else {
            return Err(failure(uuid, failed).into());
        };
        // What it was when it was last read tells a domain from a zone.
        let before = self.shown.vm(&uuid).map(|vm| vm.rendered.object());
        let goal = Arc::new(Goal::Verb {
            verb: verb.clone(),
            before: before.unwrap_or_default(),
        });
        let txn = self.txns.enter(uuid, goal.clone());
        let Some(ran) = self.apply.unread(uuid, &verb, deadline) else {
            return Err(failure(uuid, failed).into());
        };
        self.source.reload(uuid);
        ran.map_err(|failed| failure(uuid, failed))?;
        info!(vm = %uuid, %verb, "done, though the VM could not be read");
        Ok(Applied {
            goal,
            accepted: Accepted::Done,
            _txn: Some(txn),
            since: vm::now(),
            last: Some(Last::Verb(verb)),
        })
    }

    /// What the mount still has to show of a VM that is as it should be at its source, which is what
    /// `goal` finds missing in what it shows; `None` if that is nothing.
    fn unless_shown(
        &self,
        uuid: Uuid,
        goal: impl FnOnce(&Object) -> Option<Goal>,
    ) -> Option<Applied> {
        let goal = match self.shown.vm(&uuid) {
            Some(shown) => goal(&shown.rendered.object())?,
            None => Goal::There,
        };
        self.source.reload(uuid);
        Some(Applied {
            // It was somebody else's doing.
            _txn: None,
            goal: Arc::new(goal),
            accepted: Accepted::Done,
            since: vm::now(),
            last: None,
        })
    }

    /// `if_generation`: the VM is still the version that the caller has read.
    fn check_generation(
        &self,
        uuid: Uuid,
        fresh: &Object,
        expected: &Value,
    ) -> Result<(), Failure> {
        let Some(expected) = expected.as_u64() else {
            return Err(Failure::Refused(Invalid {
                kind: InvalidKind::Value,
                message: format!("if_generation: not a whole number: {expected}"),
            }));
        };
        let Some(vm) = self.cache.vm(&uuid) else {
            return Err(gone(uuid));
        };
        if vm.generation != expected {
            return Err(Failure::Moved(format!(
                "if_generation: the VM has generation {} and not {expected}; read it again",
                vm.generation
            )));
        }
        // The source may be ahead of what anybody has read.
        match payload::wanted(&vm.rendered.object(), fresh).first() {
            None => Ok(()),
            Some(changed) => Err(Failure::Moved(format!(
                "if_generation: somebody has just changed the VM ({changed}); read it again"
            ))),
        }
    }

    fn take_turn(
        &self,
        uuid: Uuid,
        what: &str,
        wait: Wait,
        deadline: Instant,
    ) -> Result<Turn, Failure> {
        let is_patient = wait != Wait::AtOnce;
        let until = if is_patient { deadline } else { Instant::now() };
        let turn = self.turns.take(uuid, what.to_owned(), until);
        turn.map_err(|no_turn| match no_turn {
            NoTurn::Late(other) if is_patient => Failure::Busy(format!(
                "{what}: another change of this VM does not end: {other}; nothing was applied"
            )),
            NoTurn::Late(other) => Failure::WouldBlock(format!(
                "{what}: another change of this VM goes on: {other}; nothing was applied"
            )),
            NoTurn::Ended => not_begun(),
        })
    }

    fn applying(&self) -> Result<Applying<'_>, Failure> {
        let mut applying = self.applying.lock();
        if self.ended.load(Ordering::Acquire) {
            return Err(not_begun());
        }
        *applying += 1;
        Ok(Applying(self))
    }
}

impl Drop for Applying<'_> {
    fn drop(&mut self) {
        *self.0.applying.lock() -= 1;
        self.0.applied.notify_all();
    }
}

fn no_thread(error: &std::io::Error) -> String {
    format!("too many changes at once, no thread for this one: {error}; nothing was applied")
}

fn not_begun() -> Failure {
    Failure::Ended("the daemon ends: nothing was applied".into())
}

fn gone(uuid: Uuid) -> Failure {
    Failure::Gone(format!("{uuid}: this VM does not exist, or has just gone"))
}

fn failure(uuid: Uuid, failed: Failed) -> Failure {
    let Failed {
        kind,
        applied,
        reason,
    } = failed;
    match kind {
        // What is only refused or busy leaves everything as it was.
        FailedKind::Busy | FailedKind::Exists | FailedKind::Invalid if !applied.is_empty() => {
            Failure::Source { reason, applied }
        }
        FailedKind::Gone => Failure::Gone(reason),
        FailedKind::Busy => Failure::Busy(reason),
        FailedKind::Exists => Failure::Exists(reason),
        FailedKind::Invalid => Failure::Refused(Invalid {
            kind: InvalidKind::Value,
            message: reason,
        }),
        FailedKind::Forbidden => Failure::Refused(Invalid {
            kind: InvalidKind::Fixed,
            message: reason,
        }),
        FailedKind::Unanswered => Failure::Unconfirmed(reason),
        FailedKind::Source => {
            debug!(vm = %uuid, reason, ?applied, "the source failed");
            Failure::Source { reason, applied }
        }
    }
}
