//! Update payloads: single properties, and the verbs for maps and lists of objects.

use serde_json::Value;

use super::draft::Draft;
use super::elements::{key_of, same_key};
use super::{Invalid, InvalidKind, Object};
use crate::vm::property::{self, Kind, Part};

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
/// optional property. `if_generation` is left to the caller.
///
/// # Errors
/// When anything in the payload is not acceptable; it is refused whole.
pub fn update(vm: &Object, payload: &Object) -> Result<Object, Invalid> {
    let mut draft = Draft::of(vm);
    let mut verbs = Vec::new();
    for (name, given) in payload {
        match verb(name) {
            Some((action, collection)) => verbs.push((action, collection, name, given)),
            None if name == "if_generation" => {}
            None => draft.set(name, given)?,
        }
    }
    contradiction(payload)?;
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
            let names = names(collection, given).ok_or_else(|| refuse("not a list of texts"))?;
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
                let ident = element.get(key).and_then(Value::as_str);
                let ident = ident.ok_or_else(|| refuse(&format!("an element has no {key}")))?;
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
fn names<'a>(collection: &str, given: &'a Value) -> Option<Vec<&'a str>> {
    match given {
        Value::String(text) => Some(text.split(',').map(str::trim).collect()),
        Value::Array(items) => items
            .iter()
            .map(|item| {
                item.as_str()
                    .or_else(|| item.get(key_of(collection))?.as_str())
            })
            .collect(),
        _ => None,
    }
}

fn elements(given: &Value) -> Option<Vec<&Object>> {
    match given {
        Value::Array(items) => items.iter().map(Value::as_object).collect(),
        Value::Object(element) => Some(vec![element]),
        _ => None,
    }
}

/// Whether a payload sets or updates what it removes.
fn contradiction(payload: &Object) -> Result<(), Invalid> {
    for (name, given) in payload {
        let Some((Action::Remove, collection)) = verb(name) else {
            continue;
        };
        let Some(removed) = names(collection, given) else {
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
        let idents = idents.filter_map(|element| element.get(key_of(collection))?.as_str());
        let both = keys
            .chain(idents)
            .find(|key| removed.iter().any(|gone| same_key(collection, gone, key)));
        if let Some(both) = both {
            let reason = format!("{both} is also to be set or updated");
            return Err(InvalidKind::Value.refuse(name, reason));
        }
    }
    Ok(())
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
