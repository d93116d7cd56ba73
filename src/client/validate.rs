//! `vmadm validate`: whether a payload would be accepted, without applying it. Pure.
//!
//! It asks the same code as the daemon does. What only the host can tell is not looked at: whether
//! the image exists, whether the uuid is free.

use serde_json::{Value, json};

use crate::vm::Object;
use crate::vm::payload::{self, Invalid};

/// The brands that can be validated for without a VM.
pub const BRANDS: [&str; 6] = ["joyent", "joyent-minimal", "builder", "lx", "kvm", "bhyve"];

/// The lists whose elements updates name, and the member by which they do.
const LISTS: [(&str, &str); 4] = [
    ("nics", "mac"),
    ("disks", "path"),
    ("filesystems", "target"),
    ("pci_devices", "path"),
];

/// What was found out about a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    action: &'static str,
    brand: Option<String>,
    result: Result<(), Invalid>,
}

impl Verdict {
    /// Whether a VM could be created with it.
    pub fn of_create(payload: &Object) -> Verdict {
        Verdict {
            action: "create",
            brand: brand(payload),
            result: payload::create(payload).map(|_| ()),
        }
    }

    /// Whether this VM could be updated with it.
    pub fn of_update(vm: &Object, payload: &Object) -> Verdict {
        Verdict {
            action: "update",
            brand: brand(vm),
            result: payload::update(vm, payload).map(|_| ()),
        }
    }

    /// Whether some VM of this brand could be updated with it. What it changes or removes is taken
    /// to be there.
    pub fn of_update_for(brand: &str, payload: &Object) -> Verdict {
        let vm = vm_of(brand, payload);
        Verdict {
            action: "update",
            brand: Some(brand.to_owned()),
            result: vm.and_then(|vm| payload::update(&vm, payload).map(|_| ())),
        }
    }

    /// Whether it would be accepted.
    pub fn is_valid(&self) -> bool {
        self.result.is_ok()
    }

    /// The verdict in words.
    pub fn text(&self) -> String {
        let action = self.action;
        let what = match &self.brand {
            Some(brand) => format!("'{action}' payload for {brand} brand VMs"),
            None => format!("'{action}' payload"),
        };
        match &self.result {
            Ok(()) => format!("VALID {what}."),
            Err(invalid) => format!("INVALID {what}: {invalid}"),
        }
    }
}

fn brand(object: &Object) -> Option<String> {
    object.get("brand")?.as_str().map(str::to_owned)
}

/// A VM as it would be created with nothing but what is required, and what the payload names in it.
fn vm_of(brand: &str, payload: &Object) -> Result<Object, Invalid> {
    let mut required = Object::new();
    required.insert("brand".to_owned(), brand.into());
    if !matches!(brand, "kvm" | "bhyve") {
        required.insert(
            "image_uuid".to_owned(),
            uuid::Uuid::nil().to_string().into(),
        );
    }
    if brand == "lx" {
        required.insert("kernel_version".to_owned(), "4.10".into());
    }
    let mut vm = payload::create(&required)?.target;
    for (list, key) in LISTS {
        let named = named(payload, list, key);
        if named.is_empty() {
            continue;
        }
        let elements = named.into_iter().map(|name| json!({ key: name }));
        let elements: Vec<Value> = elements.collect();
        vm.insert(list.to_owned(), elements.into());
    }
    Ok(vm)
}

/// The names of the elements that a payload changes or removes.
fn named(payload: &Object, list: &str, key: &str) -> Vec<String> {
    let elements = |verb: &str| {
        let elements = payload.get(&format!("{verb}_{list}"));
        elements.and_then(Value::as_array).into_iter().flatten()
    };
    let updated = elements("update").filter_map(|element| element.get(key));
    let mut names: Vec<String> = updated
        .chain(elements("remove"))
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use crate::vm::payload::InvalidKind;

    use super::*;

    fn text(brand: Option<&str>, result: Result<(), Invalid>) -> String {
        let brand = brand.map(str::to_owned);
        let action = "create";
        Verdict {
            action,
            brand,
            result,
        }
        .text()
    }

    #[test]
    fn a_verdict_names_action_and_brand_as_smartos_does() {
        assert_eq!(
            text(Some("joyent"), Ok(())),
            "VALID 'create' payload for joyent brand VMs."
        );
        let invalid = |message: &str| {
            Err(Invalid {
                kind: InvalidKind::Value,
                message: message.to_owned(),
            })
        };
        assert_eq!(
            text(Some("lx"), invalid("quota: not a number")),
            "INVALID 'create' payload for lx brand VMs: quota: not a number"
        );
        assert_eq!(
            text(None, invalid("brand: required")),
            "INVALID 'create' payload: brand: required"
        );
    }

    #[test]
    fn what_is_changed_or_removed_is_named() {
        let payload = json!({
            "update_nics": [{"mac": "b", "ip": "x"}, {"mac": "a"}, {"ip": "y"}],
            "remove_nics": ["c", "a", 5],
            "remove_disks": "all",
        });
        let payload = payload.as_object().unwrap();
        assert_eq!(named(payload, "nics", "mac"), ["a", "b", "c"]);
        assert!(named(payload, "disks", "path").is_empty());
    }
}
