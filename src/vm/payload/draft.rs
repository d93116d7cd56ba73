//! A target while it is being made: single properties and maps, and what follows from them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::value::{is_xml, same, value};
use super::{Invalid, InvalidKind};
use crate::vm::Object;
use crate::vm::property::{self, Kind, Property};

/// What the target is for: it decides which properties can be given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A new VM.
    Create,
    /// A VM that there is.
    Update,
}

/// A target while it is being made.
pub(super) struct Draft {
    pub(super) purpose: Purpose,
    pub(super) brand: String,
    /// The VM as it is; empty for a new one.
    pub(super) before: Object,
    pub(super) target: Object,
    /// The single properties that were given, whatever their value.
    pub(super) said: BTreeSet<&'static str>,
    /// The `ram` that was given; zones have no such member.
    pub(super) ram: Option<f64>,
    /// The nic that was made the primary one.
    pub(super) primary: Option<String>,
    /// The disks that were given a size.
    pub(super) sized: BTreeSet<String>,
}

impl Draft {
    /// The target that is the VM as it is.
    pub(super) fn of(vm: &Object) -> Draft {
        let brand = property::brand(vm);
        Draft {
            purpose: Purpose::Update,
            brand: brand.unwrap_or("joyent").to_owned(),
            before: vm.clone(),
            target: vm.clone(),
            said: BTreeSet::new(),
            ram: None,
            primary: None,
            sized: BTreeSet::new(),
        }
    }

    /// The target of a VM that is to be made; of a domain, the brand is that of all domains.
    pub(super) fn new(brand: &str) -> Draft {
        Draft {
            purpose: Purpose::Create,
            brand: brand.to_owned(),
            before: Object::new(),
            target: Object::new(),
            said: BTreeSet::new(),
            ram: None,
            primary: None,
            sized: BTreeSet::new(),
        }
    }

    /// Whether this is a domain of a libvirt.
    pub(super) fn is_domain(&self) -> bool {
        self.brand == property::LIBVIRT
    }

    /// Whether a property can be removed. A domain's quota is the size of a disk.
    pub(super) fn removable(&self, property: &Property) -> bool {
        property.removable && !(self.is_domain() && property.name == "quota")
    }

    /// Whether this target's brand can be given this property, or this member of an element.
    pub(super) fn allows(&self, property: &Property, purpose: Purpose) -> bool {
        let brands = match purpose {
            Purpose::Create => property.create,
            Purpose::Update => property.update,
        };
        brands.contains(&self.brand)
    }

