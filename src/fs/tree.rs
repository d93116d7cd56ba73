//! The tree: what names there are, what attributes they have, what the files hold.
//!
//! Everything here is answered from memory and without waiting, and all of it from one snapshot, the
//! *settled* one, which is replaced in one step when the kernel has nothing cached any more that
//! the next one changes ([`Tree::prepare`], [`Tree::settle`]). So a file, its size, the listing it
//! is in and `vms.json` change at one moment, for every mount. Streams go as far as has been *told*,
//! which follows, so that who has read an event finds nothing older behind it.
//!
//! Which VMs have a name in the root is a thing of its own: a VM's name comes with the `mkdir` and
//! goes with the `rmdir` that announce it to inotify (see [`super::settle`]).

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::{ArcSwap, Guard};
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use uuid::Uuid;

use super::inode::{Counter, Fixed, Node};
use super::writing::Errors;
use crate::cache::slots::{self, Slots};
use crate::cache::trie::{Item, Trie};
use crate::cache::{Cache, Snapshot};
use crate::vm::files::FileId;
use crate::vm::property::DOMAIN_XML;
use crate::vm::{Nanos, Vm, nanos};

mod attributes;
pub mod by;
mod listing;
pub mod vms;

pub use attributes::Lasts;
pub use listing::{END, LISTED, ended, list_files};

/// Whom the files belong to and who may use them.
#[derive(Clone, Copy, Debug)]
pub struct Ownership {
    /// The user.
    pub uid: u32,
    /// The group; with [`Ownership::shared`] it has the user's rights.
    pub gid: u32,
    /// Whether the group was asked for (`-o group=`).
    pub shared: bool,
    /// Whether an ordinary user mounts. Then the owner can write every file as far as the kernel
    /// is concerned, since the daemon must touch its own files; the server refuses instead.
    pub unprivileged: bool,
}

/// A VM that has a name in the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The VM.
    pub uuid: Uuid,
    /// The FUSE generation of its inodes. It rises when a VM comes back: otherwise the kernel
    /// would take up the dead directory's inode, in which every lookup fails.
    pub generation: u64,
    /// Which VM of this uuid: one that is deleted and created again is another.
    born: u64,
}

impl Item for Shown {
    fn weight(&self) -> u64 {
        0
    }

    fn same(&self, other: &Self) -> bool {
        self == other
    }
}

/// Writes the daemon's status document.
pub type Status = Arc<dyn Fn() -> String + Send + Sync>;

/// What everything is answered from.
#[derive(Debug)]
pub struct View {
    /// The settled snapshot.
    pub now: Arc<Snapshot>,
    /// While the kernel's caches are put right: first the next one, then the one before.
    beside: Option<Arc<Snapshot>>,
}

impl View {
    /// How long the kernel may keep what is said of a node: not at all while that changes.
    pub fn lasts(&self, node: Node) -> Lasts {
        match self.is_changing(node) {
            true => Lasts::Once,
            false => Lasts::UntilTold,
        }
    }

    fn is_changing(&self, node: Node) -> bool {
        let Some(beside) = &self.beside else {
            return false;
        };
        match node {
            Node::File(slot, _) | Node::Ctl(slot, _) | Node::LastError(slot) => {
                match (self.now.vms.at(slot), beside.vms.at(slot)) {
                    (Some(now), Some(other)) => !Arc::ptr_eq(now, other),
                    (None, None) => false,
                    _ => true,
                }
            }
            // What is made of many VMs, and links, whose names depend on those of others.
            _ => true,
        }
    }
}

/// The cache as the mounts show it.
pub struct Tree {
    /// Where the VMs are.
    pub cache: Arc<Cache>,
    view: ArcSwap<View>,
    /// Held for writing while another snapshot is made the settled one.
    switching: RwLock<()>,
    told: AtomicU64,
    shown: ArcSwap<Trie<Shown>>,
    /// The last generation given out; held while `shown` is replaced.
    generation: Mutex<u64>,
    /// The writes that failed.
    pub errors: Errors,
    /// The last number given to a `ctl` or `create`.
    counter: AtomicU32,
    ownership: Ownership,
    status: Status,
    began: Nanos,
}

/// The entries of the root that are always there.
const ROOT: [(&str, Fixed); 7] = [
    ("events", Fixed::Events),
    ("vms.json", Fixed::Vms),
    (".status", Fixed::Status),
    (".errors", Fixed::Errors),
    (".events", Fixed::Streams),
    (".history", Fixed::History),
    (".by", Fixed::By),
];

/// The file of the root to which create payloads are written.
const CREATE: &str = "create";

/// The file of a VM to which verbs are written.
pub const CTL: &str = "ctl";

/// The file of a VM that says why the last failed write failed.
pub const LAST_ERROR: &str = "last_error";

