//! Full objects: what differs from the VM becomes changes, as an update payload would ask for
//! them. What is only read is ignored.

use serde_json::Value;

use super::addresses;
use super::draft::{Draft, objects};
use super::elements::{given_ident, ident_of, is_named, meant, members};
use super::value::same;
use super::{Invalid, InvalidKind, Object, domain};
use crate::vm::property::{self, Kind};

/// Members of other programs' documents that are no properties.
const BESIDE: [&str; 2] = ["if_generation", "type"];

/// What a VM is to be after a full object was written to the `vm.json` of `shown`, which is this VM or the
/// configuration of it that is shown ([`views::full`](super::views::full)): what the document changes of that.
pub(super) fn full(vm: &Object, shown: &Object, document: &Object) -> Result<Object, Invalid> {
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
            let is_beside =
                BESIDE.contains(&name.as_str()) || domain::is_beside(&draft.brand, name);
            if shown.contains_key(name) || is_beside {
                continue;
            }
            return Err(InvalidKind::Unknown.refuse(name, "no such property"));
        };
        let mut now = shown.get(name);
        if name == "ram" && now.is_none() {
            // Others show the memory of a zone as its ram.
            now = shown.get("max_physical_memory");
        }
        let as_it_is = now.is_some_and(|now| same(now, given));
        if as_it_is || given.is_null() || !property.settable(&draft.brand) {
            continue;
        }
        match property.kind {
            Kind::Map => map(&mut draft, shown, property.name, given)?,
            Kind::Objects(_) => list(&mut draft, shown, property.name, given)?,
            _ => draft.set(name, given)?,
        }
    }
    for (name, now) in shown {
        let given = document.get(name);
        if given.is_none_or(Value::is_null) {
            remove(&mut draft, shown, name, now)?;
        }
    }
    draft.finish()
}

/// Removes what a document lacks, if it can be removed.
fn remove(draft: &mut Draft, shown: &Object, name: &str, now: &Value) -> Result<(), Invalid> {
    let Some(property) = property::property(name).filter(|row| row.settable(&draft.brand)) else {
        return Ok(());
    };
    match property.kind {
        Kind::Map => map(draft, shown, property.name, &Value::Object(Object::new())),
        Kind::Objects(_) if now.as_array().is_some_and(|list| !list.is_empty()) => {
            if matches!(property.name, "nics" | "disks") {
                let reason = "missing; a full object has them: give [] to remove them all, or \
                              leave out uuid to give a payload";
                return Err(InvalidKind::Value.refuse(name, reason));
            }
            list(
                draft,
                shown,
                property.name,
                &Value::from(Vec::<Value>::new()),
            )
        }
        Kind::Objects(_) => Ok(()),
        _ if draft.removable(property) && !draft.said.contains(property.name) => {
            draft.set(name, &Value::Null)
        }
        _ => Ok(()),
    }
}

fn map(
    draft: &mut Draft,
    shown: &Object,
    name: &'static str,
    given: &Value,
) -> Result<(), Invalid> {
    let Some(entries) = given.as_object() else {
        return Err(InvalidKind::Value.refuse(name, "not an object"));
    };
    let now = shown.get(name).and_then(Value::as_object).cloned();
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

fn list(
    draft: &mut Draft,
    shown: &Object,
    name: &'static str,
    given: &Value,
) -> Result<(), Invalid> {
    let elements: Option<Vec<&Object>> = given
        .as_array()
        .and_then(|list| list.iter().map(Value::as_object).collect());
    let Some(elements) = elements else {
        return Err(InvalidKind::Value.refuse(name, "not a list of objects"));
    };
    let brand = draft.brand.clone();
    let existing = |element: &Object| meant(shown, name, given_ident(&brand, name, element)?);
    let kept: Vec<&Object> = elements
        .iter()
        .filter_map(|element| existing(element))
        .collect();
    for element in objects(shown, name) {
        if kept.iter().any(|kept| std::ptr::eq(*kept, element)) {
            continue;
        }
        // Another configuration may lack it already.
        if let Some(ident) = ident_of(name, element)
            && objects(&draft.target, name).any(|other| is_named(name, other, ident))
        {
            draft.remove_element(name, ident)?;
        }
    }
    for element in elements {
        let now = existing(element);
        match now.and_then(|now| Some((now, ident_of(name, now)?))) {
            Some((now, ident)) => {
                let changes = changes(draft, name, now, element);
                if !changes.is_empty() {
                    draft.update_element(name, ident, &changes)?;
                }
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
            Some(row) => {
                let found_out = draft.is_domain() && domain::is_found_out(list, now, row.name);
                !row.settable(&draft.brand) || found_out
            }
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
