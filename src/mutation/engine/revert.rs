//! The last confirmed change of each VM, and what undoes it.

use uuid::Uuid;

use super::Inner;
use crate::mutation::Failure;
use crate::vm::Object;
use crate::vm::payload::{self, Invalid, InvalidKind};
use crate::vm::verb::Verb;

/// A confirmed change.
#[derive(Debug)]
pub(super) enum Last {
    Values { before: Object, after: Object },
    Verb(Verb),
}

/// How a change is undone.
pub(super) enum Reverted {
    To(Object),
    By(Verb),
}

impl Inner {
    pub(super) fn revert(&self, uuid: Uuid, vm: &Object) -> Result<Reverted, Failure> {
        let refused = |message: String| {
            Failure::Refused(Invalid {
                kind: InvalidKind::State,
                message,
            })
        };
        match self.last.lock().get(&uuid) {
            None => Err(refused(
                "revert: no change of this VM has been confirmed since the daemon started".into(),
            )),
            Some(Last::Values { before, after }) => {
                Ok(Reverted::To(payload::revert(vm, before, after)?))
            }
            Some(Last::Verb(verb)) => match verb {
                Verb::Start => Ok(Reverted::By(Verb::Stop {
                    force: false,
                    timeout: None,
                })),
                Verb::Stop { .. } => Ok(Reverted::By(Verb::Start)),
                Verb::Suspend => Ok(Reverted::By(Verb::Resume)),
                Verb::Resume => Ok(Reverted::By(Verb::Suspend)),
                Verb::Snapshot(name) => Ok(Reverted::By(Verb::DeleteSnapshot(name.clone()))),
                verb => Err(refused(format!(
                    "revert: the last change was {verb}, which cannot be undone"
                ))),
            },
        }
    }

    pub(super) fn remember(&self, uuid: Uuid, last: Option<Last>) {
        let mut all = self.last.lock();
        let shown = self.cache.now();
        if all.len() > 2 * shown.vms.len() + 64 {
            all.retain(|uuid, _| shown.vm(uuid).is_some());
        }
        match last {
            Some(Last::Verb(Verb::Delete)) => drop(all.remove(&uuid)),
            Some(last) => drop(all.insert(uuid, last)),
            None => {}
        }
    }
}
