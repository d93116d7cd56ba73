//! Which inode numbers the versions of files have.
//!
//! A file's number is the same as in the writable mount: what it names. A version that the kernel holds when
//! it is replaced keeps its number, and until the kernel has forgotten that, the next one gets a
//! number from where nothing else has one. So a number means one thing for as long as anybody holds it, and
//! what is recorded here is bounded by what the kernel holds.

use std::collections::HashMap;
use std::sync::Arc;

use fuser::INodeNo;

use super::VMS;
use crate::cache::Snapshot;
use crate::fs::held::Held;
use crate::fs::inode::{Fixed, Link, Node};
use crate::fs::settle::{Changed, Difference};
use crate::vm::Vm;
use crate::vm::files::{File, FileId};

/// What a number names that is not what its file is now.
#[derive(Clone, Debug)]
pub enum Kept {
    /// A file of an earlier version of a VM.
    File(Arc<Vm>, FileId),
    /// An earlier `vms.json`.
    Vms(Arc<Snapshot>),
    /// What a file was when it was looked up.
    Text(Arc<str>),
    /// A directory or link that has gone: it is empty for who is still in it.
    Gone,
}

/// What a number names.
#[derive(Clone, Debug)]
pub enum Named {
    /// What is there now.
    Now(Node),
    /// What was.
    Kept(Kept),
}

/// Under which names versions that were replaced may still be in the kernel: those that somebody looked
/// up after their names had been taken back.
#[derive(Debug, Default)]
pub struct Left {
    /// Directories, and names in them.
    pub names: Vec<(Node, String)>,
    /// Whether there are links to VMs that went.
    pub links: bool,
}

/// The numbers of one mount.
#[derive(Debug)]
pub struct Numbers {
    next: u64,
    /// The numbers of what has not its own.
    given: HashMap<Node, INodeNo>,
    /// The same, by number.
    nodes: HashMap<u64, Node>,
    /// What is no longer there and still held, and what is there only for who looked it up.
    kept: HashMap<u64, Kept>,
}

impl Default for Numbers {
    fn default() -> Numbers {
        Numbers {
            next: Node::FREE,
            given: HashMap::new(),
            nodes: HashMap::new(),
            kept: HashMap::new(),
        }
    }
}

impl Numbers {
    /// The number of what a node is now. The node must exist.
    pub fn number(&mut self, node: Node) -> INodeNo {
        self.known(node).unwrap_or_else(|| {
            let ino = self.unused();
            self.given.insert(node, ino);
            self.nodes.insert(ino.0, node);
            ino
        })
    }

    /// The same; `None` if it has none yet.
    pub fn known(&self, node: Node) -> Option<INodeNo> {
        let own = node.ino();
        match self.given.get(&node) {
            Some(ino) => Some(*ino),
            None => (!self.kept.contains_key(&own.0)).then_some(own),
        }
    }

    /// What a number names; `None` if that is gone.
    pub fn named(&self, ino: INodeNo) -> Option<Named> {
        if let Some(kept) = self.kept.get(&ino.0) {
            return Some(Named::Kept(kept.clone()));
        }
        let node = match self.nodes.get(&ino.0) {
            Some(node) => *node,
            None if Node::is_free(ino) => return None,
            None => Node::of(ino)?,
        };
        (self.known(node) == Some(ino)).then_some(Named::Now(node))
    }

    /// Gives a text a number, for who has just looked it up: counts that lookup.
    pub fn keep_text(&mut self, text: Arc<str>, held: &Held) -> INodeNo {
        let ino = self.unused();
        self.kept.insert(ino.0, Kept::Text(text));
        held.hold(ino);
        ino
    }

    /// The kernel forgets `count` lookups of a number. Both are noted in one step: a version that is looked
    /// up again and replaced meanwhile is not to be taken for forgotten.
    pub fn forget(&mut self, ino: INodeNo, count: u64, held: &Held) {
        held.forget(ino, count);
        if !held.is_held(ino) {
            self.kept.remove(&ino.0);
        }
        // A storm of changes should not leave its memory behind for ever.
        if self.kept.len() * 8 < self.kept.capacity() && self.kept.capacity() > 4096 {
            self.kept.shrink_to_fit();
        }
    }

