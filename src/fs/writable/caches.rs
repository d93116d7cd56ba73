//! What the kernel keeps of the writable mount, and who is to be told of changes in it.
//!
//! An attribute is invalidated in two steps. A LOOKUP that was answered before may still be on its way
//! into the kernel, where an inode not yet there cannot be invalidated. So first a name that never
//! exists is invalidated in the directory: for that the kernel takes the directory's lock, which
//! such a LOOKUP holds until its inode is in place ([`Kernel::flush_lookups`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use fuser::INodeNo;
use uuid::Uuid;

use crate::cache::Snapshot;
use crate::fs::announce::{Announced, Announcing, Change};
use crate::fs::inode::{Fixed, Node};
use crate::fs::kernel::Kernel;
use crate::fs::poll::Polls;
use crate::fs::settle::{Changed, Difference};
use crate::fs::stream::Streams;
use crate::fs::touch::{Touch, Touches};
use crate::fs::tree::{self, Tree};
use crate::fs::writing::Writes;
use crate::vm::Vm;
use crate::vm::files::{File, FileId};

/// When more files of one directory change at once, a watcher of the directory is told only of those
/// that the kernel holds: each costs a truncate(2).
const MANY: usize = 1000;

/// What settling does with the writable mount.
pub struct Caches {
    /// What it shows.
    pub tree: Arc<Tree>,
    /// What the kernel has of it.
    pub kernel: Kernel,
    /// Makes names come and go.
    pub announcing: Arc<Announcing>,
    /// Readers that wait.
    pub streams: Arc<Streams>,
    /// Pollers that wait.
    pub polls: Arc<Polls>,
    /// Watchers to tell.
    pub touches: Arc<Touches>,
    /// Writers whose changes failed.
    pub writes: Arc<Writes>,
}

impl Caches {
    /// Whether writes have failed that nobody was told of.
    pub fn has_untold(&self) -> bool {
        self.writes.has_untold()
    }

    /// Makes the names of VMs come and go through the VFS.
    pub fn announce(&self, difference: &Difference<'_>) {
        for (slot, vm) in &difference.gone {
            self.hide(*slot, vm.uuid);
        }
        for (slot, vm) in &difference.came {
            self.show(*slot, vm.uuid);
        }
    }

    /// Takes from the kernel what is about to change. Returns the directories.
    pub fn invalidate(&self, difference: &Difference<'_>) -> Vec<INodeNo> {
        let mut taken = Vec::new();
        for one in &difference.changed {
            self.invalidate_vm(one, &mut taken);
        }
        if difference.has_names() {
            self.kernel.flush_lookups(INodeNo::ROOT);
            self.kernel.drop_inode(INodeNo::ROOT);
            taken.push(INodeNo::ROOT);
        }
        self.kernel
            .drop_indexes(difference.settled, difference.newest, &mut taken);
        if difference.has_events() {
            let files: Vec<Touch> = self.files_of_all(difference.newest).collect();
            if !files.is_empty() {
                self.kernel.flush_lookups(INodeNo::ROOT);
            }
            for file in files {
                self.kernel.drop_inode(file.ino);
            }
        }
        taken
    }

    /// Looks at what has changed and is held.
    pub fn look(&self, difference: &Difference<'_>) {
        let vms = difference.changed.iter().flat_map(|one| self.looks(one));
        let mut paths: Vec<String> = vms.collect();
        if difference.has_events() {
            // `events` has no size that somebody could see too late.
            let events = Node::Fixed(Fixed::Events).ino();
            let files = self.files_of_all(difference.newest);
            paths.extend(
                files
                    .filter(|file| file.ino != events)
                    .map(|file| file.path),
            );
        }
        self.announcing.look(paths);
    }

    /// Tells everybody of what is settled now.
    pub fn tell(&self, difference: &Difference<'_>) {
        if difference.has_events() {
            self.tree.tell(difference.newest.seq);
            self.streams.wake();
        }
        let modified = difference.changed.iter().map(|one| one.slot);
        let removed = difference.gone.iter().map(|(slot, _)| *slot);
        self.polls
            .wake(modified.chain(removed), difference.has_events());
        for one in &difference.changed {
            self.touches.add(self.touches(one));
        }
        if difference.has_events() {
            self.touches.add(self.files_of_all(difference.newest));
        }
    }

