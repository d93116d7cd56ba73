//! The two configurations of a running domain: the one it runs with, which its VM object shows, and the persistent
//! one, which its next start uses.
//!
//! The object's member `drift` lists in what the second differs: entries of `property`, a path such as `ram`,
//! `tags/role` or `nics/52:54:00:12:34:56/link`, and its values `live` and `config`, scalars, of which one that is not
//! there is left out. A VM without the member has one configuration. Pure.
//!
//! Invariant: of an object and its list the second configuration can be made, as far as it is compared: [`split`]
//! undoes [`join`], unless several nics have one mac, which count as one. Not compared is what belongs to both (a
//! disk's size) or comes with running (an address, `vnet3`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Object, property};

/// The member that holds the list.
pub const DRIFT: &str = "drift";

/// Which of the two configurations is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Affect {
    /// The one it runs with.
    Live,
    /// The persistent one, which its next start uses.
    Config,
    /// Both.
    Both,
}

impl Affect {
    /// Whether the running domain is meant.
    pub fn live(self) -> bool {
        self != Affect::Config
    }

    /// Whether the persistent configuration is meant.
    pub fn config(self) -> bool {
        self != Affect::Live
    }
}

/// The scalars that are compared.
const SCALARS: [&str; 7] = [
    "alias",
    "cpu_shares",
    "cpu_cap",
    "max_physical_memory",
    "ram",
    "vcpus",
    "max_vcpus",
];

/// The maps that are compared key by key.
const MAPS: [&str; 3] = ["tags", "customer_metadata", "nova"];

/// The lists that are compared element by element: what tells the elements apart, and their members.
const LISTS: [(&str, &str, &[&str]); 2] = [
    (
        "nics",
        "mac",
        &[
            "type",
            "model",
            "network",
            "bridge",
            "link",
            "mtu",
            "vlan_id",
            "boot_order",
        ],
    ),
    (
        "disks",
        "name",
        &[
            "path",
            "model",
            "media",
            "format",
            "boot",
            "boot_order",
            "readonly",
            "serial",
        ],
    ),
];

/// Where a scalar is: a property, the key of a map, or the member of an element.
type Path<'a> = Vec<&'a str>;

/// Whether what is at a path may differ between the two, and is then listed.
pub fn is_compared(path: &[String]) -> bool {
    let Some((first, rest)) = path.split_first() else {
        return false;
    };
    let list = LISTS.iter().find(|(name, ..)| name == first);
    match (list, rest) {
        (None, _) => SCALARS.contains(&first.as_str()) || MAPS.contains(&first.as_str()),
        (Some((.., members)), [_, member]) => members.contains(&member.as_str()),
        (Some(_), _) => true,
    }
}

/// An object of the configuration it runs with, and what differs in the other one.
pub fn join(mut live: Object, config: &Object) -> Object {
    let entries = between(&live, config);
    live.insert(DRIFT.to_owned(), entries.into());
    property::sort(&mut live);
    live
}

/// The two configurations of a VM, each as an object without the list; `None` if it has one only.
pub fn split(vm: &Object) -> Option<(Object, Object)> {
    let entries = vm.get(DRIFT)?.as_array()?;
    let mut live = vm.clone();
    live.shift_remove(DRIFT);
    let mut config = live.clone();
    for entry in entries {
        if let Some(path) = path(entry) {
            put(&mut config, &path, entry.get("config"));
        }
    }
    for (list, _, members) in LISTS {
        // An element of which nothing is left is not there.
        if let Some(elements) = config.get_mut(list).and_then(Value::as_array_mut) {
            elements.retain(|element| members.iter().any(|member| element.get(member).is_some()));
        }
    }
    property::sort(&mut config);
    Some((live, config))
}

/// The persistent configuration of a VM; the VM itself if it has one only.
pub fn config(vm: &Object) -> Object {
    split(vm).map_or_else(|| vm.clone(), |(_, config)| config)
}