    /// How many versions are kept because the kernel holds them.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// What is held of the settled snapshot and is not in the newest becomes what was. Returns where that
    /// may still have a name.
    pub fn replace(
        &mut self,
        difference: &Difference<'_>,
        settled: &Arc<Snapshot>,
        held: &Held,
    ) -> Left {
        let mut left = Left::default();
        for Changed { slot, old, new } in &difference.changed {
            for file in old.files().iter() {
                let same = new.has(&file, old)
                    && (file.is_dir() || new.mtime(file.id) == old.mtime(file.id));
                if !same && self.retire_file(*slot, old, &file, held) {
                    let name = file.name(old.json()).into_owned();
                    left.names.push((Node::File(*slot, file.parent), name));
                }
            }
        }
        for (slot, old) in &difference.gone {
            for file in old.files().iter() {
                self.retire_file(*slot, old, &file, held);
            }
            if self.retire(Node::vm(*slot), Kept::Gone, held) {
                left.names.push((Node::ROOT, old.uuid.to_string()));
            }
            for link in [Link::Alias, Link::State, Link::Owner] {
                left.links |= self.retire(Node::Link(link, *slot), Kept::Gone, held);
            }
        }
        let vms = Node::Fixed(Fixed::Vms);
        if difference.has_events() && self.retire(vms, Kept::Vms(settled.clone()), held) {
            let all = Node::Fixed(Fixed::All);
            left.names.push((all, VMS.to_owned()));
        }
        left
    }

    fn retire_file(&mut self, slot: u64, old: &Arc<Vm>, file: &File, held: &Held) -> bool {
        let kept = match file.is_dir() {
            true => Kept::Gone,
            false => Kept::File(old.clone(), file.id),
        };
        self.retire(Node::File(slot, file.id), kept, held)
    }

    /// Leaves a node's number to what the node was, if the kernel holds that. Says whether it does.
    fn retire(&mut self, node: Node, kept: Kept, held: &Held) -> bool {
        let held = self.known(node).filter(|ino| held.is_held(*ino));
        if let Some(ino) = held {
            self.kept.insert(ino.0, kept);
        }
        if let Some(ino) = self.given.remove(&node) {
            self.nodes.remove(&ino.0);
        }
        held.is_some()
    }

