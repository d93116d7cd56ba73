//! The current VMs and the events, published together and read without waiting.
//!
//! There is one [`Writer`] and any number of readers of the [`Cache`]. A reader takes a
//! [`Snapshot`], which is one pointer: all VMs, indexes and the sequence number as they were at one
//! moment, for as long as it likes. A change copies the few nodes of the tries that lead to it,
//! so what it costs does not depend on how many VMs there are, and a full rescan becomes
//! visible in one step.
//!
//! Invariants: sequence numbers have no holes; a snapshot with sequence number *n* holds exactly
//! the changes of the events up to *n*; what is published was read from a source.
//!
//! The numbers of a cache start after a *base*, the time at its start in microseconds. No earlier
//! daemon has come as far, unless the clock was turned back, so a number that a reader has from an
//! earlier one is never taken for one of ours. It fits the integers of JSON, 53 bits, until 2255.
//!
//! Locks: the event ring has a read-write lock that is held while lines are pushed or looked
//! up, never across IO; snapshots need none.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use crate::vm::diff::{self, Change as Difference};
use crate::vm::files::Rendered;
use crate::vm::{Nanos, Origin, Vm, nanos};

pub mod events;
pub mod slots;
pub mod trie;

use events::{Event, Kind, Ring};
use slots::{Moved, Slots, Slotted};
use trie::{Item, Trie};

impl Item for Arc<Vm> {
    /// The VM's line in `vms.json`: its JSON, `,` and a newline.
    fn weight(&self) -> u64 {
        self.json().len() as u64 + 2
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

impl Slotted for Arc<Vm> {
    type Id = Uuid;

    fn id(&self) -> &Uuid {
        &self.uuid
    }

    fn hash(id: &Uuid) -> u64 {
        xxh3_64(id.as_bytes())
    }
}

/// The VMs that share a value: an alias, a state, an owner.
#[derive(Clone, Debug)]
pub struct Group {
    /// The value.
    pub name: Arc<str>,
    /// Which VMs, by their slots.
    pub members: Trie<Uuid>,
    /// When a member last came or went.
    pub changed: Nanos,
}

impl Item for Uuid {
    fn weight(&self) -> u64 {
        0
    }

    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

impl Item for Arc<Group> {
    fn weight(&self) -> u64 {
        0
    }

    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self, other)
    }
}

impl Slotted for Arc<Group> {
    type Id = str;

    fn id(&self) -> &str {
        &self.name
    }

    fn hash(id: &str) -> u64 {
        xxh3_64(id.as_bytes())
    }
}

/// An index: VMs by the value of one property.
#[derive(Clone, Debug, Default)]
pub struct Index {
    groups: Slots<Arc<Group>>,
    /// When a value last came or went.
    pub values_changed: Nanos,
    /// When anything in it last changed.
    pub changed: Nanos,
}

impl Index {
    /// The VMs with this value, and the slot of the value itself.
    pub fn get(&self, name: &str) -> Option<(u64, &Arc<Group>)> {
        self.groups.get(name)
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// The value in a slot.
    pub fn at(&self, slot: u64) -> Option<&Arc<Group>> {
        self.groups.at(slot)
    }

    /// All values from a slot on, in the order of slots.
    pub fn range(&self, from: u64) -> impl Iterator<Item = (u64, &Arc<Group>)> {
        self.groups.range(from)
    }

    /// Calls `see` for every slot whose value or whose VMs differ between `self` (old) and `new`.
    pub fn diff<'a>(
        &'a self,
        new: &'a Index,
        mut see: impl FnMut(u64, Option<&'a Group>, Option<&'a Group>),
    ) {
        self.groups.diff(&new.groups, |slot, old, new| {
            see(slot, old.map(|group| &**group), new.map(|group| &**group))
        });
    }

    fn add(&mut self, name: &str, slot: u64, uuid: Uuid, now: Nanos) {
        self.changed = now;
        if let Some(group) = self.groups.get_mut(name) {
            let group = Arc::make_mut(group);
            group.members.insert(slots::key(slot), uuid);
            group.changed = now;
            return;
        }
        self.values_changed = now;
        let mut members = Trie::new();
        members.insert(slots::key(slot), uuid);
        self.groups.insert(Arc::new(Group {
            name: Arc::from(name),
            members,
            changed: now,
        }));
    }