/// Where the values of an entry of the list are.
pub fn path(entry: &Value) -> Option<Vec<String>> {
    let path = entry.get("property")?.as_str()?;
    Some(path.split('/').map(unescape).collect())
}

/// Whether there is a process of a domain: also of a guest that has crashed and is kept.
pub fn runs(vm: &Object) -> bool {
    vm.get("state").is_none_or(|state| state != "stopped")
}

/// In what the two differ, in the order of their paths.
fn between(live: &Object, config: &Object) -> Vec<Value> {
    let [live, config] = [live, config].map(scalars);
    let of_config = config.iter().filter(|(path, _)| !live.contains_key(*path));
    let mut paths: Vec<_> = live.keys().chain(of_config.map(|(path, _)| path)).collect();
    paths.sort();
    let entry = |path: &Path<'_>| {
        let (live, config) = (live.get(path), config.get(path));
        if is_same(live.copied(), config.copied()) {
            return None;
        }
        let path: Vec<String> = path.iter().map(|name| escape(name)).collect();
        let mut entry = json!({"property": path.join("/")});
        if let Some(live) = live {
            entry["live"] = (*live).clone();
        }
        if let Some(config) = config {
            entry["config"] = (*config).clone();
        }
        Some(entry)
    };
    paths.into_iter().filter_map(entry).collect()
}

/// All that is compared of an object, by its path.
fn scalars(vm: &Object) -> BTreeMap<Path<'_>, &Value> {
    let mut found = BTreeMap::new();
    let is_scalar = |value: &Value| !(value.is_object() || value.is_array() || value.is_null());
    for name in SCALARS {
        if let Some(value) = vm.get(name).filter(|value| is_scalar(value)) {
            found.insert(vec![name], value);
        }
    }
    for map in MAPS {
        for (key, value) in vm.get(map).and_then(Value::as_object).into_iter().flatten() {
            if is_scalar(value) {
                found.insert(vec![map, key.as_str()], value);
            }
        }
    }
    for (list, key, members) in LISTS {
        for element in vm.get(list).and_then(Value::as_array).into_iter().flatten() {
            let Some(ident) = element.get(key).and_then(Value::as_str) else {
                continue;
            };
            for member in members {
                // Which bridge a network has is found out when the domain starts.
                let is_found_out = *member == "bridge" && element.get("network").is_some();
                if let Some(value) = element.get(member).filter(|_| !is_found_out) {
                    found.insert(vec![list, ident, member], value);
                }
            }
        }
    }
    found
}

fn put(vm: &mut Object, path: &[String], value: Option<&Value>) {
    match path {
        [name] => set(vm, name, value),
        [map, key] => {
            let entries = vm.entry(map.as_str()).or_insert_with(|| json!({}));
            if let Some(entries) = entries.as_object_mut() {
                set(entries, key, value);
            }
        }
        [list, ident, member] => {
            let Some((_, key, _)) = LISTS.iter().find(|(name, ..)| name == list) else {
                return;
            };
            let elements = vm.entry(list.as_str()).or_insert_with(|| json!([]));
            let Some(elements) = elements.as_array_mut() else {
                return;
            };
            let found = elements.iter().position(|one| one[*key] == *ident);
            let at = found.unwrap_or_else(|| {
                let mut element = Object::new();
                if list == "nics" {
                    element.insert("interface".to_owned(), free(elements).into());
                }
                element.insert((*key).to_owned(), ident.as_str().into());
                elements.push(element.into());
                elements.len() - 1
            });
            if let Some(element) = elements[at].as_object_mut() {
                set(element, member, value);
            }
        }
        _ => {}
    }
}

fn set(object: &mut Object, name: &str, value: Option<&Value>) {
    match value {
        Some(value) => object.insert(name.to_owned(), value.clone()),
        None => object.shift_remove(name),
    };
}

/// What the next nic is called.
fn free(nics: &[Value]) -> String {
    let name = |number: usize| format!("net{number}");
    let is_free = |number: &usize| nics.iter().all(|nic| nic["interface"] != name(*number));
    name((0..).find(is_free).unwrap_or(nics.len()))
}

