//! Things in numbered slots, where the number is a function of what is held and of nothing else.
//!
//! A thing's slot is the hash of its identity, or, where another with the same hash stands before
//! it in the order of identities, the next free one. That is an *ordered* hash table with linear
//! probing (Amble and Knuth, 1974), whose layout does not depend on the order of insertions: the
//! same set always has the same slots, also after a restart. The price is that a newcomer may move
//! a thing that collides with it, which [`Slots::insert`] and [`Slots::remove`] report.

use super::trie::{Item, Iter, Trie};

/// How many bits a slot has. Slot 0 is never used.
pub const SLOT_BITS: u32 = 38;

/// Homes end well before the slots do, so that probing never has to wrap around.
const LAST_HOME: u64 = (1 << SLOT_BITS) - (1 << 21);

/// Trie keys are told apart from their top bits down.
const SHIFT: u32 = 64 - SLOT_BITS;

/// What can be kept in a slot.
pub trait Slotted: Item {
    /// What it is known by.
    type Id: Ord + ?Sized;

    /// Its identity.
    fn id(&self) -> &Self::Id;

    /// A well-spread hash of an identity; stable for ever, since inode numbers are made of it.
    fn hash(id: &Self::Id) -> u64;
}

/// A slot that changed its number because of a collision: what it held is now elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved<V> {
    /// Where it was.
    pub from: u64,
    /// Where it is.
    pub to: u64,
    /// What was moved.
    pub value: V,
}

/// A persistent map from identities to things, each in a slot.
#[derive(Clone, Debug)]
pub struct Slots<V>(Trie<V>);

impl<V: Slotted> Default for Slots<V> {
    fn default() -> Self {
        Slots(Trie::new())
    }
}

/// The trie key of a slot, for other tries that are ordered by slots.
pub fn key(slot: u64) -> u64 {
    slot << SHIFT
}

/// The slot of a trie key.
pub fn of_key(key: u64) -> u64 {
    key >> SHIFT
}

impl<V: Slotted> Slots<V> {
    /// The slot a thing has where nothing collides with it.
    pub fn home(id: &V::Id) -> u64 {
        1 + V::hash(id) % LAST_HOME
    }

    /// How many things there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The sum of all weights.
    pub fn weight(&self) -> u64 {
        self.0.weight()
    }

    /// The thing with this identity, and its slot.
    pub fn get(&self, id: &V::Id) -> Option<(u64, &V)> {
        let mut slot = Self::home(id);
        loop {
            let value = self.0.get(slot << SHIFT)?;
            match value.id().cmp(id) {
                std::cmp::Ordering::Equal => return Some((slot, value)),
                std::cmp::Ordering::Greater => return None,
                std::cmp::Ordering::Less => slot += 1,
            }
        }
    }

    /// The thing with this identity, to be changed; its identity and weight must stay.
    pub fn get_mut(&mut self, id: &V::Id) -> Option<&mut V> {
        let (slot, _) = self.get(id)?;
        self.0.get_mut(slot << SHIFT)
    }

    /// What is in a slot.
    pub fn at(&self, slot: u64) -> Option<&V> {
        if slot >> SLOT_BITS != 0 {
            None
        } else {
            self.0.get(slot << SHIFT)
        }
    }

    /// Puts a thing into its slot; returns the slot and whatever had to move for it.
    pub fn insert(&mut self, value: V) -> (u64, Vec<Moved<V>>) {
        let mut slot = Self::home(value.id());
        let mut moved = Vec::new();
        // The newcomer's own slot, known once it has been placed.
        let mut placed = None;
        let mut carried = value;
        let mut carried_from = 0;
        loop {
            let held = self
                .0
                .get(slot << SHIFT)
                .map(|held| held.id().cmp(carried.id()));
            if held == Some(std::cmp::Ordering::Less) {
                slot += 1;
                continue;
            }
            let displaced = self.0.insert(slot << SHIFT, carried.clone());
            match placed {
                None => placed = Some(slot),
                Some(_) => moved.push(Moved {
                    from: carried_from,
                    to: slot,
                    value: carried,
                }),
            }
            // An older version of the same thing is replaced, not displaced.
            match displaced.filter(|_| held == Some(std::cmp::Ordering::Greater)) {
                None => break,
                Some(next) => carried = next,
            }
            carried_from = slot;
            slot += 1;
        }
        (placed.unwrap_or(slot), moved)
    }

