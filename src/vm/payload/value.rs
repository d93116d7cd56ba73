//! What one property can be given, and the canonical value that becomes of it.
//!
//! People give numbers and booleans as JSON or as their text, lists as arrays or with commas; a
//! source shows each of them in one way. Here is what every value must be by itself; what depends
//! on other properties is checked where those are known.

use std::net::{IpAddr, Ipv4Addr};

use serde_json::Value;
use uuid::Uuid;

use super::{Invalid, InvalidKind, domain};
use crate::vm::property::{Kind, LIBVIRT, Property, Unit};

/// Bytes in a gibibyte.
const GIB: f64 = (1u64 << 30) as f64;

/// The value of a property of this brand as a source shows it; `None` if it is to be removed. `name`
/// is what a refusal calls it, `list` the list of objects whose member it is, or the empty text.
pub(super) fn value(
    brand: &str,
    property: &Property,
    list: &str,
    name: &str,
    given: &Value,
) -> Result<Option<Value>, Invalid> {
    let empty = match given {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    if empty {
        return match property.removable {
            true => Ok(None),
            false => Err(InvalidKind::Value.refuse(name, "cannot be removed")),
        };
    }
    let refuse = |wanted: &str| InvalidKind::Value.refuse(name, format!("{wanted}: {given}"));
    let value = match property.kind {
        Kind::Bool => match given {
            Value::Bool(flag) => Value::Bool(*flag),
            Value::String(text) if text == "true" => Value::Bool(true),
            Value::String(text) if text == "false" => Value::Bool(false),
            _ => return Err(refuse("not true or false")),
        },
        Kind::Number => number(property, given).map_err(refuse)?,
        Kind::String => {
            let mut text = text(property.name, given).map_err(refuse)?;
            if is_of_compression(property.name) {
                text = shown_compression(text);
            }
            Value::from(text)
        }
        Kind::List => {
            let items = items(given).ok_or_else(|| refuse("not a list of texts"))?;
            if property.name == "blocked_outgoing_ports" {
                let ports: Result<Vec<Value>, &str> = items.iter().map(|item| port(item)).collect();
                Value::from(ports.map_err(refuse)?)
            } else {
                Value::from(items)
            }
        }
        Kind::Map | Kind::Objects(_) => return Err(refuse("not a single value")),
    };
    let checked = match brand {
        LIBVIRT => domain::check(list, property.name, &value),
        _ => check(list, property.name, &value),
    };
    checked.map_err(|wanted| refuse(&wanted))?;
    Ok(Some(value))
}

/// Whether two values are the same to a reader: numbers by what they count.
pub(super) fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => a == b,
    }
}

/// A mac as it is written into new nics: small letters, two digits each. `None` if it is none, or
/// one that no nic can have.
pub(super) fn mac(text: &str) -> Option<String> {
    let octets: Option<Vec<u8>> = text
        .split(':')
        .map(|part| match part.len() {
            1 | 2 if part.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u8::from_str_radix(part, 16).ok()
            }
            _ => None,
        })
        .collect();
    let octets = octets.filter(|octets| octets.len() == 6 && octets.iter().any(|&o| o != 0))?;
    // The lowest bit of the first octet is that of groups.
    (octets[0] & 1 == 0).then(|| {
        let parts: Vec<String> = octets.iter().map(|octet| format!("{octet:02x}")).collect();
        parts.join(":")
    })
}

/// Whether this is a uuid as VMs have them, with its hyphens.
pub(super) fn is_uuid(text: &str) -> bool {
    text.len() == 36 && Uuid::try_parse(text).is_ok()
}

/// Whether a pool can be called this.
pub(super) fn is_pool(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "_-.:".contains(c))
}

fn number(property: &Property, given: &Value) -> Result<Value, &'static str> {
    let number = match given {
        Value::Number(number) => number.clone(),
        Value::String(text) => parse_number(text.trim()).ok_or("not a number")?,
        _ => return Err("not a number"),
    };
    let float = number.as_f64().unwrap_or(f64::NAN);
    // The store keeps sizes in bytes; and beyond this not every number can be told from the next.
    let most = match property.unit {
        Unit::MiB => (1u64 << 43) as f64,
        Unit::GiB => (1u64 << 33) as f64,
        _ => (1u64 << 53) as f64,
    };
    if float.abs() >= most {
        return Err("too large a number");
    }
    if float.fract() == 0.0 {
        return Ok(Value::from(float as i64));
    }
    // Only what is a whole number of bytes is read back as it was written.
    match property.unit {
        Unit::GiB if (float * GIB).fract() == 0.0 => Ok(Value::Number(number)),
        Unit::GiB => Err("not a whole number of bytes"),
        _ => Err("not a whole number"),
    }
}

