//! The nics, disks, filesystems and PCI devices of a target: elements that one of their members
//! tells apart. What only the devices of domains need is in `domain/devices.rs`.

use std::collections::BTreeSet;

use serde_json::Value;
use uuid::Uuid;

use super::addresses;
use super::draft::{Draft, Purpose, is_same_as, objects};
use super::value::{mac, same, value};
use super::{Invalid, InvalidKind, domain};
use crate::vm::Object;
use crate::vm::property::{self, Kind, Property};

/// Where the device of a volume is.
const ZVOL: &str = "/dev/zvol/rdsk/";

/// The member that tells the elements of a list apart. A domain's disks have names beside it.
pub(super) fn key_of(list: &str) -> &'static str {
    match list {
        "nics" => "mac",
        "filesystems" => "target",
        _ => "path",
    }
}

/// The rows of an element's members.
pub(super) fn members(list: &str) -> &'static [Property] {
    match property::property(list).map(|property| property.kind) {
        Some(Kind::Objects(members)) => members,
        _ => &[],
    }
}

/// Whether two texts name one element: macs are written in several ways.
pub(super) fn same_key(list: &str, a: &str, b: &str) -> bool {
    a == b || (list == "nics" && mac(a).is_some_and(|a| mac(b) == Some(a)))
}

/// The text that tells an element of a VM apart: the name of a domain's disk, whose path may be missing
/// or change, and else the list's key.
pub(super) fn ident_of<'a>(list: &str, element: &'a Object) -> Option<&'a str> {
    let text = |member| element.get(member).and_then(Value::as_str);
    let name = text("name").filter(|name| list == "disks" && !name.is_empty());
    name.or_else(|| text(key_of(list)))
}

/// The text by which an element that was given to a VM of this brand means one of the VM's.
pub(super) fn given_ident<'a>(brand: &str, list: &str, given: &'a Object) -> Option<&'a str> {
    match brand {
        property::LIBVIRT => ident_of(list, given),
        // Zones know of no name, whatever stands there.
        _ => given.get(key_of(list))?.as_str(),
    }
}

/// The one element of a list that a text names; `None` if none has it, or several.
pub(super) fn find<'a>(vm: &'a Object, list: &str, ident: &str) -> Option<&'a Object> {
    only(objects(vm, list).filter(|element| is_named(list, element, ident)))
}

/// The same, by what a user may say: a disk that has a name can be called by its path too.
pub(super) fn meant<'a>(vm: &'a Object, list: &str, said: &str) -> Option<&'a Object> {
    find(vm, list, said)
        .or_else(|| only(objects(vm, list).filter(|disk| has_path(list, disk, said))))
}

fn has_path(list: &str, element: &Object, said: &str) -> bool {
    let path = element.get("path").and_then(Value::as_str);
    list == "disks" && path == Some(said)
}

fn only<'a>(mut found: impl Iterator<Item = &'a Object>) -> Option<&'a Object> {
    found.next().filter(|_| found.next().is_none())
}

pub(super) fn is_named(list: &str, element: &Object, ident: &str) -> bool {
    ident_of(list, element).is_some_and(|own| same_key(list, own, ident))
}

impl Draft {
    /// Changes members of an element. `changes` may hold what names it too.
    pub(super) fn update_element(
        &mut self,
        list: &'static str,
        said: &str,
        changes: &Object,
    ) -> Result<(), Invalid> {
        let Some(old) = meant(&self.target, list, said) else {
            let many = objects(&self.target, list)
                .any(|element| is_named(list, element, said) || has_path(list, element, said));
            let reason = if many {
                "there are several"
            } else {
                "there is none"
            };
            return Err(InvalidKind::Unknown.refuse(format!("{list}[{said}]"), reason));
        };
        let before = old.clone();
        let ident = ident_of(list, &before).unwrap_or(said);
        let named = format!("{list}[{said}]");
        let mut element = before.clone();
        let mut primary = false;
        for (name, given) in changes {
            if names_it(list, &before, name)
                || (list == "disks" && name == "dangerous_allow_shrink")
            {
                continue;
            }
            if self.is_domain() && is_same_as(before.get(name), given) {
                self.note_size(name, ident);
                continue;
            }
            let (row, value) = self.member(list, &named, name, given, Purpose::Update)?;
            let old = before.get(row.name);
            if self.is_domain() {
                domain::can_become(list, &named, &before, row.name, value.as_ref())?;
                self.note_size(row.name, ident);
            } else if row.name == "size" {
                grows(&named, old, value.as_ref(), changes)?;
                // What is reserved whole stays so.
                let is_whole = old.is_some() && old == before.get("refreservation");
                if is_whole
                    && !changes.contains_key("refreservation")
                    && let Some(size) = &value
                {
                    element.insert("refreservation".to_owned(), size.clone());
                }
            }
            match value {
                Some(value) if old.is_some_and(|old| same(old, &value)) => {}
                Some(value) if row.name == "primary" => {
                    primary = value == true;
                    element.shift_remove("primary");
                }
                Some(value) => {
                    element.insert(row.name.to_owned(), value);
                }
                None => {
                    element.shift_remove(row.name);
                }
            }
        }
        if list == "nics" {
            addresses::settle(&named, &before, &mut element)?;
        }
        self.edit(list, |elements| {
            let is_it = |now: &&mut Value| {
                now.as_object()
                    .is_some_and(|now| is_named(list, now, ident))
            };
            if let Some(now) = elements.iter_mut().find(is_it) {
                *now = Value::Object(element);
            }
        });
        match primary {
            true => self.make_primary(ident),
            false => Ok(()),
        }
    }

