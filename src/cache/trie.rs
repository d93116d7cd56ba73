//! A persistent ordered map from 64-bit keys: every version shares what it can with the one
//! before, so that a snapshot costs a pointer and a change costs the few nodes above it.
//!
//! Each node also knows how many entries and how many bytes lie below it, which is what finds
//! byte *n* of `vms.json` without counting. The shape is canonical: it depends on the keys held
//! and not on how they came, which is what lets [`Trie::diff`] skip all that two versions share.
//!
//! Keys are read from their top four bits down; they should differ there (slots and hashes do).

use std::sync::Arc;

const BITS: u32 = 4;
const FANOUT: usize = 1 << BITS;

/// What can be held: it has a size, and can be told from another version of itself cheaply.
pub trait Item: Clone {
    /// Its bytes in the concatenation that [`Trie::at_weight`] searches.
    fn weight(&self) -> u64;
    /// Whether both are the same version of the same thing.
    fn same(&self, other: &Self) -> bool;
}

/// A persistent ordered map; cloning it is taking a snapshot.
#[derive(Clone, Debug)]
pub struct Trie<V> {
    root: Node<V>,
}

#[derive(Clone, Debug)]
struct Node<V> {
    /// Which of the sixteen children there are; those present stand in order in `children`.
    present: u16,
    children: Vec<Child<V>>,
    count: usize,
    weight: u64,
}

#[derive(Clone, Debug)]
enum Child<V> {
    Leaf(u64, V),
    Node(Arc<Node<V>>),
}

impl<V: Item> Child<V> {
    fn count(&self) -> usize {
        match self {
            Child::Leaf(..) => 1,
            Child::Node(node) => node.count,
        }
    }

    fn weight(&self) -> u64 {
        match self {
            Child::Leaf(_, value) => value.weight(),
            Child::Node(node) => node.weight,
        }
    }
}

fn digit(key: u64, depth: u32) -> u32 {
    (key >> (64 - BITS * (depth + 1))) as u32 & (FANOUT as u32 - 1)
}

impl<V: Item> Node<V> {
    fn empty() -> Self {
        Node {
            present: 0,
            children: Vec::new(),
            count: 0,
            weight: 0,
        }
    }

    /// Where the child for this digit is, or would be.
    fn index(&self, digit: u32) -> Result<usize, usize> {
        let bit = 1u16 << digit;
        let index = (self.present & (bit - 1)).count_ones() as usize;
        if self.present & bit != 0 {
            Ok(index)
        } else {
            Err(index)
        }
    }

    fn put(&mut self, digit: u32, index: usize, child: Child<V>) {
        self.present |= 1 << digit;
        self.children.reserve_exact(1);
        self.children.insert(index, child);
    }

    fn recount(&mut self) {
        self.count = self.children.iter().map(Child::count).sum();
        self.weight = self.children.iter().map(Child::weight).sum();
    }

    fn insert(&mut self, depth: u32, key: u64, value: V) -> Option<V> {
        let at = digit(key, depth);
        let old = match self.index(at) {
            Err(index) => {
                self.put(at, index, Child::Leaf(key, value));
                None
            }
            Ok(index) => match &mut self.children[index] {
                Child::Leaf(held, old) if *held == key => Some(std::mem::replace(old, value)),
                Child::Leaf(held, other) => {
                    let mut node = Node::empty();
                    node.insert(depth + 1, *held, other.clone());
                    node.insert(depth + 1, key, value);
                    self.children[index] = Child::Node(Arc::new(node));
                    None
                }
                Child::Node(node) => Arc::make_mut(node).insert(depth + 1, key, value),
            },
        };
        self.recount();
        old
    }

    fn remove(&mut self, depth: u32, key: u64) -> Option<V> {
        let at = digit(key, depth);
        let index = self.index(at).ok()?;
        let old = match &mut self.children[index] {
            Child::Leaf(held, value) => {
                if *held != key {
                    return None;
                }
                let value = value.clone();
                self.children.remove(index);
                self.present &= !(1 << at);
                value
            }
            Child::Node(node) => {
                let node = Arc::make_mut(node);
                let value = node.remove(depth + 1, key)?;
                // The canonical shape: an entry lies as high as it can.
                if node.count == 1
                    && let Some(only @ Child::Leaf(..)) = node.children.pop()
                {
                    self.children[index] = only;
                }
                value
            }
        };
        self.recount();
        Some(old)
    }
}

