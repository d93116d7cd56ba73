//! Puts the kernel's caches right after a publication, on the thread `settle`.
//!
//! The thread is level-triggered: it takes the newest snapshot, compares it with the last one
//! that was settled, and does what the difference asks for, so that a burst costs what its result
//! differs, and nothing can be lost from a queue. For each snapshot, in this order:
//!
//! 1. `rmdir` of VMs that are gone, then `mkdir` of those that came, through the VFS, so that inotify
//!    says so before any event does ([`super::announce`]).
//! 2. Attributes of changed files are invalidated, and names that went.
//! 3. The snapshot becomes the settled one: `vms.json` and `.by` show it.
//! 4. What is made of many VMs is invalidated.
//! 5. What was invalidated is looked at, so that the kernel has the new attributes, whole
//!    ([`super::announce`]).
//! 6. Streams tell of the events, and readers, pollers and watchers are woken.
//!
//! Between publications the thread puts `last_error` and `.errors` right when writes have failed, and
//! only then has their callers told ([`super::writing`]).
//!
//! An attribute is invalidated in two steps. A LOOKUP that was answered before the publication may
//! still be on its way into the kernel, where an inode not yet there cannot be invalidated. So first
//! a name that never exists is invalidated in the directory: for that the kernel takes the
//! directory's lock, which such a LOOKUP holds until its inode is in place.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{INodeNo, Notifier};
use parking_lot::RwLock;
use tracing::{debug, warn};
use uuid::Uuid;

use super::announce::{Announced, Announcing, Change};
use super::held::Held;
use super::inode::{Fixed, Node};
use super::poll::Polls;
use super::stream::Streams;
use super::touch::{Touch, Touches};
use super::tree::{self, Tree};
use super::writing::Writes;
use crate::cache::trie::Trie;
use crate::cache::{Index, Snapshot};
use crate::vm::files::FileId;
use crate::vm::{Vm, name};

/// No file has this name: `/` cannot be in one.
const NOBODY: &str = "/";

/// When more files of one directory change at once, a watcher of the directory is told only of those
/// that the kernel holds: each costs a truncate(2).
const MANY: usize = 1000;

/// What the settling thread works with.
pub struct Settler {
    /// The tree whose snapshots it settles.
    pub tree: Arc<Tree>,
    /// What the kernel holds.
    pub held: Arc<Held>,
    /// To the kernel.
    pub notifier: Notifier,
    /// Makes names come and go.
    pub announcing: Arc<Announcing>,
    /// Readers that wait.
    pub streams: Arc<Streams>,
    /// Pollers that wait.
    pub polls: Arc<Polls>,
    /// Watchers to tell.
    pub touches: Arc<Touches>,
    /// Writers whose changes failed, and who waits for what is shown.
    pub writes: Arc<Writes>,
    /// Set when the thread is to end.
    pub ended: Arc<AtomicBool>,
    /// Held for reading while a snapshot is settled; a test can hold it to stop the thread between
    /// a publication and its settling.
    pub barrier: Arc<RwLock<()>>,
}

/// A VM that differs between two snapshots.
struct Changed<'a> {
    slot: u64,
    old: &'a Arc<Vm>,
    new: &'a Arc<Vm>,
}

impl Settler {
    /// Settles snapshots until ended: the thread `settle`.
    pub fn run(&self) {
        self.writes.changes().shown(&self.tree.settled());
        while !self.ended.load(Ordering::Acquire) {
            let settled = self.tree.settled();
            let has_ended = || self.ended.load(Ordering::Acquire) || self.writes.has_untold();
            self.tree.cache.newer_than(settled.version, None, has_ended);
            self.tell_failures();
            let _open = self.barrier.read();
            let newest = self.tree.cache.now();
            if newest.version > settled.version {
                self.settle(&settled, newest);
            }
        }
    }

