//! What a document leaves to be made up, made up once.

use serde_json::Value;

use super::Object;
use super::domain::{bus, free_mac, free_name};
use super::draft::objects;
use super::elements::{ident_of, meant, same_key, text};
use crate::vm::property::{self, LIBVIRT};

/// A document for a domain, with a mac for each new nic and a name for each new disk that has none: such
/// as none of these views of the domain has, nor the document. All views then mean the same devices by
/// it. What is there stays, so that a document that was prepared is not changed again, and a document
/// for a zone is not changed at all.
pub fn prepared(views: &[&Object], document: &Object) -> Object {
    let mut document = document.clone();
    let is_domain = |vm: &&Object| property::brand(vm) == Some(LIBVIRT);
    if !views.iter().any(is_domain) {
        return document;
    }
    for list in ["nics", "disks"] {
        // A full object has all devices, and a payload the new ones.
        let (all, new) = (list.to_owned(), format!("add_{list}"));
        let there = views.iter().flat_map(|vm| objects(vm, list));
        let there = there.filter_map(|device| ident_of(list, device));
        let mut taken: Vec<String> = there.map(str::to_owned).collect();
        for member in [&all, &new] {
            let given = devices(&mut document, member);
            taken.extend(given.filter_map(|device| own_ident(list, device)));
        }
        for member in [&all, &new] {
            for device in devices(&mut document, member) {
                if own_ident(list, device).is_some() {
                    continue;
                }
                let known = (*member == all).then(|| known_by_path(views, list, device));
                let ident = known.flatten().unwrap_or_else(|| {
                    let is_taken = |ident: &str| taken.iter().any(|it| same_key(list, it, ident));
                    match list {
                        "nics" => free_mac(is_taken),
                        _ => free_name(bus(device), is_taken),
                    }
                });
                device.insert(own_member(list).to_owned(), Value::from(ident.as_str()));
                taken.push(ident);
            }
        }
    }
    document
}

/// What of a device is made up where it is missing.
fn own_member(list: &str) -> &'static str {
    match list {
        "nics" => "mac",
        _ => "name",
    }
}

/// What a device of a document is called in it; a value that is none is for others to refuse.
fn own_ident(list: &str, device: &Object) -> Option<String> {
    match device.get(own_member(list)) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) if text.is_empty() => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(other) => Some(other.to_string()),
    }
}

/// The name of the disk that a full object means by its path alone.
fn known_by_path(views: &[&Object], list: &str, device: &Object) -> Option<String> {
    let path = text(device, "path");
    let disk = views.iter().find_map(|vm| meant(vm, list, path))?;
    ident_of(list, disk).map(str::to_owned)
}

/// The devices in a list of a document, or the one that stands for a list of one.
fn devices<'a>(document: &'a mut Object, member: &str) -> impl Iterator<Item = &'a mut Object> {
    let (list, one) = match document.get_mut(member) {
        Some(Value::Array(list)) => (Some(list), None),
        Some(Value::Object(one)) => (None, Some(one)),
        _ => (None, None),
    };
    let list = list.into_iter().flatten();
    list.filter_map(Value::as_object_mut).chain(one)
}
