//! What changed between two VM objects, in the words of an event.
//!
//! The rules, which are those of SmartOS's vminfod less two of its faults:
//!
//! - Objects are compared member by member, whatever their order.
//! - `nics` and `disks` are matched by `mac` and `path`, whatever their order. An element whose
//!   key is missing, or held by another element too, is compared as a whole. The disks of libvirt's
//!   domains have a `name`, by which they are matched: a drive stays when its medium goes.
//! - Any other list is compared as a set: elements are removed and added, never changed. If the
//!   sets are equal and the lists are not (another order, a duplicate less), the list as a whole
//!   has changed.
//! - Any other pair of values that differ is one change. That of a domain's XML is told without its values.
//!
//! Invariant: no change is reported exactly if the objects are equal but for the order of members,
//! nics and disks. So whoever follows the changes never misses one. The cost is linear in the size
//! of the two objects, times the depth of nesting.

use std::collections::{HashMap, HashSet};

use serde_json::{Value, json};

use super::Object;
use super::property::DOMAIN_XML;

/// One difference between two objects.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The path as people read it: `nics.*.ip`, `customer_metadata[user.script]`.
    pub pretty_path: String,
    /// The names that lead to the value; `None` stands for an element of a list.
    pub path: Vec<Option<String>>,
    /// What happened there.
    pub action: Action,
    /// The value before; `None` if there was none, or it is a document.
    pub old_value: Option<Value>,
    /// The value now; `None` if there is none, or it is a document.
    pub new_value: Option<Value>,
    /// Within a nic or disk: its `mac` or `path`, or the `name` of a domain's disk.
    pub ident: Option<String>,
}

/// What happened to a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It was there and is another one now.
    Changed,
    /// It is no longer there.
    Removed,
    /// It was not there.
    Added,
}

impl Action {
    /// The word used in events.
    pub fn as_str(self) -> &'static str {
        match self {
            Action::Changed => "changed",
            Action::Removed => "removed",
            Action::Added => "added",
        }
    }
}

impl Change {
    /// The change as it stands in an event's `changes`.
    pub fn to_json(&self) -> Value {
        let mut change = Object::new();
        change.insert("prettyPath".to_owned(), json!(self.pretty_path));
        change.insert("path".to_owned(), json!(self.path));
        change.insert("action".to_owned(), json!(self.action.as_str()));
        if let Some(value) = &self.old_value {
            change.insert("oldValue".to_owned(), value.clone());
        }
        if let Some(value) = &self.new_value {
            change.insert("newValue".to_owned(), value.clone());
        }
        if let Some(ident) = &self.ident {
            change.insert("ident".to_owned(), json!(ident));
        }
        Value::Object(change)
    }
}

/// What changed from the old object to the new one: first what was removed or changed, in the
/// order of the old one's members, then what was added, in the order of the new one's.
pub fn diff(old: &Object, new: &Object) -> Vec<Change> {
    let mut changes = Vec::new();
    compare_objects(&Place::default(), old, new, &mut changes);
    changes
}

/// Where in the two objects we are.
#[derive(Clone, Default)]
struct Place<'a> {
    path: Vec<Option<&'a str>>,
    ident: Option<&'a str>,
}

impl<'a> Place<'a> {
    fn member(&self, name: &'a str) -> Place<'a> {
        let mut place = self.clone();
        place.path.push(Some(name));
        place
    }

    fn element(&self) -> Place<'a> {
        let mut place = self.clone();
        place.path.push(None);
        place
    }

    /// The members by which the elements of the list at this place are told apart: by the first that
    /// an element has.
    fn keys(&self) -> Option<&'static [&'static str]> {
        match self.path[..] {
            [Some("nics")] => Some(&["mac"]),
            [Some("disks")] => Some(&["name", "path"]),
            _ => None,
        }
    }

    fn changed(&self, old: &Value, new: &Value) -> Change {
        self.change(Action::Changed, Some(old), Some(new))
    }

    fn removed(&self, old: &Value) -> Change {
        self.change(Action::Removed, Some(old), None)
    }

    fn added(&self, new: &Value) -> Change {
        self.change(Action::Added, None, Some(new))
    }

    fn change(&self, action: Action, old: Option<&Value>, new: Option<&Value>) -> Change {
        // A domain's XML is a document of many kilobytes, in which most changes show beside the property that they
        // are of; the event has the new one anyway.
        let is_document = self.path == [Some(DOMAIN_XML)];
        let [old, new] = [old, new].map(|value| value.filter(|_| !is_document));
        Change {
            pretty_path: pretty(&self.path),
            path: self
                .path
                .iter()
                .map(|part| part.map(str::to_owned))
                .collect(),
            action,
            old_value: old.cloned(),
            new_value: new.cloned(),
            ident: self.ident.map(str::to_owned),
        }
    }
}

