//! Changes domains: has the program `vminfod-libvirt` do what [`plan`] says, and waits for its answer.
//!
//! It runs on the thread of the change, which is all that a call that hangs can stop. It keeps nothing: the program's
//! supervisor knows who waits for which answer, and drops them all when the program ends.

use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::plan;
use super::step::Step;
use super::supervisor::Message;
use super::wire::{Answer, Change};
use crate::source::{Accepted, Apply, Cut, Extent, Failed, FailedKind, Locked};
use crate::vm::payload::{self, Created, Invalid};
use crate::vm::property::Part;
use crate::vm::verb::Verb;
use crate::vm::{Object, drift};

/// How often a guest that may take some seconds to shut down is looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Changes the domains of one libvirt.
pub(super) struct Applier {
    /// Where the program is asked.
    inbox: Sender<Message>,
    /// How long a reading may take.
    patience: Duration,
}

/// A domain as it was last read. libvirt has no lock to hold.
struct Opened<'a> {
    applier: &'a Applier,
    uuid: Uuid,
    vm: Object,
    deadline: Instant,
}

impl Applier {
    pub(super) fn new(inbox: Sender<Message>, patience: Duration) -> Applier {
        Applier { inbox, patience }
    }

    fn ask(&self, uuid: Uuid, change: Change, deadline: Instant) -> Result<Answer, Failed> {
        let (answer, answered) = mpsc::channel();
        // Nobody listens only when the source has ended, and then the answer is dropped too.
        let _ = self.inbox.send(Message::Change(uuid, change, answer));
        let left = deadline.saturating_duration_since(Instant::now());
        answered.recv_timeout(left).unwrap_or_else(|error| {
            Err(match error {
                RecvTimeoutError::Timeout => Failed {
                    kind: FailedKind::Unanswered,
                    ..source(format!(
                        "libvirt has not answered in {:.0} seconds; what was asked of it may still be done",
                        left.as_secs_f64()
                    ))
                },
                RecvTimeoutError::Disconnected => source(
                    "the program that asks libvirt ended; what it had applied by then is shown when it has \
                     started again"
                        .to_owned(),
                ),
            })
        })
    }

    fn steps(&self, uuid: Uuid, steps: Vec<Step>, deadline: Instant) -> Result<Answer, Failed> {
        self.ask(uuid, Change::Steps(steps), deadline)
    }

    fn open(&self, uuid: Uuid, deadline: Instant) -> Result<Opened<'_>, Failed> {
        let mut opened = Opened {
            applier: self,
            uuid,
            vm: Object::new(),
            deadline,
        };
        opened.read()?;
        Ok(opened)
    }

    /// Does what may end a domain that is not defined.
    fn end(&self, uuid: Uuid, steps: Vec<Step>, deadline: Instant) -> Result<(), Failed> {
        match self.steps(uuid, steps, deadline) {
            Err(failed) if failed.kind == FailedKind::Gone => Ok(()),
            result => result.map(|_| ()),
        }
    }
}

impl Apply for Applier {
    fn lock_for(
        &self,
        uuid: Uuid,
        _: Extent,
        _: Instant,
        deadline: Instant,
    ) -> Result<Box<dyn Locked + '_>, Failed> {
        Ok(Box::new(self.open(uuid, deadline)?))
    }

    fn unread(&self, uuid: Uuid, verb: &Verb, deadline: Instant) -> Option<Result<(), Failed>> {
        match verb {
            Verb::Delete => Some(self.delete(uuid, deadline)),
            Verb::Stop { force: true, .. } => Some(self.end(uuid, vec![Step::Destroy], deadline)),
            _ => None,
        }
    }

    fn delete(&self, uuid: Uuid, deadline: Instant) -> Result<(), Failed> {
        self.end(uuid, vec![Step::Destroy, Step::Undefine], deadline)
    }

    fn created(&self, payload: &Object) -> Result<Created, Invalid> {
        payload::create_domain(payload)
    }

    fn create(&self, uuid: Uuid, target: &Object, deadline: Instant) -> Result<(), Failed> {
        self.ask(uuid, Change::Create(target.clone()), deadline)
            .map(|_| ())
    }

    fn recover(&self) -> Vec<Cut> {
        // Nothing is begun that the program does not end, and it keeps no record.
        Vec::new()
    }

    fn watcher(&self, part: Part) -> String {
        match part {
            Part::Datasets => "libvirt's statistics, asked for by vminfod-libvirt".to_owned(),
            _ => "libvirt's domain events, heard by vminfod-libvirt".to_owned(),
        }
    }
}

impl Opened<'_> {
    /// Takes an answer over: the domain as it is now.
    fn take(&mut self, answer: Answer) -> Accepted {
        self.vm = answer.vm.unwrap_or_default();
        answer.accepted
    }

    fn run_steps(&mut self, steps: Vec<Step>) -> Result<Accepted, Failed> {
        let answer = self.applier.steps(self.uuid, steps, self.deadline)?;
        Ok(self.take(answer))
    }

    /// Asks the guest to shut down, and ends it if it has not done so after a while.
    fn stop_within(&mut self, seconds: u64) -> Result<Accepted, Failed> {
        self.run_steps(vec![Step::Shutdown])?;
        let asked = Instant::now();
        let patience = Duration::from_secs(seconds);
        while drift::runs(&self.vm) {
            let waited = asked.elapsed();
            if waited >= patience {
                return match self.run_steps(vec![Step::Destroy]) {
                    // It has just ended by itself.
                    Err(failed) if failed.kind == FailedKind::Gone => Ok(Accepted::Done),
                    Err(mut failed) => {
                        failed.applied.insert(0, Step::Shutdown.to_string());
                        Err(failed)
                    }
                    result => result,
                };
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                // Nobody waits for longer, and the guest was promised more time.
                return Ok(Accepted::Asked);
            }
            thread::sleep(LOOK.min(patience - waited).min(left));
            match self.read() {
                Err(failed) if failed.kind == FailedKind::Gone => return Ok(Accepted::Done),
                // It was promised an end, and libvirt may come back in time for that.
                Ok(()) | Err(_) => {}
            }
        }
        Ok(Accepted::Done)
    }
}

impl Locked for Opened<'_> {
    fn vm(&self) -> &Object {
        &self.vm
    }

    fn read(&mut self) -> Result<(), Failed> {
        let deadline = self.deadline.min(Instant::now() + self.applier.patience);
        let answer = self.applier.steps(self.uuid, Vec::new(), deadline);
        let answer = answer.map_err(|failed| match failed.kind {
            // Nothing was asked of it but to say what it is.
            FailedKind::Unanswered => source(format!(
                "domain {}: libvirt has not answered; nothing was applied",
                self.uuid
            )),
            _ => failed,
        })?;
        if answer.vm.is_none() {
            return Err(Failed {
                kind: FailedKind::Gone,
                ..source(format!("{}: libvirt has no such domain", self.uuid))
            });
        }
        self.take(answer);
        Ok(())
    }

    fn update(&mut self, target: &Object) -> Result<Accepted, Failed> {
        let steps = plan::update(&self.vm, target);
        self.run_steps(steps)
    }

    fn run(&mut self, verb: &Verb) -> Result<Accepted, Failed> {
        match verb {
            Verb::Stop {
                force: false,
                timeout: Some(seconds),
            } => self.stop_within(*seconds),
            verb => self.run_steps(plan::verb(verb, &self.vm)),
        }
    }
}

fn source(reason: String) -> Failed {
    Failed {
        kind: FailedKind::Source,
        applied: Vec::new(),
        reason,
    }
}