    /// Removes an element.
    pub(super) fn remove_element(&mut self, list: &'static str, said: &str) -> Result<(), Invalid> {
        let Some(element) = meant(&self.target, list, said) else {
            let named = format!("{list}[{said}]");
            return Err(InvalidKind::Unknown.refuse(named, "there is none, or several"));
        };
        let ident = ident_of(list, element).unwrap_or(said).to_owned();
        let empty = self.edit(list, |elements| {
            elements.retain(|element| {
                !element
                    .as_object()
                    .is_some_and(|element| is_named(list, element, &ident))
            });
            elements.is_empty()
        });
        // Sources always show the nics, and the other lists of zones only when there is something in
        // them.
        if empty && list != "nics" && !self.is_domain() {
            self.target.shift_remove(list);
        }
        Ok(())
    }

    /// Adds an element, with what it needs and was not given.
    pub(super) fn add_element(
        &mut self,
        list: &'static str,
        given: &Object,
    ) -> Result<(), Invalid> {
        let ident = given_ident(&self.brand, list, given);
        let named = format!("{list}[{}]", ident.unwrap_or("new"));
        let mut element = Object::new();
        let mut primary =
            list == "nics" && !self.is_domain() && objects(&self.target, list).next().is_none();
        for (name, given) in given {
            if self.is_domain() {
                domain::can_be_given(list, &named, name)?;
            } else if list == "disks" && name == "nocreate" {
                continue;
            }
            match self.member(list, &named, name, given, Purpose::Create)? {
                (row, Some(value)) if row.name == "primary" => primary |= value == true,
                (row, Some(value)) => {
                    element.insert(row.name.to_owned(), value);
                }
                (_, None) => {}
            }
        }
        match list {
            "nics" if self.is_domain() => domain::complete_nic(&self.target, &named, &mut element)?,
            "disks" if self.is_domain() => self.complete_domain_disk(&named, &mut element)?,
            "nics" => self.complete_nic(&named, &mut element)?,
            "disks" => {
                let made = given
                    .get("nocreate")
                    .is_none_or(|no| *no != true && *no != "true");
                self.complete_disk(&named, &mut element, made)?;
            }
            "filesystems" => require(&named, &element, &["source", "target", "type"])?,
            _ => require(&named, &element, &["path"])?,
        }
        let ident = ident_of(list, &element).unwrap_or_default().to_owned();
        if objects(&self.target, list).any(|other| is_named(list, other, &ident)) {
            let reason = format!("there is one already; use update_{list}");
            return Err(InvalidKind::Value.refuse(format!("{list}[{ident}]"), reason));
        }
        self.append(list, element);
        match primary {
            true => self.make_primary(&ident),
            false => Ok(()),
        }
    }

    /// Puts an element where the source shows it.
    pub(super) fn append(&mut self, list: &'static str, element: Object) {
        let order = match list {
            // A domain's devices are shown in the order of its XML.
            _ if self.is_domain() => None,
            "nics" => Some(("interface", "t")),
            "disks" => Some(("path", "disk")),
            _ => None,
        };
        self.edit(list, |elements| {
            elements.push(Value::Object(element));
            if let Some((member, before)) = order {
                let number = |element: &Value| number_after(element, member, before);
                elements.sort_by_key(|element| number(element).unwrap_or(u64::MAX));
            }
        });
    }

