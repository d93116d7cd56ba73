//! The writable mount: behaves like kernfs (sysfs, cgroupfs).
//!
//! Every file is opened with direct I/O, so that read(2) never sees the page cache; names and
//! attributes are cached without end and invalidated on change ([`super::settle`]). This file is
//! the adapter between fuser and the tree: each request is answered at once from memory, but for
//! reads of streams and writes, which are parked. No handler waits, so the mount cannot freeze.
//!
//! Directories are opened without a message: the first OPENDIR is answered ENOSYS, which the kernel
//! remembers, and listings are cached by the kernel.

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BsdFileFlags, Errno, FileHandle, Filesystem, FopenFlags, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow,
};

use super::announce::{self, Announcing};
use super::errno::Refused;
use super::handle::{Handle, Handles};
use super::held::Held;
use super::inode::Node;
use super::messages::{Message, Messages};
use super::poll::{self, Polls};
use super::stream::{Blocking, Streams};
use super::tree::Tree;
use super::wait::Caller;
use super::writing::{Writes, Writing};
use crate::mutation::Wait;

pub mod caches;
mod entry;

use entry::Entered;

/// What the kernel's requests are answered from.
pub struct Writable {
    pub(super) tree: Arc<Tree>,
    pub(super) held: Arc<Held>,
    pub(super) handles: Arc<Handles>,
    pub(super) streams: Arc<Streams>,
    pub(super) writes: Arc<Writes>,
    pub(super) polls: Arc<Polls>,
    pub(super) announcing: Arc<Announcing>,
    pub(super) messages: Arc<Messages>,
}

impl Writable {
    /// Refuses what would change names, and counts it.
    fn refuse(&self, reply: impl FnOnce(Errno)) {
        self.messages.count(Message::Change);
        reply(Refused::NotPermitted.into());
    }
}

/// Answers with an error if there is one, else goes on with the value.
macro_rules! or_refuse {
    ($result:expr, $reply:expr) => {
        match $result {
            Ok(value) => value,
            Err(error) => return $reply.error(Errno::from(error)),
        }
    };
}