impl<V: Item> Default for Trie<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Item> Trie<V> {
    /// An empty map.
    pub fn new() -> Self {
        Trie {
            root: Node::empty(),
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.root.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.root.count == 0
    }

    /// The sum of all weights.
    pub fn weight(&self) -> u64 {
        self.root.weight
    }

    /// The value at a key.
    pub fn get(&self, key: u64) -> Option<&V> {
        let mut node = &self.root;
        for depth in 0.. {
            match &node.children[node.index(digit(key, depth)).ok()?] {
                Child::Leaf(held, value) => return (*held == key).then_some(value),
                Child::Node(below) => node = below,
            }
        }
        None
    }

    /// The value at a key, to be changed; its weight must stay. What no other version shares is
    /// changed in place.
    pub fn get_mut(&mut self, key: u64) -> Option<&mut V> {
        let mut node = &mut self.root;
        for depth in 0.. {
            let index = node.index(digit(key, depth)).ok()?;
            match &mut node.children[index] {
                Child::Leaf(held, value) => return (*held == key).then_some(value),
                Child::Node(below) => node = Arc::make_mut(below),
            }
        }
        None
    }

    /// Sets the value at a key and returns the one it had.
    pub fn insert(&mut self, key: u64, value: V) -> Option<V> {
        self.root.insert(0, key, value)
    }

    /// Removes a key and returns its value.
    pub fn remove(&mut self, key: u64) -> Option<V> {
        self.root.remove(0, key)
    }

    /// The entries in the order of their keys, from the first that is at least `from`.
    pub fn range(&self, from: u64) -> Iter<'_, V> {
        let mut stack = Vec::new();
        let mut node = &self.root;
        for depth in 0.. {
            match node.index(digit(from, depth)) {
                Err(index) => {
                    stack.push(node.children[index..].iter());
                    break;
                }
                Ok(index) => match &node.children[index] {
                    Child::Leaf(key, _) => {
                        let skip = usize::from(*key < from);
                        stack.push(node.children[index + skip..].iter());
                        break;
                    }
                    Child::Node(below) => {
                        stack.push(node.children[index + 1..].iter());
                        node = below;
                    }
                },
            }
        }
        Iter { stack }
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> Iter<'_, V> {
        Iter {
            stack: vec![self.root.children.iter()],
        }
    }

    /// The entries from the one that holds byte `offset` of the concatenation of all, and where
    /// in that entry the byte is. Past the end there are no entries.
    pub fn at_weight(&self, offset: u64) -> (Iter<'_, V>, u64) {
        let mut stack = Vec::new();
        let mut node = &self.root;
        let mut rest = offset;
        'down: loop {
            for (index, child) in node.children.iter().enumerate() {
                if rest >= child.weight() {
                    rest -= child.weight();
                    continue;
                }
                match child {
                    Child::Leaf(..) => stack.push(node.children[index..].iter()),
                    Child::Node(below) => {
                        stack.push(node.children[index + 1..].iter());
                        node = below;
                        continue 'down;
                    }
                }
                break;
            }
            return (Iter { stack }, rest);
        }
    }

    /// Calls `see` for every key at which `self` (old) and `new` differ, in the order of keys.
    /// What both versions share is not visited.
    pub fn diff<'a>(
        &'a self,
        new: &'a Self,
        see: &mut impl FnMut(u64, Option<&'a V>, Option<&'a V>),
    ) {
        diff_nodes(&self.root, &new.root, see);
    }
}

fn diff_nodes<'a, V: Item>(
    old: &'a Node<V>,
    new: &'a Node<V>,
    see: &mut impl FnMut(u64, Option<&'a V>, Option<&'a V>),
) {
    for at in 0..FANOUT as u32 {
        let old = old.index(at).ok().map(|index| &old.children[index]);
        let new = new.index(at).ok().map(|index| &new.children[index]);
        match (old, new) {
            (None, None) => {}
            (Some(gone), None) => each(gone, &mut |key, value| see(key, Some(value), None)),
            (None, Some(came)) => each(came, &mut |key, value| see(key, None, Some(value))),
            (Some(Child::Node(old)), Some(Child::Node(new))) => {
                if !Arc::ptr_eq(old, new) {
                    diff_nodes(old, new, see);
                }
            }
            (Some(Child::Leaf(key, old)), Some(Child::Leaf(new_key, new))) => {
                if key == new_key {
                    if !old.same(new) {
                        see(*key, Some(old), Some(new));
                    }
                } else if key < new_key {
                    see(*key, Some(old), None);
                    see(*new_key, None, Some(new));
                } else {
                    see(*new_key, None, Some(new));
                    see(*key, Some(old), None);
                }
            }
            (Some(Child::Leaf(key, value)), Some(Child::Node(new))) => {
                leaf_against(*key, value, new, &mut |key, leaf, other| {
                    see(key, leaf, other)
                });
            }
            (Some(Child::Node(old)), Some(Child::Leaf(key, value))) => {
                leaf_against(*key, value, old, &mut |key, leaf, other| {
                    see(key, other, leaf)
                });
            }
        }
    }
}

/// Compares a single entry with all of a subtree; `sides` is called with the entry's side first.
fn leaf_against<'a, V: Item>(
    key: u64,
    value: &'a V,
    node: &'a Node<V>,
    sides: &mut impl FnMut(u64, Option<&'a V>, Option<&'a V>),
) {
    let mut met = false;
    for child in &node.children {
        each(child, &mut |other_key, other| {
            if other_key == key {
                met = true;
                if !value.same(other) {
                    sides(key, Some(value), Some(other));
                }
                return;
            }
            if other_key > key && !met {
                met = true;
                sides(key, Some(value), None);
            }
            sides(other_key, None, Some(other));
        });
    }
    if !met {
        sides(key, Some(value), None);
    }
}

