//! The attributes of files and directories, and how long the kernel may keep them.

use std::sync::Arc;

use fuser::{FileAttr, FileType};

use super::{BY, Tree, vms};
use crate::fs::inode::{Fixed, Node};
use crate::vm::files::FileId;
use crate::vm::{Nanos, Vm, system_time};

/// How long the kernel may keep a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// Until it is told otherwise.
    UntilTold,
    /// Not at all.
    Once,
}

impl Tree {
    /// The attributes of a node; `None` when it does not exist now.
    pub fn attr(&self, node: Node) -> Option<FileAttr> {
        let settled = self.settled.load();
        Some(match node {
            Node::Fixed(fixed) => match fixed {
                // The time of a directory whose files change all the time would throw away its
                // cached listing all the time: this one says when a name last came or went.
                Fixed::Root => self.dir(node, Access::PUBLIC, settled.members_changed),
                Fixed::By => self.dir(node, Access::PUBLIC, 0),
                Fixed::ByAlias => self.dir(node, Access::PUBLIC, settled.aliases.changed),
                Fixed::ByState => self.dir(node, Access::PUBLIC, settled.states.values_changed),
                Fixed::ByOwner => self.dir(node, Access::PUBLIC, settled.owners.values_changed),
                Fixed::Streams => self.dir(node, Access::SECRET, 0),
                Fixed::Events => self.file(node, 0, Access::SECRET, settled.changed),
                Fixed::Errors => {
                    let (size, mtime) = self.errors.size();
                    self.file(node, size, Access::SECRET, mtime)
                }
                Fixed::Status => self.file(node, 0, Access::PUBLIC, 0),
                Fixed::Vms => self.file(node, vms::len(&settled), Access::SECRET, settled.changed),
                Fixed::History => {
                    let events = self.cache.events();
                    let len = events.position_after(settled.seq) - events.start();
                    self.file(node, len, Access::SECRET, settled.changed)
                }
            },
            Node::EventsAfter(_) => self.file(node, 0, Access::SECRET, 0),
            Node::EventsOf(slot) => {
                self.shown(slot)?;
                self.file(node, 0, Access::SECRET, 0)
            }
            Node::Create(_) => self.file(node, 0, Access::COMMAND, 0),
            Node::Ctl(slot, _) => {
                self.shown(slot)?;
                self.file(node, 0, Access::COMMAND, self.mtime(node))
            }
            Node::LastError(slot) => {
                let vm = self.shown(slot)?.uuid;
                let (size, _) = self.errors.last_size(&vm);
                self.file(node, size, Access::SECRET, self.mtime(node))
            }
            Node::State(group) => self.dir(node, Access::PUBLIC, settled.states.at(group)?.changed),
            Node::Owner(group) => self.dir(node, Access::PUBLIC, settled.owners.at(group)?.changed),
            Node::Link(..) => {
                let size = self.target(node)?.len() as u64;
                FileAttr {
                    kind: FileType::Symlink,
                    perm: 0o777,
                    ..self.file(node, size, Access::PUBLIC, 0)
                }
            }
            Node::File(slot, FileId::DIR) => match self.vm(slot) {
                Some(vm) => self.dir(node, Access::CREATE, vm.mtime(FileId::DIR)),
                // The VM is gone, its name not yet: rmdir still has to find it.
                None => {
                    self.shown(slot)?;
                    self.dir(node, Access::CREATE, settled.changed)
                }
            },
            Node::File(slot, id) => {
                let vm = self.vm(slot)?;
                self.attr_in(&vm, node, id)?
            }
        })
    }

    /// The attributes of a file in this version of its VM.
    fn attr_in(&self, vm: &Vm, node: Node, id: FileId) -> Option<FileAttr> {
        let file = vm.file(id)?;
        let access = Access {
            settable: file.settable,
            secret: file.secret,
        };
        Some(if file.is_dir() {
            self.dir(node, access, vm.mtime(id))
        } else {
            self.file(node, u64::from(file.size), access, vm.mtime(id))
        })
    }

    /// The attributes of a file that is being created and has not been confirmed: it is empty.
    pub fn attr_pending(&self, node: Node, secret: bool) -> FileAttr {
        let access = Access {
            settable: true,
            secret,
        };
        self.file(node, 0, access, 0)
    }

