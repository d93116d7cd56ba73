//! The attributes of files and directories, and how long the kernel may keep them.

use std::time::Duration;

use fuser::{FileAttr, FileType};

use super::by::BY;
use super::{Tree, vms};
use crate::cache::Snapshot;
use crate::fs::inode::{Fixed, Node};
use crate::vm::files::{File, FileId};
use crate::vm::{Nanos, Vm, system_time};

/// How long the kernel keeps names and attributes: until it is told otherwise.
const FOR_EVER: Duration = Duration::from_secs(u32::MAX as u64);

/// How long the kernel may keep a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// Until it is told otherwise.
    UntilTold,
    /// Not at all.
    Once,
}

impl Lasts {
    /// The same as the kernel is told it.
    pub fn ttl(self) -> Duration {
        match self {
            Lasts::UntilTold => FOR_EVER,
            Lasts::Once => Duration::ZERO,
        }
    }
}

impl Tree {
    /// The attributes of a node; `None` when it does not exist now.
    pub fn attr(&self, node: Node) -> Option<FileAttr> {
        let settled = self.settled();
        Some(match node {
            // Names come before what else is settled, and so does the number of directories.
            Node::Fixed(Fixed::Root) => self.attr_of_root(&settled, self.shown.load().len()),
            Node::Fixed(Fixed::Streams) => self.dir(node, Access::SECRET, 0, 0),
            Node::Fixed(Fixed::Events) => self.file(node, 0, Access::SECRET, settled.changed),
            Node::Fixed(Fixed::Errors) => {
                let (size, mtime) = self.errors.size();
                self.file(node, size, Access::SECRET, mtime)
            }
            Node::Fixed(Fixed::Status) => self.attr_of_status(0),
            Node::Fixed(Fixed::History) => {
                let events = self.cache.events();
                let len = events.position_after(settled.seq) - events.start();
                self.file(node, len, Access::SECRET, settled.changed)
            }
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
            Node::Link(..) => self.attr_of_link(node, &self.target(node)?),
            Node::File(slot, id) => match self.vm(slot) {
                Some(vm) => self.attr_in(&vm, node, id)?,
                // The VM is gone, its name not yet: rmdir still has to find it.
                None if id == FileId::DIR => {
                    self.shown(slot)?;
                    self.dir(node, Access::CREATE, settled.changed, 0)
                }
                None => return None,
            },
            node => self.attr_of_all(node, &settled)?,
        })
    }

    /// The attributes of the root, in which this many VMs are.
    pub fn attr_of_root(&self, settled: &Snapshot, vms: usize) -> FileAttr {
        // The time of a directory whose files change all the time would throw away its
        // cached listing all the time: this one says when a name last came or went.
        let changed = settled.members_changed;
        self.dir(Node::ROOT, Access::PUBLIC, changed, 2 + vms)
    }

    /// The attributes of what is made of all VMs.
    pub fn attr_of_all(&self, node: Node, settled: &Snapshot) -> Option<FileAttr> {
        let dir = |changed, within| self.dir(node, Access::PUBLIC, changed, within);
        Some(match node {
            Node::Fixed(Fixed::Vms) => {
                self.file(node, vms::len(settled), Access::SECRET, settled.changed)
            }
            Node::Fixed(Fixed::All) => dir(0, 0),
            Node::Fixed(Fixed::By) => dir(0, BY.len()),
            Node::Fixed(Fixed::ByAlias) => dir(settled.aliases.changed, 0),
            Node::Fixed(Fixed::ByState) => dir(settled.states.values_changed, settled.states.len()),
            Node::Fixed(Fixed::ByOwner) => dir(settled.owners.values_changed, settled.owners.len()),
            Node::State(group) => dir(settled.states.at(group)?.changed, 0),
            Node::Owner(group) => dir(settled.owners.at(group)?.changed, 0),
            _ => return None,
        })
    }

    /// The attributes of a link.
    pub fn attr_of_link(&self, node: Node, target: &str) -> FileAttr {
        FileAttr {
            kind: FileType::Symlink,
            perm: 0o777,
            ..self.file(node, target.len() as u64, Access::PUBLIC, 0)
        }
    }

    /// The attributes of the status document, of this size.
    pub fn attr_of_status(&self, size: u64) -> FileAttr {
        self.file(Node::Fixed(Fixed::Status), size, Access::PUBLIC, 0)
    }

    /// The attributes of a file or directory in this version of its VM.
    pub fn attr_in(&self, vm: &Vm, node: Node, id: FileId) -> Option<FileAttr> {
        if id == FileId::DIR {
            return Some(self.dir(node, Access::CREATE, vm.mtime(id), dirs_in(vm, id)));
        }
        let file = vm.file(id)?;
        let access = Access {
            settable: file.settable,
            secret: file.secret,
        };
        Some(if file.is_dir() {
            self.dir(node, access, vm.mtime(id), dirs_in(vm, id))
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

    /// The attributes of a node, and how long the kernel may keep them and the name by which it was
    /// found. How long is looked at first: what is settled in between is new, and may be kept.
    pub fn entry(&self, node: Node) -> Option<(FileAttr, Lasts)> {
        let lasts = match node {
            // Each lookup gets an inode of its own.
            Node::Create(_) | Node::Ctl(..) => Lasts::Once,
            node => self.lasts(node),
        };
        Some((self.attr(node)?, lasts))
    }

    /// How long the kernel may keep what is said of a node from here on.
    pub fn lasts(&self, node: Node) -> Lasts {
        self.view().lasts(node)
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
            _ => self.settled().changed,
        }
    }

    /// A directory with this many directories in it.
    fn dir(&self, node: Node, access: Access, mtime: Nanos, within: usize) -> FileAttr {
        let perm = match (access.secret, access.settable) {
            (false, false) => 0o555,
            (false, true) => 0o755,
            (true, false) => 0o500,
            (true, true) => 0o700,
        };
        FileAttr {
            kind: FileType::Directory,
            // find(1) counts on it: two, and one for each directory within.
            nlink: 2 + within as u32,
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

fn dirs_in(vm: &Vm, dir: FileId) -> usize {
    let within = |file: &File| file.is_dir() && file.parent == dir;
    vm.files().iter().filter(within).count()
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
