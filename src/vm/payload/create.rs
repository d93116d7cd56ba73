//! Create payloads: the names that all others are made of, what is required, and the defaults.
//! Whether the uuid, the image or the pool exist is for the source to say.

use std::time::SystemTime;

use serde_json::Value;
use uuid::Uuid;

use super::draft::Draft;
use super::elements::text;
use super::value::{is_pool, is_uuid};
use super::{Invalid, InvalidKind, Object};
use crate::vm::property::{self, Brands, Kind};

/// A VM that is to be made.
#[derive(Clone, Debug)]
pub struct Created {
    /// Its uuid: the payload's, else a new one.
    pub uuid: Uuid,
    /// The whole object, defaults included, as it is to be shown. It has no `state` and what else
    /// only a source can know. A disk that has `size` is to be made, another one is there.
    pub target: Object,
}

/// The brands that there are.
const BRANDS: [&str; 6] = ["joyent", "joyent-minimal", "builder", "lx", "kvm", "bhyve"];

/// What zones of virtual machines may do.
const HVM_PRIVILEGES: &str =
    "default,-file_link_any,-net_access,-proc_fork,-proc_info,-proc_session";

/// What VM a create payload asks for.
///
/// # Errors
/// When a required property is missing or one is not acceptable.
pub fn create(payload: &Object) -> Result<Created, Invalid> {
    let brand = match payload.get("brand").and_then(Value::as_str) {
        Some(brand) if BRANDS.contains(&brand) => brand,
        Some(brand) => {
            let reason = format!("not one of {}: {brand}", BRANDS.join(", "));
            return Err(InvalidKind::Value.refuse("brand", reason));
        }
        None => return Err(InvalidKind::Value.refuse("brand", "missing")),
    };
    let mut draft = Draft::new(brand);
    let uuid = names(&mut draft, payload)?;
    let mut delegate = false;
    let mut later = Vec::new();
    for (name, given) in payload {
        match name.as_str() {
            "brand" | "uuid" | "zonename" | "zpool" => continue,
            "delegate_dataset" => {
                delegate = flag(name, given)?;
                if delegate && property::hvm(brand) {
                    let reason = format!("not a property of brand {brand}");
                    return Err(InvalidKind::Fixed.refuse(name, reason));
                }
                continue;
            }
            _ => {}
        }
        is_no_verb(name)?;
        let row = draft.row(name)?;
        match row.kind {
            Kind::Map | Kind::Objects(_) => later.push((row, given)),
            _ => later.insert(0, (row, given)),
        }
    }
    if delegate {
        let data = format!("{}/data", text(&draft.target, "zfs_filesystem"));
        draft.put("datasets", Some(Value::from(vec![data])));
    }
    for (row, given) in later {
        match row.kind {
            _ if given.is_null() || *given == "" => {}
            Kind::Map => entries(&mut draft, row.name, given)?,
            Kind::Objects(_) => elements(&mut draft, row.name, given)?,
            _ => draft.set(row.name, given)?,
        }
    }
    required(&draft)?;
    defaults(&mut draft);
    let mut target = draft.finish()?;
    if target
        .get("disks")
        .is_some_and(|disks| *disks == Value::Array(Vec::new()))
    {
        target.shift_remove("disks");
    }
    boot_from_the_first(&mut target);
    property::sort(&mut target);
    Ok(Created { uuid, target })
}

/// Settles the names, of which others are made.
fn names(draft: &mut Draft, payload: &Object) -> Result<Uuid, Invalid> {
    let given = |name: &str| {
        payload
            .get(name)
            .filter(|given| !given.is_null() && **given != "")
    };
    let refuse = |name: &str, wanted: &str, given: &Value| {
        Err(InvalidKind::Value.refuse(name, format!("{wanted}: {given}")))
    };
    let uuid = new_uuid(payload)?;
    let zonename = match given("zonename") {
        None => uuid.to_string(),
        Some(given) => match given.as_str().filter(|name| is_zonename(name)) {
            Some(name) => name.to_owned(),
            None => return refuse("zonename", "not the name of a zone", given),
        },
    };
    let zpool = match given("zpool") {
        None => "zones",
        Some(given) => match given.as_str().filter(|name| is_pool(name)) {
            Some(name) => name,
            None => return refuse("zpool", "not the name of a pool", given),
        },
    };
    let filesystem = format!("{zpool}/{uuid}");
    for (name, value) in [
        ("uuid", Value::from(uuid.to_string())),
        ("zonename", Value::from(zonename)),
        ("brand", Value::from(draft.brand.as_str())),
        ("zpool", Value::from(zpool)),
        ("zonepath", Value::from(format!("/{filesystem}"))),
        ("zfs_filesystem", Value::from(filesystem)),
    ] {
        draft.put(name, Some(value));
    }
    Ok(uuid)
}

/// The uuid of a new VM: the one that was given, else one that nobody has.
pub(super) fn new_uuid(payload: &Object) -> Result<Uuid, Invalid> {
    let given = payload.get("uuid");
    let Some(given) = given.filter(|given| !given.is_null() && **given != "") else {
        return Ok(Uuid::new_v4());
    };
    let uuid = given.as_str().filter(|text| is_uuid(text));
    match uuid.and_then(|text| Uuid::try_parse(text).ok()) {
        Some(uuid) if !uuid.is_nil() => Ok(uuid),
        _ => Err(InvalidKind::Value.refuse("uuid", format!("not a uuid: {given}"))),
    }
}