    /// The value of a member. A boolean that is false is shown, as other values are.
    fn member(
        &self,
        list: &str,
        named: &str,
        name: &str,
        given: &Value,
        purpose: Purpose,
    ) -> Result<(&'static Property, Option<Value>), Invalid> {
        let full = format!("{named}.{name}");
        let row = members(list)
            .iter()
            .find(|member| member.name == name)
            .ok_or_else(|| InvalidKind::Unknown.refuse(&full, "no such property"))?;
        if !self.allows(row, purpose) {
            return Err(self.fixed(row, &full, purpose));
        }
        // Nothing is there yet that could not be removed.
        if purpose == Purpose::Create && (given.is_null() || *given == "") {
            return Ok((row, None));
        }
        Ok((row, value(&self.brand, row, list, &full, given)?))
    }

    fn complete_nic(&self, named: &str, nic: &mut Object) -> Result<(), Invalid> {
        let interface = match nic.get("interface").and_then(Value::as_str) {
            Some(interface) => interface.to_owned(),
            None => free("net", |name| {
                objects(&self.target, "nics").any(|nic| text(nic, "interface") == name)
            }),
        };
        if objects(&self.target, "nics").any(|nic| text(nic, "interface") == interface) {
            let reason = format!("another nic is {interface}");
            return Err(InvalidKind::Value.refuse(format!("{named}.interface"), reason));
        }
        nic.insert("interface".to_owned(), Value::from(interface));
        let mac = match nic.get("mac").and_then(Value::as_str) {
            Some(given) => mac(given).unwrap_or_else(|| given.to_owned()),
            // Locally administered, as SmartOS makes them.
            None => new_mac(&[0x92], |mac| {
                objects(&self.target, "nics").any(|nic| is_named("nics", nic, mac))
            }),
        };
        nic.insert("mac".to_owned(), Value::from(mac));
        addresses::settle(named, &Object::new(), nic)?;
        if property::hvm(&self.brand) && !nic.contains_key("model") {
            nic.insert("model".to_owned(), self.driver("nic_driver"));
        }
        Ok(())
    }

    /// Makes this nic the primary one, and no other.
    fn make_primary(&mut self, ident: &str) -> Result<(), Invalid> {
        if let Some(other) = &self.primary
            && !same_key("nics", other, ident)
        {
            let reason = format!("nics[{other}] is to be the primary one already");
            return Err(InvalidKind::Value.refuse(format!("nics[{ident}].primary"), reason));
        }
        let said = self.primary.is_some();
        self.edit("nics", |nics| {
            for nic in nics.iter_mut().filter_map(Value::as_object_mut) {
                if is_named("nics", nic, ident) {
                    nic.insert("primary".to_owned(), Value::Bool(true));
                } else if !said {
                    nic.shift_remove("primary");
                }
            }
        });
        self.primary = Some(ident.to_owned());
        Ok(())
    }

    fn complete_disk(&self, named: &str, disk: &mut Object, made: bool) -> Result<(), Invalid> {
        if !disk.contains_key("media") {
            disk.insert("media".to_owned(), Value::from("disk"));
        }
        if !disk.contains_key("model") {
            disk.insert("model".to_owned(), self.driver("disk_driver"));
        }
        let pool = match disk.get("zpool").or_else(|| self.target.get("zpool")) {
            Some(Value::String(pool)) => pool.clone(),
            _ => "zones".to_owned(),
        };
        if !disk.contains_key("path") {
            if !made {
                return Err(InvalidKind::Value.refuse(format!("{named}.path"), "missing"));
            }
            disk.insert("path".to_owned(), Value::from(self.free_volume(&pool)));
        }
        let path = text(disk, "path");
        if !path.starts_with(ZVOL) && made && disk.contains_key("size") {
            let reason = format!("only a volume below {ZVOL} is made with a size: {path}");
            return Err(InvalidKind::Value.refuse(format!("{named}.path"), reason));
        }
        let Some(volume) = path.strip_prefix(ZVOL).map(str::to_owned).filter(|_| made) else {
            // A file, or a volume that is there: the source knows what it is.
            for member in [
                "zpool",
                "size",
                "compression",
                "refreservation",
                "block_size",
            ] {
                disk.shift_remove(member);
            }
            return Ok(());
        };
        let Some((in_pool, _)) = volume.split_once('/') else {
            let reason = format!("names no volume: {path}");
            return Err(InvalidKind::Value.refuse(format!("{named}.path"), reason));
        };
        let zone = self.zone();
        let is_ours = volume.split('/').skip(1).any(|part| {
            part.strip_prefix(zone)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("-disk"))
        });
        if !is_ours {
            let reason = format!("a new volume of this VM is called {zone}-diskN: {path}");
            return Err(InvalidKind::Value.refuse(format!("{named}.path"), reason));
        }
        if disk.contains_key("zpool") && in_pool != pool {
            let reason = format!("the path is in the pool {in_pool}: {pool}");
            return Err(InvalidKind::Value.refuse(format!("{named}.zpool"), reason));
        }
        let in_pool = Value::from(in_pool);
        let image_size = disk.get("image_size").cloned();
        let size = match (disk.get("size").cloned(), image_size) {
            (Some(size), Some(image)) if size.as_f64() < image.as_f64() => {
                let reason = format!("smaller than its image, which has {image} MiB: {size}");
                return Err(InvalidKind::Value.refuse(format!("{named}.size"), reason));
            }
            (Some(size), _) | (None, Some(size)) => size,
            (None, None) => {
                let reason = "missing; a new disk needs it, or image_size";
                return Err(InvalidKind::Value.refuse(format!("{named}.size"), reason));
            }
        };
        disk.insert("size".to_owned(), size);
        disk.insert("zpool".to_owned(), in_pool);
        disk.insert("zfs_filesystem".to_owned(), Value::from(volume));
        Ok(())
    }

    /// The path of the next volume of this VM.
    fn free_volume(&self, pool: &str) -> String {
        let taken: BTreeSet<u64> = objects(&self.target, "disks")
            .filter_map(|disk| number_in(text(disk, "path"), "disk"))
            .collect();
        let number = (0..).find(|number| !taken.contains(number)).unwrap_or(0);
        format!("{ZVOL}{pool}/{}-disk{number}", self.zone())
    }

    /// What its datasets are called.
    fn zone(&self) -> &str {
        match text(&self.target, "zonename") {
            "" => text(&self.target, "uuid"),
            zonename => zonename,
        }
    }

    /// The model of devices that name none.
    fn driver(&self, property: &str) -> Value {
        let driver = self.target.get(property).cloned();
        driver.unwrap_or_else(|| Value::from("virtio"))
    }

    /// Changes a list, which may not be there yet.
    pub(super) fn edit<R>(&mut self, list: &str, change: impl FnOnce(&mut Vec<Value>) -> R) -> R {
        let mut elements = match self.target.get_mut(list).map(Value::take) {
            Some(Value::Array(elements)) => elements,
            _ => Vec::new(),
        };
        let result = change(&mut elements);
        self.target.insert(list.to_owned(), Value::from(elements));
        result
    }
}

