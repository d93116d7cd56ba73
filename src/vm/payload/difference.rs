//! In what two objects of a VM differ, as far as it can be set: what has to be shown once a target
//! is applied, and how to undo what was.

use std::fmt;

use serde_json::Value;

use super::draft::{Draft, objects};
use super::elements::{find, ident_of, is_named, members};
use super::value::same;
use super::{Invalid, InvalidKind, domain};
use crate::vm::Object;
use crate::vm::drift::{self, Affect};
use crate::vm::property::{self, Kind, Part, Property};

/// One thing that a VM has to show once a target is applied.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// Where: `["quota"]`, `["tags", key]`, `["nics", mac]` for a whole nic that comes or goes,
    /// `["nics", mac, "ip"]`; the disks of domains by their name, other disks and PCI devices by
    /// their path, filesystems by their target.
    pub path: Vec<String>,
    /// Which configuration has to show it, of a VM that has two.
    pub affect: Affect,
    /// The part of the store in which it is kept.
    pub part: Part,
    /// What it was; `None` if it was not there.
    pub before: Option<Value>,
    /// What it has to be; `None` if it must not be there. Of a whole element, what the source adds
    /// by itself is not compared.
    pub value: Option<Value>,
}

impl Wanted {
    /// Whether a VM shows it.
    pub fn holds(&self, vm: &Object) -> bool {
        match self.affect {
            Affect::Config => self.shows(&drift::config(vm), self.value.as_ref()),
            Affect::Live | Affect::Both => self.shows(vm, self.value.as_ref()),
        }
    }

    /// Whether a VM shows this value here.
    fn shows(&self, vm: &Object, value: Option<&Value>) -> bool {
        match (self.of(vm).as_ref(), value) {
            (None, None) => true,
            // A dataset without a quota has the quota 0.
            (Some(zero), None) | (None, Some(zero)) if self.path == ["quota"] => {
                zero.as_f64() == Some(0.0)
            }
            (Some(Value::Object(now)), Some(Value::Object(value))) if self.is_element() => {
                let rows = members(&self.path[0]);
                let brand = property::brand(vm).unwrap_or_default();
                value
                    .iter()
                    .filter(|(member, _)| is_kept(rows, member, brand))
                    .all(|(member, value)| now.get(member).is_some_and(|now| same(now, value)))
            }
            (Some(now), Some(value)) => same(now, value),
            _ => false,
        }
    }

    /// What a VM shows here.
    fn of(&self, vm: &Object) -> Option<Value> {
        match self.path.as_slice() {
            [name] => vm.get(name).cloned(),
            [list, ident] if self.is_element() => {
                find(vm, list, ident).map(|element| Value::Object(element.clone()))
            }
            [map, key] => vm.get(map)?.get(key).cloned(),
            [list, ident, member] => find(vm, list, ident)?.get(member).cloned(),
            _ => None,
        }
    }

    /// Whether this is a whole nic, disk, filesystem or PCI device.
    fn is_element(&self) -> bool {
        self.path.len() == 2 && !members(&self.path[0]).is_empty()
    }

    /// What it is called in messages: `quota`, `tags.role`, `nics[mac].ip`.
    pub fn name(&self) -> String {
        match self.path.as_slice() {
            [list, ident] if self.is_element() => format!("{list}[{ident}]"),
            [list, ident, member] => format!("{list}[{ident}].{member}"),
            path => path.join("."),
        }
    }

    fn is_secret(&self) -> bool {
        match self.path.as_slice() {
            [name] => property::property(name).is_some_and(|property| property.secret),
            [map, key, ..] => property::is_secret_entry(map, key),
            [] => false,
        }
    }
}

/// `quota = 20`, `alias removed`, `nics[mac] added`. Secrets are not told.
impl fmt::Display for Wanted {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        match &self.value {
            None => write!(out, "{name} removed")?,
            Some(_) if self.is_element() => write!(out, "{name} added")?,
            Some(_) if self.is_secret() => write!(out, "{name} = (secret)")?,
            Some(value) => write!(out, "{name} = {value}")?,
        }
        match self.affect {
            Affect::Config => out.write_str(" (config)"),
            Affect::Live | Affect::Both => Ok(()),
        }
    }
}

/// What a VM has to show once `target` is applied to `old`: everything in which they differ and
/// that can be set. What is only read, such as `free_space`, is left out.
pub fn wanted(old: &Object, target: &Object) -> Vec<Wanted> {
    let brand = property::brand(target).or_else(|| property::brand(old));
    let brand = brand.unwrap_or("joyent");
    let mut found = Vec::new();
    for row in property::TABLE.iter().filter(|row| row.settable(brand)) {
        let (before, after) = (old.get(row.name), target.get(row.name));
        match row.kind {
            Kind::Map => entries(row, before, after, &mut found),
            Kind::Objects(_) => elements(row, old, target, brand, &mut found),
            _ => note(vec![row.name], row.part, before, after, &mut found),
        }
    }
    found
}

