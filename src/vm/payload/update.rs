//! Update payloads: single properties, and the verbs for maps and lists of objects.

use serde_json::Value;

use super::draft::Draft;
use super::elements::{given_ident, ident_of, key_of, meant, same_key};
use super::{Invalid, InvalidKind, Object, domain};
use crate::vm::property::{self, Kind, LIBVIRT, Part};

/// What a verb of a payload does with a map or a list of objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    // In the order in which they are done: what was removed leaves its name and number to others.
    Remove,
    Set,
    Update,
    Add,
}

/// What a VM is to be after an update payload: scalars by name, `set_tags`, `add_nics` and so on.
///
/// A number, boolean or list may also be given as its text. An empty text or null removes an
/// optional property. `if_generation`, and `affect` for domains, are left to the caller.
///
/// # Errors
/// When anything in the payload is not acceptable; it is refused whole.
pub fn update(vm: &Object, payload: &Object) -> Result<Object, Invalid> {
    let mut draft = Draft::of(vm);
    let mut verbs = Vec::new();
    for (name, given) in payload {
        match verb(name) {
            Some((action, collection)) => verbs.push((action, collection, name, given)),
            None if name == "if_generation" || domain::is_beside(&draft.brand, name) => {}
            None => draft.set(name, given)?,
        }
    }
    contradiction(&draft, payload)?;
    verbs.sort_by_key(|(action, ..)| *action);
    for (action, collection, name, given) in verbs {
        let row = draft.row(collection);
        // What is not a property of this brand may still be removed.
        if action != Action::Remove {
            row.map_err(|refusal| refusal.kind.refuse(name, "not for this brand"))?;
        }
        run(&mut draft, action, collection, name, given)?;
    }
    draft.finish()
}

/// Whether a member of a payload, a property or a verb, depends on nothing but what the VM's files
/// hold: not on its datasets, nor on what it does.
pub fn is_of_files(name: &str) -> bool {
    let name = verb(name).map_or(name, |(_, collection)| collection);
    property::property(name).is_some_and(|property| match property.part {
        // What disks leave free is part of what they are checked against.
        Part::Zone => !matches!(name, "disks" | "flexible_disk_size"),
        Part::Metadata | Part::Tags | Part::Routes => true,
        Part::Datasets | Part::Runtime | Part::LastExited | Part::Sysinfo => false,
    })
}

/// The payload without the removal of what this view of a VM lacks and another one has: there it is removed.
pub(super) fn without_absent(view: &Object, other: &Object, payload: &Object) -> Object {
    let mut payload = payload.clone();
    for (name, given) in &mut payload {
        let Some((Action::Remove, collection)) = verb(name) else {
            continue;
        };
        let Some(names) = names(LIBVIRT, collection, given) else {
            continue;
        };
        let is_absent = |name: &&str| {
            meant(view, collection, name).is_none() && meant(other, collection, name).is_some()
        };
        let kept: Vec<Value> = (names.into_iter().filter(|name| !is_absent(name)))
            .map(Value::from)
            .collect();
        *given = kept.into();
    }
    payload
}

/// The action and the property of a verb such as `add_nics`.
fn verb(name: &str) -> Option<(Action, &'static str)> {
    let (action, collection) = name.split_once('_')?;
    let property = property::property(collection)?;
    let action = match (property.kind, action) {
        (Kind::Map, "set") => Action::Set,
        (Kind::Map | Kind::Objects(_), "remove") => Action::Remove,
        (Kind::Objects(_), "update") => Action::Update,
        (Kind::Objects(_), "add") => Action::Add,
        _ => return None,
    };
    // Snapshots are taken and removed by verbs of the VM.
    (collection != "snapshots").then_some((action, property.name))
}