    fn unused(&mut self) -> INodeNo {
        self.next += 1;
        INodeNo(self.next)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::LazyLock;
    use std::time::SystemTime;

    use proptest::prelude::*;
    use serde_json::json;
    use uuid::Uuid;

    use super::*;
    use crate::cache::slots::Slots;
    use crate::cache::{Cache, Change, Writer};
    use crate::vm::files::Rendered;

    /// A mount's numbers, and what the kernel would hold.
    struct Kernel {
        writer: Writer,
        settled: Arc<Snapshot>,
        numbers: Numbers,
        held: Held,
        /// What each number that is held meant when it was looked up.
        known: BTreeMap<u64, String>,
    }

    impl Kernel {
        fn new() -> Kernel {
            let (cache, writer) = Cache::new(1 << 20);
            Kernel {
                settled: cache.now(),
                writer,
                numbers: Numbers::default(),
                held: Held::default(),
                known: BTreeMap::new(),
            }
        }

        fn publish(&mut self, changes: Vec<Change>) {
            self.writer.publish(changes);
            let newest = self.writer.cache().now();
            let difference = Difference::of(&self.settled, &newest);
            self.numbers.replace(&difference, &self.settled, &self.held);
            self.settled = newest;
        }

        fn text(vm: &Vm, id: FileId) -> String {
            let mut text = Vec::new();
            match vm.file(id) {
                Some(file) if !file.is_dir() => file.text(vm.json(), &mut text),
                _ => return format!("a directory of {} {}", vm.uuid, vm.born),
            }
            String::from_utf8(text).unwrap()
        }

        /// What a number means; of a directory that has gone, nothing.
        fn meaning(&self, ino: u64) -> Option<String> {
            match self.numbers.named(INodeNo(ino))? {
                Named::Now(Node::File(slot, id)) => {
                    Some(Kernel::text(self.settled.vms.at(slot)?, id))
                }
                Named::Now(Node::Link(_, slot)) => {
                    let vm = self.settled.vms.at(slot)?;
                    Some(format!("a link to {}", vm.uuid))
                }
                Named::Kept(Kept::File(vm, id)) => Some(Kernel::text(&vm, id)),
                _ => None,
            }
        }

        fn look_up_all(&mut self) {
            let vms: Vec<_> = self.settled.vms.iter().collect();
            for (slot, vm) in vms {
                let files = vm.files().iter().map(|file| file.id);
                let mut nodes: Vec<(Node, String)> = files
                    .chain([FileId::DIR])
                    .map(|id| (Node::File(slot, id), Kernel::text(vm, id)))
                    .collect();
                let link = format!("a link to {}", vm.uuid);
                nodes.push((Node::Link(Link::Owner, slot), link));
                for (node, text) in nodes {
                    let ino = self.numbers.number(node);
                    self.held.hold(ino);
                    let before = self.known.insert(ino.0, text.clone());
                    assert!(before.is_none_or(|before| before == text), "{ino:?}");
                }
            }
        }

        fn forget(&mut self, ino: u64) {
            self.known.remove(&ino);
            self.numbers.forget(INodeNo(ino), u64::MAX, &self.held);
        }
    }

    /// Two VMs that would have the same slot, so that one moves when the other comes or goes.
    static COLLIDING: LazyLock<[Uuid; 2]> = LazyLock::new(|| {
        let uuids = (1u128..3_000_000).map(Uuid::from_u128);
        let home = |uuid: &Uuid| Slots::<Arc<Vm>>::home(uuid);
        let mut homes: Vec<(u64, Uuid)> = uuids.map(|uuid| (home(&uuid), uuid)).collect();
        homes.sort_unstable();
        let pair = homes.windows(2).find(|pair| pair[0].0 == pair[1].0);
        let pair = pair.expect("so many collide");
        [pair[0].1, pair[1].1]
    });

    fn uuid(vm: usize) -> Uuid {
        COLLIDING[vm]
    }

    fn put(vm: usize, tags: &serde_json::Value) -> Change {
        let uuid = uuid(vm);
        let object = json!({"uuid": uuid.to_string(), "brand": "joyent", "tags": tags});
        Change::Put {
            uuid,
            zonename: uuid.to_string(),
            rendered: Rendered::new(object.as_object().unwrap()),
            via: "event",
            observed: SystemTime::now(),
            stale: None,
            txn: None,
        }
    }

    fn remove(vm: usize) -> Change {
        Change::Remove {
            uuid: uuid(vm),
            via: "event",
            txn: None,
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Put(usize, u8),
        Remove(usize),
        Again(usize, u8),
        LookUp,
        Forget(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0usize..2, 0u8..8).prop_map(|(vm, tags)| Step::Put(vm, tags)),
            1 => (0usize..2).prop_map(Step::Remove),
            1 => (0usize..2, 0u8..8).prop_map(|(vm, tags)| Step::Again(vm, tags)),
            3 => Just(Step::LookUp),
            6 => any::<usize>().prop_map(Step::Forget),
        ]
    }

    /// A file, a directory or nothing of each name.
    fn tags(number: u8) -> serde_json::Value {
        match number {
            0 => serde_json::Value::Null,
            1 => json!({"a": {"in": "it"}}),
            2 => json!({"a": "file"}),
            number => json!({"a": number, "b": "same"}),
        }
    }

    proptest! {
        #[test]
        fn a_number_means_one_thing_while_it_is_held_and_nothing_is_left_of_what_is_forgotten(
            steps in prop::collection::vec(step(), 0..60),
        ) {
            let mut kernel = Kernel::new();
            for step in steps {
                match step {
                    Step::Put(vm, number) => kernel.publish(vec![put(vm, &tags(number))]),
                    Step::Remove(vm) => kernel.publish(vec![remove(vm)]),
                    Step::Again(vm, number) => {
                        kernel.publish(vec![remove(vm), put(vm, &tags(number))]);
                    }
                    Step::LookUp => kernel.look_up_all(),
                    Step::Forget(number) if !kernel.known.is_empty() => {
                        let index = number % kernel.known.len();
                        let ino = *kernel.known.keys().nth(index).unwrap();
                        kernel.forget(ino);
                    }
                    Step::Forget(_) => {}
                }
                for (ino, text) in &kernel.known {
                    match kernel.meaning(*ino) {
                        Some(meaning) => prop_assert_eq!(&meaning, text),
                        None => prop_assert!(text.starts_with("a ")),
                    }
                }
            }
            kernel.publish(vec![remove(0), remove(1)]);
            for ino in kernel.known.keys().copied().collect::<Vec<_>>() {
                kernel.forget(ino);
            }
            prop_assert!(kernel.numbers.given.is_empty());
            prop_assert!(kernel.numbers.nodes.is_empty());
            prop_assert_eq!(kernel.numbers.kept(), 0);
        }
    }
}