/// Names joined by dots; one that holds a dot or bracket stands in brackets, its own escaped.
fn pretty(path: &[Option<&str>]) -> String {
    let mut text = String::new();
    for part in path {
        let name = part.unwrap_or("*");
        if name.contains(['.', '[', ']']) {
            text.push('[');
            text.push_str(&name.replace('[', "\\[").replace(']', "\\]"));
            text.push(']');
        } else {
            if !text.is_empty() {
                text.push('.');
            }
            text.push_str(name);
        }
    }
    text
}

fn compare_objects<'a>(
    place: &Place<'a>,
    old: &'a Object,
    new: &'a Object,
    changes: &mut Vec<Change>,
) {
    for (name, value) in old {
        match new.get(name) {
            None => changes.push(place.member(name).removed(value)),
            Some(now) if now == value => {}
            Some(now) => compare(&place.member(name), value, now, changes),
        }
    }
    for (name, value) in new {
        if !old.contains_key(name) {
            changes.push(place.member(name).added(value));
        }
    }
}

/// Compares two values that are not equal.
fn compare<'a>(place: &Place<'a>, old: &'a Value, new: &'a Value, changes: &mut Vec<Change>) {
    match (old, new) {
        (Value::Object(before), Value::Object(now)) => {
            compare_objects(place, before, now, changes);
        }
        (Value::Array(before), Value::Array(now)) => match place.keys() {
            Some(keys) => compare_keyed(place, keys, before, now, changes),
            None => {
                let found = changes.len();
                compare_sets(place, before, now, changes);
                if changes.len() == found {
                    changes.push(place.changed(old, new));
                }
            }
        },
        _ => changes.push(place.changed(old, new)),
    }
}

/// Compares two lists as sets.
fn compare_sets(place: &Place, old: &[Value], new: &[Value], changes: &mut Vec<Change>) {
    let before: HashSet<&Value> = old.iter().collect();
    let now: HashSet<&Value> = new.iter().collect();
    let place = place.element();
    let removed = old.iter().filter(|value| !now.contains(value));
    changes.extend(removed.map(|value| place.removed(value)));
    let added = new.iter().filter(|value| !before.contains(value));
    changes.extend(added.map(|value| place.added(value)));
}

/// Compares two lists of objects that one of these members tells apart. What cannot be matched by it is
/// matched by being equal, one to one, so that of two equal elements the loss of one is seen.
fn compare_keyed<'a>(
    place: &Place<'a>,
    keys: &[&str],
    old: &'a [Value],
    new: &'a [Value],
    changes: &mut Vec<Change>,
) {
    let before = by_key(keys, old);
    let now = by_key(keys, new);
    let matched = |element: &'a Value| -> Option<(&'a str, &'a Object, &'a Object)> {
        let ident = key_in(keys, element.as_object()?)?;
        let before = before.get(ident).copied().flatten()?;
        let now = now.get(ident).copied().flatten()?;
        Some((ident, before, now))
    };

    // How many more of an unmatched element the old list has than the new one.
    let mut surplus: HashMap<&Value, isize> = HashMap::new();
    for element in old.iter().filter(|element| matched(element).is_none()) {
        *surplus.entry(element).or_default() += 1;
    }
    for element in new.iter().filter(|element| matched(element).is_none()) {
        *surplus.entry(element).or_default() -= 1;
    }

    let place = place.element();
    for element in old {
        if let Some((ident, before, now)) = matched(element) {
            let mut within = place.clone();
            within.ident = Some(ident);
            compare_objects(&within, before, now, changes);
        } else if let Some(surplus) = surplus.get_mut(element).filter(|surplus| **surplus > 0) {
            *surplus -= 1;
            changes.push(place.removed(element));
        }
    }
    for element in new {
        if let Some(surplus) = surplus.get_mut(element).filter(|surplus| **surplus < 0) {
            *surplus += 1;
            changes.push(place.added(element));
        }
    }
}

fn key_in<'a>(keys: &[&str], object: &'a Object) -> Option<&'a str> {
    keys.iter().find_map(|key| object.get(*key)?.as_str())
}