impl Tree {
    /// The tree of the cache's VMs as they are now, all of them shown.
    pub fn new(cache: Arc<Cache>, ownership: Ownership, status: Status) -> Tree {
        let now = cache.now();
        let mut shown = Trie::new();
        for (slot, vm) in now.vms.iter() {
            shown.insert(
                slots::key(slot),
                Shown {
                    uuid: vm.uuid,
                    generation: 0,
                    born: vm.born,
                },
            );
        }
        Tree {
            cache,
            told: AtomicU64::new(now.seq),
            view: ArcSwap::from_pointee(View { now, beside: None }),
            switching: RwLock::default(),
            shown: ArcSwap::from_pointee(shown),
            generation: Mutex::new(0),
            errors: Errors::default(),
            counter: AtomicU32::new(0),
            ownership,
            status,
            began: nanos(SystemTime::now()),
        }
    }

    /// The snapshot that is shown.
    pub fn settled(&self) -> Arc<Snapshot> {
        self.view.load().now.clone()
    }

    /// What is shown, and what is about to be.
    pub fn view(&self) -> Guard<Arc<View>> {
        self.view.load()
    }

    /// From here on the kernel is to keep nothing that differs in this snapshot, so that what it
    /// holds can be taken from it before [`Tree::settle`].
    pub fn prepare(&self, next: Arc<Snapshot>) {
        self.view.store(Arc::new(View {
            now: self.settled(),
            beside: Some(next),
        }));
    }

    /// Shows a snapshot, for which [`Tree::prepare`] was called and nothing is cached that differs.
    pub fn settle(&self, now: Arc<Snapshot>) {
        let _switching = self.switching.write();
        let beside = Some(self.settled());
        self.view.store(Arc::new(View { now, beside }));
    }