fn parse_number(text: &str) -> Option<serde_json::Number> {
    if let Ok(whole) = text.parse::<i64>() {
        return Some(whole.into());
    }
    // What Rust reads as a number beyond JSON (`inf`, `NaN`) has letters other than an exponent's.
    let plain = text
        .bytes()
        .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    let float = text.parse::<f64>().ok().filter(|_| plain)?;
    serde_json::Number::from_f64(float)
}

fn text(property: &str, given: &Value) -> Result<String, &'static str> {
    let text = match given {
        Value::String(text) => text.clone(),
        // The object has them as one text, people know them as lists.
        Value::Array(_) if matches!(property, "limit_priv" | "fs_allowed") => items(given)
            .ok_or("not a text or a list of texts")?
            .join(","),
        _ => return Err("not a text"),
    };
    match one_line(&text) {
        true => Ok(text),
        false => Err("not one line of plain text"),
    }
}

/// Whether a text can stand in an XML attribute and in a file of one line.
fn one_line(text: &str) -> bool {
    is_xml(text) && !text.chars().any(char::is_control)
}

/// Whether XML 1.0 has all characters of a text.
pub(super) fn is_xml(text: &str) -> bool {
    text.chars()
        .all(|c| matches!(c, '\t' | '\n' | '\r' | ' '..) && !matches!(c, '\u{fffe}' | '\u{ffff}'))
}

/// The items of a list, which is an array of scalars or their text with commas. The source joins
/// them by commas, so none can have one.
fn items(given: &Value) -> Option<Vec<String>> {
    let items: Option<Vec<String>> = match given {
        Value::String(text) => Some(text.split(',').map(|item| item.trim().to_owned()).collect()),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            })
            .collect(),
        Value::Number(number) => Some(vec![number.to_string()]),
        _ => None,
    };
    items.filter(|items| {
        items
            .iter()
            .all(|item| !item.is_empty() && !item.contains(',') && one_line(item))
    })
}

fn port(text: &str) -> Result<Value, &'static str> {
    match text.parse::<u16>() {
        Ok(port) => Ok(Value::from(port)),
        Err(_) => Err("not a list of ports, 0 to 65535"),
    }
}

/// Whether a value is one that this property can have. An error says what it must be.
pub(super) fn check(list: &str, property: &str, value: &Value) -> Result<(), String> {
    match value {
        Value::Number(number) => range(property, number.as_f64().unwrap_or(f64::NAN)),
        Value::String(text) => check_text(list, property, text),
        Value::Array(items) => items
            .iter()
            .filter_map(Value::as_str)
            .try_for_each(|item| check_item(property, item)),
        _ => Ok(()),
    }
}

fn range(property: &str, number: f64) -> Result<(), String> {
    let (least, most) = match property {
        "vcpus"
        | "cpu_shares"
        | "zfs_io_priority"
        | "max_lwps"
        | "max_physical_memory"
        | "ram"
        | "image_size"
        | "size"
        | "max_vcpus"
        | "zlog_max_size" => (1.0, f64::MAX),
        "max_swap" => (256.0, f64::MAX),
        // -1 is: listen on no port.
        "vnc_port" | "spice_port" => (-1.0, 65535.0),
        "vlan_id" => (0.0, 4094.0),
        "mtu" => (576.0, 9000.0),
        "vrrp_vrid" => (1.0, 255.0),
        "zfs_root_recsize" | "zfs_data_recsize" => (512.0, 1_048_576.0),
        "block_size" => (512.0, 131_072.0),
        _ => (0.0, f64::MAX),
    };
    if number < least && most == f64::MAX {
        return Err(format!("not at least {least}"));
    }
    if !(least..=most).contains(&number) {
        return Err(format!("not from {least} to {most}"));
    }
    let power = matches!(
        property,
        "zfs_root_recsize" | "zfs_data_recsize" | "block_size"
    );
    if power && !(number as u64).is_power_of_two() {
        return Err("not a power of two".to_owned());
    }
    Ok(())
}