/// The objects of a list by the text of their key; `None` where several have the same.
fn by_key<'a>(keys: &[&str], list: &'a [Value]) -> HashMap<&'a str, Option<&'a Object>> {
    let mut found = HashMap::new();
    for element in list {
        if let Some(object) = element.as_object()
            && let Some(ident) = key_in(keys, object)
        {
            found
                .entry(ident)
                .and_modify(|only| *only = None)
                .or_insert(Some(object));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            other => panic!("{other} is no object"),
        }
    }

    fn changes(old: Value, new: Value) -> Value {
        diff(&object(old), &object(new))
            .iter()
            .map(Change::to_json)
            .collect()
    }

    #[test]
    fn the_xml_of_a_domain_is_told_to_have_changed_without_its_values() {
        let changed =
            json!([{"prettyPath": "[domain.xml]", "path": ["domain.xml"], "action": "changed"}]);
        let xml = |text: &str| json!({"domain.xml": text});
        assert_eq!(changes(xml("<a/>"), xml("<b/>")), changed);
        assert_eq!(changes(xml("<a/>"), xml("<a/>")), json!([]));
    }

    #[test]
    fn the_changes_are_those_of_smartos_but_for_lists_that_it_takes_for_equal() {
        let vectors = include_str!("../../tests/data/diff-vectors.jsonl");
        let mut own = 0;
        for line in vectors.lines() {
            let vector: Value = serde_json::from_str(line).unwrap();
            let (old, new) = (vector["old"].clone(), vector["new"].clone());
            let name = vector["name"].as_str().unwrap();
            let expected = if name.starts_with("list of scalars: reordered")
                || name.starts_with("list of scalars: duplicate dropped")
            {
                own += 1;
                json!([{
                    "prettyPath": "resolvers", "path": ["resolvers"], "action": "changed",
                    "oldValue": old["resolvers"], "newValue": new["resolvers"],
                }])
            } else {
                vector["changes"].clone()
            };
            // As text, since the order of a change's members is part of the format.
            assert_eq!(
                changes(old, new).to_string(),
                expected.to_string(),
                "{name}"
            );
        }
        assert_eq!((vectors.lines().count(), own), (31, 2));
    }

    #[test]
    fn a_drive_that_gets_another_medium_is_the_same_drive() {
        let drive = |path: Option<&str>| {
            let mut drive = json!({"name": "sda", "media": "cdrom"});
            if let Some(path) = path {
                drive["path"] = json!(path);
            }
            json!({"disks": [drive, {"name": "sdb", "media": "cdrom"}]})
        };
        assert_eq!(
            changes(drive(None), drive(Some("/a.iso"))),
            json!([{"prettyPath": "disks.*.path", "path": ["disks", null, "path"], "action": "added",
                "newValue": "/a.iso", "ident": "sda"}])
        );
        assert_eq!(
            changes(drive(Some("/a.iso")), drive(Some("/b.iso"))),
            json!([{"prettyPath": "disks.*.path", "path": ["disks", null, "path"], "action": "changed",
                "oldValue": "/a.iso", "newValue": "/b.iso", "ident": "sda"}])
        );
    }

    #[test]
    fn a_value_of_another_type_is_one_change() {
        let values = [
            json!(null),
            json!(1),
            json!("text"),
            json!(true),
            json!(["1.1.1.1"]),
            json!({"a": 1}),
        ];
        for member in ["nics", "tags"] {
            for old in &values {
                for new in values.iter().filter(|new| *new != old) {
                    assert_eq!(
                        changes(json!({member: old}), json!({member: new})),
                        json!([{
                            "prettyPath": member, "path": [member], "action": "changed",
                            "oldValue": old, "newValue": new,
                        }])
                    );
                }
            }
        }
    }

    #[test]
    fn a_member_that_is_null_and_goes_is_removed() {
        assert_eq!(
            changes(json!({"zoneid": null}), json!({})),
            json!([{
                "prettyPath": "zoneid", "path": ["zoneid"], "action": "removed", "oldValue": null,
            }])
        );
    }

    #[test]
    fn a_reordered_list_within_a_nic_names_the_nic() {
        assert_eq!(
            changes(
                json!({"nics": [{"mac": "m", "ips": ["a", "b"]}]}),
                json!({"nics": [{"mac": "m", "ips": ["b", "a"]}]}),
            ),
            json!([{
                "prettyPath": "nics.*.ips", "path": ["nics", null, "ips"], "action": "changed",
                "oldValue": ["a", "b"], "newValue": ["b", "a"], "ident": "m",
            }])
        );
    }

    #[test]
    fn nics_with_one_mac_are_compared_as_wholes() {
        assert_eq!(
            changes(
                json!({"nics": [{"mac": "m", "ip": "1"}, {"mac": "m", "ip": "2"}]}),
                json!({"nics": [{"mac": "m", "ip": "2"}, {"mac": "m", "ip": "3"}]}),
            ),
            json!([
                {
                    "prettyPath": "nics.*", "path": ["nics", null], "action": "removed",
                    "oldValue": {"mac": "m", "ip": "1"},
                },
                {
                    "prettyPath": "nics.*", "path": ["nics", null], "action": "added",
                    "newValue": {"mac": "m", "ip": "3"},
                },
            ])
        );
    }

    #[test]
    fn of_two_equal_elements_without_a_key_the_loss_of_one_is_seen() {
        for element in [json!({"ip": "1"}), json!({"mac": 7}), json!(null)] {
            assert_eq!(
                changes(
                    json!({"nics": [element, element]}),
                    json!({"nics": [element]})
                ),
                json!([{
                    "prettyPath": "nics.*", "path": ["nics", null], "action": "removed",
                    "oldValue": element,
                }])
            );
        }
    }

    #[test]
    fn only_the_nics_and_disks_of_the_vm_itself_are_matched() {
        let reordered = changes(
            json!({"tags": {"nics": [{"mac": "a"}, {"mac": "b"}]}}),
            json!({"tags": {"nics": [{"mac": "b"}, {"mac": "a"}]}}),
        );
        assert_eq!(reordered[0]["prettyPath"], "tags.nics");
        assert_eq!(reordered[0]["action"], "changed");
    }

    /// Values from so small a world that two of them often meet.
    fn value() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from),
            "[ab]".prop_map(Value::from),
        ];
        scalar.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                members("mac|path|ip|a\\.b", inner).prop_map(Value::from),
            ]
        })
    }

    fn vm() -> impl Strategy<Value = Object> {
        let device = members("mac|path|ip", value()).prop_map(Value::from);
        let devices = prop::collection::vec(device, 0..4).prop_map(Value::from);
        let member = prop_oneof![value(), devices];
        members("nics|disks|resolvers|tags|quota", member)
    }

    fn members(
        names: &'static str,
        value: impl Strategy<Value = Value>,
    ) -> impl Strategy<Value = Object> {
        prop::collection::vec((names, value), 0..6)
            .prop_map(|members| members.into_iter().collect())
    }

    /// The same for objects that are equal but for the order of members, nics and disks.
    fn canonical(vm: &Object) -> Value {
        let mut vm = Value::Object(vm.clone());
        vm.sort_all_objects();
        for name in ["nics", "disks"] {
            if let Some(Value::Array(list)) = vm.get_mut(name) {
                list.sort_by_cached_key(Value::to_string);
            }
        }
        vm
    }

    proptest! {
        #[test]
        fn nothing_differs_from_itself_in_any_order(old in vm(), seed: u64) {
            prop_assert_eq!(diff(&old, &old), vec![]);
            let mut new: Object = old.clone().into_iter().rev().collect();
            for name in ["nics", "disks"] {
                if let Some(Value::Array(list)) = new.get_mut(name)
                    && !list.is_empty()
                {
                    let turns = seed as usize % list.len();
                    list.rotate_left(turns);
                }
            }
            prop_assert_eq!(diff(&old, &new), vec![]);
        }

        #[test]
        fn exactly_the_members_that_differ_are_named(old in vm(), new in vm()) {
            let (before, now) = (canonical(&old), canonical(&new));
            let differ: HashSet<&str> = old
                .keys()
                .chain(new.keys())
                .filter(|name| before.get(name) != now.get(name))
                .map(String::as_str)
                .collect();
            let changes = diff(&old, &new);
            let named: HashSet<&str> =
                changes.iter().filter_map(|change| change.path[0].as_deref()).collect();
            prop_assert_eq!(named, differ);
        }

        #[test]
        fn the_way_back_is_the_same_changes_turned_round(old in vm(), new in vm()) {
            let sorted = |mut changes: Vec<Change>| {
                changes.sort_by_cached_key(|change| change.to_json().to_string());
                changes
            };
            let turned = diff(&new, &old)
                .into_iter()
                .map(|change| Change {
                    action: match change.action {
                        Action::Changed => Action::Changed,
                        Action::Removed => Action::Added,
                        Action::Added => Action::Removed,
                    },
                    old_value: change.new_value,
                    new_value: change.old_value,
                    ..change
                })
                .collect();
            prop_assert_eq!(sorted(diff(&old, &new)), sorted(turned));
        }
    }
}