    /// Nothing is settled while this is held: for an answer that is made of many things, whose names and
    /// numbers are to belong together.
    pub fn one_moment(&self) -> RwLockReadGuard<'_, ()> {
        self.switching.read()
    }

    /// The kernel may keep everything again: it was made to look at what is new.
    pub fn rest(&self) {
        self.view.store(Arc::new(View {
            now: self.settled(),
            beside: None,
        }));
    }

    /// The number of the last event that streams may tell of.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Acquire)
    }

    /// Lets streams tell of the events up to this one: all of the kernel's caches are right for it.
    pub fn tell(&self, seq: u64) {
        self.told.store(seq, Ordering::Release);
    }

    /// Gives a VM its name in the root.
    pub fn show(&self, slot: u64, uuid: Uuid) -> Shown {
        let view = self.view();
        let coming = view.beside.as_ref().unwrap_or(&view.now);
        let mut generation = self.generation.lock();
        *generation += 1;
        let shown = Shown {
            uuid,
            generation: *generation,
            born: coming.vm(&uuid).map_or(0, |vm| vm.born),
        };
        let mut next = Trie::clone(&self.shown.load());
        next.insert(slots::key(slot), shown);
        self.shown.store(Arc::new(next));
        shown
    }

    /// Takes a VM's name out of the root.
    pub fn hide(&self, slot: u64) {
        let _generation = self.generation.lock();
        let mut next = Trie::clone(&self.shown.load());
        next.remove(slots::key(slot));
        self.shown.store(Arc::new(next));
    }

    /// The slot under which a VM is shown.
    pub fn slot_of(&self, uuid: &Uuid) -> Option<u64> {
        let shown = self.shown.load();
        // A slot is the home of its VM, or directly behind others that collide with it.
        let home = Slots::<Arc<Vm>>::home(uuid);
        (home..home + 64).find(|slot| {
            shown
                .get(slots::key(*slot))
                .is_some_and(|shown| shown.uuid == *uuid)
        })
    }

    /// What is shown in a slot.
    pub fn shown(&self, slot: u64) -> Option<Shown> {
        self.shown.load().get(slots::key(slot)).copied()
    }

    /// The VM in a slot as it is shown; `None` when its name is gone, or it itself. One whose name
    /// has come already and which is settled only next is shown as it will be then.
    pub fn vm(&self, slot: u64) -> Option<Arc<Vm>> {
        let shown = self.shown(slot)?;
        let view = self.view();
        let vm = |snapshot: &Snapshot| {
            let vm = snapshot.vm(&shown.uuid)?;
            (vm.born == shown.born).then(|| vm.clone())
        };
        vm(&view.now).or_else(|| vm(view.beside.as_ref()?))
    }

    /// The FUSE generation of a node.
    pub fn generation(&self, node: Node) -> u64 {
        node.slot()
            .and_then(|slot| self.shown(slot))
            .map_or(0, |shown| shown.generation)
    }

    /// What a name in a directory names.
    pub fn lookup(&self, dir: Node, name: &OsStr) -> Option<Node> {
        let name = name.to_str()?;
        match dir {
            Node::Fixed(Fixed::Root) => match ROOT.iter().find(|(fixed, _)| *fixed == name) {
                Some((_, fixed)) => Some(Node::Fixed(*fixed)),
                None if name == CREATE => Some(Node::Create(self.next())),
                None => self.slot_of(&canonical_uuid(name)?).map(Node::vm),
            },
            Node::Fixed(Fixed::Streams) => match canonical_uuid(name) {
                Some(uuid) => self.slot_of(&uuid).map(Node::EventsOf),
                None => {
                    let seq = name
                        .parse::<u64>()
                        .ok()
                        .filter(|seq| seq.to_string() == name)?;
                    (seq < Node::EVENTS_END).then_some(Node::EventsAfter(seq))
                }
            },
            Node::File(slot, FileId::DIR) if name == CTL => {
                self.shown(slot)?;
                Some(Node::Ctl(slot, self.next()))
            }
            Node::File(slot, FileId::DIR) if name == LAST_ERROR => {
                self.shown(slot)?;
                Some(Node::LastError(slot))
            }
            Node::File(slot, dir) => {
                let vm = self.vm(slot)?;
                vm.lookup(dir, name).map(|file| Node::File(slot, file.id))
            }
            dir => by::lookup(&self.settled(), dir, name),
        }
    }

    /// A number that no `ctl` or `create` which somebody still uses has.
    fn next(&self) -> Counter {
        Counter::next(&self.counter)
    }

    fn parent(&self, node: Node) -> Node {
        match node {
            Node::File(slot, id) if id != FileId::DIR => {
                parent_in(self.vm(slot).as_deref(), slot, id)
            }
            node => parent_of(node),
        }
    }

    /// Where a link leads.
    pub fn target(&self, node: Node) -> Option<String> {
        let Node::Link(link, slot) = node else {
            return None;
        };
        Some(by::target(link, &self.shown(slot)?.uuid))
    }

    /// The daemon's status document.
    pub fn status(&self) -> String {
        (self.status)()
    }

    /// The extended attributes of a node: name and value.
    pub fn xattrs(&self, node: Node) -> Vec<(&'static str, String)> {
        let Node::File(slot, id) = node else {
            return Vec::new();
        };
        let Some(vm) = self.vm(slot) else {
            return Vec::new();
        };
        let part = vm.file(id).and_then(|file| file.part);
        let is_domain = vm.rendered.lookup(FileId::DIR, DOMAIN_XML).is_some();
        let source = match part {
            None => "all",
            Some(part) if is_domain => part.of_domain(),
            Some(part) => part.as_str(),
        };
        let mut xattrs = vec![
            ("user.vminfod.source", source.to_owned()),
            (
                "user.vminfod.observed",
                crate::cache::events::date(vm.observed()),
            ),
            ("user.vminfod.via", vm.via.to_owned()),
            ("user.vminfod.generation", vm.generation.to_string()),
        ];
        if let Some(reason) = &vm.stale {
            xattrs.push(("user.vminfod.stale", reason.to_string()));
        }
        xattrs
    }
}

/// A uuid as directories are named: hyphenated, in lower case.
pub fn canonical_uuid(name: &str) -> Option<Uuid> {
    let uuid = (name.len() == 36).then(|| Uuid::try_parse(name).ok())??;
    (encode_uuid(&uuid, &mut Uuid::encode_buffer()) == name).then_some(uuid)
}

fn encode_uuid<'a>(uuid: &Uuid, buffer: &'a mut [u8; 45]) -> &'a str {
    uuid.hyphenated().encode_lower(buffer)
}

/// The directory in which a directory lies that is not within a VM's.
pub fn parent_of(dir: Node) -> Node {
    match dir {
        Node::Fixed(Fixed::ByAlias | Fixed::ByState | Fixed::ByOwner) | Node::Link(..) => {
            Node::Fixed(Fixed::By)
        }
        Node::Fixed(_) | Node::Create(_) => Node::ROOT,
        Node::EventsAfter(_) | Node::EventsOf(_) => Node::Fixed(Fixed::Streams),
        Node::State(_) => Node::Fixed(Fixed::ByState),
        Node::Owner(_) => Node::Fixed(Fixed::ByOwner),
        Node::Ctl(slot, _) | Node::LastError(slot) => Node::vm(slot),
        Node::File(..) => Node::ROOT,
    }
}

/// The directory in which a file of a VM lies.
pub fn parent_in(vm: Option<&Vm>, slot: u64, id: FileId) -> Node {
    let parent = vm.and_then(|vm| Some(vm.file(id)?.parent));
    Node::File(slot, parent.unwrap_or(FileId::DIR))
}
