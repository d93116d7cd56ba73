//! Shows what was published, on the thread `settle`.
//!
//! The thread is level-triggered: it takes the newest snapshot, compares it with the last one
//! that was settled, and does what the difference asks for, so that a burst costs what its result
//! differs, and nothing can be lost from a queue. For each snapshot, in this order:
//!
//! 1. From here on the answers to the kernel say of what is about to change that it must not be kept.
//! 2. `rmdir` of VMs that are gone, then `mkdir` of those that came, through the VFS, so that inotify
//!    says so before any event does ([`super::announce`]).
//! 3. What the kernel has kept of it is taken back, from both mounts.
//! 4. The snapshot becomes the settled one, which all reads, attributes and listings show, in one step.
//!    Nobody has anything older in a cache then.
//! 5. Listings that were on their way are taken back. What was taken back is looked at ([`super::announce`]),
//!    and only then may the kernel keep it
//!    again. When the kernel takes over attributes it marks them valid first and writes the size
//!    after (`fuse_change_attributes`), so a stat beside that would get the size that was there
//!    before; now the new one is there already.
//! 6. Streams tell of the events, and readers, pollers, watchers and writers are woken.
//!
//! Between publications the thread puts `last_error` and `.errors` right when writes have failed, and
//! only then has their callers told ([`super::writing`]).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use tracing::debug;

use super::readonly;
use super::tree::Tree;
use super::writable::caches::Caches;
use crate::cache::Snapshot;
use crate::mutation::Changes;
use crate::vm::Vm;

/// What the settling thread works with.
pub struct Settler {
    /// The tree whose snapshots it settles.
    pub tree: Arc<Tree>,
    /// The writable mount.
    pub writable: Option<Caches>,
    /// The read-only mount.
    pub read_only: Option<readonly::Caches>,
    /// Who waits for what is shown.
    pub changes: Arc<dyn Changes>,
    /// Set when the thread is to end.
    pub ended: Arc<AtomicBool>,
    /// Where tests can stop the thread.
    pub barriers: Barriers,
}

/// Locks that the thread holds for reading while it is there: who holds one for writing stops it.
#[derive(Clone, Debug, Default)]
pub struct Barriers {
    /// Before a publication is settled.
    pub publication: Arc<RwLock<()>>,
    /// When everything old was taken from the kernel, before the new is shown.
    pub switch: Arc<RwLock<()>>,
}

/// What differs between the settled snapshot and the one to be settled.
pub struct Difference<'a> {
    /// The settled snapshot.
    pub settled: &'a Snapshot,
    /// The one to be settled.
    pub newest: &'a Snapshot,
    /// VMs that went, with their slots.
    pub gone: Vec<(u64, &'a Arc<Vm>)>,
    /// VMs that came.
    pub came: Vec<(u64, &'a Arc<Vm>)>,
    /// VMs of which there is another version.
    pub changed: Vec<Changed<'a>>,
}

/// A VM that differs between two snapshots.
pub struct Changed<'a> {
    /// Its slot in both.
    pub slot: u64,
    /// The settled version.
    pub old: &'a Arc<Vm>,
    /// The version to be settled.
    pub new: &'a Arc<Vm>,
}

impl<'a> Difference<'a> {
    /// What differs between two snapshots.
    pub fn of(settled: &'a Snapshot, newest: &'a Snapshot) -> Difference<'a> {
        let (mut gone, mut came, mut changed) = (Vec::new(), Vec::new(), Vec::new());
        settled
            .vms
            .diff(&newest.vms, |slot, old, new| match (old, new) {
                // One that was deleted and created again keeps neither its times nor its inodes.
                (Some(old), Some(new)) if (old.uuid, old.born) == (new.uuid, new.born) => {
                    changed.push(Changed { slot, old, new })
                }
                (old, new) => {
                    gone.extend(old.map(|vm| (slot, vm)));
                    came.extend(new.map(|vm| (slot, vm)));
                }
            });
        Difference {
            settled,
            newest,
            gone,
            came,
            changed,
        }
    }

    /// Whether names in the root come or go.
    pub fn has_names(&self) -> bool {
        !self.gone.is_empty() || !self.came.is_empty()
    }

    /// Whether there are events to tell.
    pub fn has_events(&self) -> bool {
        self.newest.seq != self.settled.seq
    }
}

impl Settler {
    /// Settles snapshots until ended: the thread `settle`.
    pub fn run(&self) {
        self.changes.shown(&self.tree.settled());
        let has_untold = || self.writable.as_ref().is_some_and(Caches::has_untold);
        while !self.ended.load(Ordering::Acquire) {
            let settled = self.tree.settled();
            let has_ended = || self.ended.load(Ordering::Acquire) || has_untold();
            self.tree.cache.newer_than(settled.version, None, has_ended);
            if let Some(writable) = &self.writable {
                writable.tell_failures();
            }
            let _open = self.barriers.publication.read();
            let newest = self.tree.cache.now();
            if newest.version > settled.version {
                self.settle(&settled, newest);
            }
        }
    }

    fn settle(&self, settled: &Snapshot, newest: Arc<Snapshot>) {
        let difference = Difference::of(settled, &newest);
        match &self.read_only {
            Some(read_only) => read_only.prepare(&newest),
            None => self.tree.prepare(newest.clone()),
        }
        let writable = self.writable.as_ref().map(|writable| {
            writable.announce(&difference);
            (writable, writable.invalidate(&difference))
        });
        let read_only = self.read_only.as_ref();
        let read_only = read_only.map(|mount| (mount, mount.invalidate(&difference)));
        drop(self.barriers.switch.read());
        match read_only {
            Some((read_only, listings)) => {
                read_only.settle(&difference, &newest);
                read_only.kernel.drop_listings(&listings);
                read_only.look(&difference);
            }
            None => self.tree.settle(newest.clone()),
        }
        if let Some((writable, listings)) = writable {
            writable.kernel.drop_listings(&listings);
            writable.look(&difference);
        }
        self.tree.rest();
        if let Some(writable) = &self.writable {
            writable.tell(&difference);
        }
        self.changes.shown(&newest);
        debug!(
            seq = newest.seq,
            gone = difference.gone.len(),
            came = difference.came.len(),
            changed = difference.changed.len(),
            "settled"
        );
    }
}
