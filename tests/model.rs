//! Random operations through a real mount, against a model that knows nothing of how they are done.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::json;

mod support;

use support::Store;

#[derive(Clone, Debug)]
enum Operation {
    Quota(u16),
    Alias(String),
    Tag(u8, String),
    RemoveTag(u8),
    Payload { shares: u16, tag: (u8, String) },
    BadPayload(u16),
    BadValue,
    Start,
    Stop,
    Snapshot(u8),
    DeleteSnapshot(u8),
    Revert,
}

fn operation() -> impl Strategy<Value = Operation> {
    let text = "[a-z]{1,12}";
    prop_oneof![
        (1..2000_u16).prop_map(Operation::Quota),
        text.prop_map(Operation::Alias),
        (0..3_u8, text).prop_map(|(key, value)| Operation::Tag(key, value)),
        (0..3_u8).prop_map(Operation::RemoveTag),
        (1..500_u16, (0..3_u8, text)).prop_map(|(shares, tag)| Operation::Payload { shares, tag }),
        (1..500_u16).prop_map(Operation::BadPayload),
        Just(Operation::BadValue),
        Just(Operation::Start),
        Just(Operation::Stop),
        (0..3_u8).prop_map(Operation::Snapshot),
        (0..3_u8).prop_map(Operation::DeleteSnapshot),
        Just(Operation::Revert),
    ]
}

/// What the VM should be.
#[derive(Clone, Debug, PartialEq)]
struct Model {
    quota: u16,
    shares: u16,
    alias: String,
    tags: BTreeMap<u8, String>,
    running: bool,
    snapshots: Vec<u8>,
}

/// The change that a revert would undo.
#[derive(Clone, Debug)]
enum Undo {
    To(Box<Model>),
    /// It cannot be undone.
    Never,
}

#[test]
fn random_operations_do_what_a_model_says() {
    let store = Store::new(1);
    let mounted = store.mount();
    let uuid = mounted.uuid(&store.zones()[0]);
    let at = |file: &str| mounted.path(format!("{uuid}/{file}"));
    let write = |file: &str, text: &str| fs::write(at(file), text).is_ok();
    // A beginning that the model knows.
    let _ = write("ctl", "stop force");
    let vm = mounted.json(format!("{uuid}/vm.json"));
    let old: Vec<_> = vm["tags"].as_object().unwrap().keys().cloned().collect();
    let begin = json!({"quota": 10, "cpu_shares": 100, "alias": "begin", "remove_tags": old});
    assert!(write("vm.json", &begin.to_string()));
    for snapshot in vm["snapshots"].as_array().unwrap() {
        let name = snapshot["name"].as_str().unwrap();
        assert!(write("ctl", &format!("delete-snapshot {name}")));
    }
    let times = std::env::var("VMINFOD_ROUNDS").map_or(1, |times| times.parse().unwrap());
    let mut runner = TestRunner::new(Config {
        cases: 12 * times,
        failure_persistence: None,
        max_shrink_iters: 0,
        ..Config::default()
    });
    let state = std::cell::RefCell::new((
        Model {
            quota: 10,
            shares: 100,
            alias: "begin".into(),
            tags: BTreeMap::new(),
            running: false,
            snapshots: Vec::new(),
        },
        Undo::Never,
    ));
    let operations = proptest::collection::vec(operation(), 1..40);
    let result = runner.run(&operations, |operations| {
        let (model, undo) = &mut *state.borrow_mut();
        for operation in operations {
            let before = model.clone();
            let mut can_undo = true;
            let (done, expected) = match &operation {
                Operation::Quota(quota) => {
                    model.quota = *quota;
                    (write("quota", &format!("{quota}\n")), true)
                }
                Operation::Alias(alias) => {
                    model.alias.clone_from(alias);
                    (write("alias", alias), true)
                }
                Operation::Tag(key, value) => {
                    model.tags.insert(*key, value.clone());
                    (write(&format!("tags/k{key}"), value), true)
                }
                Operation::RemoveTag(key) => {
                    model.tags.remove(key);
                    let payload = json!({"remove_tags": [format!("k{key}")]});
                    (write("vm.json", &payload.to_string()), true)
                }
                Operation::Payload { shares, tag } => {
                    model.shares = *shares;
                    model.tags.insert(tag.0, tag.1.clone());
                    let tags = json!({format!("k{}", tag.0): tag.1});
                    let payload = json!({"cpu_shares": shares, "set_tags": tags});
                    (write("vm.json", &payload.to_string()), true)
                }
                Operation::BadPayload(shares) => {
                    let payload = json!({"cpu_shares": shares, "zoneid": 1});
                    (write("vm.json", &payload.to_string()), false)
                }
                Operation::BadValue => (write("quota", "much"), false),
                Operation::Start => {
                    model.running = true;
                    (write("ctl", "start"), true)
                }
                Operation::Stop => {
                    model.running = false;
                    (write("ctl", "stop"), true)
                }
                Operation::Snapshot(number) => {
                    let is_new = !model.snapshots.contains(number);
                    if is_new {
                        model.snapshots.push(*number);
                    }
                    (write("ctl", &format!("snapshot s{number}")), is_new)
                }
                Operation::DeleteSnapshot(number) => {
                    let is_there = model.snapshots.contains(number);
                    model.snapshots.retain(|kept| kept != number);
                    can_undo = false;
                    (
                        write("ctl", &format!("delete-snapshot s{number}")),
                        is_there,
                    )
                }
                Operation::Revert => match std::mem::replace(undo, Undo::Never) {
                    Undo::To(old) => {
                        *model = *old;
                        (write("ctl", "revert"), true)
                    }
                    // Whatever the outcome: what it undoes is not in the model.
                    Undo::Never => continue,
                },
            };
            prop_assert_eq!(done, expected, "{:?}", operation);
            if *model != before {
                *undo = match can_undo && !matches!(operation, Operation::Revert) {
                    true => Undo::To(Box::new(before)),
                    false => Undo::Never,
                };
            }
            prop_assert_eq!(
                mounted.read(format!("{uuid}/quota")),
                format!("{}\n", model.quota)
            );
            prop_assert_eq!(
                mounted.read(format!("{uuid}/alias")),
                format!("{}\n", model.alias)
            );
            let shares = mounted.read(format!("{uuid}/cpu_shares"));
            prop_assert_eq!(shares, format!("{}\n", model.shares));
            let state = if model.running {
                "running\n"
            } else {
                "stopped\n"
            };
            prop_assert_eq!(mounted.read(format!("{uuid}/state")), state);
            for key in 0..3 {
                let tag = fs::read_to_string(at(&format!("tags/k{key}")));
                match model.tags.get(&key) {
                    Some(value) => prop_assert_eq!(tag.unwrap(), format!("{value}\n")),
                    None => prop_assert_eq!(tag.unwrap_err().kind(), ErrorKind::NotFound),
                }
            }
            let vm = mounted.json(format!("{uuid}/vm.json"));
            let mut shown: Vec<String> = vm["snapshots"]
                .as_array()
                .unwrap()
                .iter()
                .map(|snapshot| snapshot["name"].as_str().unwrap().to_owned())
                .collect();
            shown.sort();
            let mut expected: Vec<String> = model
                .snapshots
                .iter()
                .map(|number| format!("s{number}"))
                .collect();
            expected.sort();
            prop_assert_eq!(shown, expected);
        }
        Ok(())
    });
    result.unwrap();
}