/// The target in which everything that differed between `before` and `after` is again as in
/// `before`, and all else as the VM is now.
///
/// # Errors
/// When the VM no longer shows what `after` shows there, or what was destroyed cannot come back.
pub fn revert(vm_now: &Object, before: &Object, after: &Object) -> Result<Object, Invalid> {
    let mut draft = Draft::of(vm_now);
    for change in wanted(before, after) {
        let refuse = |reason: &str| InvalidKind::State.refuse(change.name(), reason);
        if !change.holds(vm_now) {
            return Err(refuse("was changed again since; undo it by hand"));
        }
        match change.path.as_slice() {
            // Of a domain, what was on a disk is still there.
            [list, _] if list == "disks" && change.value.is_none() && !draft.is_domain() => {
                return Err(refuse(
                    "was removed with what was on it, and cannot come back",
                ));
            }
            [list, _]
                if draft.is_domain()
                    && change.value.is_none()
                    && !domain::can_be_made(list, change.before.as_ref()) =>
            {
                return Err(refuse(
                    "was removed, and vminfod makes none of this type; use virsh attach-interface",
                ));
            }
            [list, _, member] if list == "disks" && member == "size" => {
                return Err(refuse("a disk cannot be made smaller again"));
            }
            [list, ident] if change.is_element() => {
                let Some(list) = property::property(list).map(|row| row.name) else {
                    continue;
                };
                match &change.before {
                    Some(Value::Object(element)) if draft.is_domain() => {
                        draft.append(list, domain::anew(list, element));
                    }
                    Some(Value::Object(element)) => draft.append(list, element.clone()),
                    _ => draft.remove_element(list, ident)?,
                }
            }
            [name] => draft.put(name, change.before),
            [map, key] => {
                let entries = draft.target.entry(map.as_str());
                let entries = entries.or_insert_with(|| Value::Object(Object::new()));
                restore(entries, key, change.before);
            }
            [list, ident, member] => {
                let elements = draft.target.get_mut(list).and_then(Value::as_array_mut);
                let element = elements.into_iter().flatten().find(|element| {
                    let element = element.as_object();
                    element.is_some_and(|element| is_named(list, element, ident))
                });
                if let Some(element) = element {
                    restore(element, member, change.before);
                }
            }
            [..] => {}
        }
    }
    draft.finish()
}

fn restore(object: &mut Value, member: &str, value: Option<Value>) {
    let Value::Object(object) = object else {
        return;
    };
    match value {
        Some(value) => {
            object.insert(member.to_owned(), value);
        }
        None => {
            object.shift_remove(member);
        }
    }
}

fn note(
    path: Vec<&str>,
    part: Part,
    before: Option<&Value>,
    value: Option<&Value>,
    found: &mut Vec<Wanted>,
) {
    let equal = match (before, value) {
        (Some(before), Some(value)) => same(before, value),
        (before, value) => before == value,
    };
    if !equal {
        found.push(Wanted {
            path: path.into_iter().map(str::to_owned).collect(),
            affect: Affect::Live,
            part,
            before: before.cloned(),
            value: value.cloned(),
        });
    }
}

fn entries(row: &Property, before: Option<&Value>, after: Option<&Value>, found: &mut Vec<Wanted>) {
    let empty = Object::new();
    let before = before.and_then(Value::as_object).unwrap_or(&empty);
    let after = after.and_then(Value::as_object).unwrap_or(&empty);
    for (key, value) in before {
        note(
            vec![row.name, key],
            row.part,
            Some(value),
            after.get(key),
            found,
        );
    }
    for (key, value) in after {
        if !before.contains_key(key) {
            note(vec![row.name, key], row.part, None, Some(value), found);
        }
    }
}

fn elements(row: &Property, old: &Object, target: &Object, brand: &str, found: &mut Vec<Wanted>) {
    let list = row.name;
    for element in objects(old, list) {
        let Some(ident) = ident_of(list, element) else {
            continue;
        };
        if find(old, list, ident).is_none() {
            continue;
        }
        let Some(now) = find(target, list, ident) else {
            let element = Value::Object(element.clone());
            note(vec![list, ident], row.part, Some(&element), None, found);
            continue;
        };
        for member in members(list).iter().filter(|member| member.settable(brand)) {
            let path = vec![list, ident, member.name];
            let (before, after) = (element.get(member.name), now.get(member.name));
            note(path, member.part, before, after, found);
        }
    }
    for element in objects(target, list) {
        // Of several that have one mac none is new.
        if let Some(ident) = ident_of(list, element)
            && !objects(old, list).any(|one| is_named(list, one, ident))
        {
            let element = Value::Object(element.clone());
            note(vec![list, ident], row.part, None, Some(&element), found);
        }
    }
}

/// Whether a member is kept as it is given, and not found out by the source.
fn is_kept(rows: &[Property], member: &str, brand: &str) -> bool {
    let none = property::Brands::NONE;
    rows.iter().filter(|row| row.name == member).any(|row| {
        match brand {
            // A nic's place among the others is one that it finds for itself.
            property::LIBVIRT => row.create.contains(brand) || row.update.contains(brand),
            _ => row.create != none || row.update != none,
        }
    })
}