impl Filesystem for Writable {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            // Attributes come with listings, so that find(1) and `ls -l` need no lookups.
            InitFlags::FUSE_DO_READDIRPLUS,
            // Lookups and listings of one directory do not exclude each other.
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            // A directory that is read again from its beginning has its attributes checked first,
            // and its cached listing thrown away if its time has changed.
            InitFlags::FUSE_AUTO_INVAL_DATA,
            // A link's target never changes.
            InitFlags::FUSE_CACHE_SYMLINKS,
            // Not FUSE_ATOMIC_O_TRUNC. With it the kernel takes the size for 0 after the open, without
            // asking (fuse_truncate_update_attr), and a stat beside it may show that, perhaps for ever.
            // Without it O_TRUNC comes as a SETATTR, which is answered with the size that is.
        ];
        for flag in wanted {
            // What an old kernel lacks costs messages, or is not needed there.
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.messages.count(Message::Lookup);
        let entered = or_refuse!(self.enter(parent, name), reply);
        reply.entry(&entered.keep, &entered.attr, entered.generation);
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.messages.count(Message::Forget);
        self.held.forget(ino, count);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.messages.count(Message::Getattr);
        let (attr, keep) = or_refuse!(self.attributes(ino), reply);
        reply.attr(&keep, &attr);
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.messages.count(Message::Setattr);
        if mode.is_some() || uid.is_some() || gid.is_some() {
            if self
                .node(ino)
                .is_ok_and(|node| self.tree.attr(node).is_none())
            {
                self.writes.spoil(ino);
            }
            return reply.error(Refused::NotPermitted.into());
        }
        // A new size or time changes nothing: the bytes written are the value. The kernel takes
        // over what is answered here without asking whether it was invalidated meanwhile, so it is
        // not to be kept.
        let (attr, _) = or_refuse!(self.attributes(ino), reply);
        reply.attr(&Duration::ZERO, &attr);
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.messages.count(Message::Readlink);
        let node = or_refuse!(self.node(ino), reply);
        match self.tree.target(node) {
            Some(target) => reply.data(target.as_bytes()),
            None => reply.error(Refused::NoEntry.into()),
        }
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.messages.count(Message::Open);
        let node = or_refuse!(self.node(ino), reply);
        let Some(mut handle) = Handle::open(&self.tree, node, request.pid()) else {
            return reply.error(Refused::NoEntry.into());
        };
        if flags.0 & libc::O_ACCMODE != libc::O_RDONLY {
            handle = handle.writing(or_refuse!(self.writes.open(node), reply));
        }
        let opened = opened(&handle);
        reply.opened(self.handles.add(handle), opened);
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.messages.count(Message::Read);
        let Some(handle) = self
            .handles
            .get(fh)
            .filter(|handle| handle.node.ino() == ino)
        else {
            return reply.error(Refused::BadHandle.into());
        };
        if handle.is_stream() {
            let blocking = if flags.0 & libc::O_NONBLOCK != 0 {
                Blocking::Fail
            } else {
                Blocking::Wait
            };
            let caller = || Caller::of(request.pid());
            return self
                .streams
                .read(&self.tree, handle, size as usize, blocking, caller, reply);
        }
        let mut out = Vec::new();
        match handle.read(&self.tree, offset, size as usize, &mut out) {
            Ok(()) => reply.data(&out),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(
        &self,
        request: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.messages.count(Message::Flush);
        match self.handles.get(fh) {
            Some(handle) => self.writes.flush(&handle, request.pid(), reply),
            None => reply.error(Refused::BadHandle.into()),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.messages.count(Message::Other);
        reply.ok();
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.messages.count(Message::Release);
        reply.ok();
        self.polls.remove(fh);
        if let Some(handle) = self.handles.remove(fh) {
            self.writes.close(&handle);
        }
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.messages.count(Message::Opendir);
        reply.error(Errno::ENOSYS);
    }

    fn readdir(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        self.messages.count(Message::Readdir);
        let node = or_refuse!(self.node(ino), reply);
        let moment = self.tree.one_moment();
        let listed = self.tree.list(node, offset, |position, name, entry| {
            let Some(attr) = self.tree.attr(entry) else {
                return ControlFlow::Continue(());
            };
            match reply.add(attr.ino, position, attr.kind, name) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        drop(moment);
        match listed {
            Some(()) => reply.ok(),
            None => reply.error(Refused::NotADirectory.into()),
        }
    }

    fn readdirplus(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.messages.count(Message::Readdirplus);
        let node = or_refuse!(self.node(ino), reply);
        let moment = self.tree.one_moment();
        let listed = self.tree.list(node, offset, |position, name, entry| {
            // The kernel takes no lookup for the two directories that it knows already.
            let dots = name == "." || name == "..";
            let entered = if dots {
                self.dots(entry)
            } else {
                self.enter_node(entry)
            };
            let Ok(Entered {
                attr,
                generation,
                keep,
            }) = entered
            else {
                return ControlFlow::Continue(());
            };
            if !reply.add(attr.ino, position, name, &keep, &attr, generation) {
                return ControlFlow::Continue(());
            }
            if !dots {
                self.held.forget(attr.ino, 1);
            }
            ControlFlow::Break(())
        });
        drop(moment);
        match listed {
            Some(()) => reply.ok(),
            None => reply.error(Refused::NotADirectory.into()),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.messages.count(Message::Other);
        let settled = self.tree.settled();
        let blocks = settled.vms.weight().div_ceil(4096);
        reply.statfs(blocks, 0, 0, settled.vms.len() as u64, 0, 4096, 255, 4096);
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.messages.count(Message::Getxattr);
        // `ls -l` asks for two others of every file.
        if !name.as_encoded_bytes().starts_with(b"user.vminfod.") {
            return reply.error(Refused::NoAttribute.into());
        }
        let node = or_refuse!(self.node(ino), reply);
        match self
            .tree
            .xattrs(node)
            .into_iter()
            .find(|(known, _)| *known == name)
        {
            Some((_, value)) => send_xattr(value.as_bytes(), size, reply),
            None => reply.error(Refused::NoAttribute.into()),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.messages.count(Message::Listxattr);
        let node = or_refuse!(self.node(ino), reply);
        let names: String = self
            .tree
            .xattrs(node)
            .iter()
            .map(|(name, _)| format!("{name}\0"))
            .collect();
        send_xattr(names.as_bytes(), size, reply);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        self.messages.count(Message::Other);
        reply.error(Refused::NoIoctl.into());
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: i32,
        reply: ReplyEmpty,
    ) {
        // Were it not supported, posix_fallocate(3) would write NUL bytes instead, which would be a value.
        self.refuse(|errno| reply.error(errno));
    }

    fn poll(
        &self,
        _: &Request,
        _: INodeNo,
        fh: FileHandle,
        notifier: PollNotifier,
        events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        self.messages.count(Message::Poll);
        let Some(handle) = self.handles.get(fh) else {
            return reply.error(Refused::BadHandle.into());
        };
        // First the handle, then the look: a change between the two wakes.
        if flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY) {
            self.polls.add(fh, handle.node, notifier);
        }
        let mut ready = poll::ready(&self.tree, &handle);
        if handle.is_stream() && self.streams.has_ended() {
            ready |= PollEvents::POLLIN | PollEvents::POLLHUP;
        }
        let always = PollEvents::POLLERR | PollEvents::POLLHUP;
        reply.poll(ready & (events | always));
    }

    // Names come and go with the VMs and their properties and by no other way. `mkdir` and `rmdir` of the root are how
    // the daemon itself announces them.

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let slot = match self.announced(request, parent, name, announce::Change::Come) {
            Ok(slot) => slot,
            Err(refused) => return reply.error(refused.into()),
        };
        let entered = or_refuse!(self.enter_node(Node::vm(slot)), reply);
        reply.entry(&entered.keep, &entered.attr, entered.generation);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        match self.announced(request, parent, name, announce::Change::Go) {
            Ok(_) => reply.ok(),
            Err(refused) => reply.error(refused.into()),
        }
    }

    fn unlink(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.refuse(|errno| reply.error(errno));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _: INodeNo,
        _: &OsStr,
        _: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if let Ok(dir) = self.node(parent) {
            self.writes.refuse_rename(dir, name);
        }
        self.refuse(|errno| reply.error(errno));
    }

    fn mknod(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        self.refuse(|errno| reply.error(errno));
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let created = self.create_file(request, parent, name, (mode, umask), flags);
        match created {
            Ok((
                Entered {
                    attr,
                    generation,
                    keep,
                },
                handle,
            )) => {
                self.messages.count(Message::Open);
                let opened = opened(&handle);
                let fh = self.handles.add(handle);
                reply.created(&keep, &attr, generation, fh, opened);
            }
            Err(errno) => {
                self.messages.count(Message::Change);
                reply.error(errno);
            }
        }
    }

    fn symlink(&self, _: &Request, _: INodeNo, _: &OsStr, _: &std::path::Path, reply: ReplyEntry) {
        self.refuse(|errno| reply.error(errno));
    }

    fn link(&self, _: &Request, _: INodeNo, _: INodeNo, _: &OsStr, reply: ReplyEntry) {
        self.refuse(|errno| reply.error(errno));
    }

    fn setxattr(
        &self,
        _: &Request,
        _: INodeNo,
        _: &OsStr,
        _: &[u8],
        _: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        self.refuse(|errno| reply.error(errno));
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        self.refuse(|errno| reply.error(errno));
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: u64,
        data: &[u8],
        _: fuser::WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.messages.count(Message::Write);
        let handle = self.handles.get(fh);
        let Some(handle) = handle.filter(|handle| handle.node.ino() == ino) else {
            return reply.error(Refused::BadHandle.into());
        };
        let wait = if flags.0 & libc::O_NONBLOCK != 0 {
            Wait::AtOnce
        } else {
            Wait::Confirmed
        };
        self.writes.write(&handle, data, wait, request.pid(), reply);
    }
}

/// How a file is opened.
fn opened(handle: &Handle) -> FopenFlags {
    let mut opened = FopenFlags::FOPEN_DIRECT_IO;
    if !handle.writing.as_ref().is_some_and(Writing::needs_flush) {
        // Whoever has nothing to flush closes the file without a message.
        opened |= FopenFlags::FOPEN_NOFLUSH;
    }
    if handle.is_stream() {
        // Without STREAM two processes that share the descriptor exclude each other by the
        // lock of its position, which the one that waits for an event holds.
        opened |= FopenFlags::FOPEN_STREAM | FopenFlags::FOPEN_NONSEEKABLE;
    }
    opened
}

fn send_xattr(value: &[u8], size: u32, reply: ReplyXattr) {
    match size {
        0 => reply.size(value.len() as u32),
        size if (size as usize) < value.len() => reply.error(Refused::TooSmall.into()),
        _ => reply.data(value),
    }
}
