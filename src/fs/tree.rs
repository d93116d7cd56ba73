//! The tree: what names there are, what attributes they have, what the files hold.
//!
//! Everything here is answered from memory and without waiting. The files of a VM show the cache
//! as it is now. What is made of many VMs (`vms.json`, `.by`, `.history`) shows the *settled*
//! snapshot: the newest one for which the kernel's caches of VMs have been put right. Streams go as
//! far as has been *told*, which follows when its own caches are right too, so that who has read an
//! event finds nothing older behind it.
//!
//! Which VMs have a name in the root is a thing of its own: a VM's name comes with the `mkdir` and
//! goes with the `rmdir` that announce it to inotify (see [`super::settle`]).

use std::borrow::Cow;
use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use uuid::Uuid;

use super::inode::{Counter, Fixed, Link, Node};
use super::writing::Errors;
use crate::cache::slots::{self, Slots};
use crate::cache::trie::{Item, Trie};
use crate::cache::{Cache, Index, Snapshot};
use crate::vm::files::FileId;
use crate::vm::{Nanos, Vm, name, nanos};

mod attributes;
mod listing;
pub mod vms;

pub use attributes::Lasts;

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

/// One mount's view of the cache.
pub struct Tree {
    /// Where the VMs are.
    pub cache: Arc<Cache>,
    settled: ArcSwap<Snapshot>,
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

const BY: [(&str, Fixed); 3] = [
    ("alias", Fixed::ByAlias),
    ("state", Fixed::ByState),
    ("owner", Fixed::ByOwner),
];

/// The file of the root to which create payloads are written.
const CREATE: &str = "create";

/// The file of a VM to which verbs are written.
pub const CTL: &str = "ctl";

/// The file of a VM that says why the last failed write failed.
pub const LAST_ERROR: &str = "last_error";

/// Positions in a listing below this belong to what is always there.
const LISTED: u64 = 64;

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
                },
            );
        }
        Tree {
            cache,
            told: AtomicU64::new(now.seq),
            settled: ArcSwap::new(now),
            shown: ArcSwap::from_pointee(shown),
            generation: Mutex::new(0),
            errors: Errors::default(),
            counter: AtomicU32::new(0),
            ownership,
            status,
            began: nanos(SystemTime::now()),
        }
    }

    /// The newest snapshot for which the kernel's caches are right.
    pub fn settled(&self) -> Arc<Snapshot> {
        self.settled.load_full()
    }

    /// Makes this the settled snapshot: the kernel's caches are right for it, but for those of what
    /// is made of the settled snapshot itself.
    pub fn settle(&self, snapshot: Arc<Snapshot>) {
        self.settled.store(snapshot);
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
        let mut generation = self.generation.lock();
        *generation += 1;
        let shown = Shown {
            uuid,
            generation: *generation,
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

    /// The VM in a slot as it is now; `None` when its name is gone, or it itself.
    pub fn vm(&self, slot: u64) -> Option<Arc<Vm>> {
        self.cache.vm(&self.shown(slot)?.uuid)
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
            Node::Fixed(Fixed::By) => BY
                .iter()
                .find(|(fixed, _)| *fixed == name)
                .map(|(_, fixed)| Node::Fixed(*fixed)),
            Node::Fixed(Fixed::ByAlias) => self.lookup_alias(name),
            Node::Fixed(Fixed::ByState) => self
                .settled
                .load()
                .states
                .get(&key_of(name)?)
                .map(|(slot, _)| Node::State(slot)),
            Node::Fixed(Fixed::ByOwner) => self
                .settled
                .load()
                .owners
                .get(&key_of(name)?)
                .map(|(slot, _)| Node::Owner(slot)),
            Node::State(group) => {
                self.lookup_member(&self.settled.load().states, group, name, Link::State)
            }
            Node::Owner(group) => {
                self.lookup_member(&self.settled.load().owners, group, name, Link::Owner)
            }
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
            Node::Fixed(_)
            | Node::EventsAfter(_)
            | Node::EventsOf(_)
            | Node::Link(..)
            | Node::Create(_)
            | Node::Ctl(..)
            | Node::LastError(_) => None,
        }
    }

    /// A number that no `ctl` or `create` which somebody still uses has.
    fn next(&self) -> Counter {
        Counter::next(&self.counter)
    }

    fn lookup_member(&self, index: &Index, group: u64, name: &str, link: Link) -> Option<Node> {
        let uuid = canonical_uuid(name)?;
        let (slot, _) = self
            .settled
            .load()
            .vms
            .get(&uuid)
            .map(|(slot, vm)| (slot, vm.uuid))?;
        let members = &index.at(group)?.members;
        (members.get(slots::key(slot)) == Some(&uuid)).then_some(Node::Link(link, slot))
    }

    /// An alias that one VM has is its link; one that several have is `<alias>~<uuid>` for each.
    fn lookup_alias(&self, name: &str) -> Option<Node> {
        let settled = self.settled.load();
        let group = |alias| Some(settled.aliases.get(&key_of(alias)?)?.1);
        if let Some(group) = group(name)
            && group.members.len() == 1
        {
            return group
                .members
                .iter()
                .next()
                .map(|(key, _)| Node::Link(Link::Alias, slots::of_key(key)));
        }
        let (alias, uuid) = name.rsplit_once('~').filter(|_| name.len() <= name::MAX)?;
        let uuid = canonical_uuid(uuid)?;
        let group = group(alias).filter(|group| group.members.len() > 1)?;
        let (slot, _) = settled.vms.get(&uuid)?;
        (group.members.get(slots::key(slot)) == Some(&uuid))
            .then_some(Node::Link(Link::Alias, slot))
    }

    fn parent(&self, node: Node) -> Node {
        match node {
            Node::Fixed(Fixed::ByAlias | Fixed::ByState | Fixed::ByOwner) => Node::Fixed(Fixed::By),
            Node::Fixed(_) => Node::ROOT,
            Node::EventsAfter(_) | Node::EventsOf(_) => Node::Fixed(Fixed::Streams),
            Node::State(_) => Node::Fixed(Fixed::ByState),
            Node::Owner(_) => Node::Fixed(Fixed::ByOwner),
            Node::Link(..) => Node::Fixed(Fixed::By),
            Node::Create(_) | Node::File(_, FileId::DIR) => Node::ROOT,
            Node::Ctl(slot, _) | Node::LastError(slot) => Node::vm(slot),
            Node::File(slot, id) => {
                let parent = self
                    .vm(slot)
                    .and_then(|vm| vm.file(id).map(|file| file.parent));
                Node::File(slot, parent.unwrap_or(FileId::DIR))
            }
        }
    }

    /// Where a link leads.
    pub fn target(&self, node: Node) -> Option<String> {
        let Node::Link(link, slot) = node else {
            return None;
        };
        let uuid = self.shown(slot)?.uuid;
        Some(match link {
            Link::Alias => format!("../../{uuid}"),
            Link::State | Link::Owner => format!("../../../{uuid}"),
        })
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
        let mut xattrs = vec![
            (
                "user.vminfod.source",
                part.map_or("all", |part| part.as_str()).to_owned(),
            ),
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
fn canonical_uuid(name: &str) -> Option<Uuid> {
    let uuid = (name.len() == 36).then(|| Uuid::try_parse(name).ok())??;
    (encode_uuid(&uuid, &mut Uuid::encode_buffer()) == name).then_some(uuid)
}

/// The key of a name below `.by`, if it is the name that is listed: only that one is taken back from the
/// kernel when it goes.
fn key_of(name: &str) -> Option<Cow<'_, str>> {
    let key = name::decode(name);
    (name::encode(&key)? == name).then_some(key)
}

fn encode_uuid<'a>(uuid: &Uuid, buffer: &'a mut [u8; 45]) -> &'a str {
    uuid.hyphenated().encode_lower(buffer)
}

/// The name of a VM's link below `.by/alias`, if it has one.
pub fn alias_name(snapshot: &Snapshot, vm: &Vm) -> Option<String> {
    let alias = vm.text("alias").filter(|alias| !alias.is_empty())?;
    let encoded = name::encode(&alias)?;
    let (_, group) = snapshot.aliases.get(&alias)?;
    let name = match group.members.len() {
        1 => encoded.into_owned(),
        _ => format!("{encoded}~{}", vm.uuid),
    };
    (name.len() <= name::MAX).then_some(name)
}