    fn settle(&self, settled: &Snapshot, newest: Arc<Snapshot>) {
        let mut gone = Vec::new();
        let mut came = Vec::new();
        let mut changed = Vec::new();
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
        for (slot, vm) in &gone {
            self.hide(*slot, vm.uuid);
        }
        for (slot, vm) in &came {
            self.show(*slot, vm.uuid);
        }
        let (mut touches, mut looks) = (Vec::new(), Vec::new());
        for one in &changed {
            self.invalidate_vm(one, &mut touches, &mut looks);
        }

        self.tree.settle(newest.clone());

        if !gone.is_empty() || !came.is_empty() {
            // The root may have been asked about since, and have told the time of the old snapshot.
            self.entry(INodeNo::ROOT, NOBODY);
            self.inode(INodeNo::ROOT, 0);
        }
        self.invalidate_aliases(settled, &newest);
        self.invalidate_groups(Fixed::ByState, Node::State, &settled.states, &newest.states);
        self.invalidate_groups(Fixed::ByOwner, Node::Owner, &settled.owners, &newest.owners);
        if newest.seq != settled.seq {
            self.invalidate_files_of_all(&newest, &mut touches, &mut looks);
        }
        self.announcing.look(looks);
        if newest.seq != settled.seq {
            self.tree.tell(newest.seq);
            self.streams.wake();
        }
        let modified = changed.iter().map(|one| one.slot);
        let removed = gone.iter().map(|(slot, _)| *slot);
        self.polls
            .wake(modified.chain(removed), newest.seq != settled.seq);
        self.touches.add(touches);
        self.writes.changes().shown(&newest);
        debug!(
            seq = newest.seq,
            gone = gone.len(),
            came = came.len(),
            changed = changed.len(),
            "settled"
        );
    }

    /// Puts the files right that say which writes failed, and then has the callers told.
    fn tell_failures(&self) {
        let untold = self.writes.untold();
        if untold.is_empty() {
            return;
        }
        let (mut looks, mut touches) = (Vec::new(), Vec::new());
        let mut file = |node: Node, dir: INodeNo, path: String, size: u64| {
            if self.held.is_held(node.ino()) {
                self.entry(dir, NOBODY);
                self.inode(node.ino(), 0);
                looks.push(path.clone());
            }
            if self.held.is_held(node.ino()) || (dir != INodeNo::ROOT && self.held.is_held(dir)) {
                let ino = node.ino();
                touches.push(Touch { path, ino, size });
            }
        };
        let uuids: BTreeSet<Uuid> = untold.iter().filter_map(|untold| untold.uuid).collect();
        let mut slots = Vec::new();
        for uuid in uuids {
            match self.tree.slot_of(&uuid) {
                Some(slot) => {
                    let (size, _) = self.tree.errors.last_size(&uuid);
                    let path = format!("{uuid}/{}", tree::LAST_ERROR);
                    file(Node::LastError(slot), Node::vm(slot).ino(), path, size);
                    slots.push(slot);
                }
                // It went before its error was recorded.
                None => self.tree.errors.forget(&uuid),
            }
        }
        let (size, _) = self.tree.errors.size();
        let all = Node::Fixed(Fixed::Errors);
        file(all, INodeNo::ROOT, ".errors".to_owned(), size);
        self.announcing.look(looks);
        untold.iter().for_each(|untold| self.writes.tell_of(untold));
        self.polls.wake(slots.into_iter(), true);
        self.touches.add(touches);
    }

    /// Makes a VM's name appear in the root, through the VFS if that can be done.
    fn show(&self, slot: u64, uuid: Uuid) {
        self.announcing.announce(Change::Come, slot, uuid);
        if self.tree.shown(slot).is_none_or(|shown| shown.uuid != uuid) {
            self.tree.show(slot, uuid);
            self.inode(INodeNo::ROOT, 0);
        }
    }

