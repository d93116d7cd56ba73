//! What the tools can name of a VM: properties, and two that are computed. Pure.
//!
//! Filters, columns and sort keys are paths; here it is decided which of them lead somewhere, by the
//! table of properties, so that a mistyped name is refused and finds not just nothing. `type` and
//! `ram` are what people look for in a list of VMs: [`complete`] puts them in, and [`needed`] says
//! what of a VM has to be read for that.

use std::collections::BTreeSet;

use serde_json::Value;

use super::path::{Part, Path};
use crate::vm::Object;
use crate::vm::property::{self, Kind, property};

/// The computed property that is in no VM object.
const TYPE: &str = "type";

/// The property that is another one's value for VMs without a kernel of their own.
const RAM: &str = "ram";

/// Where that value comes from.
const RAM_OF_ZONES: &str = "max_physical_memory";

/// A name that is none where it stands. The words are those of SmartOS's tool.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKey {
    /// In a filter of `list`.
    #[error("Invalid filter key: {0:?}")]
    Filter(String),
    /// In a filter of `lookup`.
    #[error("Invalid lookup key: {0:?}")]
    Lookup(String),
    /// A column.
    #[error("Invalid order key: {0:?}")]
    Order(String),
    /// What to sort by.
    #[error("invalid sort field: {0}")]
    Sort(String),
}

/// Which members of VM objects are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// Every one.
    All,
    /// These.
    Only(BTreeSet<String>),
}

/// Whether a path leads to what some VM may have.
pub fn is_known(path: &Path) -> bool {
    match path.parts() {
        [Part::Name(name), rest @ ..] if name == TYPE => rest.is_empty(),
        [Part::Name(name), rest @ ..] => {
            property(name).is_some_and(|property| leads(property.kind, rest))
        }
        _ => false,
    }
}

/// Whether a value of this kind has something at the end of these steps.
fn leads(kind: Kind, steps: &[Part]) -> bool {
    let Some((first, rest)) = steps.split_first() else {
        return true;
    };
    match kind {
        Kind::Map => rest.is_empty(),
        Kind::List => is_element(first) && rest.is_empty(),
        Kind::Objects(members) => {
            is_element(first)
                && match rest {
                    [] => true,
                    [Part::Name(name), rest @ ..] => members
                        .iter()
                        .any(|member| member.name == name && leads(member.kind, rest)),
                    [Part::Any, ..] => false,
                }
        }
        Kind::String | Kind::Bool | Kind::Number => false,
    }
}

fn is_element(part: &Part) -> bool {
    match part {
        Part::Any => true,
        Part::Name(name) => name.parse::<usize>().is_ok(),
    }
}

/// The members that a VM object must have so that, once it is made [`complete`], these paths
/// lead where they should.
pub fn needed<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Members {
    let mut names = BTreeSet::new();
    for path in paths {
        match path.parts().first() {
            Some(Part::Name(name)) if name == TYPE => {
                names.insert("brand".to_owned());
            }
            Some(Part::Name(name)) if name == RAM => {
                names.extend([RAM, RAM_OF_ZONES, "brand"].map(str::to_owned));
            }
            Some(Part::Name(name)) => {
                names.insert(name.clone());
            }
            Some(Part::Any) | None => return Members::All,
        }
    }
    Members::Only(names)
}

/// Adds `type`, and for VMs without a kernel of their own `ram`.
pub fn complete(vm: &mut Object) {
    let Some(brand) = vm.get("brand").and_then(Value::as_str) else {
        return;
    };
    let (kind, hvm) = (property::zone_type(brand), property::hvm(brand));
    vm.insert(TYPE.to_owned(), kind.into());
    if hvm {
        return;
    }
    if let Some(memory) = vm.get(RAM_OF_ZONES).cloned() {
        vm.insert(RAM.to_owned(), memory);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn known(path: &str) -> bool {
        is_known(&path.parse().unwrap())
    }

    #[test]
    fn properties_and_what_they_hold_are_known() {
        for path in [
            "alias",
            "type",
            "ram",
            "resolvers",
            "resolvers.*",
            "nics.*.ip",
            "nics.0.ips.1",
            "disks.*.size",
            "tags.role",
            "customer_metadata[user.script]",
            "filesystems.0.target",
        ] {
            assert!(known(path), "{path}");
        }
    }

    #[test]
    fn what_no_vm_can_have_is_unknown() {
        for path in [
            "color",
            "set_tags",
            "type.x",
            "alias.0",
            "nics.ip",
            "nics.*.colour",
            "nics.*.*",
            "tags.a.b",
            "*",
            "*.ip",
        ] {
            assert!(!known(path), "{path}");
        }
    }

    #[test]
    fn only_zones_have_their_memory_for_ram() {
        let completed = |vm: Value| {
            let mut vm = vm.as_object().unwrap().clone();
            complete(&mut vm);
            Value::Object(vm).to_string()
        };
        assert_eq!(
            completed(json!({"brand": "lx", "max_physical_memory": 512, "uuid": "u"})),
            r#"{"brand":"lx","max_physical_memory":512,"uuid":"u","type":"LX","ram":512}"#
        );
        assert_eq!(
            completed(json!({"brand": "kvm", "max_physical_memory": 2048, "ram": 1024})),
            r#"{"brand":"kvm","max_physical_memory":2048,"ram":1024,"type":"KVM"}"#
        );
        assert_eq!(
            completed(json!({"brand": "joyent-minimal"})),
            r#"{"brand":"joyent-minimal","type":"OS"}"#
        );
    }

    #[test]
    fn computed_properties_need_what_they_are_computed_of() {
        let needed = |paths: &[&str]| {
            let paths: Vec<Path> = paths.iter().map(|path| path.parse().unwrap()).collect();
            match needed(&paths) {
                Members::All => panic!("not all"),
                Members::Only(names) => names.into_iter().collect::<Vec<_>>(),
            }
        };
        assert_eq!(needed(&["nics.0.ip", "type"]), ["brand", "nics"]);
        assert_eq!(needed(&["ram"]), ["brand", "max_physical_memory", "ram"]);
    }

    #[test]
    fn a_bad_key_is_quoted_as_smartos_quotes_it() {
        let text = |key: BadKey| key.to_string();
        assert_eq!(
            text(BadKey::Filter("k".into())),
            r#"Invalid filter key: "k""#
        );
        assert_eq!(
            text(BadKey::Lookup("k".into())),
            r#"Invalid lookup key: "k""#
        );
        assert_eq!(text(BadKey::Order("k".into())), r#"Invalid order key: "k""#);
        assert_eq!(text(BadKey::Sort("f".into())), "invalid sort field: f");
    }
}
