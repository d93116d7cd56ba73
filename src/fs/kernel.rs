//! What the kernel holds of a mount, and how it is made to let go of it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::sync::Arc;

use fuser::{INodeNo, Notifier};
use tracing::warn;

use super::held::Held;
use super::inode::{Fixed, Node};
use super::tree::by;
use crate::cache::trie::Trie;
use crate::cache::{Index, Snapshot};
use crate::vm::name;

/// No file has this name: `/` cannot be in one.
const NOBODY: &str = "/";

/// The kernel's caches of one mount.
pub struct Kernel {
    /// What it holds.
    pub held: Arc<Held>,
    /// The way to it.
    pub notifier: Notifier,
}

impl Kernel {
    /// Takes a name from a directory, if the kernel has the directory.
    pub fn drop_name(&self, dir: INodeNo, name: &str) {
        if let Err(error) = self.notifier.inval_entry(dir, OsStr::new(name)) {
            warn_unless_gone(&error, "name");
        }
    }

    /// Waits until each answer to a lookup in this directory, or to a listing of it, that is on its way has
    /// arrived: what it brought can be invalidated then.
    pub fn flush_lookups(&self, dir: INodeNo) {
        self.drop_name(dir, NOBODY);
    }

    /// Takes the attributes of an inode, and its pages: of a directory, its listing.
    pub fn drop_inode(&self, ino: INodeNo) {
        if let Err(error) = self.notifier.inval_inode(ino, 0, 0) {
            warn_unless_gone(&error, "inode");
        }
    }

    /// Takes the attributes and the listing of a directory that lies in `parent`, if it is held, and adds it
    /// to `taken`.
    pub fn drop_directory(&self, parent: Node, dir: Node, taken: &mut Vec<INodeNo>) {
        if self.held.is_held(dir.ino()) {
            self.flush_lookups(parent.ino());
            self.drop_inode(dir.ino());
            taken.push(dir.ino());
        }
    }

    /// Takes the listings of directories again, when the new ones are shown. One that was answered before
    /// may have been on its way; the kernel dates it by whoever last began to list the directory, and
    /// so takes it for new if that was later.
    pub fn drop_listings(&self, dirs: &[INodeNo]) {
        for dir in dirs {
            self.flush_lookups(*dir);
            self.drop_inode(*dir);
        }
    }

    /// Takes what changes in `.by`; adds the directories to `taken`.
    pub fn drop_indexes(&self, old: &Snapshot, new: &Snapshot, taken: &mut Vec<INodeNo>) {
        self.drop_aliases(old, new, taken);
        let (states, owners) = ((&old.states, &new.states), (&old.owners, &new.owners));
        self.drop_groups(Fixed::ByState, Node::State, states, taken);
        self.drop_groups(Fixed::ByOwner, Node::Owner, owners, taken);
    }

    fn drop_aliases(&self, old: &Snapshot, new: &Snapshot, taken: &mut Vec<INodeNo>) {
        if old.aliases.changed == new.aliases.changed
            || !self.held.is_held(Node::Fixed(Fixed::ByAlias).ino())
        {
            return;
        }
        old.aliases.diff(&new.aliases, |_, was, _| {
            if let Some(was) = was {
                self.drop_alias(old, new, &was.name);
            }
        });
        self.drop_directory(Node::Fixed(Fixed::By), Node::Fixed(Fixed::ByAlias), taken);
    }

    /// An alias that got a second VM, or lost it, changes the name of the other VM's link too.
    fn drop_alias(&self, old: &Snapshot, new: &Snapshot, alias: &str) {
        let names = |snapshot: &Snapshot| -> BTreeSet<(String, u64)> {
            let Some((_, group)) = snapshot.aliases.get(alias) else {
                return BTreeSet::new();
            };
            let members = group.members.iter();
            let named = members.filter_map(|(slot, uuid)| {
                Some((by::alias_name(snapshot, snapshot.vm(uuid)?)?, slot))
            });
            named.collect()
        };
        for (name, _) in names(old).difference(&names(new)) {
            self.drop_name(Node::Fixed(Fixed::ByAlias).ino(), name);
        }
    }

    /// `parent` is `.by/state` or `.by/owner`, `node` gives the directory of the group in a slot.
    fn drop_groups(
        &self,
        parent: Fixed,
        node: fn(u64) -> Node,
        (old, new): (&Index, &Index),
        taken: &mut Vec<INodeNo>,
    ) {
        if old.changed == new.changed {
            return;
        }
        let none = Trie::new();
        old.diff(new, |slot, was, is| {
            let dir = node(slot);
            if let Some(was) = was
                && self.held.is_held(dir.ino())
            {
                let members = is.map_or(&none, |is| &is.members);
                was.members.diff(members, &mut |_, uuid, _| {
                    if let Some(uuid) = uuid {
                        self.drop_name(dir.ino(), &uuid.to_string());
                    }
                });
            }
            // A collision may also have put another group into this slot.
            if let Some(was) = was
                && is.is_none_or(|is| is.name != was.name)
                && let Some(name) = name::encode(&was.name)
            {
                self.drop_name(Node::Fixed(parent).ino(), &name);
            }
            self.drop_directory(Node::Fixed(parent), dir, taken);
        });
        if old.values_changed != new.values_changed {
            self.drop_directory(Node::Fixed(Fixed::By), Node::Fixed(parent), taken);
        }
    }
}

fn warn_unless_gone(error: &io::Error, what: &str) {
    let gone = [libc::ENOTCONN, libc::ENODEV, libc::ENOENT, libc::ENOTDIR];
    if !error
        .raw_os_error()
        .is_some_and(|code| gone.contains(&code))
    {
        warn!(%error, "the kernel refused to drop a cached {what}");
    }
}
