//! Inode numbers: what an inode names is in its number, so that numbers are the same after a
//! restart and a number that was never looked up can be understood.
//!
//! ```text
//! 00 slot (38 bits) file (24 bits)    something of a VM, or, with slot 0, of the root
//! 01 sequence number                  .events/<seq>
//! 10 slot of a state                  .by/state/<state>
//! 11 slot of an owner                 .by/owner/<owner>
//! ```

use fuser::INodeNo;

use crate::cache::slots::SLOT_BITS;
use crate::vm::files::{FILE_BITS, FileId};

const TAG: u32 = 62;
const SEQ: u64 = 1 << TAG;
const STATE: u64 = 2 << TAG;
const OWNER: u64 = 3 << TAG;
const REST: u64 = SEQ - 1;

const _: () = assert!(SLOT_BITS + FILE_BITS == TAG);

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
}

impl Fixed {
    const ALL: [Fixed; 11] = [
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
    /// A file or directory of the VM in this slot; [`FileId::DIR`] is its own directory.
    File(u64, FileId),
}

// Numbers below 16 in a VM are not paths in its directory.
const EVENTS_OF: u32 = 1;
const LINK_ALIAS: u32 = 2;
const LINK_STATE: u32 = 3;
const LINK_OWNER: u32 = 4;

impl Node {
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
            Node::EventsAfter(seq) => SEQ | (seq & REST),
            Node::State(slot) => STATE | slot,
            Node::Owner(slot) => OWNER | slot,
            Node::EventsOf(slot) => of_vm(slot, EVENTS_OF),
            Node::Link(Link::Alias, slot) => of_vm(slot, LINK_ALIAS),
            Node::Link(Link::State, slot) => of_vm(slot, LINK_STATE),
            Node::Link(Link::Owner, slot) => of_vm(slot, LINK_OWNER),
            Node::File(slot, file) => of_vm(slot, file.0),
        })
    }

    /// What an inode number names; `None` for a number that nothing can have.
    pub fn of(ino: INodeNo) -> Option<Node> {
        let rest = ino.0 & REST;
        match ino.0 >> TAG {
            1 => return Some(Node::EventsAfter(rest)),
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
            file => Node::File(slot, FileId(file)),
        })
    }

    /// The slot of the VM it belongs to.
    pub fn slot(self) -> Option<u64> {
        match self {
            Node::EventsOf(slot) | Node::Link(_, slot) | Node::File(slot, _) => Some(slot),
            Node::Fixed(_) | Node::EventsAfter(_) | Node::State(_) | Node::Owner(_) => None,
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
            (0..1u64 << TAG).prop_map(Node::EventsAfter),
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
