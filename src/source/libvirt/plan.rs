//! The steps between a domain as it is and as it is to be: pure.
//!
//! A domain with two configurations has a target for each; what comes out the same for both is one step. First comes
//! what makes room for others, then what libvirt or the guest is most likely to refuse, last what never fails: so a
//! payload that is refused has mostly changed nothing.

use serde_json::{Value, json};

use super::step::{Affect, Step};
use crate::vm::payload::{Wanted, wanted};
use crate::vm::verb::Verb;
use crate::vm::{Object, drift};

/// The steps that make a domain what its target is.
pub(super) fn update(before: &Object, target: &Object) -> Vec<Step> {
    let mut steps = match (drift::split(before), drift::split(target)) {
        (Some(before), Some(target)) => {
            let live = of_one(&before.0, &target.0, Affect::Live);
            let config = of_one(&before.1, &target.1, Affect::Config);
            merged(live, config)
        }
        _ if drift::runs(before) => of_one(before, target, Affect::Live),
        _ => of_one(before, target, Affect::Config),
    };
    steps.sort_by_key(|step| rank(step, before, target));
    steps
}

/// The steps of a verb that need no waiting between them. A VM that could not be read is an empty object.
pub(super) fn verb(verb: &Verb, vm: &Object) -> Vec<Step> {
    match verb {
        Verb::Start => vec![Step::Start],
        Verb::Stop { force: true, .. } => vec![Step::Destroy],
        Verb::Stop { force: false, .. } => vec![Step::Shutdown],
        Verb::Reboot { force: true } => vec![Step::Reset],
        Verb::Reboot { force: false } => vec![Step::Reboot],
        Verb::Suspend => vec![Step::Suspend],
        Verb::Resume => vec![Step::Resume],
        // A transient domain is gone with its process. Any other may be started or stopped just now.
        Verb::Delete if vm.get("persistent") == Some(&Value::Bool(false)) => vec![Step::Destroy],
        Verb::Delete => vec![Step::Destroy, Step::Undefine],
        Verb::Kill(_)
        | Verb::Sync
        | Verb::Revert
        | Verb::Snapshot(_)
        | Verb::Rollback(_)
        | Verb::DeleteSnapshot(_) => Vec::new(),
    }
}

/// The steps for one configuration.
fn of_one(before: &Object, target: &Object, affect: Affect) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for one in wanted(before, target) {
        let Some(step) = step(&one, target, affect).filter(|step| !steps.contains(step)) else {
            continue;
        };
        match (steps.last_mut(), step) {
            // All that changes of a nic is one step.
            (
                Some(Step::UpdateNic { mac, changes, .. }),
                Step::UpdateNic {
                    mac: other,
                    changes: more,
                    ..
                },
            ) if *mac == other => changes.extend(more),
            (_, step) => steps.push(step),
        }
    }
    steps
}

fn step(one: &Wanted, target: &Object, affect: Affect) -> Option<Step> {
    let path: Vec<&str> = one.path.iter().map(String::as_str).collect();
    let value = one.value.as_ref();
    let text = || value.and_then(Value::as_str).map(str::to_owned);
    let whole = || value.and_then(Value::as_u64);
    let count = || whole().and_then(|count| u32::try_from(count).ok());
    let map = |name: &str| {
        let map = target.get(name).and_then(Value::as_object);
        map.cloned().unwrap_or_default()
    };
    Some(match path.as_slice() {
        ["alias"] => Step::Title {
            // A domain without a title is called by its name.
            title: text().filter(|title| target.get("zonename") != Some(&json!(title))),
            affect,
        },
        ["autoboot"] => Step::Autostart {
            on: value.and_then(Value::as_bool)?,
        },
        ["tags" | "customer_metadata", ..] => Step::Metadata {
            tags: map("tags"),
            customer_metadata: map("customer_metadata"),
            affect,
        },
        ["ram"] => Step::Memory {
            kib: bytes(value?, 20)? >> 10,
            affect,
        },
        ["max_physical_memory"] => Step::MaxMemory {
            kib: bytes(value?, 20)? >> 10,
        },
        ["vcpus"] => Step::Vcpus {
            count: count()?,
            affect,
        },
        ["max_vcpus"] => Step::MaxVcpus { count: count()? },
        ["cpu_shares"] => Step::CpuShares {
            shares: whole()?,
            affect,
        },
        ["cpu_cap"] => Step::CpuCap {
            percent: whole(),
            affect,
        },
        ["quota"] => Step::Resize {
            name: boot_disk(target)?,
            bytes: bytes(value?, 30)?,
        },
        ["nics", mac] => match value {
            Some(Value::Object(nic)) => Step::AttachNic {
                nic: nic.clone(),
                affect,
            },
            _ => Step::DetachNic {
                mac: (*mac).to_owned(),
                affect,
            },
        },
        ["nics", mac, member] => Step::UpdateNic {
            mac: (*mac).to_owned(),
            changes: Object::from_iter([(
                (*member).to_owned(),
                value.cloned().unwrap_or_default(),
            )]),
            affect,
        },
        ["disks", name] => match value {
            Some(Value::Object(disk)) => Step::AttachDisk {
                disk: disk.clone(),
                affect,
            },
            _ => Step::DetachDisk {
                name: (*name).to_owned(),
                affect,
            },
        },
        ["disks", name, "size"] => Step::Resize {
            name: (*name).to_owned(),
            bytes: bytes(value?, 20)?,
        },
        ["disks", name, "path"] => Step::Media {
            name: (*name).to_owned(),
            path: text(),
            affect,
        },
        _ => return None,
    })
}