    /// The attributes of a node, and how long the kernel may keep the name by which it was found.
    ///
    /// Settling takes back the names that were in the settled snapshot and are not in the newest.
    /// A name that is in neither, only in a version between the two, would never be taken back, so
    /// the names of a version that is not the settled one are not to be kept.
    pub fn entry(&self, node: Node) -> Option<(FileAttr, Lasts)> {
        let (slot, id) = match node {
            Node::File(slot, id) if id != FileId::DIR => (slot, id),
            // Each lookup gets an inode of its own.
            Node::Create(_) | Node::Ctl(..) => return Some((self.attr(node)?, Lasts::Once)),
            _ => return Some((self.attr(node)?, Lasts::UntilTold)),
        };
        let vm = self.vm(slot)?;
        let attr = self.attr_in(&vm, node, id)?;
        let settled = self.settled.load();
        let same = settled
            .vm(&vm.uuid)
            .is_some_and(|settled| Arc::ptr_eq(settled, &vm));
        Some((attr, if same { Lasts::UntilTold } else { Lasts::Once }))
    }

    /// When what a file holds last changed, for poll(2); 0 when it does not exist.
    pub fn mtime(&self, node: Node) -> Nanos {
        match node {
            Node::File(slot, id) => self
                .vm(slot)
                .filter(|vm| vm.file(id).is_some())
                .map_or(0, |vm| vm.mtime(id)),
            Node::Fixed(Fixed::Errors) => self.errors.size().1,
            Node::Ctl(slot, _) => self.vm(slot).map_or(0, |vm| vm.mtime_at_load()),
            Node::LastError(slot) => self.vm(slot).map_or(0, |vm| {
                let (_, mtime) = self.errors.last_size(&vm.uuid);
                if mtime == 0 {
                    vm.mtime_at_load()
                } else {
                    mtime
                }
            }),
            _ => self.settled.load().changed,
        }
    }

    fn dir(&self, node: Node, access: Access, mtime: Nanos) -> FileAttr {
        let perm = match (access.secret, access.settable) {
            (false, false) => 0o555,
            (false, true) => 0o755,
            (true, false) => 0o500,
            (true, true) => 0o700,
        };
        // find(1) counts on it: two, and one for each directory within.
        let within = match node {
            Node::Fixed(Fixed::Root) => 2 + self.shown.load().len(),
            Node::Fixed(Fixed::By) => BY.len(),
            Node::Fixed(Fixed::ByState) => self.settled.load().states.len(),
            Node::Fixed(Fixed::ByOwner) => self.settled.load().owners.len(),
            Node::File(slot, id) => self.vm(slot).map_or(0, |vm| {
                vm.files()
                    .iter()
                    .filter(|file| file.is_dir() && file.parent == id)
                    .count()
            }),
            _ => 0,
        };
        let nlink = 2 + within as u32;
        FileAttr {
            kind: FileType::Directory,
            nlink,
            ..self.plain(node, 0, perm, mtime)
        }
    }

    fn file(&self, node: Node, size: u64, access: Access, mtime: Nanos) -> FileAttr {
        let perm = match (access.secret, access.settable) {
            (false, false) => 0o444,
            (false, true) => 0o644,
            (true, false) => 0o400,
            (true, true) => 0o600,
        };
        self.plain(node, size, perm, mtime)
    }

    fn plain(&self, node: Node, size: u64, mut perm: u16, mtime: Nanos) -> FileAttr {
        if self.ownership.shared {
            perm |= (perm & 0o700) >> 3;
        }
        if self.ownership.unprivileged {
            perm |= 0o200;
        }
        let time = system_time(if mtime == 0 { self.began } else { mtime });
        FileAttr {
            ino: node.ino(),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind: FileType::RegularFile,
            perm,
            nlink: 1,
            uid: self.ownership.uid,
            gid: self.ownership.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

/// What a mode is made of.
#[derive(Clone, Copy)]
struct Access {
    settable: bool,
    secret: bool,
}

impl Access {
    const PUBLIC: Access = Access {
        settable: false,
        secret: false,
    };
    const SECRET: Access = Access {
        settable: false,
        secret: true,
    };
    const CREATE: Access = Access {
        settable: true,
        secret: false,
    };
    const COMMAND: Access = Access {
        settable: true,
        secret: true,
    };
}
