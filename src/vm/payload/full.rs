//! Full objects: what differs from the VM becomes changes, as an update payload would ask for
//! them. What is only read is ignored.

use serde_json::Value;

use super::addresses;
use super::draft::{Draft, objects};
use super::elements::{find, key_of, members};
use super::value::same;
use super::{Invalid, InvalidKind, Object};
use crate::vm::property::{self, Kind};

/// Members of other programs' documents that are no properties.
const BESIDE: [&str; 2] = ["if_generation", "type"];

/// What a VM is to be after a full object was written to its `vm.json`. What the document shows as
/// it is stays so; what differs is changed as by an update payload, and what follows from that
/// follows.
///
/// A document without `nics` or `disks` is refused while the VM has some: it is no full object,
/// and taking it for one would destroy them.
///
/// # Errors
/// When a member is not acceptable, or `uuid` is another VM's.
pub fn full(vm: &Object, document: &Object) -> Result<Object, Invalid> {
    let (own, named) = (vm.get("uuid"), document.get("uuid"));
    let text = |uuid: Option<&Value>| uuid.and_then(Value::as_str).map(str::to_lowercase);
    if text(own) != text(named) {
        let reason = format!(
            "another VM's: {}; leave it out to give a payload",
            named.unwrap_or(&Value::Null)
        );
        return Err(InvalidKind::Value.refuse("uuid", reason));
    }
    let mut draft = Draft::of(vm);
    for (name, given) in document {
        let Some(property) = property::property(name) else {
            if vm.contains_key(name) || BESIDE.contains(&name.as_str()) {
                continue;
            }
            return Err(InvalidKind::Unknown.refuse(name, "no such property"));
        };
        let mut now = vm.get(name);
        if name == "ram" && now.is_none() {
            // Others show the memory of a zone as its ram.
            now = vm.get("max_physical_memory");
        }
        let as_it_is = now.is_some_and(|now| same(now, given));
        if as_it_is || given.is_null() || !property.settable(&draft.brand) {
            continue;
        }
        match property.kind {
            Kind::Map => map(&mut draft, property.name, given)?,
            Kind::Objects(_) => list(&mut draft, property.name, given)?,
            _ => draft.set(name, given)?,
        }
    }
    for (name, now) in vm {
        let given = document.get(name);
        if given.is_none_or(Value::is_null) {
            remove(&mut draft, name, now)?;
        }
    }
    draft.finish()
}

/// Removes what a document lacks, if it can be removed.
fn remove(draft: &mut Draft, name: &str, now: &Value) -> Result<(), Invalid> {
    let Some(property) = property::property(name).filter(|row| row.settable(&draft.brand)) else {
        return Ok(());
    };
    match property.kind {
        Kind::Map => map(draft, property.name, &Value::Object(Object::new())),
        Kind::Objects(_) if now.as_array().is_some_and(|list| !list.is_empty()) => {
            if matches!(property.name, "nics" | "disks") {
                let reason = "missing; a full object has them: give [] to remove them all, or \
                              leave out uuid to give a payload";
                return Err(InvalidKind::Value.refuse(name, reason));
            }
            list(draft, property.name, &Value::from(Vec::<Value>::new()))
        }
        Kind::Objects(_) => Ok(()),
        _ if property.removable && !draft.said.contains(property.name) => {
            draft.set(name, &Value::Null)
        }
        _ => Ok(()),
    }
}

fn map(draft: &mut Draft, name: &'static str, given: &Value) -> Result<(), Invalid> {
    let Some(entries) = given.as_object() else {
        return Err(InvalidKind::Value.refuse(name, "not an object"));
    };
    let now = draft.before.get(name).and_then(Value::as_object).cloned();
    let now = now.unwrap_or_default();
    for key in now.keys().filter(|key| !entries.contains_key(*key)) {
        draft.remove_entry(name, key);
    }
    for (key, value) in entries {
        if !now.get(key).is_some_and(|now| same(now, value)) {
            draft.set_entry(name, key, value)?;
        }
    }
    Ok(())
}

fn list(draft: &mut Draft, name: &'static str, given: &Value) -> Result<(), Invalid> {
    let elements: Option<Vec<&Object>> = given
        .as_array()
        .and_then(|list| list.iter().map(Value::as_object).collect());
    let Some(elements) = elements else {
        return Err(InvalidKind::Value.refuse(name, "not a list of objects"));
    };
    let before = draft.before.clone();
    let key = key_of(name);
    let given_ident =
        |element: &Object| element.get(key).and_then(Value::as_str).map(str::to_owned);
    let kept: Vec<&Object> = elements
        .iter()
        .filter_map(|element| find(&before, name, &given_ident(element)?))
        .collect();
    for element in objects(&before, name) {
        if kept.iter().any(|kept| std::ptr::eq(*kept, element)) {
            continue;
        }
        if let Some(ident) = given_ident(element) {
            draft.remove_element(name, &ident)?;
        }
    }
    for element in elements {
        let ident = given_ident(element);
        let now = ident
            .as_ref()
            .and_then(|ident| find(&before, name, ident).zip(Some(ident)));
        match now {
            Some((now, ident)) => {
                let changes = changes(draft, name, now, element);
                draft.update_element(name, ident, &changes)?;
            }
            None => {
                let mut element = element.clone();
                element.retain(|member, _| creatable(draft, name, member));
                draft.add_element(name, &element)?;
            }
        }
    }
    Ok(())
}

/// What an element is to be given to be as a document shows it.
fn changes(draft: &Draft, list: &str, now: &Object, element: &Object) -> Object {
    let mut changes = Object::new();
    for (member, given) in element {
        let as_it_is = now.get(member).is_some_and(|now| same(now, given));
        let row = members(list).iter().find(|row| row.name == member);
        let ignored = match row {
            Some(row) => !row.settable(&draft.brand),
            None => now.contains_key(member),
        };
        if !as_it_is && !ignored {
            changes.insert(member.clone(), given.clone());
        }
    }
    for row in members(list) {
        let gone = now.contains_key(row.name) && !element.contains_key(row.name);
        let implied = list == "nics" && addresses::is_implied(element, row.name);
        if gone && !implied && row.removable && row.settable(&draft.brand) {
            changes.insert(row.name.to_owned(), Value::Null);
        }
    }
    changes
}

/// Whether a member of a new element is to be looked at: not if only a source can give it.
fn creatable(draft: &Draft, list: &str, member: &str) -> bool {
    let row = members(list).iter().find(|row| row.name == member);
    row.is_none_or(|row| row.create.contains(&draft.brand))
}