    fn hide(&self, slot: u64, uuid: Uuid) {
        let announced = self.announcing.announce(Change::Go, slot, uuid);
        if self
            .tree
            .shown(slot)
            .is_some_and(|shown| shown.uuid == uuid)
        {
            self.tree.hide(slot);
            // A late announcement drops the name when it gets the directory's lock, for which
            // this would wait as well.
            if announced == Announced::Done {
                self.entry(INodeNo::ROOT, &uuid.to_string());
            }
            self.inode(INodeNo::ROOT, 0);
        }
        self.tree.errors.forget(&uuid);
        if self.held.is_held(Node::EventsOf(slot).ino()) {
            self.entry(Node::Fixed(Fixed::Streams).ino(), &uuid.to_string());
        }
    }

    /// Invalidates what changed in a VM's directory, and collects what is to be touched and what to
    /// be looked at.
    fn invalidate_vm(
        &self,
        Changed { slot, old, new }: &Changed<'_>,
        touches: &mut Vec<Touch>,
        looks: &mut Vec<String>,
    ) {
        let ino = |id: FileId| Node::File(*slot, id).ino();
        let held = |id: FileId| self.held.is_held(ino(id));
        let differs = |id: FileId| new.mtime(id) != old.mtime(id);
        let mut in_dirs = BTreeSet::new();
        let mut stale = Vec::new();
        let mut in_dir: BTreeMap<FileId, usize> = BTreeMap::new();
        for file in new.files().iter().filter(|file| differs(file.id)) {
            *in_dir.entry(file.parent).or_default() += 1;
        }
        for file in new.files().iter().filter(|file| differs(file.id)) {
            if held(file.id) {
                in_dirs.insert(file.parent);
                stale.push(file.id);
            }
            let many = in_dir.get(&file.parent).is_some_and(|files| *files > MANY);
            let watched = || !many && held(file.parent);
            if !file.is_dir() && (held(file.id) || watched()) {
                let path = format!("{}/{}", new.uuid, new.path(&file));
                touches.push(Touch {
                    path,
                    ino: ino(file.id),
                    size: u64::from(file.size),
                });
            }
        }
        // A number is a hash: what goes may leave its number to another name. And a file that became
        // a directory has the same number, but is another inode to the kernel.
        for file in old
            .files()
            .iter()
            .filter(|file| held(file.parent) && !new.has(file, old))
        {
            self.entry(ino(file.parent), &file.name(old.json()));
            if held(file.id) {
                stale.push(file.id);
            }
        }
        for dir in in_dirs {
            self.entry(ino(dir), NOBODY);
        }
        if held(FileId::DIR) && differs(FileId::DIR) {
            self.entry(INodeNo::ROOT, NOBODY);
            stale.push(FileId::DIR);
        }
        for id in stale {
            self.inode(ino(id), 0);
            looks.extend(match id {
                FileId::DIR => Some(new.uuid.to_string()),
                id => new
                    .file(id)
                    .map(|file| format!("{}/{}", new.uuid, new.path(&file))),
            });
        }
    }

    /// Invalidates what changed in `.by/alias`.
    fn invalidate_aliases(&self, old: &Snapshot, new: &Snapshot) {
        if old.aliases.changed == new.aliases.changed
            || !self.held.is_held(Node::Fixed(Fixed::ByAlias).ino())
        {
            return;
        }
        old.aliases.diff(&new.aliases, |_, was, _| {
            if let Some(was) = was {
                self.invalidate_alias(old, new, &was.name);
            }
        });
        self.directory(Node::Fixed(Fixed::By), Node::Fixed(Fixed::ByAlias));
    }