/// Zones have names of at most 63 bytes; two of them belong to the system.
fn is_zonename(name: &str) -> bool {
    name.len() < 64
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
        && name != "global"
        && !name.starts_with("SUNW")
}

fn flag(name: &str, given: &Value) -> Result<bool, Invalid> {
    match given {
        Value::Bool(flag) => Ok(*flag),
        Value::String(text) if text == "true" => Ok(true),
        Value::String(text) if text == "false" || text.is_empty() => Ok(false),
        _ => Err(InvalidKind::Value.refuse(name, format!("not true or false: {given}"))),
    }
}

/// Refuses the verbs of update payloads.
pub(super) fn is_no_verb(name: &str) -> Result<(), Invalid> {
    if let Some((verb, collection)) = name.split_once('_')
        && matches!(verb, "add" | "set" | "update" | "remove")
        && property::property(collection).is_some()
    {
        let reason = format!("only for a VM that exists; give {collection}");
        return Err(InvalidKind::Value.refuse(name, reason));
    }
    Ok(())
}

pub(super) fn entries(draft: &mut Draft, map: &str, given: &Value) -> Result<(), Invalid> {
    let Some(entries) = given.as_object() else {
        return Err(InvalidKind::Value.refuse(map, "not an object"));
    };
    entries
        .iter()
        .try_for_each(|(key, value)| draft.set_entry(map, key, value))
}

pub(super) fn elements(
    draft: &mut Draft,
    list: &'static str,
    given: &Value,
) -> Result<(), Invalid> {
    let refuse = || InvalidKind::Value.refuse(list, "not a list of objects");
    for element in given.as_array().ok_or_else(refuse)? {
        draft.add_element(list, element.as_object().ok_or_else(refuse)?)?;
    }
    Ok(())
}

fn required(draft: &Draft) -> Result<(), Invalid> {
    let needs = |name: &str, brands: Brands| match brands.contains(&draft.brand)
        && !draft.target.contains_key(name)
    {
        true => {
            let reason = format!("missing; brand {} needs it", draft.brand);
            Err(InvalidKind::Value.refuse(name, reason))
        }
        false => Ok(()),
    };
    needs("image_uuid", Brands::ZONES)?;
    needs("kernel_version", Brands::LX)
}

/// Everything that a VM has and this payload does not say.
fn defaults(draft: &mut Draft) {
    let hvm = property::hvm(&draft.brand);
    let nobody = Uuid::nil().to_string();
    let now = humantime::format_rfc3339_millis(SystemTime::now()).to_string();
    let privileges = if hvm { HVM_PRIVILEGES } else { "default" };
    let quota = if draft.brand == "bhyve" { 1 } else { 10 };
    let mut all = vec![
        ("autoboot", Value::from(true)),
        ("limit_priv", Value::from(privileges)),
        ("v", Value::from(1)),
        ("create_timestamp", Value::from(now)),
        ("cpu_shares", Value::from(100)),
        ("zfs_io_priority", Value::from(100)),
        ("max_lwps", Value::from(2000)),
        ("max_msg_ids", Value::from(4096)),
        ("max_sem_ids", Value::from(4096)),
        ("max_shm_ids", Value::from(4096)),
        ("billing_id", Value::from(nobody.as_str())),
        ("owner_uuid", Value::from(nobody)),
        ("resolvers", Value::from(Vec::<Value>::new())),
        ("firewall_enabled", Value::from(false)),
        ("nics", Value::from(Vec::<Value>::new())),
        ("hvm", Value::from(hvm)),
        ("customer_metadata", Value::Object(Object::new())),
        ("internal_metadata", Value::Object(Object::new())),
        ("routes", Value::Object(Object::new())),
        ("tags", Value::Object(Object::new())),
        ("snapshots", Value::from(Vec::<Value>::new())),
    ];
    match hvm {
        true => all.push(("vcpus", Value::from(1))),
        false => all.push(("dns_domain", Value::from("local"))),
    }
    // Who says 0 wants none, which is not shown.
    if !draft.said.contains("quota") {
        all.push(("quota", Value::from(quota)));
    }
    for (name, value) in all {
        if !draft.target.contains_key(name) {
            draft.put(name, Some(value));
        }
    }
    memory(draft, hvm);
}

/// The limits of memory: all of them follow from `ram`, or from `max_physical_memory`.
fn memory(draft: &mut Draft, hvm: bool) {
    let said = draft.number("max_physical_memory");
    let ram = match (draft.ram, said) {
        (Some(ram), _) => ram,
        (None, Some(physical)) if !hvm => physical,
        (None, _) => 256.0,
    };
    if hvm {
        draft.follow("ram", ram);
    }
    let physical = said.unwrap_or(ram + draft.overhead());
    draft.follow("max_physical_memory", physical);
    draft.follow("max_locked_memory", physical);
    draft.follow("max_swap", physical.max(256.0));
    draft.follow("max_shm_memory", physical);
    if !hvm {
        draft.follow("tmpfs", physical);
    }
}

/// A VM boots from its first disk unless another one is named.
fn boot_from_the_first(target: &mut Object) {
    let disks = target.get_mut("disks").and_then(Value::as_array_mut);
    let Some(disks) = disks else {
        return;
    };
    if disks
        .iter()
        .any(|disk| disk.get("boot").is_some_and(|boot| *boot == true))
    {
        return;
    }
    if let Some(first) = disks.first_mut().and_then(Value::as_object_mut)
        && !first.contains_key("boot")
    {
        first.insert("boot".to_owned(), Value::Bool(true));
    }
}
