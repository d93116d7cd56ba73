//! What the kernel keeps of the read-only mount, and how it is taken back.
//!
//! Of a file that changes only the name is taken: its inode stays as it is, for whoever has it.

use std::sync::Arc;

use fuser::INodeNo;

use super::{ReadOnly, VMS};
use crate::cache::Snapshot;
use crate::fs::announce::Announcing;
use crate::fs::inode::{Fixed, Node};
use crate::fs::kernel::Kernel;
use crate::fs::settle::{Changed, Difference};
use crate::vm::files::{File, FileId};

/// What settling does with the read-only mount.
pub struct Caches {
    /// The mount.
    pub mount: Arc<ReadOnly>,
    /// What the kernel has of it.
    pub kernel: Kernel,
    /// Looks at what changed.
    pub looking: Arc<Announcing>,
}

impl Caches {
    /// See [`Tree::prepare`].
    pub fn prepare(&self, next: &Arc<Snapshot>) {
        let _numbers = self.mount.numbers.lock();
        self.mount.tree.prepare(next.clone());
    }

    /// Takes from the kernel what is about to change: the names of versions that are replaced, and
    /// the attributes and listings of directories. Returns the directories.
    pub fn invalidate(&self, difference: &Difference<'_>) -> Vec<INodeNo> {
        let mut taken = Vec::new();
        for one in &difference.changed {
            self.invalidate_vm(one, &mut taken);
        }
        for (slot, vm) in &difference.gone {
            self.kernel.drop_name(INodeNo::ROOT, &vm.uuid.to_string());
            // Whoever is still in one of its directories is to find nothing there.
            let dirs = vm.files().iter().filter(|file| file.is_dir());
            for id in dirs.map(|file| file.id).chain([FileId::DIR]) {
                if let Some(ino) = self.is_held(Node::File(*slot, id)) {
                    self.kernel.drop_inode(ino);
                }
            }
        }
        if difference.has_names() {
            self.kernel.flush_lookups(INodeNo::ROOT);
            self.kernel.drop_inode(INodeNo::ROOT);
            taken.push(INodeNo::ROOT);
        }
        self.kernel
            .drop_indexes(difference.settled, difference.newest, &mut taken);
        if difference.has_events() && self.is_held(Node::Fixed(Fixed::Vms)).is_some() {
            self.kernel.drop_name(Node::Fixed(Fixed::All).ino(), VMS);
        }
        taken
    }

    fn invalidate_vm(&self, Changed { slot, old, new }: &Changed<'_>, taken: &mut Vec<INodeNo>) {
        let slot = *slot;
        let dirs = old.files().iter().filter(|file| file.is_dir());
        let dirs = dirs.map(|file| file.id).chain([FileId::DIR]);
        for dir in dirs {
            let Some(ino) = self.is_held(Node::File(slot, dir)) else {
                continue;
            };
            let changes = |file: &File| {
                let same = new.has(file, old)
                    && (file.is_dir() || new.mtime(file.id) == old.mtime(file.id));
                file.parent == dir && file.id != dir && !same
            };
            for file in old.files().iter().filter(changes) {
                if self.is_held(Node::File(slot, file.id)).is_some() {
                    self.kernel.drop_name(ino, &file.name(old.json()));
                }
            }
            let gone = dir != FileId::DIR && new.file(dir).is_none_or(|file| !file.is_dir());
            if gone || new.mtime(dir) != old.mtime(dir) {
                let above = match dir {
                    FileId::DIR => Some(INodeNo::ROOT),
                    dir => old
                        .file(dir)
                        .and_then(|file| self.is_held(Node::File(slot, file.parent))),
                };
                if let Some(above) = above {
                    self.kernel.flush_lookups(above);
                }
                self.kernel.drop_inode(ino);
                taken.push(ino);
            }
        }
    }

    /// The number of a node, if the kernel holds it.
    fn is_held(&self, node: Node) -> Option<INodeNo> {
        let ino = self.mount.numbers.lock().known(node)?;
        self.mount.held.is_held(ino).then_some(ino)
    }

    /// Shows the newest snapshot: see [`Tree::settle`]. Nobody looks up any more what was; a name under
    /// which somebody has done so since it was taken back would keep its version for ever.
    pub fn settle(&self, difference: &Difference<'_>, newest: &Arc<Snapshot>) {
        let left = {
            let mut numbers = self.mount.numbers.lock();
            let settled = self.mount.tree.settled();
            let left = numbers.replace(difference, &settled, &self.mount.held);
            self.mount.tree.settle(newest.clone());
            left
        };
        for (dir, name) in left.names {
            if let Some(dir) = self.is_held(dir) {
                self.kernel.drop_name(dir, &name);
            }
        }
        if left.links {
            self.kernel
                .drop_indexes(difference.settled, difference.newest, &mut Vec::new());
        }
    }

    /// Looks at the directories that changed. Files need no look: they never change.
    pub fn look(&self, difference: &Difference<'_>) {
        let mut paths = Vec::new();
        for Changed { slot, old, new } in &difference.changed {
            let dirs = new.files().iter().filter(|file| file.is_dir());
            let dirs = dirs.map(|file| (file.id, format!("{}/{}", new.uuid, new.path(&file))));
            for (dir, path) in dirs.chain([(FileId::DIR, new.uuid.to_string())]) {
                if new.mtime(dir) != old.mtime(dir)
                    && self.is_held(Node::File(*slot, dir)).is_some()
                {
                    paths.push(path);
                }
            }
        }
        if difference.has_names() {
            paths.push(".".to_owned());
        }
        self.looking.look(paths);
    }
}
