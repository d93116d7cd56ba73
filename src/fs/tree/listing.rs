//! What directories list.
//!
//! A listing is read in pieces and without an open file, so a position in it is a function of the
//! entry before it: the position stays right whatever comes and goes meanwhile.

use std::ffi::OsStr;
use std::ops::ControlFlow;

use uuid::Uuid;

use super::{BY, CREATE, CTL, LAST_ERROR, LISTED, ROOT, Tree, alias_name, encode_uuid};
use crate::cache::slots;
use crate::fs::inode::{Counter, Fixed, Link, Node};
use crate::vm::files::FileId;
use crate::vm::name;

impl Tree {
    /// Names the entries of a directory from a position on, until `add` says that it is full.
    /// `add` is given the position behind the entry, its name and what it names. Positions stay
    /// right while entries come and go: each is a function of the entry. `None`: no directory.
    pub fn list(
        &self,
        dir: Node,
        position: u64,
        mut add: impl FnMut(u64, &OsStr, Node) -> ControlFlow<()>,
    ) -> Option<()> {
        let mut add = |position: u64, name: &str, node: Node| add(position, OsStr::new(name), node);
        let mut always = Vec::new();
        let fixed: &[(&str, Fixed)] = match dir {
            Node::Fixed(Fixed::Root) => {
                always.push((CREATE, Node::Create(Counter::LISTED)));
                &ROOT
            }
            Node::Fixed(Fixed::By) => &BY,
            Node::Fixed(Fixed::Streams | Fixed::ByAlias | Fixed::ByState | Fixed::ByOwner) => &[],
            Node::State(_) | Node::Owner(_) => &[],
            Node::File(slot, id) => {
                if id != FileId::DIR && !self.vm(slot)?.file(id)?.is_dir() {
                    return None;
                }
                if id == FileId::DIR {
                    always.push((CTL, Node::Ctl(slot, Counter::LISTED)));
                    always.push((LAST_ERROR, Node::LastError(slot)));
                }
                &[]
            }
            Node::Fixed(_)
            | Node::EventsAfter(_)
            | Node::EventsOf(_)
            | Node::Link(..)
            | Node::Create(_)
            | Node::Ctl(..)
            | Node::LastError(_) => return None,
        };
        let dots = [(".", dir), ("..", self.parent(dir))];
        let fixed = fixed
            .iter()
            .map(|(name, fixed)| (*name, Node::Fixed(*fixed)));
        for (index, (name, node)) in dots
            .into_iter()
            .chain(fixed)
            .chain(always)
            .enumerate()
            .skip(position as usize)
        {
            if add(index as u64 + 1, name, node).is_break() {
                return Some(());
            }
        }
        let from = position.saturating_sub(LISTED);
        let _ = self.list_variable(dir, from, &mut |at, name, node| {
            add(LISTED + at + 1, name, node)
        });
        Some(())
    }

    /// The entries that come and go, in the order of their slots or numbers.
    fn list_variable(
        &self,
        dir: Node,
        from: u64,
        add: &mut impl FnMut(u64, &str, Node) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let settled = self.settled.load();
        match dir {
            Node::Fixed(Fixed::Root) => {
                for (key, shown) in self.shown.load().range(slots::key(from)) {
                    let slot = slots::of_key(key);
                    add(
                        slot,
                        encode_uuid(&shown.uuid, &mut Uuid::encode_buffer()),
                        Node::vm(slot),
                    )?;
                }
            }
            Node::Fixed(Fixed::ByAlias) => {
                for (slot, vm) in settled.vms.range(from) {
                    if let Some(name) = alias_name(&settled, vm) {
                        add(slot, &name, Node::Link(Link::Alias, slot))?;
                    }
                }
            }
            Node::Fixed(Fixed::ByState) => {
                for (slot, group) in settled.states.range(from) {
                    if let Some(name) = name::encode(&group.name) {
                        add(slot, &name, Node::State(slot))?;
                    }
                }
            }
            Node::Fixed(Fixed::ByOwner) => {
                for (slot, group) in settled.owners.range(from) {
                    if let Some(name) = name::encode(&group.name) {
                        add(slot, &name, Node::Owner(slot))?;
                    }
                }
            }
            Node::State(group) | Node::Owner(group) => {
                let (index, link) = match dir {
                    Node::State(_) => (&settled.states, Link::State),
                    _ => (&settled.owners, Link::Owner),
                };
                let Some(group) = index.at(group) else {
                    return ControlFlow::Continue(());
                };
                for (key, uuid) in group.members.range(slots::key(from)) {
                    let slot = slots::of_key(key);
                    add(
                        slot,
                        encode_uuid(uuid, &mut Uuid::encode_buffer()),
                        Node::Link(link, slot),
                    )?;
                }
            }
            Node::File(slot, dir) => {
                let Some(vm) = self.vm(slot) else {
                    return ControlFlow::Continue(());
                };
                let files = vm
                    .files()
                    .iter()
                    .filter(|file| file.parent == dir && file.id != dir);
                for file in files.filter(|file| u64::from(file.id.0) >= from) {
                    add(
                        u64::from(file.id.0),
                        &file.name(vm.json()),
                        Node::File(slot, file.id),
                    )?;
                }
            }
            Node::Fixed(_)
            | Node::EventsAfter(_)
            | Node::EventsOf(_)
            | Node::Link(..)
            | Node::Create(_)
            | Node::Ctl(..)
            | Node::LastError(_) => {}
        }
        ControlFlow::Continue(())
    }
}