    fn remove(&mut self, name: &str, slot: u64, _: Uuid, now: Nanos) {
        let Some(group) = self.groups.get_mut(name).map(Arc::make_mut) else {
            return;
        };
        group.members.remove(slots::key(slot));
        group.changed = now;
        if group.members.is_empty() {
            self.groups.remove(name);
            self.values_changed = now;
        }
        self.changed = now;
    }
}

/// All VMs at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Rises with every publication, also one that changes nothing but staleness.
    pub version: u64,
    /// The number of the newest event; the base before there is one.
    pub seq: u64,
    /// When the set of VMs last changed.
    pub members_changed: Nanos,
    /// When anything last changed.
    pub changed: Nanos,
    /// The VMs, each in its slot.
    pub vms: Slots<Arc<Vm>>,
    /// VMs by alias.
    pub aliases: Index,
    /// VMs by state.
    pub states: Index,
    /// VMs by owner.
    pub owners: Index,
}

/// The values of a VM that are indexed.
#[derive(PartialEq, Eq)]
struct Indexed {
    slot: u64,
    uuid: Uuid,
    alias: Option<String>,
    state: Option<String>,
    owner: Option<String>,
}

impl Indexed {
    fn of(slot: u64, vm: &Vm) -> Indexed {
        let value = |property| vm.text(property).filter(|value: &String| !value.is_empty());
        let (alias, state, owner) = (value("alias"), value("state"), value("owner_uuid"));
        Indexed {
            slot,
            uuid: vm.uuid,
            alias,
            state,
            owner,
        }
    }
}

/// Puts a VM into an index, or takes it out.
type Reindex = fn(&mut Index, &str, u64, Uuid, Nanos);

impl Snapshot {
    /// The VM with this uuid.
    pub fn vm(&self, uuid: &Uuid) -> Option<&Arc<Vm>> {
        self.vms.get(uuid).map(|(_, vm)| vm)
    }

    fn put(&mut self, vm: Arc<Vm>, now: Nanos) {
        let old = self
            .vms
            .get(&vm.uuid)
            .map(|(slot, old)| Indexed::of(slot, old));
        let (slot, moved) = self.vms.insert(vm.clone());
        self.follow(&moved, now);
        let new = Indexed::of(slot, &vm);
        if old.as_ref() != Some(&new) {
            if let Some(old) = &old {
                self.reindex(old, Index::remove, now);
            }
            self.reindex(&new, Index::add, now);
        }
    }

    fn remove(&mut self, uuid: &Uuid, now: Nanos) -> Option<Arc<Vm>> {
        let (slot, vm, moved) = self.vms.remove(uuid)?;
        self.reindex(&Indexed::of(slot, &vm), Index::remove, now);
        self.follow(&moved, now);
        Some(vm)
    }

    /// Keeps the indexes right when a collision moved VMs to other slots.
    fn follow(&mut self, moved: &[Moved<Arc<Vm>>], now: Nanos) {
        for one in moved {
            self.reindex(&Indexed::of(one.from, &one.value), Index::remove, now);
        }
        for one in moved {
            self.reindex(&Indexed::of(one.to, &one.value), Index::add, now);
        }
    }

    fn reindex(&mut self, values: &Indexed, apply: Reindex, now: Nanos) {
        let columns = [
            (&mut self.aliases, &values.alias),
            (&mut self.states, &values.state),
            (&mut self.owners, &values.owner),
        ];
        for (index, value) in columns {
            if let Some(value) = value {
                apply(index, value, values.slot, values.uuid, now);
            }
        }
    }
}

/// What readers share.
#[derive(Debug)]
pub struct Cache {
    now: ArcSwap<Snapshot>,
    ring: RwLock<Ring>,
    /// The newest version, for those who wait for another one.
    version: Mutex<u64>,
    newer: Condvar,
}