fn each<'a, V: Item>(child: &'a Child<V>, see: &mut impl FnMut(u64, &'a V)) {
    match child {
        Child::Leaf(key, value) => see(*key, value),
        Child::Node(node) => node.children.iter().for_each(|child| each(child, see)),
    }
}

/// Entries of a [`Trie`] in the order of their keys.
#[derive(Debug)]
pub struct Iter<'a, V> {
    stack: Vec<std::slice::Iter<'a, Child<V>>>,
}

impl<'a, V> Iterator for Iter<'a, V> {
    type Item = (u64, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.stack.last_mut()?.next() {
                None => {
                    self.stack.pop();
                }
                Some(Child::Leaf(key, value)) => return Some((*key, value)),
                Some(Child::Node(node)) => self.stack.push(node.children.iter()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    impl Item for u32 {
        fn weight(&self) -> u64 {
            u64::from(*self % 7)
        }
        fn same(&self, other: &Self) -> bool {
            self == other
        }
    }

    /// Keys that share long prefixes, so that deep chains and collapses happen.
    fn key() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            (0u64..4, 0u64..4).prop_map(|(high, low)| high << 60 | low),
            (0u64..40).prop_map(|low| low),
        ]
    }

    fn build(model: &BTreeMap<u64, u32>) -> Trie<u32> {
        let mut trie = Trie::new();
        for (key, value) in model {
            trie.insert(*key, *value);
        }
        trie
    }

    proptest! {
        #[test]
        fn it_holds_what_a_btreemap_holds(steps in prop::collection::vec((key(), prop::option::weighted(0.6, any::<u32>())), 0..120)) {
            let mut model = BTreeMap::new();
            let mut trie = Trie::new();
            for (key, value) in steps {
                let snapshot = trie.clone();
                let before: Vec<_> = model.iter().map(|(k, v)| (*k, *v)).collect();
                match value {
                    Some(value) => prop_assert_eq!(trie.insert(key, value), model.insert(key, value)),
                    None => prop_assert_eq!(trie.remove(key), model.remove(&key)),
                }
                prop_assert_eq!(trie.get(key), model.get(&key));
                prop_assert_eq!(trie.len(), model.len());
                prop_assert_eq!(trie.weight(), model.values().map(Item::weight).sum::<u64>());
                let untouched: Vec<_> = snapshot.iter().map(|(k, v)| (k, *v)).collect();
                prop_assert_eq!(untouched, before);
            }
            let held: Vec<_> = trie.iter().map(|(k, v)| (k, *v)).collect();
            let expected: Vec<_> = model.iter().map(|(k, v)| (*k, *v)).collect();
            prop_assert_eq!(held, expected);
        }

        #[test]
        fn a_range_begins_at_its_key(model in prop::collection::btree_map(key(), any::<u32>(), 0..60), from in key()) {
            let held: Vec<_> = build(&model).range(from).map(|(k, v)| (k, *v)).collect();
            let expected: Vec<_> = model.range(from..).map(|(k, v)| (*k, *v)).collect();
            prop_assert_eq!(held, expected);
        }

        #[test]
        fn a_byte_is_found_where_counting_finds_it(model in prop::collection::btree_map(key(), any::<u32>(), 0..60), offset in 0u64..200) {
            let trie = build(&model);
            let (mut entries, rest) = trie.at_weight(offset);
            let mut left = offset;
            let expected = model.iter().find(|(_, value)| {
                let here = left < value.weight();
                if !here { left -= value.weight(); }
                here
            });
            prop_assert_eq!(entries.next().map(|(k, v)| (k, *v)), expected.map(|(k, v)| (*k, *v)));
            if expected.is_some() {
                prop_assert_eq!(rest, left);
            }
        }

        #[test]
        fn the_difference_is_that_of_the_maps(
            old in prop::collection::btree_map(key(), any::<u32>(), 0..60),
            steps in prop::collection::vec((key(), prop::option::of(any::<u32>())), 0..30),
        ) {
            let before = build(&old);
            let mut after = before.clone();
            let mut new = old.clone();
            for (key, value) in steps {
                match value {
                    Some(value) => { after.insert(key, value); new.insert(key, value); }
                    None => { after.remove(key); new.remove(&key); }
                }
            }
            let mut seen = Vec::new();
            before.diff(&after, &mut |key, old, new| seen.push((key, old.copied(), new.copied())));
            let keys: std::collections::BTreeSet<_> = old.keys().chain(new.keys()).copied().collect();
            let expected: Vec<_> = keys.into_iter()
                .map(|key| (key, old.get(&key).copied(), new.get(&key).copied()))
                .filter(|(_, old, new)| old != new)
                .collect();
            prop_assert_eq!(seen, expected);
        }
    }
}
