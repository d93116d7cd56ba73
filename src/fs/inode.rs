//! Inode numbers: what an inode names is in its number, so that numbers are the same after a
//! restart and a number that was never looked up can be understood.
//!
//! ```text
//! 00 slot (38 bits) file (24 bits)    something of a VM, or, with slot 0, of the root
//! 010 sequence number                 .events/<seq>
//! 0110 slot (38 bits) counter (22)    a VM's ctl, or, with slot 0, create in the root
//! 10 slot of a state                  .by/state/<state>
//! 11 slot of an owner                 .by/owner/<owner>
//! ```
//!
//! `ctl` and `create` have another number each time they are looked up: a write that waits holds its
//! inode's lock, so two callers that shared one inode would wait for each other. In listings
//! their counter is 0, and stat(2) shows that number too.

use std::sync::atomic::{AtomicU32, Ordering};

use fuser::INodeNo;

use crate::cache::slots::SLOT_BITS;
use crate::vm::files::{FILE_BITS, FileId};

const TAG: u32 = 62;
const SEQ: u64 = 1 << TAG;
const STATE: u64 = 2 << TAG;
const OWNER: u64 = 3 << TAG;
const REST: u64 = SEQ - 1;
/// Event numbers are microseconds since 1970: the bit is theirs for 73,000 years.
const CONTROL: u64 = 1 << 61;

/// How many bits the counter of `ctl` and `create` has.
const COUNTER_BITS: u32 = 22;

const _: () = assert!(SLOT_BITS + FILE_BITS == TAG);
const _: () = assert!(SLOT_BITS + COUNTER_BITS == 60);

/// Tells the inodes of one `ctl` or `create` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Counter(u32);

impl Counter {
    /// The one in listings.
    pub const LISTED: Counter = Counter(0);

    /// The next one: another than the last four million.
    pub fn next(last: &AtomicU32) -> Counter {
        loop {
            let next = last.fetch_add(1, Ordering::Relaxed) % (1 << COUNTER_BITS);
            if next != 0 {
                return Counter(next);
            }
        }
    }
}

/// What there is in the tree besides VMs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Fixed {
    /// The root of the mount, whose number the kernel fixes.
    Root = 1,
    /// `events`.
    Events = 2,
    /// `vms.json`.
    Vms = 3,
    /// `.status`.
    Status = 4,
    /// `.errors`.
    Errors = 5,
    /// `.events`.
    Streams = 6,
    /// `.history`.
    History = 7,
    /// `.by`.
    By = 8,
    /// `.by/alias`.
    ByAlias = 9,
    /// `.by/state`.
    ByState = 10,
    /// `.by/owner`.
    ByOwner = 11,
    /// `.all`, of a read-only mount.
    All = 12,
    /// `vms.json` in the root of a read-only mount: a link.
    VmsLink = 13,
}

impl Fixed {
    const ALL: [Fixed; 13] = [
        Fixed::Root,
        Fixed::Events,
        Fixed::Vms,
        Fixed::Status,
        Fixed::Errors,
        Fixed::Streams,
        Fixed::History,
        Fixed::By,
        Fixed::ByAlias,
        Fixed::ByState,
        Fixed::ByOwner,
        Fixed::All,
        Fixed::VmsLink,
    ];
}

/// A symbolic link to a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Link {
    /// Below `.by/alias`.
    Alias,
    /// Below `.by/state/<state>`.
    State,
    /// Below `.by/owner/<owner>`.
    Owner,
}

/// What an inode names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// One of the tree's own files and directories.
    Fixed(Fixed),
    /// `.events/<seq>`.
    EventsAfter(u64),
    /// `.events/<uuid>`, of the VM in this slot.
    EventsOf(u64),
    /// `.by/state/<state>`, by the slot of the state.
    State(u64),
    /// `.by/owner/<owner>`, by the slot of the owner.
    Owner(u64),
    /// A link to the VM in this slot.
    Link(Link, u64),
    /// `create`.
    Create(Counter),
    /// `ctl` of the VM in this slot.
    Ctl(u64, Counter),
    /// `last_error` of the VM in this slot.
    LastError(u64),
    /// A file or directory of the VM in this slot; [`FileId::DIR`] is its own directory.
    File(u64, FileId),
}

// Numbers below 16 in a VM are not paths in its directory.
const EVENTS_OF: u32 = 1;
const LINK_ALIAS: u32 = 2;
const LINK_STATE: u32 = 3;
const LINK_OWNER: u32 = 4;
const LAST_ERROR: u32 = 5;

impl Node {
    /// The first number that `.events/<seq>` cannot have.
    pub const EVENTS_END: u64 = CONTROL;

    /// Read-only mounts have no `.events`, and give the numbers of what lies there to versions of files.
    pub const FREE: u64 = SEQ;

    /// Whether a number lies there.
    pub fn is_free(ino: INodeNo) -> bool {
        ino.0 >> TAG == SEQ >> TAG
    }