    /// Invalidates what changed in `.by/state` or `.by/owner`, the directory `parent`, where `node`
    /// is the directory of the group in a slot.
    fn invalidate_groups(&self, parent: Fixed, node: fn(u64) -> Node, old: &Index, new: &Index) {
        if old.changed == new.changed {
            return;
        }
        let none = Trie::new();
        old.diff(new, |slot, was, is| {
            let dir = node(slot);
            if let Some(was) = was
                && self.held.is_held(dir.ino())
            {
                let members = is.map_or(&none, |is| &is.members);
                was.members.diff(members, &mut |_, uuid, _| {
                    if let Some(uuid) = uuid {
                        self.entry(dir.ino(), &uuid.to_string());
                    }
                });
            }
            // A collision may also have put another group into this slot.
            if let Some(was) = was
                && is.is_none_or(|is| is.name != was.name)
                && let Some(name) = name::encode(&was.name)
            {
                self.entry(Node::Fixed(parent).ino(), &name);
            }
            if is.is_some() {
                self.directory(Node::Fixed(parent), dir);
            }
        });
        if old.values_changed != new.values_changed {
            self.directory(Node::Fixed(Fixed::By), Node::Fixed(parent));
        }
    }

    /// An alias that got a second VM, or lost it, changes the name of the other VM's link too.
    fn invalidate_alias(&self, old: &Snapshot, new: &Snapshot, alias: &str) {
        let names = |snapshot: &Snapshot| -> BTreeSet<(String, u64)> {
            let Some((_, group)) = snapshot.aliases.get(alias) else {
                return BTreeSet::new();
            };
            let members = group.members.iter();
            let named = members.filter_map(|(slot, uuid)| {
                Some((tree::alias_name(snapshot, snapshot.vm(uuid)?)?, slot))
            });
            named.collect()
        };
        for (name, _) in names(old).difference(&names(new)) {
            self.entry(Node::Fixed(Fixed::ByAlias).ino(), name);
        }
    }

    /// Invalidates `events`, `vms.json` and `.history`, whose contents every change changes.
    fn invalidate_files_of_all(
        &self,
        newest: &Snapshot,
        touches: &mut Vec<Touch>,
        looks: &mut Vec<String>,
    ) {
        let files = [
            (Fixed::Vms, "vms.json", tree::vms::len(newest)),
            (Fixed::History, ".history", 0),
            (Fixed::Events, "events", 0),
        ];
        let held = files
            .iter()
            .filter(|(fixed, ..)| self.held.is_held(Node::Fixed(*fixed).ino()));
        let held: Vec<_> = held.collect();
        if !held.is_empty() {
            self.entry(INodeNo::ROOT, NOBODY);
        }
        for (fixed, path, size) in held {
            self.inode(Node::Fixed(*fixed).ino(), 0);
            looks.push((*path).to_owned());
            touches.push(Touch {
                path: (*path).to_owned(),
                ino: Node::Fixed(*fixed).ino(),
                size: *size,
            });
        }
    }

    /// Invalidates a directory's attributes and its cached listing.
    fn directory(&self, parent: Node, dir: Node) {
        if self.held.is_held(dir.ino()) {
            self.entry(parent.ino(), NOBODY);
            self.inode(dir.ino(), 0);
        }
    }

    /// Drops a name from a directory, once all that looks into the directory has come to its end.
    fn entry(&self, dir: INodeNo, name: &str) {
        // An error other than "no such entry" says that the connection has gone.
        if let Err(error) = self.notifier.inval_entry(dir, OsStr::new(name)) {
            warn_unless_gone(&error, "entry");
        }
    }

    /// Drops an inode's attributes, and its pages from `offset` on; none with a negative offset.
    fn inode(&self, ino: INodeNo, offset: i64) {
        if let Err(error) = self.notifier.inval_inode(ino, offset, 0) {
            warn_unless_gone(&error, "inode");
        }
    }
}

fn warn_unless_gone(error: &io::Error, what: &str) {
    let gone = [libc::ENOTCONN, libc::ENODEV, libc::ENOENT, libc::ENOTDIR];
    if !error
        .raw_os_error()
        .is_some_and(|code| gone.contains(&code))
    {
        warn!(%error, "the kernel refused to drop a cached {what}");
    }
}