    /// Puts the files right that say which writes failed, and then has the callers told.
    pub fn tell_failures(&self) {
        let untold = self.writes.untold();
        if untold.is_empty() {
            return;
        }
        let (mut looks, mut touches) = (Vec::new(), Vec::new());
        let mut file = |node: Node, dir: INodeNo, path: String, size: u64| {
            if self.kernel.held.is_held(node.ino()) {
                self.kernel.flush_lookups(dir);
                self.kernel.drop_inode(node.ino());
                looks.push(path.clone());
            }
            if self.kernel.held.is_held(node.ino())
                || (dir != INodeNo::ROOT && self.kernel.held.is_held(dir))
            {
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
            self.kernel.drop_inode(INodeNo::ROOT);
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
                self.kernel.drop_name(INodeNo::ROOT, &uuid.to_string());
            }
            self.kernel.drop_inode(INodeNo::ROOT);
        }
        self.tree.errors.forget(&uuid);
        if self.kernel.held.is_held(Node::EventsOf(slot).ino()) {
            self.kernel
                .drop_name(Node::Fixed(Fixed::Streams).ino(), &uuid.to_string());
        }
    }

    fn invalidate_vm(&self, Changed { slot, old, new }: &Changed<'_>, taken: &mut Vec<INodeNo>) {
        let ino = |id: FileId| Node::File(*slot, id).ino();
        let held = |id: FileId| self.kernel.held.is_held(ino(id));
        let mut in_dirs = BTreeSet::new();
        let mut stale = Vec::new();
        for file in changed_files(old, new).filter(|file| held(file.id)) {
            in_dirs.insert(file.parent);
            stale.push(file.id);
        }
        // A number is a hash: what goes may leave its number to another name. And a file that became
        // a directory has the same number, but is another inode to the kernel.
        for file in old
            .files()
            .iter()
            .filter(|file| held(file.parent) && !new.has(file, old))
        {
            self.kernel
                .drop_name(ino(file.parent), &file.name(old.json()));
            if held(file.id) {
                stale.push(file.id);
            }
        }
        for dir in in_dirs {
            self.kernel.flush_lookups(ino(dir));
        }
        if held(FileId::DIR) && new.mtime(FileId::DIR) != old.mtime(FileId::DIR) {
            self.kernel.flush_lookups(INodeNo::ROOT);
            stale.push(FileId::DIR);
        }
        for id in stale {
            self.kernel.drop_inode(ino(id));
            if id == FileId::DIR || new.file(id).is_some_and(|file| file.is_dir()) {
                taken.push(ino(id));
            }
        }
    }

    /// The files whose contents every change changes, as far as the kernel holds them: their inodes,
    /// paths and sizes.
    fn files_of_all(&self, newest: &Snapshot) -> impl Iterator<Item = Touch> {
        let files = [
            (Fixed::Vms, "vms.json", tree::vms::len(newest)),
            (Fixed::History, ".history", 0),
            (Fixed::Events, "events", 0),
        ];
        let touch = |(fixed, path, size): (Fixed, &str, u64)| Touch {
            path: path.to_owned(),
            ino: Node::Fixed(fixed).ino(),
            size,
        };
        let files = files.into_iter().map(touch);
        files.filter(|file| self.kernel.held.is_held(file.ino))
    }

    /// What is to be looked at in a VM's directory.
    fn looks(&self, Changed { slot, old, new }: &Changed<'_>) -> Vec<String> {
        let held = |id: FileId| self.kernel.held.is_held(Node::File(*slot, id).ino());
        let files = changed_files(old, new).filter(|file| held(file.id));
        let mut paths: Vec<String> = files
            .map(|file| format!("{}/{}", new.uuid, new.path(&file)))
            .collect();
        if held(FileId::DIR) && new.mtime(FileId::DIR) != old.mtime(FileId::DIR) {
            paths.push(new.uuid.to_string());
        }
        paths
    }

    /// The files of a VM whose watchers, or those of their directories, are to be told.
    fn touches(&self, Changed { slot, old, new }: &Changed<'_>) -> Vec<Touch> {
        let ino = |id: FileId| Node::File(*slot, id).ino();
        let held = |id: FileId| self.kernel.held.is_held(ino(id));
        let mut in_dir: BTreeMap<FileId, usize> = BTreeMap::new();
        for file in changed_files(old, new) {
            *in_dir.entry(file.parent).or_default() += 1;
        }
        let watched = |file: &File| {
            let many = in_dir.get(&file.parent).is_some_and(|files| *files > MANY);
            !file.is_dir() && (held(file.id) || (!many && held(file.parent)))
        };
        changed_files(old, new)
            .filter(watched)
            .map(|file| Touch {
                path: format!("{}/{}", new.uuid, new.path(&file)),
                ino: ino(file.id),
                size: u64::from(file.size),
            })
            .collect()
    }
}

/// The files and directories below a VM's that are new, or not as they were.
fn changed_files<'a>(old: &'a Vm, new: &'a Vm) -> impl Iterator<Item = File> {
    let files = new.files().iter();
    files.filter(|file| new.mtime(file.id) != old.mtime(file.id))
}