/// A number of units of 2^`shift` bytes, in bytes.
fn bytes(value: &Value, shift: u32) -> Option<u64> {
    match value.as_u64() {
        Some(whole) => whole.checked_mul(1 << shift),
        None => Some((value.as_f64()? * (1u64 << shift) as f64) as u64),
    }
}

fn boot_disk(vm: &Object) -> Option<String> {
    let disks = vm.get("disks")?.as_array()?;
    let boot = disks.iter().find(|disk| disk["boot"] == true)?;
    Some(boot["name"].as_str()?.to_owned())
}

/// Both lists as one: what is in both is one step for both configurations.
fn merged(live: Vec<Step>, mut config: Vec<Step>) -> Vec<Step> {
    let mut steps = Vec::new();
    for step in live {
        if step.is_of_one() {
            steps.push(step);
            continue;
        }
        let twin = (config.iter()).position(|other| other.clone().with(Affect::Live) == step);
        match twin {
            Some(twin) => {
                config.remove(twin);
                steps.push(step.with(Affect::Both));
            }
            None => steps.push(step),
        }
    }
    steps.extend(config);
    steps
}

/// Where a step comes in the order of steps.
fn rank(step: &Step, before: &Object, target: &Object) -> u8 {
    let grows = |name: &str| {
        let number = |vm| drift::config(vm).get(name).and_then(Value::as_f64);
        number(target) > number(before)
    };
    match step {
        Step::DetachNic { .. } | Step::DetachDisk { .. } => 0,
        // The most that there can be grows before what there is, and shrinks after it.
        Step::MaxMemory { .. } if grows("max_physical_memory") => 1,
        Step::MaxVcpus { .. } if grows("max_vcpus") => 1,
        Step::Memory { .. } | Step::Vcpus { .. } => 2,
        Step::MaxMemory { .. } | Step::MaxVcpus { .. } => 3,
        Step::Resize { .. } => 4,
        Step::AttachNic { .. } | Step::AttachDisk { .. } => 5,
        Step::UpdateNic { .. } | Step::Media { .. } => 6,
        Step::CpuShares { .. } | Step::CpuCap { .. } => 7,
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::payload;

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            other => panic!("not an object: {other}"),
        }
    }

    fn stopped() -> Object {
        object(json!({
            "uuid": "6695eb01-f6a4-8304-79aa-97f2502e193f", "zonename": "web", "alias": "web", "brand": "kvm",
            "autoboot": false, "ram": 512, "max_physical_memory": 512, "vcpus": 1, "max_vcpus": 1,
            "state": "stopped", "persistent": true, "tags": {}, "customer_metadata": {},
            "nics": [{"interface": "net0", "mac": "52:54:00:00:00:01", "type": "network", "network": "default",
                      "model": "virtio", "link": "up"}],
            "disks": [{"name": "vda", "path": "/vda", "boot": true, "media": "disk", "size": 1024}],
            "quota": 1, "domain.xml": "<domain/>",
        }))
    }

    fn running() -> Object {
        let mut vm = stopped();
        vm.insert("state".to_owned(), json!("running"));
        drift::join(vm.clone(), &vm)
    }

    #[track_caller]
    fn steps(vm: &Object, payload: Value) -> Vec<Step> {
        update(vm, &payload::update(vm, &object(payload)).unwrap())
    }

    #[test]
    fn what_is_the_same_for_both_configurations_is_one_step() {
        let title = |affect| Step::Title {
            title: Some("a".to_owned()),
            affect,
        };
        let alias = json!({"alias": "a"});
        assert_eq!(steps(&running(), alias.clone()), [title(Affect::Both)]);
        assert_eq!(steps(&stopped(), alias), [title(Affect::Config)]);
        let live = json!({"alias": "a", "affect": "live"});
        assert_eq!(steps(&running(), live), [title(Affect::Live)]);
    }

    #[test]
    fn two_configurations_that_differ_get_what_each_needs() {
        let mut config = stopped();
        config.insert("tags".to_owned(), json!({"next": 1}));
        let vm = drift::join(drift::split(&running()).unwrap().0, &config);
        let metadata = |tags: Value, affect| Step::Metadata {
            tags: object(tags),
            customer_metadata: Object::new(),
            affect,
        };
        assert_eq!(
            steps(&vm, json!({"set_tags": {"a": "b"}})),
            [
                metadata(json!({"a": "b"}), Affect::Live),
                metadata(json!({"next": 1, "a": "b"}), Affect::Config),
            ]
        );
    }

    #[test]
    fn an_alias_that_is_the_name_is_no_title() {
        let mut vm = stopped();
        vm.insert("alias".to_owned(), json!("other"));
        let title = Step::Title {
            title: None,
            affect: Affect::Config,
        };
        assert_eq!(steps(&vm, json!({"alias": ""})), [title]);
    }

    #[test]
    fn memory_grows_from_above_and_shrinks_from_below() {
        let memory = |kib| Step::Memory {
            kib,
            affect: Affect::Config,
        };
        let more = json!({"ram": 1024, "max_physical_memory": 1024});
        assert_eq!(
            steps(&stopped(), more),
            [Step::MaxMemory { kib: 1 << 20 }, memory(1 << 20)]
        );
        let less = json!({"ram": 128, "max_physical_memory": 256});
        assert_eq!(
            steps(&stopped(), less),
            [memory(128 << 10), Step::MaxMemory { kib: 256 << 10 }]
        );
    }

    #[test]
    fn a_quota_is_the_size_of_the_disk_that_is_booted_from() {
        let resize = Step::Resize {
            name: "vda".to_owned(),
            bytes: 3 << 29,
        };
        assert_eq!(steps(&running(), json!({"quota": 1.5})), [resize]);
    }

    #[test]
    fn all_that_changes_of_a_nic_is_one_step() {
        let changes = json!({"update_nics": [{"mac": "52:54:00:00:00:01", "link": "down", "network": "other"}]});
        let found = steps(&running(), changes);
        let [
            Step::UpdateNic {
                changes, affect, ..
            },
            Step::UpdateNic {
                affect: Affect::Config,
                ..
            },
        ] = found.as_slice()
        else {
            panic!("{found:?}");
        };
        assert_eq!(*affect, Affect::Live);
        assert_eq!(
            (&changes["link"], &changes["network"]),
            (&json!("down"), &json!("other"))
        );
    }

    #[test]
    fn what_makes_room_comes_first_and_what_never_fails_last() {
        let payload = json!({
            "alias": "x",
            "add_nics": [{"type": "user"}],
            "remove_nics": ["52:54:00:00:00:01"],
            "quota": 2,
        });
        let found = steps(&running(), payload);
        let [
            Step::DetachNic { .. },
            Step::DetachNic { .. },
            Step::Resize { .. },
            Step::AttachNic { affect, .. },
            Step::Title { .. },
        ] = found.as_slice()
        else {
            panic!("{found:?}");
        };
        // The mac that was made for it is one for both.
        assert_eq!(*affect, Affect::Both);
    }
}
