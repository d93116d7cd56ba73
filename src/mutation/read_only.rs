//! A source that cannot be changed.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::{Changes, Failure, Outcome, Wait, Wish};
use crate::cache::Snapshot;
use crate::vm::Object;
use crate::vm::payload::{Invalid, InvalidKind};

/// Refuses all changes, for a source that has nobody who could make them.
#[derive(Clone, Copy, Debug)]
pub struct ReadOnly;

fn refused() -> Outcome {
    Err(Failure::Refused(Invalid {
        kind: InvalidKind::Fixed,
        message: "these VMs cannot be changed through the mount".to_owned(),
    }))
}

impl Changes for ReadOnly {
    fn change(&self, _: Uuid, _: Wish, _: Wait, done: Box<dyn FnOnce(Outcome) + Send>) {
        done(refused());
    }

    fn create(&self, _: Object, _: Wait, done: Box<dyn FnOnce(Option<Uuid>, Outcome) + Send>) {
        done(None, refused());
    }

    fn shown(&self, _: &Arc<Snapshot>) {}

    fn end(&self, _: Duration) {}
}
