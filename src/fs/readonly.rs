//! The read-only mount: a file never changes, it is replaced.
//!
//! Each version of a file is an inode of its own, with its bytes and its size ([`numbers`]), so the
//! kernel may keep pages and attributes for ever, and opening, reading and closing what it has costs
//! no message at all: OPEN and OPENDIR are answered ENOSYS once, and never come again. A change takes
//! the name back; who has the old version open keeps it, whole. Directories are what they are in
//! the writable mount: they stay, and lose their listing when it changes.
//!
//! The kernel throws a directory's listing away when a name in it is taken back, so nothing that changes
//! lies in the root, where that costs most: `vms.json` there is a link into `.all`. What depends
//! on when one looks (`.status`) is made at each lookup and is then a file like all others. What
//! blocks (`events`) or belongs to writing is a link to the writable mount, if there is one.
//!
//! The filesystem is mounted read-only, or each READ would cost a GETATTR later (the time of access).

use std::ffi::OsStr;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, Filesystem, Generation, INodeNo, InitFlags, KernelConfig,
    LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyStatfs, ReplyXattr, Request,
};
use parking_lot::Mutex;
use uuid::Uuid;

use super::errno::Refused;
use super::held::Held;
use super::inode::{Fixed, Node};
use super::messages::{Message, Messages};
use super::tree::by::{self, BY};
use super::tree::{self, END, LISTED, Lasts, Tree};
use crate::cache::Snapshot;
use crate::vm::files::FileId;

mod caches;
mod numbers;

pub use caches::Caches;
use numbers::{Kept, Named, Numbers};

/// What lies in the root besides the VMs.
const ROOT: [(&str, Fixed); 4] = [
    ("vms.json", Fixed::VmsLink),
    (STATUS, Fixed::Status),
    (".all", Fixed::All),
    (".by", Fixed::By),
];

/// What lies in the writable mount's root and is linked to.
const LINKS: [(&str, Fixed); 4] = [
    ("events", Fixed::Events),
    (".errors", Fixed::Errors),
    (".events", Fixed::Streams),
    (".history", Fixed::History),
];

/// The name of the status document.
const STATUS: &str = ".status";

/// The name of the file that lies in `.all`.
const VMS: &str = "vms.json";

/// A read-only mount.
pub struct ReadOnly {
    tree: Arc<Tree>,
    held: Arc<Held>,
    messages: Arc<Messages>,
    /// Locked while a name is looked up and while a snapshot is settled, so that a number, its
    /// attributes and how long they last belong together.
    numbers: Mutex<Numbers>,
    /// Where the writable mount is.
    writable: Option<PathBuf>,
}

/// A file or directory as the kernel is to know it.
struct Entry {
    attr: FileAttr,
    keep: Duration,
}

impl ReadOnly {
    /// A mount of this tree that has been asked nothing yet. `writable` is the path to which
    /// `events` and its like lead.
    pub fn new(tree: Arc<Tree>, writable: Option<PathBuf>) -> ReadOnly {
        ReadOnly {
            tree,
            held: Arc::default(),
            messages: Arc::default(),
            numbers: Mutex::default(),
            writable,
        }
    }

    /// What the kernel holds of it.
    pub fn held(&self) -> &Arc<Held> {
        &self.held
    }

    /// The messages that came.
    pub fn messages(&self) -> &Messages {
        &self.messages
    }

    /// How many replaced versions are kept because the kernel holds them.
    pub fn kept(&self) -> usize {
        self.numbers.lock().kept()
    }

