//! What changes domains: nothing yet.

use std::time::Instant;

use uuid::Uuid;

use crate::source::{Apply, Cut, Extent, Failed, FailedKind, Locked};
use crate::vm::Object;
use crate::vm::property::Part;

/// Refuses every change.
pub(super) struct Refuse;

fn refused() -> Failed {
    Failed {
        kind: FailedKind::Source,
        applied: Vec::new(),
        reason: "the domains of a libvirt cannot be changed through the mount yet; use virsh"
            .to_owned(),
    }
}

impl Apply for Refuse {
    fn lock_for(
        &self,
        _: Uuid,
        _: Extent,
        _: Instant,
        _: Instant,
    ) -> Result<Box<dyn Locked + '_>, Failed> {
        Err(refused())
    }

    fn delete(&self, _: Uuid, _: Instant) -> Result<(), Failed> {
        Err(refused())
    }

    fn create(&self, _: Uuid, _: &Object, _: Instant) -> Result<(), Failed> {
        Err(refused())
    }

    fn recover(&self) -> Vec<Cut> {
        Vec::new()
    }

    fn watcher(&self, _: Part) -> String {
        "libvirt's domain events".to_owned()
    }
}