    /// The row of a property that can be given.
    pub(super) fn row(&self, name: &str) -> Result<&'static Property, Invalid> {
        let property = property::property(name)
            .ok_or_else(|| InvalidKind::Unknown.refuse(name, "no such property"))?;
        match self.allows(property, self.purpose) {
            true => Ok(property),
            false => Err(self.fixed(property, name, self.purpose)),
        }
    }

    /// The refusal of a property that cannot be given.
    pub(super) fn fixed(&self, property: &Property, name: &str, purpose: Purpose) -> Invalid {
        let nobody = property::Brands::NONE;
        let reason = match purpose {
            Purpose::Create if self.is_domain() => "cannot be given to a libvirt domain".to_owned(),
            Purpose::Update if self.is_domain() => {
                "cannot be changed on a libvirt domain".to_owned()
            }
            Purpose::Create if property.create == nobody => "cannot be given".to_owned(),
            Purpose::Update if property.update == nobody => "cannot be changed".to_owned(),
            _ => format!("not a property of brand {}", self.brand),
        };
        InvalidKind::Fixed.refuse(name, reason)
    }

    /// Gives a single property a value, or with an empty one removes it.
    pub(super) fn set(&mut self, name: &str, given: &Value) -> Result<(), Invalid> {
        let property = self.row(name)?;
        if let Some(verbs) = verbs(property) {
            let reason = format!("cannot be given whole; use {verbs}");
            return Err(InvalidKind::Value.refuse(name, reason));
        }
        self.said.insert(property.name);
        if self.is_domain() && is_same_as(self.before.get(name), given) {
            return Ok(());
        }
        let value = value(&self.brand, property, "", name, given)?;
        if value.as_ref().is_none_or(is_zero) && self.is_domain() && name == "quota" {
            let reason = "cannot be removed: it is the size of the disk that is booted from";
            return Err(InvalidKind::Value.refuse(name, reason));
        }
        if property.name == "ram" {
            self.ram = value.as_ref().and_then(Value::as_f64);
            let is_zone = !property::hvm(&self.brand) && !self.is_domain();
            if is_zone && !self.target.contains_key("ram") {
                return Ok(());
            }
        }
        if name.starts_with("zfs_data_") || name == "indestructible_delegated" {
            let wanted = value.as_ref().is_some_and(|value| *value != false);
            if wanted && !self.delegates() {
                return Err(InvalidKind::Value.refuse(name, "the VM has no delegated dataset"));
            }
        }
        let value = self.canonical(property, value);
        self.put(property.name, value);
        Ok(())
    }

    /// What the source shows once this was written: some values are those of a property that is
    /// not there.
    fn canonical(&self, property: &Property, value: Option<Value>) -> Option<Value> {
        match (property.name, value) {
            // libvirt knows of no title that is empty or has space around it.
            ("alias", Some(Value::String(title))) if self.is_domain() => match title.trim() {
                "" => self.target.get("zonename").cloned(),
                title => Some(Value::from(title)),
            },
            ("alias", None) if self.is_domain() => self.target.get("zonename").cloned(),
            ("resolvers", None) => Some(Value::Array(Vec::new())),
            // A dataset without a quota has the quota 0.
            ("quota", None) => self.before.get("quota").map(|_| Value::from(0)),
            ("quota", Some(zero)) if is_zero(&zero) => {
                self.before.get("quota").map(|_| Value::from(0))
            }
            ("cpu_cap", Some(zero)) if is_zero(&zero) => None,
            ("restart_init", Some(Value::Bool(true))) => None,
            (
                "do_not_inventory"
                | "docker"
                | "archive_on_delete"
                | "maintain_resolvers"
                | "indestructible_zoneroot"
                | "indestructible_delegated",
                Some(Value::Bool(false)),
            ) => None,
            ("zfs_root_compression" | "zfs_data_compression", Some(off)) if off == "off" => None,
            (_, value) => value,
        }
    }

    /// Changes a member of the target; one that is the same stays as it was written.
    pub(super) fn put(&mut self, name: &str, value: Option<Value>) {
        match value {
            None => {
                self.target.shift_remove(name);
            }
            Some(value) => {
                let stays = self.target.get(name).is_some_and(|old| same(old, &value));
                if !stays {
                    self.target.insert(name.to_owned(), value);
                }
            }
        }
    }

    /// A number of the target.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.target.get(name).and_then(Value::as_f64)
    }

    fn delegates(&self) -> bool {
        let Some(root) = self.target.get("zfs_filesystem").and_then(Value::as_str) else {
            return false;
        };
        let data = format!("{root}/data");
        let named = self.target.get("datasets").and_then(Value::as_array);
        named.is_some_and(|named| named.iter().any(|name| *name == data.as_str()))
            || self.target.contains_key("zfs_data_recsize")
    }

    /// Gives the key of a map a value.
    pub(super) fn set_entry(&mut self, map: &str, key: &str, value: &Value) -> Result<(), Invalid> {
        if key.is_empty() {
            return Err(InvalidKind::Value.refuse(map, "a key is empty"));
        }
        let good = match value {
            Value::String(_) => true,
            Value::Number(_) | Value::Bool(_) => map != "routes",
            _ => false,
        };
        if !good {
            let wanted = match (map, value) {
                (_, Value::Null) => format!("null is no value; use remove_{map}"),
                ("routes", _) => format!("not a text: {value}"),
                _ => format!("not a text, a number, true or false: {value}"),
            };
            return Err(InvalidKind::Value.refuse(format!("{map}.{key}"), wanted));
        }
        let is_xml = is_xml(key) && value.as_str().is_none_or(is_xml);
        if self.is_domain() && !is_xml {
            let name = format!("{map}.{}", key.escape_debug());
            let reason = "has a character that XML, in which libvirt keeps it, cannot hold";
            return Err(InvalidKind::Value.refuse(name, reason));
        }
        let entries = self
            .target
            .entry(map)
            .or_insert_with(|| Value::Object(Object::new()));
        if let Value::Object(entries) = entries
            && !entries.get(key).is_some_and(|old| same(old, value))
        {
            entries.insert(key.to_owned(), value.clone());
        }
        Ok(())
    }

    /// Removes the key of a map, if it is there.
    pub(super) fn remove_entry(&mut self, map: &str, key: &str) {
        if let Some(Value::Object(entries)) = self.target.get_mut(map) {
            entries.shift_remove(key);
        }
    }

    /// Settles what follows from what was given, and what must fit together.
    pub(super) fn finish(mut self) -> Result<Object, Invalid> {
        if self.is_domain() {
            self.settle_domain()?;
        } else {
            self.settle_memory()?;
            self.settle_free_space()?;
        }
        property::sort(&mut self.target);
        Ok(self.target)
    }

    /// What the disks of a bhyve VM leave free. How much their snapshots take up is part of what
    /// is shown as free now.
    fn settle_free_space(&mut self) -> Result<(), Invalid> {
        let whole = |vm: &Object, name| vm.get(name).and_then(Value::as_i64);
        let Some(all) = whole(&self.target, "flexible_disk_size") else {
            self.put("free_space", None);
            return Ok(());
        };
        let Some((was, free)) =
            whole(&self.before, "flexible_disk_size").zip(whole(&self.before, "free_space"))
        else {
            return Ok(());
        };
        let mut grown = 0;
        for disk in objects(&self.before, "disks") {
            let path = disk.get("path");
            if !objects(&self.target, "disks").any(|now| now.get("path") == path) {
                // Its snapshots go too, and only the source knows how large they are.
                return Ok(());
            }
            grown -= whole(disk, "size").unwrap_or(0);
        }
        for disk in objects(&self.target, "disks") {
            grown += whole(disk, "size").unwrap_or(0);
        }
        let change = all.saturating_sub(was).saturating_sub(grown);
        if change == 0 {
            return Ok(());
        }
        let free = free.saturating_add(change);
        if free < 0 && change < 0 {
            let reason = format!("{} MiB too small for the disks and their snapshots", -free);
            return Err(InvalidKind::Value.refuse("flexible_disk_size", reason));
        }
        self.put("free_space", Some(Value::from(free)));
        Ok(())
    }
}

/// The verbs that change a property which cannot be given whole.
fn verbs(property: &Property) -> Option<String> {
    let name = property.name;
    match property.kind {
        Kind::Map => Some(format!("set_{name} or remove_{name}")),
        Kind::Objects(_) => Some(format!("add_{name}, update_{name} or remove_{name}")),
        _ => None,
    }
}

/// The objects of a list of a VM.
pub(super) fn objects<'a>(vm: &'a Object, list: &str) -> impl Iterator<Item = &'a Object> {
    let list = vm.get(list).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_object)
}

/// Whether what is given, itself or as its text, is what is there: however odd that is, it may stay.
pub(super) fn is_same_as(now: Option<&Value>, given: &Value) -> bool {
    let Some(now) = now else {
        return false;
    };
    let read = match (now, given) {
        (Value::Number(_) | Value::Bool(_), Value::String(text)) => {
            serde_json::from_str::<Value>(text.trim()).ok()
        }
        _ => None,
    };
    same(now, read.as_ref().unwrap_or(given))
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}