    fn links(&self) -> &'static [(&'static str, Fixed)] {
        match self.writable {
            Some(_) => &LINKS,
            None => &[],
        }
    }

    /// What a name in a directory names.
    fn find(&self, now: &Snapshot, dir: Node, name: &OsStr) -> Option<Node> {
        let name = name.to_str()?;
        match dir {
            Node::Fixed(Fixed::Root) => {
                let mut fixed = ROOT.iter().chain(self.links());
                match fixed.find(|(fixed, _)| *fixed == name) {
                    Some((_, fixed)) => Some(Node::Fixed(*fixed)),
                    None => {
                        let uuid = tree::canonical_uuid(name)?;
                        now.vms.get(&uuid).map(|(slot, _)| Node::vm(slot))
                    }
                }
            }
            Node::Fixed(Fixed::All) => (name == VMS).then_some(Node::Fixed(Fixed::Vms)),
            Node::File(slot, dir) => {
                let file = now.vms.at(slot)?.lookup(dir, name)?;
                Some(Node::File(slot, file.id))
            }
            _ => by::lookup(now, dir, name),
        }
    }

    /// The attributes of what is there now, but for its number.
    fn attr(&self, now: &Snapshot, node: Node) -> Option<FileAttr> {
        match node {
            Node::File(slot, id) => self.tree.attr_in(now.vms.at(slot)?, node, id),
            Node::Fixed(Fixed::Root) => Some(self.tree.attr_of_root(now, now.vms.len())),
            Node::Fixed(Fixed::Status) => Some(self.tree.attr_of_status(0)),
            node => match self.target(now, node) {
                Some(target) => Some(self.tree.attr_of_link(node, &target)),
                None => self.tree.attr_of_all(node, now),
            },
        }
    }

    /// Where a link leads.
    fn target(&self, now: &Snapshot, node: Node) -> Option<String> {
        let linked = |name: &str| Some(self.writable.as_ref()?.join(name).display().to_string());
        match node {
            Node::Link(link, slot) => Some(by::target(link, &now.vms.at(slot)?.uuid)),
            Node::Fixed(Fixed::VmsLink) => Some(format!(".all/{VMS}")),
            Node::Fixed(fixed) => {
                let (name, _) = LINKS.iter().find(|(_, link)| *link == fixed)?;
                linked(name)
            }
            _ => None,
        }
    }

    /// The entry of a node as it is now; counts a lookup of it.
    fn enter(&self, numbers: &mut Numbers, node: Node) -> Option<Entry> {
        let view = self.tree.view();
        let attr = self.attr(&view.now, node)?;
        let ino = numbers.number(node);
        self.held.hold(ino);
        let lasts = match node {
            // A listing has only its name; it is looked up before anybody sees more of it.
            Node::Fixed(Fixed::Status) => Lasts::Once,
            node => view.lasts(node),
        };
        Some(Entry {
            attr: FileAttr { ino, ..attr },
            keep: lasts.ttl(),
        })
    }

    fn lookup(&self, dir: INodeNo, name: &OsStr) -> Option<Entry> {
        if (dir, name) == (INodeNo::ROOT, OsStr::new(STATUS)) {
            return Some(self.lookup_status());
        }
        let mut numbers = self.numbers.lock();
        let Named::Now(dir) = numbers.named(dir)? else {
            return None;
        };
        let node = self.find(&self.tree.view().now, dir, name)?;
        self.enter(&mut numbers, node)
    }

    /// The status document as it is now. Whoever opens it again looks it up again.
    fn lookup_status(&self) -> Entry {
        let text: Arc<str> = self.tree.status().into();
        let attr = self.tree.attr_of_status(text.len() as u64);
        let ino = self.numbers.lock().keep_text(text, &self.held);
        Entry {
            attr: FileAttr { ino, ..attr },
            keep: Duration::ZERO,
        }
    }

    /// The attributes of what has a number.
    fn attributes(&self, ino: INodeNo) -> Option<Entry> {
        let numbers = self.numbers.lock();
        let view = self.tree.view();
        let (attr, lasts) = match numbers.named(ino)? {
            Named::Now(node) => (self.attr(&view.now, node)?, view.lasts(node)),
            Named::Kept(kept) => {
                let attr = match &kept {
                    Kept::File(vm, id) => self.tree.attr_in(vm, Node::File(0, *id), *id)?,
                    Kept::Vms(then) => self.tree.attr_of_all(Node::Fixed(Fixed::Vms), then)?,
                    // Who looks at it twice, as cp(1) does, is to see one file: its number is that of
                    // the document, whatever the kernel knows it by.
                    Kept::Text(text) => {
                        return Some(Entry {
                            attr: self.tree.attr_of_status(text.len() as u64),
                            keep: Lasts::UntilTold.ttl(),
                        });
                    }
                    Kept::Gone => return None,
                };
                (attr, Lasts::UntilTold)
            }
        };
        Some(Entry {
            attr: FileAttr { ino, ..attr },
            keep: lasts.ttl(),
        })
    }

    /// The bytes of a version from an offset on.
    fn text(&self, ino: INodeNo, offset: u64, size: usize, out: &mut Vec<u8>) -> Option<()> {
        let kept = {
            let numbers = self.numbers.lock();
            let view = self.tree.view();
            match numbers.named(ino)? {
                Named::Kept(kept) => kept,
                Named::Now(Node::File(slot, id)) => Kept::File(view.now.vms.at(slot)?.clone(), id),
                Named::Now(Node::Fixed(Fixed::Vms)) => Kept::Vms(view.now.clone()),
                Named::Now(_) => return None,
            }
        };
        let cut = |text: &[u8], out: &mut Vec<u8>| {
            let from = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(text.len());
            out.extend_from_slice(&text[from..text.len().min(from.saturating_add(size))]);
        };
        match kept {
            Kept::Gone => return None,
            Kept::Vms(snapshot) => tree::vms::read(&snapshot, offset, size, out),
            Kept::Text(text) => cut(text.as_bytes(), out),
            Kept::File(vm, id) => {
                let file = vm.file(id)?;
                let mut text = Vec::with_capacity(file.size as usize);
                file.text(vm.json(), &mut text);
                if offset == 0 && text.len() <= size {
                    *out = text;
                } else {
                    cut(&text, out);
                }
            }
        }
        Some(())
    }

    /// Names the entries of a directory from a position on, as [`Tree::list`] does. Nothing is settled
    /// meanwhile, so that names, numbers and attributes of one answer belong together.
    fn list(
        &self,
        ino: INodeNo,
        position: u64,
        mut add: impl FnMut(&mut Numbers, u64, &OsStr, Node) -> ControlFlow<()>,
    ) -> Option<()> {
        let mut numbers = self.numbers.lock();
        let now = self.tree.settled();
        let Named::Now(dir) = numbers.named(ino)? else {
            return None;
        };
        let mut add = |position: u64, name: &str, node: Node| {
            add(&mut numbers, position, OsStr::new(name), node)
        };
        let (fixed, links): (&[(&str, Fixed)], _) = match dir {
            Node::Fixed(Fixed::Root) => (&ROOT, self.links()),
            Node::Fixed(Fixed::All) => (&[(VMS, Fixed::Vms)], &[][..]),
            Node::Fixed(Fixed::By) => (&BY, &[][..]),
            Node::File(slot, id) => {
                let vm = now.vms.at(slot)?;
                if id != FileId::DIR && !vm.file(id)?.is_dir() {
                    return None;
                }
                (&[], &[][..])
            }
            Node::Fixed(Fixed::ByAlias | Fixed::ByState | Fixed::ByOwner)
            | Node::State(_)
            | Node::Owner(_) => (&[], &[][..]),
            _ => return None,
        };
        let dots = [(".", dir), ("..", parent(&now, dir))];
        let fixed = fixed
            .iter()
            .chain(links)
            .map(|(name, fixed)| (*name, Node::Fixed(*fixed)));
        for (index, (name, node)) in dots
            .into_iter()
            .chain(fixed)
            .enumerate()
            .skip(position as usize)
        {
            if add(index as u64 + 1, name, node).is_break() {
                return Some(());
            }
        }
        let from = position.saturating_sub(LISTED);
        if from >= END {
            return Some(());
        }
        let mut add = |at, name: &str, node| add(LISTED + at + 1, name, node);
        let _ = match dir {
            Node::Fixed(Fixed::Root) => list_vms(&now, from, &mut add),
            Node::File(slot, id) => match now.vms.at(slot) {
                Some(vm) => tree::list_files(vm, slot, id, from, &mut add),
                None => ControlFlow::Continue(()),
            },
            dir => by::list(&now, dir, from, &mut add),
        };
        Some(())
    }
}