fn check_text(list: &str, property: &str, text: &str) -> Result<(), String> {
    let (good, wanted) = match (list, property) {
        (_, "owner_uuid" | "billing_id" | "image_uuid" | "network_uuid" | "uuid") => {
            (is_uuid(text), "not a uuid")
        }
        (_, property) if is_of_compression(property) => (
            is_compression(text),
            "not on, off, lz4, lzjb, zle, or gzip, zstd or zstd-fast with or without a level",
        ),
        (_, "limit_priv" | "fs_allowed") => (
            text.split(',')
                .all(|item| !item.is_empty() && !item.contains(char::is_whitespace)),
            "not a list of names with commas",
        ),
        (_, "zpool") => (is_pool(text), "not the name of a pool"),
        ("nics", "interface") => (
            text.strip_prefix("net")
                .is_some_and(|number| number.len() < 5 && number.parse::<u16>().is_ok()),
            "not net0, net1 and so on",
        ),
        ("nics", "mac") => (mac(text).is_some(), "not the mac of a nic"),
        ("nics", "ip") => (
            text == "dhcp" || text.parse::<Ipv4Addr>().is_ok(),
            "not an IPv4 address or dhcp",
        ),
        ("nics", "gateway" | "vrrp_primary_ip") => {
            (text.parse::<IpAddr>().is_ok(), "not an IP address")
        }
        ("nics", "netmask") => (is_netmask(text), "not a netmask"),
        ("nics", "nic_tag") => (
            text.chars()
                .all(|c| c.is_ascii_alphanumeric() || "_-/.".contains(c)),
            "not the name of a nic tag",
        ),
        ("disks", "media") => (matches!(text, "disk" | "cdrom"), "not disk or cdrom"),
        ("disks", "model") | ("", "disk_driver") => (
            matches!(text, "virtio" | "ahci" | "nvme" | "scsi" | "ide"),
            "not virtio, ahci, nvme, scsi or ide",
        ),
        ("disks", "guest_block_size") => (
            is_block_size(text),
            "not a size of sectors such as 512 or 512/4096",
        ),
        (_, "pci_slot") => (is_pci_slot(text), "not bus:device:function"),
        ("disks" | "pci_devices", "path") => (is_absolute(text), "not an absolute path"),
        ("filesystems", "target") => (is_absolute(text), "not an absolute path"),
        _ => (true, ""),
    };
    match good {
        true => Ok(()),
        false => Err(wanted.to_owned()),
    }
}

fn check_item(property: &str, item: &str) -> Result<(), String> {
    let (good, wanted) = match property {
        "resolvers" | "gateways" => (item.parse::<IpAddr>().is_ok(), "not a list of IP addresses"),
        "ips" => (
            matches!(item, "dhcp" | "addrconf") || is_cidr(item),
            "not a list of addresses with their prefix, dhcp or addrconf",
        ),
        "allowed_ips" => (
            is_cidr(item) || item.parse::<IpAddr>().is_ok(),
            "not a list of IP addresses or networks",
        ),
        _ => (true, ""),
    };
    match good {
        true => Ok(()),
        false => Err(wanted.to_owned()),
    }
}

fn is_cidr(text: &str) -> bool {
    let Some((address, bits)) = text.split_once('/') else {
        return false;
    };
    let most = match address.parse::<IpAddr>() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    !bits.starts_with('+') && bits.parse::<u8>().is_ok_and(|bits| bits <= most)
}

fn is_netmask(text: &str) -> bool {
    text.parse::<Ipv4Addr>().is_ok_and(|mask| {
        let bits = mask.to_bits();
        bits.leading_ones() + bits.trailing_zeros() >= 32
    })
}

fn is_of_compression(property: &str) -> bool {
    matches!(
        property,
        "zfs_root_compression" | "zfs_data_compression" | "compression"
    )
}

/// Whether OpenZFS knows this compression. An older ZFS refuses by itself what it does not know.
fn is_compression(text: &str) -> bool {
    let level = |prefix| {
        let level: &str = text.strip_prefix(prefix)?;
        let plain = !level.starts_with(['0', '+']);
        level.parse::<u16>().ok().filter(|_| plain)
    };
    let is_fast = |level| match level {
        1..=10 | 500 | 1000 => true,
        _ => level <= 100 && level % 10 == 0,
    };
    matches!(
        text,
        "on" | "off" | "lz4" | "lzjb" | "zle" | "zstd" | "zstd-fast" | "gzip"
    ) || level("gzip-").is_some_and(|level| (1..=9).contains(&level))
        || level("zstd-").is_some_and(|level| (1..=19).contains(&level))
        || level("zstd-fast-").is_some_and(is_fast)
}

/// The name by which ZFS shows a compression: that of the default level is the bare one.
fn shown_compression(text: String) -> String {
    match text.as_str() {
        "gzip-6" => "gzip".to_owned(),
        "zstd-fast-1" => "zstd-fast".to_owned(),
        _ => text,
    }
}

/// The logical size of a sector, or it and the physical one.
fn is_block_size(text: &str) -> bool {
    let size = |text: &str| {
        text.parse::<u32>()
            .ok()
            .filter(|size| (512..=16_384).contains(size) && size.is_power_of_two())
    };
    match text.split_once('/') {
        Some((logical, physical)) => size(logical)
            .zip(size(physical))
            .is_some_and(|(logical, physical)| logical <= physical),
        None => size(text).is_some(),
    }
}

fn is_pci_slot(text: &str) -> bool {
    let parts: Vec<&str> = text.split(':').collect();
    parts.len() <= 3 && parts.iter().all(|part| part.parse::<u8>().is_ok())
}

pub(super) fn is_absolute(text: &str) -> bool {
    text.len() > 1 && text.starts_with('/') && !text.split('/').any(|part| part == "..")
}
