//! What directories list.
//!
//! A listing is read in pieces and without an open file, so a position in it is a function of the
//! entry before it: the position stays right whatever comes and goes meanwhile. Behind the last entry it is
//! [`END`], where nothing ever is: what fits into one piece is of one version, since the kernel's
//! next question, which is whether there is more, finds nothing that has come meanwhile.

use std::ffi::OsStr;
use std::ops::ControlFlow;

use uuid::Uuid;

use super::by::{self, BY};
use super::{CREATE, CTL, LAST_ERROR, ROOT, Tree, encode_uuid};
use crate::cache::slots::{self, SLOT_BITS};
use crate::fs::inode::{Counter, Fixed, Node};
use crate::vm::Vm;
use crate::vm::files::{FILE_BITS, FileId};

/// Positions in a listing below this belong to what is always there.
pub const LISTED: u64 = 64;

/// Behind all slots and all numbers of files.
pub const END: u64 = 1 << 48;

const _: () = assert!(SLOT_BITS < 48 && FILE_BITS < 48);

/// Gives the last of some entries, each with its position, the position behind all.
pub fn ended<T>(entries: impl Iterator<Item = (u64, T)>) -> impl Iterator<Item = (u64, T)> {
    let mut entries = entries.peekable();
    std::iter::from_fn(move || {
        let (position, entry) = entries.next()?;
        let is_last = entries.peek().is_none();
        Some((if is_last { END } else { position }, entry))
    })
}

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
        if from >= END {
            return Some(());
        }
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
        match dir {
            Node::Fixed(Fixed::Root) => {
                for (key, shown) in self.shown.load().range(slots::key(from)) {
                    let slot = slots::of_key(key);
                    let mut buffer = Uuid::encode_buffer();
                    add(slot, encode_uuid(&shown.uuid, &mut buffer), Node::vm(slot))?;
                }
                ControlFlow::Continue(())
            }
            Node::File(slot, dir) => match self.vm(slot) {
                Some(vm) => list_files(&vm, slot, dir, from, add),
                None => ControlFlow::Continue(()),
            },
            dir => by::list(&self.settled(), dir, from, add),
        }
    }
}

/// The files of a directory within a VM, in the order of their numbers, from a position on.
pub fn list_files(
    vm: &Vm,
    slot: u64,
    dir: FileId,
    from: u64,
    add: &mut impl FnMut(u64, &str, Node) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let files = vm
        .files()
        .iter()
        .filter(|file| file.parent == dir && file.id != dir);
    let files = files
        .map(|file| (u64::from(file.id.0), file))
        .filter(|(at, _)| *at >= from);
    for (at, file) in ended(files) {
        add(at, &file.name(vm.json()), Node::File(slot, file.id))?;
    }
    ControlFlow::Continue(())
}