impl Cache {
    /// An empty cache and its only writer. `history` bounds the events kept, in bytes.
    pub fn new(history: usize) -> (Arc<Cache>, Writer) {
        let base = nanos(SystemTime::now()) / 1000;
        let empty = Snapshot {
            seq: base,
            ..Snapshot::default()
        };
        let cache = Arc::new(Cache {
            now: ArcSwap::from_pointee(empty),
            ring: RwLock::new(Ring::new(history, base)),
            version: Mutex::new(0),
            newer: Condvar::new(),
        });
        (cache.clone(), Writer { cache, clock: 0 })
    }

    /// All VMs as they are now.
    pub fn now(&self) -> Arc<Snapshot> {
        self.now.load_full()
    }

    /// The VM with this uuid as it is now.
    pub fn vm(&self, uuid: &Uuid) -> Option<Arc<Vm>> {
        self.now.load().vm(uuid).cloned()
    }

    /// The events kept. Hold the guard briefly: publishing waits for it.
    pub fn events(&self) -> RwLockReadGuard<'_, Ring> {
        self.ring.read()
    }

    /// Waits until there is a version after `version`, or until the deadline, or until
    /// somebody calls [`Cache::wake`]; returns what there is then. It does not wait if it
    /// `has_ended`: who makes that true and then calls [`Cache::wake`] ends a wait also when it is
    /// only about to begin.
    pub fn newer_than(
        &self,
        version: u64,
        deadline: Option<Instant>,
        has_ended: impl Fn() -> bool,
    ) -> Arc<Snapshot> {
        let mut newest = self.version.lock();
        if *newest <= version && !has_ended() {
            match deadline {
                Some(deadline) => {
                    self.newer.wait_until(&mut newest, deadline);
                }
                None => self.newer.wait(&mut newest),
            }
        }
        drop(newest);
        self.now()
    }

    /// Ends all waits of [`Cache::newer_than`], so that those who wait look whether to stop.
    pub fn wake(&self) {
        let _newest = self.version.lock();
        self.newer.notify_all();
    }
}

/// One thing to publish.
#[derive(Clone, Debug)]
pub enum Change {
    /// A VM as it was read.
    Put {
        /// Its uuid.
        uuid: Uuid,
        /// Its zonename.
        zonename: String,
        /// Its object, complete and in table order.
        rendered: Rendered,
        /// `event`, `write` or `scan`.
        via: &'static str,
        /// When it was read.
        observed: SystemTime,
        /// Why it may not be wholly true.
        stale: Option<String>,
        /// The write that caused it.
        txn: Option<String>,
    },
    /// A VM that is confirmed to exist no more.
    Remove {
        /// Its uuid.
        uuid: Uuid,
        /// `event`, `write` or `scan`.
        via: &'static str,
        /// The write that caused it.
        txn: Option<String>,
    },
    /// A VM that stays as it is, but may no longer be true.
    Stale {
        /// Its uuid.
        uuid: Uuid,
        /// Why.
        reason: String,
    },
}

impl Change {
    /// The VM it is about.
    pub fn uuid(&self) -> &Uuid {
        match self {
            Change::Put { uuid, .. } | Change::Remove { uuid, .. } | Change::Stale { uuid, .. } => {
                uuid
            }
        }
    }
}

/// A change that made an event.
#[derive(Debug)]
pub struct Published {
    /// The VM.
    pub uuid: Uuid,
    /// Created, modified or deleted.
    pub kind: Kind,
    /// The number of the event.
    pub seq: u64,
    /// What changed, of a modification.
    pub differences: Vec<Difference>,
    /// What found it.
    pub via: &'static str,
}

/// The only one who publishes. It cannot be cloned.
#[derive(Debug)]
pub struct Writer {
    cache: Arc<Cache>,
    /// The time of the last publication; every file time is later than those before.
    clock: Nanos,
}