/// Whether a member that was given with an element's changes only says which element is meant.
fn names_it(list: &str, element: &Object, name: &str) -> bool {
    match element.contains_key("name") && list == "disks" {
        true => name == "name",
        false => name == key_of(list),
    }
}

/// A mac that nobody has: what follows the prefix is random.
pub(super) fn new_mac(prefix: &[u8], taken: impl Fn(&str) -> bool) -> String {
    loop {
        let random = Uuid::new_v4();
        let octets = prefix.iter().chain(random.as_bytes()).take(6);
        let parts: Vec<String> = octets.map(|octet| format!("{octet:02x}")).collect();
        let mac = parts.join(":");
        if !taken(&mac) {
            return mac;
        }
    }
}

/// Whether a disk may get this size.
fn grows(
    named: &str,
    old: Option<&Value>,
    new: Option<&Value>,
    changes: &Object,
) -> Result<(), Invalid> {
    let allowed = changes
        .get("dangerous_allow_shrink")
        .is_some_and(|allow| *allow == true || *allow == "true");
    let (Some(old), Some(new)) = (old.and_then(Value::as_f64), new.and_then(Value::as_f64)) else {
        return Ok(());
    };
    if new < old && !allowed {
        let reason = format!("smaller than it is, {old} MiB; disks only grow: {new}");
        return Err(InvalidKind::Value.refuse(format!("{named}.size"), reason));
    }
    Ok(())
}

fn require(named: &str, element: &Object, members: &[&str]) -> Result<(), Invalid> {
    match members
        .iter()
        .find(|member| !element.contains_key(**member))
    {
        Some(member) => Err(InvalidKind::Value.refuse(format!("{named}.{member}"), "missing")),
        None => Ok(()),
    }
}

/// The first of `prefix0`, `prefix1` and so on that is not taken.
fn free(prefix: &str, taken: impl Fn(&str) -> bool) -> String {
    let mut number = 0u32;
    loop {
        let name = format!("{prefix}{number}");
        if !taken(&name) {
            return name;
        }
        number += 1;
    }
}

pub(super) fn text<'a>(object: &'a Object, member: &str) -> &'a str {
    object.get(member).and_then(Value::as_str).unwrap_or("")
}

fn number_after(element: &Value, member: &str, before: &str) -> Option<u64> {
    number_in(element.get(member)?.as_str()?, before)
}

/// The number at the end of a text, after the last `before`.
fn number_in(text: &str, before: &str) -> Option<u64> {
    text.rsplit_once(before)?.1.parse().ok()
}