    /// Takes a thing out; returns the slot it had, the thing, and whatever moved because of it.
    pub fn remove(&mut self, id: &V::Id) -> Option<(u64, V, Vec<Moved<V>>)> {
        let (slot, _) = self.get(id)?;
        let value = self.0.remove(slot << SHIFT)?;
        // What stands directly behind may have been pushed there by the one that left.
        let mut behind = Vec::new();
        let mut next = slot + 1;
        while let Some(follower) = self.0.remove(next << SHIFT) {
            behind.push((next, follower));
            next += 1;
        }
        for (_, follower) in &behind {
            self.insert(follower.clone());
        }
        let moved = behind.into_iter().filter_map(|(from, value)| {
            let (to, _) = self.get(value.id())?;
            (to != from).then_some(Moved { from, to, value })
        });
        let moved = moved.collect();
        Some((slot, value, moved))
    }

    /// Everything in the order of slots, from slot `from` on.
    pub fn range(&self, from: u64) -> impl Iterator<Item = (u64, &V)> {
        let first = if from >> SLOT_BITS != 0 {
            u64::MAX
        } else {
            from << SHIFT
        };
        self.0
            .range(first)
            .map(|(key, value)| (key >> SHIFT, value))
    }

    /// Everything in the order of slots.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &V)> {
        self.0.iter().map(|(key, value)| (key >> SHIFT, value))
    }

    /// The things from the one that holds byte `offset` of the concatenation of all, and where in
    /// it that byte is.
    pub fn at_weight(&self, offset: u64) -> (Iter<'_, V>, u64) {
        self.0.at_weight(offset)
    }

    /// Calls `see` for every slot that differs between `self` (old) and `new`, in slot order.
    pub fn diff<'a>(
        &'a self,
        new: &'a Self,
        mut see: impl FnMut(u64, Option<&'a V>, Option<&'a V>),
    ) {
        self.0
            .diff(&new.0, &mut |key, old, new| see(key >> SHIFT, old, new));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A thing whose hash collides with that of most others.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Crowded(u8);

    impl Item for Crowded {
        fn weight(&self) -> u64 {
            1
        }
        fn same(&self, other: &Self) -> bool {
            self == other
        }
    }

    impl Slotted for Crowded {
        type Id = u8;
        fn id(&self) -> &u8 {
            &self.0
        }
        fn hash(id: &u8) -> u64 {
            u64::from(id % 5)
        }
    }

    fn layout(slots: &Slots<Crowded>) -> Vec<(u64, u8)> {
        slots.iter().map(|(slot, thing)| (slot, thing.0)).collect()
    }

    proptest! {
        #[test]
        fn the_same_set_has_the_same_slots_however_it_came_about(
            steps in prop::collection::vec((any::<u8>(), any::<bool>()), 0..80),
        ) {
            let mut slots = Slots::default();
            let mut set = std::collections::BTreeSet::new();
            for (id, keep) in steps {
                let before = layout(&slots);
                let (own, moved) = if keep {
                    set.insert(id);
                    let (slot, moved) = slots.insert(Crowded(id));
                    (Some((slot, id)), moved)
                } else {
                    set.remove(&id);
                    (None, slots.remove(&id).map(|(_, _, moved)| moved).unwrap_or_default())
                };
                // What is reported as moved is all that moved.
                let mut expected: std::collections::BTreeMap<u8, u64> = before.iter().map(|(s, i)| (*i, *s)).collect();
                for one in moved {
                    prop_assert_eq!(expected.insert(one.value.0, one.to), Some(one.from));
                }
                match own {
                    Some((slot, id)) => { expected.insert(id, slot); }
                    None => { expected.remove(&id); }
                }
                let now: std::collections::BTreeMap<u8, u64> = layout(&slots).into_iter().map(|(s, i)| (i, s)).collect();
                prop_assert_eq!(now, expected);
            }
            let mut fresh = Slots::default();
            for id in set.iter().rev() {
                fresh.insert(Crowded(*id));
            }
            prop_assert_eq!(layout(&slots), layout(&fresh));
            for id in 0..=255u8 {
                prop_assert_eq!(slots.get(&id).map(|(_, thing)| thing.0), set.get(&id).copied());
            }
        }
    }
}