fn is_same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (Some(Value::Number(a)), Some(Value::Number(b))) => a == b || a.as_f64() == b.as_f64(),
        _ => a == b,
    }
}

/// A name in a path.
fn escape(name: &str) -> String {
    name.replace('%', "%25").replace('/', "%2F")
}

fn unescape(name: &str) -> String {
    name.replace("%2F", "/").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            other => panic!("not an object: {other}"),
        }
    }

    fn entries(live: Value, config: Value) -> Value {
        join(object(live), &object(config))[DRIFT].clone()
    }

    #[test]
    fn what_differs_is_named_by_its_path_with_both_values() {
        let live = json!({
            "ram": 512, "vcpus": 2, "alias": "web",
            "tags": {"role": "web", "a/b%": 1},
            "nics": [{"interface": "net0", "mac": "52:54:00:00:00:01", "link": "up", "type": "user"}],
        });
        let config = json!({
            "ram": 1024, "vcpus": 2, "alias": "web",
            "tags": {"role": "db"},
            "nics": [{"interface": "net0", "mac": "52:54:00:00:00:01", "link": "down", "type": "user"}],
        });
        let found = entries(live, config);
        assert_eq!(
            found,
            json!([
                {"property": "nics/52:54:00:00:00:01/link", "live": "up", "config": "down"},
                {"property": "ram", "live": 512, "config": 1024},
                {"property": "tags/a%2Fb%25", "live": 1},
                {"property": "tags/role", "live": "web", "config": "db"},
            ])
        );
    }

    #[test]
    fn what_comes_with_running_is_no_difference() {
        let nic = json!({"interface": "net0", "mac": "52:54:00:00:00:01", "type": "network", "network": "default"});
        let mut live = nic.clone();
        live["bridge"] = "virbr0".into();
        live["ip"] = "192.0.2.1".into();
        live["device"] = "vnet3".into();
        let found = entries(
            json!({"nics": [live], "disks": [{"name": "vda", "size": 5}], "pid": 4}),
            json!({"nics": [nic], "disks": [{"name": "vda"}]}),
        );
        assert_eq!(found, json!([]));
    }

    #[test]
    fn a_vm_without_the_list_has_one_configuration() {
        let vm = object(json!({"ram": 512}));
        assert_eq!(split(&vm), None);
        assert_eq!(config(&vm), vm);
    }

    fn vm() -> impl Strategy<Value = Object> {
        let text = || "[ab/%]{1,2}";
        let number = 1..4u64;
        let nic = |mac: &'static str| {
            prop::option::of((prop::option::of("up|down"), "network|bridge")).prop_map(move |nic| {
                nic.map(|(link, kind)| {
                    let mut nic = json!({"mac": mac, "type": kind});
                    if let Some(link) = link {
                        nic["link"] = link.into();
                    }
                    nic
                })
            })
        };
        let nics = (nic("52:54:00:00:00:01"), nic("52:54:00:00:00:02"));
        let map = prop::collection::btree_map(text(), text(), 0..3);
        (prop::option::of(number.clone()), number, map, nics).prop_map(|(cap, ram, tags, nics)| {
            let nics: Vec<Value> = [nics.0, nics.1].into_iter().flatten().collect();
            let mut vm = object(json!({"ram": ram, "tags": tags, "nics": nics, "disks": []}));
            if let Some(cap) = cap {
                vm.insert("cpu_cap".to_owned(), cap.into());
            }
            vm
        })
    }

    proptest! {
        #[test]
        fn of_a_vm_and_its_list_both_configurations_are_made(live in vm(), other in vm()) {
            let joined = join(live.clone(), &other);
            let (found, config) = split(&joined).unwrap();
            prop_assert_eq!(&Value::from(found.clone()), &Value::from(live));
            // All that is compared is as it was, so nothing differs from it.
            prop_assert_eq!(scalars(&config), scalars(&other));
            prop_assert_eq!(&join(found, &config)[DRIFT], &joined[DRIFT]);
        }
    }
}