fn run(
    draft: &mut Draft,
    action: Action,
    collection: &'static str,
    name: &str,
    given: &Value,
) -> Result<(), Invalid> {
    let refuse = |wanted: &str| InvalidKind::Value.refuse(name, wanted);
    match action {
        Action::Set => {
            let entries = given.as_object().ok_or_else(|| refuse("not an object"))?;
            for (key, value) in entries {
                draft.set_entry(collection, key, value)?;
            }
        }
        Action::Remove => {
            let names = names(&draft.brand, collection, given)
                .ok_or_else(|| refuse("not a list of texts"))?;
            let map = property::property(collection)
                .is_some_and(|property| matches!(property.kind, Kind::Map));
            for key in names {
                match map {
                    true => draft.remove_entry(collection, key),
                    false => draft.remove_element(collection, key)?,
                }
            }
        }
        Action::Update => {
            let key = key_of(collection);
            for element in elements(given).ok_or_else(|| refuse("not a list of objects"))? {
                let ident = given_ident(&draft.brand, collection, element);
                let ident =
                    ident.ok_or_else(|| match draft.is_domain() && collection == "disks" {
                        true => refuse("an element has neither name nor path"),
                        false => refuse(&format!("an element has no {key}")),
                    })?;
                draft.update_element(collection, ident, element)?;
            }
        }
        Action::Add => {
            for element in elements(given).ok_or_else(|| refuse("not a list of objects"))? {
                draft.add_element(collection, element)?;
            }
        }
    }
    Ok(())
}

/// What a `remove_…` names. Elements may also be given as objects with their key.
fn names<'a>(brand: &str, collection: &str, given: &'a Value) -> Option<Vec<&'a str>> {
    match given {
        Value::String(text) => Some(text.split(',').map(str::trim).collect()),
        Value::Array(items) => items
            .iter()
            .map(|item| {
                item.as_str()
                    .or_else(|| given_ident(brand, collection, item.as_object()?))
            })
            .collect(),
        _ => None,
    }
}

pub(super) fn elements(given: &Value) -> Option<Vec<&Object>> {
    match given {
        Value::Array(items) => items.iter().map(Value::as_object).collect(),
        Value::Object(element) => Some(vec![element]),
        _ => None,
    }
}

/// Whether a payload sets or updates what it removes.
fn contradiction(draft: &Draft, payload: &Object) -> Result<(), Invalid> {
    for (name, given) in payload {
        let Some((Action::Remove, collection)) = verb(name) else {
            continue;
        };
        let Some(removed) = names(&draft.brand, collection, given) else {
            continue;
        };
        let set = payload
            .get(&format!("set_{collection}"))
            .and_then(Value::as_object);
        let updated = payload
            .get(&format!("update_{collection}"))
            .and_then(elements);
        let keys = set.into_iter().flat_map(Object::keys).map(String::as_str);
        let idents = updated.into_iter().flatten();
        let idents = idents.filter_map(|it| given_ident(&draft.brand, collection, it));
        let both = keys.chain(idents).find(|key| {
            let own = own_ident(draft, collection, key);
            let is_it = |gone| same_key(collection, own_ident(draft, collection, gone), own);
            removed.iter().any(|gone| is_it(gone))
        });
        if let Some(both) = both {
            let reason = format!("{both} is also to be set or updated");
            return Err(InvalidKind::Value.refuse(name, reason));
        }
    }
    Ok(())
}

/// What tells the element that is meant apart: a disk may be named in one way here and in another there.
fn own_ident<'a>(draft: &'a Draft, list: &str, said: &'a str) -> &'a str {
    let element = meant(&draft.before, list, said);
    element.and_then(|it| ident_of(list, it)).unwrap_or(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_datasets_have_no_part_in_is_of_files() {
        for name in [
            "alias",
            "ram",
            "cpu_cap",
            "tags",
            "set_tags",
            "remove_customer_metadata",
            "set_routes",
            "add_nics",
            "update_nics",
            "resolvers",
        ] {
            assert!(is_of_files(name), "{name}");
        }
        for name in [
            "quota",
            "zfs_root_recsize",
            "disks",
            "update_disks",
            "add_disks",
            "flexible_disk_size",
            "snapshots",
            "indestructible_zoneroot",
            "uuid",
            "state",
            "if_generation",
            "strange",
        ] {
            assert!(!is_of_files(name), "{name}");
        }
    }
}