impl Writer {
    /// The cache this writer writes.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// Publishes what is there at the start: it is no change, so no event says so, and all of it
    /// has the number before the first event.
    pub fn load(&mut self, changes: Vec<Change>) {
        let mut next = Snapshot::clone(&self.cache.now.load());
        next.version += 1;
        for change in changes {
            let (now, seq) = (self.tick(), next.seq);
            apply(&mut next, change, now, seq);
        }
        self.store(next, Vec::new());
    }

    /// Publishes all changes in one step, in their order, and returns those that made an event:
    /// a VM that is as it was makes none.
    pub fn publish(&mut self, changes: Vec<Change>) -> Vec<Published> {
        let mut next = Snapshot::clone(&self.cache.now.load());
        next.version += 1;
        let mut published = Vec::new();
        let mut events = Vec::new();
        for change in changes {
            let (now, seq) = (self.tick(), next.seq + 1);
            if let Some((one, event)) = apply(&mut next, change, now, seq) {
                published.push(one);
                events.push(event);
            }
        }
        self.store(next, events);
        published
    }

    /// A time that is later than all before.
    fn tick(&mut self) -> Nanos {
        self.clock = nanos(SystemTime::now()).max(self.clock + 1);
        self.clock
    }

    fn store(&mut self, next: Snapshot, events: Vec<Event>) {
        let version = next.version;
        let mut ring = self.cache.ring.write();
        events.into_iter().for_each(|event| ring.push(event));
        self.cache.now.store(Arc::new(next));
        drop(ring);
        *self.cache.version.lock() = version;
        self.cache.newer.notify_all();
    }
}

/// Applies a change to a snapshot; if it is one, it has this sequence number.
fn apply(next: &mut Snapshot, change: Change, now: Nanos, seq: u64) -> Option<(Published, Event)> {
    match change {
        Change::Put {
            uuid,
            zonename,
            rendered,
            via,
            observed,
            stale,
            txn,
        } => {
            let old = next.vm(&uuid).cloned();
            let stale: Option<Arc<str>> = stale.map(Arc::from);
            // A scan finds most VMs as they were.
            if let Some(old) = &old
                && *old.zonename == *zonename
                && *old.json() == **rendered.json()
            {
                old.seen(nanos(observed));
                if old.stale != stale {
                    next.put(Arc::new(old.with_stale(stale)), now);
                }
                return None;
            }
            let origin = Origin {
                generation: seq,
                published: now,
                observed: nanos(observed),
                via,
                stale: stale.clone(),
            };
            let vm = Vm::new(uuid, &zonename, rendered, origin, old.as_deref());
            let vm = Arc::new(vm);
            let (kind, differences) = match &old {
                Some(old) => (
                    Kind::Modify,
                    diff::diff(&old.rendered.object(), &vm.rendered.object()),
                ),
                None => (Kind::Create, Vec::new()),
            };
            next.seq = seq;
            next.changed = now;
            if kind == Kind::Create {
                next.members_changed = now;
            }
            next.put(vm.clone(), now);
            let event = Event::new(seq, now, kind, &vm, &differences, txn.as_deref(), via);
            Some((
                Published {
                    uuid,
                    kind,
                    seq,
                    differences,
                    via,
                },
                event,
            ))
        }
        Change::Remove { uuid, via, txn } => {
            let vm = next.remove(&uuid, now)?;
            next.seq = seq;
            next.changed = now;
            next.members_changed = now;
            let event = Event::new(seq, now, Kind::Delete, &vm, &[], txn.as_deref(), via);
            let kind = Kind::Delete;
            Some((
                Published {
                    uuid,
                    kind,
                    seq,
                    differences: Vec::new(),
                    via,
                },
                event,
            ))
        }
        Change::Stale { uuid, reason } => {
            let vm = next.vm(&uuid)?;
            if vm.stale.as_deref() != Some(reason.as_str()) {
                let vm = vm.with_stale(Some(reason.into()));
                next.put(Arc::new(vm), now);
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_that_was_ended_before_it_began_does_not_begin() {
        let (cache, _writer) = Cache::new(0);
        cache.wake();
        let version = cache.now().version;
        assert_eq!(cache.newer_than(version, None, || true).version, version);
    }
}