fn list_vms(
    now: &Snapshot,
    from: u64,
    add: &mut impl FnMut(u64, &str, Node) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let vms = now
        .vms
        .range(from)
        .map(|(slot, vm)| (slot, (slot, vm.uuid)));
    for (at, (slot, uuid)) in tree::ended(vms) {
        let mut buffer = Uuid::encode_buffer();
        add(
            at,
            uuid.hyphenated().encode_lower(&mut buffer),
            Node::vm(slot),
        )?;
    }
    ControlFlow::Continue(())
}

/// The directory in which a directory lies.
fn parent(now: &Snapshot, dir: Node) -> Node {
    match dir {
        Node::File(slot, id) if id != FileId::DIR => {
            tree::parent_in(now.vms.at(slot).map(|vm| &**vm), slot, id)
        }
        dir => tree::parent_of(dir),
    }
}

/// What fuser calls.
pub struct Adapter(pub Arc<ReadOnly>);

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_NO_OPEN_SUPPORT,
            InitFlags::FUSE_NO_OPENDIR_SUPPORT,
            // For directories, as in the writable mount. It costs files nothing, whose attributes last.
            InitFlags::FUSE_AUTO_INVAL_DATA,
            InitFlags::FUSE_CACHE_SYMLINKS,
        ];
        for flag in wanted {
            // What an old kernel lacks costs messages.
            let _ = config.add_capabilities(flag);
        }
        Ok(())
    }

    /// Nobody will say any more that something is forgotten.
    fn destroy(&mut self) {
        let mut numbers = self.0.numbers.lock();
        *numbers = Numbers::default();
        self.0.held.clear();
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.0.messages.count(Message::Lookup);
        match self.0.lookup(parent, name) {
            Some(entry) => reply.entry(&entry.keep, &entry.attr, Generation(0)),
            None => reply.error(Refused::NoEntry.into()),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.0.messages.count(Message::Forget);
        self.0.numbers.lock().forget(ino, count, &self.0.held);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        self.0.messages.count(Message::Getattr);
        match self.0.attributes(ino) {
            Some(entry) => reply.attr(&entry.keep, &entry.attr),
            None => reply.error(Refused::NoEntry.into()),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        self.0.messages.count(Message::Readlink);
        let named = self.0.numbers.lock().named(ino);
        let target = match named {
            Some(Named::Now(node)) => self.0.target(&self.0.tree.settled(), node),
            _ => None,
        };
        match target {
            Some(target) => reply.data(target.as_bytes()),
            None => reply.error(Refused::NoEntry.into()),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.0.messages.count(Message::Open);
        reply.error(Errno::ENOSYS);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.0.messages.count(Message::Read);
        let mut out = Vec::new();
        match self.0.text(ino, offset, size as usize, &mut out) {
            Some(()) => reply.data(&out),
            None => reply.error(Errno::ENODEV),
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        self.0.messages.count(Message::Flush);
        reply.error(Errno::ENOSYS);
    }

    fn opendir(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.0.messages.count(Message::Opendir);
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
        self.0.messages.count(Message::Readdir);
        let listed = self.0.list(ino, offset, |numbers, position, name, node| {
            let kind = match self.0.attr(&self.0.tree.view().now, node) {
                Some(attr) => attr.kind,
                None => return ControlFlow::Continue(()),
            };
            let ino = numbers.number(node);
            match reply.add(ino, position, kind, name) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        match listed {
            Some(()) => reply.ok(),
            None => reply.error(Refused::NoEntry.into()),
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
        self.0.messages.count(Message::Readdirplus);
        let listed = self.0.list(ino, offset, |numbers, position, name, node| {
            // The kernel takes no lookup for these.
            let is_lookup = name != "." && name != "..";
            let entry = match is_lookup {
                true => self.0.enter(numbers, node),
                false => {
                    let ino = numbers.known(node).unwrap_or(node.ino());
                    let attr = self.0.attr(&self.0.tree.view().now, node);
                    attr.map(|attr| Entry {
                        attr: FileAttr { ino, ..attr },
                        keep: Duration::ZERO,
                    })
                }
            };
            let Some(Entry { attr, keep }) = entry else {
                return ControlFlow::Continue(());
            };
            if !reply.add(attr.ino, position, name, &keep, &attr, Generation(0)) {
                return ControlFlow::Continue(());
            }
            if is_lookup {
                numbers.forget(attr.ino, 1, &self.0.held);
            }
            ControlFlow::Break(())
        });
        match listed {
            Some(()) => reply.ok(),
            None => reply.error(Refused::NoEntry.into()),
        }
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.0.messages.count(Message::Other);
        let now = self.0.tree.settled();
        let blocks = now.vms.weight().div_ceil(4096);
        reply.statfs(blocks, 0, 0, now.vms.len() as u64, 0, 4096, 255, 4096);
    }

    // Each of these is asked once: the kernel remembers that there is no such thing.

    fn getxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: u32, reply: ReplyXattr) {
        self.0.messages.count(Message::Getxattr);
        reply.error(Errno::ENOSYS);
    }

    fn listxattr(&self, _: &Request, _: INodeNo, _: u32, reply: ReplyXattr) {
        self.0.messages.count(Message::Listxattr);
        reply.error(Errno::ENOSYS);
    }
}
