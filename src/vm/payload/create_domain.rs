//! Create payloads for a libvirt: its domains have few of the properties of zones, and other defaults.

use serde_json::Value;

use super::create::{Created, elements, entries, is_no_verb, new_uuid};
use super::draft::{Draft, objects};
use super::elements::text;
use super::value::is_xml;
use super::{Invalid, InvalidKind, Object};
use crate::vm::property::{self, Kind};

/// The types of libvirt's domains that run a kernel of their own on virtual hardware; what others need
/// (a kernel, an init) no property says.
const BRANDS: [&str; 4] = ["kvm", "qemu", "test", "xen"];

/// How long a domain's name can be, in bytes: libvirt calls files so, and puts up to `.xml.new` behind it.
const LONGEST_NAME: usize = 255 - ".xml.new".len();

/// What domain a create payload asks for: `brand` is its type, `zonename` its name. It has no volume
/// that is to be made: disks are there.
///
/// # Errors
/// When a required property is missing or one is not acceptable.
pub fn create_domain(payload: &Object) -> Result<Created, Invalid> {
    let brand = match payload.get("brand").and_then(Value::as_str) {
        Some(brand) if BRANDS.contains(&brand) => brand,
        Some(brand) => {
            let known = BRANDS.join(", ");
            let reason = format!("not a type of domain that can be made here, {known}: {brand}");
            return Err(InvalidKind::Value.refuse("brand", reason));
        }
        None => return Err(InvalidKind::Value.refuse("brand", "missing")),
    };
    let mut draft = Draft::new(property::LIBVIRT);
    let uuid = new_uuid(payload)?;
    draft.put("uuid", Some(Value::from(uuid.to_string())));
    draft.put("brand", Some(Value::from(brand)));
    let name = domain_name(payload, &uuid.to_string())?;
    draft.put("zonename", Some(Value::from(name.as_str())));
    for (name, given) in payload {
        if matches!(name.as_str(), "brand" | "uuid" | "zonename") {
            continue;
        }
        is_no_verb(name)?;
        if name == "quota" {
            let reason = "not of a new domain: it is the size of the disk that is booted from; give \
                          disks with its path";
            return Err(InvalidKind::Fixed.refuse(name, reason));
        }
        let row = draft.row(name)?;
        match row.kind {
            _ if given.is_null() || *given == "" => {}
            Kind::Map => entries(&mut draft, row.name, given)?,
            Kind::Objects(_) => elements(&mut draft, row.name, given)?,
            _ => draft.set(row.name, given)?,
        }
    }
    defaults(&mut draft, name)?;
    boot_from_one(&mut draft)?;
    Ok(Created {
        uuid,
        target: draft.finish()?,
    })
}

/// What libvirt is to call it: its zonename, else its alias if that can be a name, else its uuid.
fn domain_name(payload: &Object, uuid: &str) -> Result<String, Invalid> {
    let given = |name: &str| {
        let given = payload.get(name);
        given.filter(|given| !given.is_null() && **given != "")
    };
    let is_name = |text: &&str| {
        is_xml(text)
            && text.trim() == *text
            && text.len() <= LONGEST_NAME
            && !text.contains(|c: char| c == '/' || c.is_control())
            && !matches!(*text, "" | "." | "..")
    };
    match given("zonename") {
        Some(given) => match given.as_str().filter(is_name) {
            Some(name) => Ok(name.to_owned()),
            None => {
                let reason = format!("not the name of a domain: {given}");
                Err(InvalidKind::Value.refuse("zonename", reason))
            }
        },
        None => {
            let alias = given("alias").and_then(Value::as_str).filter(is_name);
            Ok(alias.unwrap_or(uuid).to_owned())
        }
    }
}

/// Everything that a domain has and this payload does not say.
fn defaults(draft: &mut Draft, name: String) -> Result<(), Invalid> {
    let (ram, most) = (draft.number("ram"), draft.number("max_physical_memory"));
    let Some(memory) = ram.or(most) else {
        return Err(InvalidKind::Value.refuse("ram", "missing; a domain needs it"));
    };
    draft.follow("ram", memory);
    draft.follow("max_physical_memory", memory);
    draft.follow("vcpus", 1.0);
    let vcpus = draft.number("vcpus").unwrap_or(1.0);
    draft.follow("max_vcpus", vcpus);
    // Whatever stands for a port of libvirt's choice.
    if draft.number("vnc_port") == Some(0.0) {
        draft.put("vnc_port", Some(Value::from(-1)));
    }
    let none = || Value::from(Vec::<Value>::new());
    for (property, value) in [
        ("alias", Value::from(name)),
        ("autoboot", Value::from(true)),
        ("hvm", Value::from(true)),
        ("persistent", Value::from(true)),
        ("managed_save", Value::from(false)),
        ("nics", none()),
        ("disks", none()),
        ("snapshots", none()),
        ("tags", Value::Object(Object::new())),
        ("customer_metadata", Value::Object(Object::new())),
    ] {
        if !draft.target.contains_key(property) {
            draft.put(property, Some(value));
        }
    }
    Ok(())
}

/// A domain boots from the disk that says so, else from its first one, and with none from a drive.
fn boot_from_one(draft: &mut Draft) -> Result<(), Invalid> {
    let disks: Vec<&Object> = objects(&draft.target, "disks").collect();
    let mut said = disks.iter().filter(|disk| disk.contains_key("boot"));
    if let Some(first) = said.next() {
        return match said.next() {
            None => Ok(()),
            Some(second) => {
                let (first, second) = (text(first, "name"), text(second, "name"));
                let reason = format!("disks[{first}] is to be booted from already");
                Err(InvalidKind::Value.refuse(format!("disks[{second}].boot"), reason))
            }
        };
    }
    let of_media = |media| disks.iter().position(|disk| text(disk, "media") == media);
    let Some(first) = of_media("disk").or_else(|| of_media("cdrom")) else {
        return Ok(());
    };
    draft.edit("disks", |disks| {
        if let Some(disk) = disks.get_mut(first).and_then(Value::as_object_mut) {
            disk.insert("boot".to_owned(), Value::Bool(true));
        }
    });
    Ok(())
}
