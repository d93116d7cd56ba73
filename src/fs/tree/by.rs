//! `.by`: the VMs by alias, state and owner, as symbolic links. All of it is a function of one snapshot.

use std::borrow::Cow;
use std::ops::ControlFlow;

use uuid::Uuid;

use super::{canonical_uuid, encode_uuid, ended};
use crate::cache::slots;
use crate::cache::{Index, Snapshot};
use crate::fs::inode::{Fixed, Link, Node};
use crate::vm::{Vm, name};

/// The entries of `.by`.
pub const BY: [(&str, Fixed); 3] = [
    ("alias", Fixed::ByAlias),
    ("state", Fixed::ByState),
    ("owner", Fixed::ByOwner),
];

/// What a name below `.by` names.
pub fn lookup(now: &Snapshot, dir: Node, name: &str) -> Option<Node> {
    match dir {
        Node::Fixed(Fixed::By) => BY
            .iter()
            .find(|(fixed, _)| *fixed == name)
            .map(|(_, fixed)| Node::Fixed(*fixed)),
        Node::Fixed(Fixed::ByAlias) => lookup_alias(now, name),
        Node::Fixed(Fixed::ByState) => {
            let (slot, _) = now.states.get(&key_of(name)?)?;
            Some(Node::State(slot))
        }
        Node::Fixed(Fixed::ByOwner) => {
            let (slot, _) = now.owners.get(&key_of(name)?)?;
            Some(Node::Owner(slot))
        }
        Node::State(group) => lookup_member(now, &now.states, group, name, Link::State),
        Node::Owner(group) => lookup_member(now, &now.owners, group, name, Link::Owner),
        _ => None,
    }
}

fn lookup_member(
    now: &Snapshot,
    index: &Index,
    group: u64,
    name: &str,
    link: Link,
) -> Option<Node> {
    let uuid = canonical_uuid(name)?;
    let (slot, _) = now.vms.get(&uuid)?;
    let members = &index.at(group)?.members;
    (members.get(slots::key(slot)) == Some(&uuid)).then_some(Node::Link(link, slot))
}

/// An alias that one VM has is its link; one that several have is `<alias>~<uuid>` for each.
fn lookup_alias(now: &Snapshot, name: &str) -> Option<Node> {
    let group = |alias| Some(now.aliases.get(&key_of(alias)?)?.1);
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
    let (slot, _) = now.vms.get(&uuid)?;
    (group.members.get(slots::key(slot)) == Some(&uuid)).then_some(Node::Link(Link::Alias, slot))
}

/// The entries of a directory below `.by` that come and go, from a position on; each with its position.
pub fn list(
    now: &Snapshot,
    dir: Node,
    from: u64,
    add: &mut impl FnMut(u64, &str, Node) -> ControlFlow<()>,
) -> ControlFlow<()> {
    let groups = |index: &Index, node: fn(u64) -> Node| -> Vec<(u64, (String, Node))> {
        let groups = index.range(from);
        let named = groups.filter_map(|(slot, group)| {
            Some((slot, (name::encode(&group.name)?.into_owned(), node(slot))))
        });
        named.collect()
    };
    match dir {
        Node::Fixed(Fixed::ByAlias) => {
            let named = now.vms.range(from).filter_map(|(slot, vm)| {
                let link = Node::Link(Link::Alias, slot);
                Some((slot, (alias_name(now, vm)?, link)))
            });
            for (at, (name, node)) in ended(named) {
                add(at, &name, node)?;
            }
        }
        Node::Fixed(Fixed::ByState | Fixed::ByOwner) => {
            let groups = match dir {
                Node::Fixed(Fixed::ByState) => groups(&now.states, Node::State),
                _ => groups(&now.owners, Node::Owner),
            };
            for (at, (name, node)) in ended(groups.into_iter()) {
                add(at, &name, node)?;
            }
        }
        Node::State(group) | Node::Owner(group) => {
            let (index, link) = match dir {
                Node::State(_) => (&now.states, Link::State),
                _ => (&now.owners, Link::Owner),
            };
            let Some(group) = index.at(group) else {
                return ControlFlow::Continue(());
            };
            let members = group.members.range(slots::key(from)).map(|(key, uuid)| {
                let slot = slots::of_key(key);
                (slot, (slot, uuid))
            });
            for (at, (slot, uuid)) in ended(members) {
                let mut buffer = Uuid::encode_buffer();
                add(at, encode_uuid(uuid, &mut buffer), Node::Link(link, slot))?;
            }
        }
        _ => {}
    }
    ControlFlow::Continue(())
}

/// Where a link to a VM leads.
pub fn target(link: Link, vm: &Uuid) -> String {
    match link {
        Link::Alias => format!("../../{vm}"),
        Link::State | Link::Owner => format!("../../../{vm}"),
    }
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

/// The key of a name below `.by`, if it is the name that is listed: only that one is taken back from the
/// kernel when it goes.
fn key_of(name: &str) -> Option<Cow<'_, str>> {
    let key = name::decode(name);
    (name::encode(&key)? == name).then_some(key)
}