    /// The root of the mount.
    pub const ROOT: Node = Node::Fixed(Fixed::Root);

    /// The directory of the VM in a slot.
    pub fn vm(slot: u64) -> Node {
        Node::File(slot, FileId::DIR)
    }

    /// Its inode number.
    pub fn ino(self) -> INodeNo {
        let of_vm = |slot: u64, file: u32| slot << FILE_BITS | u64::from(file);
        INodeNo(match self {
            Node::Fixed(fixed) => fixed as u64,
            Node::EventsAfter(seq) => SEQ | (seq & (CONTROL - 1)),
            Node::Create(counter) => SEQ | CONTROL | u64::from(counter.0),
            Node::Ctl(slot, counter) => SEQ | CONTROL | slot << COUNTER_BITS | u64::from(counter.0),
            Node::State(slot) => STATE | slot,
            Node::Owner(slot) => OWNER | slot,
            Node::EventsOf(slot) => of_vm(slot, EVENTS_OF),
            Node::Link(Link::Alias, slot) => of_vm(slot, LINK_ALIAS),
            Node::Link(Link::State, slot) => of_vm(slot, LINK_STATE),
            Node::Link(Link::Owner, slot) => of_vm(slot, LINK_OWNER),
            Node::LastError(slot) => of_vm(slot, LAST_ERROR),
            Node::File(slot, file) => of_vm(slot, file.0),
        })
    }

    /// The node whose number stat(2) and listings show: the same for every lookup of a `ctl`.
    pub fn listed(self) -> Node {
        match self {
            Node::Create(_) => Node::Create(Counter::LISTED),
            Node::Ctl(slot, _) => Node::Ctl(slot, Counter::LISTED),
            other => other,
        }
    }

    /// What an inode number names; `None` for a number that nothing can have.
    pub fn of(ino: INodeNo) -> Option<Node> {
        let rest = ino.0 & REST;
        match ino.0 >> TAG {
            1 if rest < CONTROL => return Some(Node::EventsAfter(rest)),
            1 => {
                let counter = Counter((rest & ((1 << COUNTER_BITS) - 1)) as u32);
                return match (rest - CONTROL) >> COUNTER_BITS {
                    0 => Some(Node::Create(counter)),
                    slot if slot >> SLOT_BITS == 0 => Some(Node::Ctl(slot, counter)),
                    _ => None,
                };
            }
            2 => return Some(Node::State(rest)),
            3 => return Some(Node::Owner(rest)),
            _ => {}
        }
        let (slot, file) = (rest >> FILE_BITS, (rest & ((1 << FILE_BITS) - 1)) as u32);
        if slot == 0 {
            return Fixed::ALL
                .into_iter()
                .find(|fixed| *fixed as u32 == file)
                .map(Node::Fixed);
        }
        Some(match file {
            EVENTS_OF => Node::EventsOf(slot),
            LINK_ALIAS => Node::Link(Link::Alias, slot),
            LINK_STATE => Node::Link(Link::State, slot),
            LINK_OWNER => Node::Link(Link::Owner, slot),
            LAST_ERROR => Node::LastError(slot),
            file => Node::File(slot, FileId(file)),
        })
    }

    /// The slot of the VM it belongs to.
    pub fn slot(self) -> Option<u64> {
        match self {
            Node::EventsOf(slot)
            | Node::Link(_, slot)
            | Node::Ctl(slot, _)
            | Node::LastError(slot)
            | Node::File(slot, _) => Some(slot),
            Node::Fixed(_)
            | Node::EventsAfter(_)
            | Node::Create(_)
            | Node::State(_)
            | Node::Owner(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node() -> impl Strategy<Value = Node> {
        let slot = 1u64..1 << SLOT_BITS;
        prop_oneof![
            prop::sample::select(&Fixed::ALL[..]).prop_map(Node::Fixed),
            (0..CONTROL).prop_map(Node::EventsAfter),
            (0..1u32 << COUNTER_BITS).prop_map(|counter| Node::Create(Counter(counter))),
            (slot.clone(), 0..1u32 << COUNTER_BITS)
                .prop_map(|(slot, counter)| Node::Ctl(slot, Counter(counter))),
            slot.clone().prop_map(Node::LastError),
            slot.clone().prop_map(Node::EventsOf),
            slot.clone().prop_map(Node::State),
            slot.clone().prop_map(Node::Owner),
            slot.clone().prop_map(|slot| Node::Link(Link::Owner, slot)),
            (slot, prop_oneof![Just(0u32), 16u32..1 << FILE_BITS])
                .prop_map(|(slot, file)| Node::File(slot, FileId(file))),
        ]
    }

    proptest! {
        #[test]
        fn a_number_says_what_it_names(node in node()) {
            prop_assert_eq!(Node::of(node.ino()), Some(node));
        }

        #[test]
        fn no_number_is_misread(ino in any::<u64>()) {
            if let Some(node) = Node::of(INodeNo(ino)) {
                prop_assert_eq!(node.ino(), INodeNo(ino));
            }
        }
    }
}
