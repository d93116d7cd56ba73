//! The addresses of a nic, which stand in it twice: `ip` and `netmask` are the first IPv4 address (or
//! `dhcp`) of `ips`, and `gateway` is the first of `gateways`. Old guests and tools know only the single
//! ones. Whichever of the two is changed, the other follows.

use std::net::Ipv4Addr;

use serde_json::Value;

use super::value::same;
use super::{Invalid, InvalidKind};
use crate::vm::Object;

/// The members of a nic that say the same: what lacks one and has the other lacks nothing.
const PAIRS: [(&str, &str); 5] = [
    ("ip", "ips"),
    ("netmask", "ips"),
    ("ips", "ip"),
    ("gateway", "gateways"),
    ("gateways", "gateway"),
];

/// Whether a nic has a member all the same in another one.
pub(super) fn is_implied(nic: &Object, member: &str) -> bool {
    PAIRS
        .iter()
        .any(|(one, other)| *one == member && nic.contains_key(*other))
}

/// Brings the addresses of a nic together. `old` is the nic before its members were changed; what did
/// not change follows what did, and a nic in which none of them changed stays as it is.
pub(super) fn settle(named: &str, old: &Object, nic: &mut Object) -> Result<(), Invalid> {
    let change = Change { named, old };
    if change.is_of(nic, "ips") {
        let first = items(nic, "ips").into_iter().find(|item| is_ipv4(item));
        let (ip, mask) = first.as_deref().map_or((None, None), split);
        change.follow(nic, "ip", "ips", ip)?;
        change.follow(nic, "netmask", "ips", mask)?;
    } else if change.is_of(nic, "ip") || change.is_of(nic, "netmask") {
        change.follow_ip(nic)?;
    }
    if change.is_of(nic, "gateways") {
        let first = items(nic, "gateways").into_iter().next();
        change.follow(nic, "gateway", "gateways", first)?;
    } else if change.is_of(nic, "gateway") {
        let gateway = member(nic, "gateway").map(str::to_owned);
        replace_first(nic, "gateways", gateway, |_| true);
    }
    Ok(())
}

/// A change of a nic.
struct Change<'a> {
    named: &'a str,
    old: &'a Object,
}

impl Change<'_> {
    fn is_of(&self, nic: &Object, member: &str) -> bool {
        match (self.old.get(member), nic.get(member)) {
            (Some(old), Some(new)) => !same(old, new),
            (old, new) => old != new,
        }
    }

    fn refuse(&self, member: &str, reason: String) -> Invalid {
        InvalidKind::Value.refuse(format!("{}.{member}", self.named), reason)
    }

    /// Gives the single `member` what the `list` says, unless another value was just given to it.
    fn follow(
        &self,
        nic: &mut Object,
        member: &str,
        list: &str,
        value: Option<String>,
    ) -> Result<(), Invalid> {
        let value = value.map(Value::from);
        match (nic.get(member), value) {
            (Some(given), value) if self.is_of(nic, member) && value.as_ref() != Some(given) => {
                let said = value.map_or("none".to_owned(), |value| value.to_string());
                let reason = format!("{list} says {said}: {given}; give {list} alone");
                return Err(self.refuse(member, reason));
            }
            (_, Some(value)) => drop(nic.insert(member.to_owned(), value)),
            (_, None) => drop(nic.shift_remove(member)),
        }
        Ok(())
    }

    /// Puts `ip` and `netmask` in the place of the first IPv4 address of `ips`.
    fn follow_ip(&self, nic: &mut Object) -> Result<(), Invalid> {
        let mask = member(nic, "netmask").map(str::to_owned);
        let mask_given = self.is_of(nic, "netmask") && mask.is_some();
        let entry = match member(nic, "ip") {
            None if !self.is_of(nic, "ip") => return Ok(()),
            None => None,
            Some("dhcp") => Some("dhcp".to_owned()),
            Some(ip) => match mask.as_deref().and_then(prefix) {
                Some(prefix) => Some(format!("{ip}/{prefix}")),
                // As old VMs are: nothing says how large the network is.
                None if !nic.contains_key("ips") => return Ok(()),
                None => {
                    let reason = "missing; give it with ip, or give ips with a prefix instead";
                    return Err(self.refuse("netmask", reason.to_owned()));
                }
            },
        };
        if entry.as_deref().is_none_or(|entry| entry == "dhcp") {
            if mask_given {
                let reason = "a nic has it only with an ip that is an address".to_owned();
                return Err(self.refuse("netmask", reason));
            }
            nic.shift_remove("netmask");
        }
        replace_first(nic, "ips", entry, is_ipv4);
        Ok(())
    }
}

/// Puts an item in the place of the first one of its kind, or else before all others; without an item
/// all of its kind go.
fn replace_first(nic: &mut Object, list: &str, item: Option<String>, kind: fn(&str) -> bool) {
    let mut all = items(nic, list);
    match item {
        None => all.retain(|item| !kind(item)),
        Some(item) => {
            match all.iter().position(|other| kind(other)) {
                Some(first) => all[first].clone_from(&item),
                None => all.insert(0, item.clone()),
            }
            // It may have stood further back.
            let mut is_there = false;
            all.retain(|other| *other != item || !std::mem::replace(&mut is_there, true));
        }
    }
    match all.is_empty() {
        true => drop(nic.shift_remove(list)),
        false => drop(nic.insert(list.to_owned(), Value::from(all))),
    }
}

fn member<'a>(nic: &'a Object, member: &str) -> Option<&'a str> {
    nic.get(member)?.as_str()
}

fn items(nic: &Object, list: &str) -> Vec<String> {
    let items = nic.get(list).and_then(Value::as_array);
    let items = items.into_iter().flatten().filter_map(Value::as_str);
    items.map(str::to_owned).collect()
}

/// Whether an item of `ips` gives an IPv4 address.
fn is_ipv4(item: &str) -> bool {
    let (address, _) = item.split_once('/').unwrap_or((item, ""));
    item == "dhcp" || address.parse::<Ipv4Addr>().is_ok()
}

/// The `ip` and `netmask` of an item of `ips`.
fn split(item: &str) -> (Option<String>, Option<String>) {
    match item.split_once('/') {
        None => (Some(item.to_owned()), None),
        Some((address, prefix)) => {
            let bits = prefix.parse().ok().filter(|bits| *bits <= 32);
            let mask = bits.map(|bits: u32| u32::MAX.checked_shl(32 - bits).unwrap_or(0));
            let mask = mask.map(|mask| Ipv4Addr::from_bits(mask).to_string());
            (Some(address.to_owned()), mask)
        }
    }
}

fn prefix(netmask: &str) -> Option<u32> {
    let mask: Ipv4Addr = netmask.parse().ok()?;
    Some(mask.to_bits().leading_ones())
}
