//! Payloads for VMs that have two configurations, as running domains do ([`drift`]): what is asked for is asked of
//! each, and gives each a target of its own. For all other VMs there is one, and these are what is beside them.

use serde_json::Value;

use super::difference::{self, Wanted};
use super::prepared::prepared;
use super::{Invalid, InvalidKind, file, full as document_of, update as payload_of};
use crate::vm::Object;
use crate::vm::drift::{self, Affect};
use crate::vm::property::{self, LIBVIRT};

/// What a running domain cannot have changed.
const FIXED_WHILE_RUNNING: [&str; 2] = ["max_physical_memory", "max_vcpus"];

/// What a VM is to be after `text` was written to a file of its directory. `path` has the file's names
/// below that directory, decoded: `["quota"]`, `["nics", "net0", "ip"]`, `["tags", "role"]`.
///
/// An empty text removes an optional property or a key, but not a key that holds the empty text: what
/// is read from a file can be written back and changes nothing. Lists are given one a line or with commas.
///
/// # Errors
/// When the file cannot be written or the text is no value for it.
pub fn of_file(vm: &Object, path: &[String], text: &str) -> Result<Object, Invalid> {
    each(vm, Affect::Both, |view, shown| {
        // An element's directory has its name by where it is in the list that is shown.
        file::of_file(view, shown, path, text)
    })
}

/// What a VM is to be after an update payload: scalars by name, `set_tags`, `add_nics` and so on.
///
/// A number, boolean or list may also be given as its text. An empty text or null removes an
/// optional property. `if_generation` is left to the caller; `affect` of a running domain chooses one of its
/// configurations, `live` or `config`.
///
/// # Errors
/// When anything in the payload is not acceptable; it is refused whole.
pub fn update(vm: &Object, payload: &Object) -> Result<Object, Invalid> {
    let affect = affect(vm, payload)?;
    let views = drift::split(vm);
    let asked = |view: &Object, payload: &Object| match &views {
        Some((live, config)) if affect == Affect::Both => {
            let other = if view == live { config } else { live };
            payload_of::update(view, &payload_of::without_absent(view, other, payload))
        }
        _ => payload_of::update(view, payload),
    };
    let made = once(vm, payload);
    if made != *payload {
        // A refusal speaks of devices as they were given, not by names that were made up for them.
        let view = match &views {
            Some((live, _)) if affect.live() => live,
            Some((_, config)) => config,
            None => vm,
        };
        asked(view, payload)?;
    }
    each(vm, affect, |view, _| asked(view, &made))
}

/// What a VM is to be after a full object was written to its `vm.json`. What the document shows as
/// it is stays so; what differs is changed as by an update payload, and what follows from that
/// follows.
///
/// A document without `nics` or `disks` is refused while the VM has some: it is no full object,
/// and taking it for one would destroy them.
///
/// # Errors
/// When a member is not acceptable, or `uuid` is another VM's.
pub fn full(vm: &Object, document: &Object) -> Result<Object, Invalid> {
    let affect = affect(vm, document)?;
    let document = once(vm, document);
    each(vm, affect, |view, shown| {
        document_of::full(view, shown, &document)
    })
}

/// The target in which everything that differed between `before` and `after` is again as in
/// `before`, and all else as the VM is now.
///
/// # Errors
/// When the VM no longer shows what `after` shows there, or what was destroyed cannot come back.
pub fn revert(vm_now: &Object, before: &Object, after: &Object) -> Result<Object, Invalid> {
    let [was, is] = [before, after].map(drift::split);
    match (was, is) {
        (Some(was), Some(is)) => each(vm_now, Affect::Both, |view, shown| {
            // What is shown is what it runs with, unless it has stopped since.
            match std::ptr::eq(view, shown) && drift::runs(vm_now) {
                true => difference::revert(view, &was.0, &is.0),
                false => difference::revert(view, &was.1, &is.1),
            }
        }),
        _ => each(vm_now, Affect::Both, |view, _| {
            difference::revert(view, before, after)
        }),
    }
}

/// What a VM has to show once `target` is applied to `old`: everything in which they differ and
/// that can be set. What is only read, such as `free_space`, is left out.
pub fn wanted(old: &Object, target: &Object) -> Vec<Wanted> {
    let (Some(old_two), Some(target_two)) = (drift::split(old), drift::split(target)) else {
        return difference::wanted(old, target);
    };
    let mut found = difference::wanted(&old_two.0, &target_two.0);
    let config = difference::wanted(&old_two.1, &target_two.1).into_iter();
    found.extend(
        (config.filter(|one| drift::is_compared(&one.path))).map(|one| Wanted {
            affect: Affect::Config,
            ..one
        }),
    );
    found
}

/// A document in which what has to be made up has been, so that it is the same in every configuration.
fn once(vm: &Object, document: &Object) -> Object {
    match drift::split(vm) {
        Some((live, config)) => prepared(&[&live, &config], document),
        None => prepared(&[vm], document),
    }
}

/// Which configuration a document is for.
fn affect(vm: &Object, document: &Object) -> Result<Affect, Invalid> {
    if property::brand(vm) != Some(LIBVIRT) {
        return Ok(Affect::Both);
    }
    match document.get("affect").map(Value::as_str) {
        None => Ok(Affect::Both),
        Some(Some("live")) => Ok(Affect::Live),
        Some(Some("config")) => Ok(Affect::Config),
        Some(Some("both")) => Ok(Affect::Both),
        Some(_) => Err(InvalidKind::Value.refuse("affect", "not live, config or both")),
    }
}

/// What a VM is to be by a change of each of its configurations that is meant. The change gets the configuration and
/// the one that is shown.
fn each(
    vm: &Object,
    affect: Affect,
    change: impl Fn(&Object, &Object) -> Result<Object, Invalid>,
) -> Result<Object, Invalid> {
    let Some((live, config)) = drift::split(vm) else {
        has_only_one(vm, affect)?;
        return change(vm, vm);
    };
    let new_live = match affect.live() {
        true => change(&live, &live)?,
        false => live.clone(),
    };
    let fixed = FIXED_WHILE_RUNNING.iter();
    if let Some(name) = fixed
        .copied()
        .find(|name| new_live.get(*name) != live.get(*name))
    {
        let reason = "cannot change while the domain runs; write it to vm.json with \"affect\": \"config\" to \
                      have it at the next start";
        return Err(InvalidKind::State.refuse(name, reason));
    }
    let new_config = match affect.config() {
        true => change(&config, &live).map_err(|invalid| Invalid {
            message: format!(
                "{} (in the persistent configuration, which differs: see .drift)",
                invalid.message
            ),
            ..invalid
        })?,
        false => config.clone(),
    };
    if affect != Affect::Both {
        let [of_live, of_config] = [(&live, &new_live), (&config, &new_config)]
            .map(|(old, new)| difference::wanted(old, new));
        let mut all = of_live.iter().chain(&of_config);
        if let Some(shared) = all.find(|one| !drift::is_compared(&one.path)) {
            let reason = "there is only one for both configurations; leave out affect";
            return Err(InvalidKind::Value.refuse(shared.name(), reason));
        }
    }
    Ok(drift::join(new_live, &new_config))
}

/// Whether a VM with one configuration has the one that is meant.
fn has_only_one(vm: &Object, affect: Affect) -> Result<(), Invalid> {
    let runs = drift::runs(vm);
    match affect {
        Affect::Live if !runs => Err(InvalidKind::State.refuse(
            "affect",
            "the domain does not run, so nothing of it is live",
        )),
        Affect::Config if runs => Err(InvalidKind::State.refuse(
            "affect",
            "the domain is transient: it has no persistent configuration",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Object {
        match value {
            Value::Object(object) => object,
            other => panic!("not an object: {other}"),
        }
    }

    /// A running domain whose next start has more memory, another title and no second nic.
    fn vm() -> Object {
        let nic = |number: u8| {
            json!({"interface": format!("net{number}"), "mac": format!("52:54:00:00:00:0{number}"),
                   "type": "user", "model": "virtio", "link": "up"})
        };
        let live = object(json!({
            "uuid": "6695eb01-f6a4-8304-79aa-97f2502e193f", "zonename": "web", "alias": "web", "brand": "kvm",
            "autoboot": false, "ram": 512, "max_physical_memory": 2048, "vcpus": 1, "max_vcpus": 2,
            "state": "running", "persistent": true, "tags": {"role": "web"}, "customer_metadata": {},
            "nics": [nic(0), nic(1)],
            "disks": [{"name": "vda", "path": "/vda", "boot": true, "media": "disk", "size": 1024}],
            "quota": 1, "domain.xml": "<domain/>",
        }));
        let mut config = live.clone();
        config.insert("ram".to_owned(), json!(1024));
        config.insert("alias".to_owned(), json!("www"));
        config.insert("nics".to_owned(), json!([nic(0)]));
        drift::join(live, &config)
    }

    fn shown(vm: &Object) -> Value {
        vm[drift::DRIFT].clone()
    }

    #[test]
    fn a_value_is_given_to_both_configurations() {
        let vm = vm();
        let target = of_file(&vm, &["ram".to_owned()], "256").unwrap();
        assert_eq!(target["ram"], 256);
        assert_eq!(drift::config(&target)["ram"], 256);
        let all: Vec<String> = wanted(&vm, &target)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(all, ["ram = 256", "ram = 256 (config)"]);
    }

    #[test]
    fn a_value_that_only_the_running_domain_has_is_still_wanted_of_the_other() {
        let vm = vm();
        let target = of_file(&vm, &["ram".to_owned()], "512").unwrap();
        let all: Vec<String> = wanted(&vm, &target)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(all, ["ram = 512 (config)"]);
        assert!(!wanted(&vm, &target)[0].holds(&vm));
        assert!(wanted(&vm, &target)[0].holds(&target));
    }

    #[test]
    fn affect_chooses_one() {
        let vm = vm();
        let live = update(&vm, &object(json!({"ram": 300, "affect": "live"}))).unwrap();
        assert_eq!(
            (&live["ram"], &drift::config(&live)["ram"]),
            (&json!(300), &json!(1024))
        );
        let config = update(&vm, &object(json!({"ram": 300, "affect": "config"}))).unwrap();
        assert_eq!(
            (&config["ram"], &drift::config(&config)["ram"]),
            (&json!(512), &json!(300))
        );
        let more = object(json!({"max_physical_memory": 4096, "affect": "config"}));
        assert_eq!(
            drift::config(&update(&vm, &more).unwrap())["max_physical_memory"],
            4096
        );
    }

    #[test]
    fn what_a_running_domain_cannot_change_is_refused_with_the_way() {
        let refused = of_file(&vm(), &["max_physical_memory".to_owned()], "4096").unwrap_err();
        assert_eq!(refused.kind, InvalidKind::State);
        assert!(
            refused.message.contains("\"affect\": \"config\""),
            "{refused}"
        );
    }

    #[test]
    fn what_there_is_only_once_cannot_be_given_to_one() {
        for payload in [
            json!({"quota": 2, "affect": "config"}),
            json!({"autoboot": true, "affect": "live"}),
        ] {
            let refused = update(&vm(), &object(payload)).unwrap_err();
            assert!(refused.message.contains("leave out affect"), "{refused}");
        }
        let target = of_file(&vm(), &["quota".to_owned()], "2").unwrap();
        assert_eq!(shown(&target), shown(&vm()), "and it is no drift");
    }

    #[test]
    fn affect_is_refused_where_there_is_nothing_to_choose() {
        let mut vm = vm();
        vm.shift_remove(drift::DRIFT);
        let refused = update(&vm, &object(json!({"ram": 300, "affect": "config"}))).unwrap_err();
        assert!(refused.message.contains("transient"), "{refused}");
        vm.insert("state".to_owned(), json!("stopped"));
        let refused = update(&vm, &object(json!({"ram": 300, "affect": "live"}))).unwrap_err();
        assert!(refused.message.contains("does not run"), "{refused}");
        let refused = update(&vm, &object(json!({"ram": 300, "affect": "all"}))).unwrap_err();
        assert!(
            refused.message.contains("not live, config or both"),
            "{refused}"
        );
    }

    #[test]
    fn a_full_object_changes_what_it_changes_and_leaves_the_rest_of_the_drift() {
        let vm = vm();
        let mut document = vm.clone();
        document.insert("tags".to_owned(), json!({"role": "db"}));
        let target = full(&vm, &document).unwrap();
        assert_eq!(shown(&target), shown(&vm));
        assert_eq!(drift::config(&target)["tags"], json!({"role": "db"}));
        document.insert("nics".to_owned(), json!([vm["nics"][0]]));
        let target = full(&vm, &document).unwrap();
        assert_eq!(target["nics"], json!([vm["nics"][0]]));
        assert_eq!(drift::config(&target)["nics"], json!([vm["nics"][0]]));
    }

    #[test]
    fn a_change_of_both_is_reverted_in_both() {
        let vm = vm();
        let changed = of_file(&vm, &["ram".to_owned()], "256").unwrap();
        let back = revert(&changed, &vm, &changed).unwrap();
        assert_eq!(back, vm);
    }

    #[test]
    fn a_change_of_both_is_reverted_in_the_one_that_is_left() {
        let before = vm();
        let after = of_file(&before, &["ram".to_owned()], "256").unwrap();
        let mut stopped = drift::config(&after);
        stopped.insert("state".to_owned(), json!("stopped"));
        let back = revert(&stopped, &before, &after).unwrap();
        assert_eq!(back["ram"], 1024, "that of the next start, as it was");
    }

    #[test]
    fn what_the_chosen_one_does_not_have_is_not_removed_from_it() {
        let second = object(json!({"remove_nics": "52:54:00:00:00:01", "affect": "config"}));
        let refused = update(&vm(), &second).unwrap_err();
        assert_eq!(refused.kind, InvalidKind::Unknown);
    }

    #[test]
    fn what_one_of_them_has_no_more_is_removed_from_the_other() {
        let vm = vm();
        let second = "52:54:00:00:00:01";
        for removed in [json!(second), json!([second]), json!([{"mac": second}])] {
            let target = update(&vm, &object(json!({"remove_nics": removed}))).unwrap();
            assert_eq!(target["nics"], json!([vm["nics"][0]]));
            assert_eq!(drift::config(&target)["nics"], json!([vm["nics"][0]]));
        }
        let (live, config) = drift::split(&vm).unwrap();
        let vm = drift::join(config, &live);
        let replace = json!({"remove_nics": second, "add_nics": [{"type": "user"}]});
        let target = update(&vm, &object(replace)).unwrap();
        assert_eq!(drift::config(&target)["nics"], target["nics"]);
        let neither = object(json!({"remove_nics": "52:54:00:00:00:09"}));
        assert_eq!(
            update(&vm, &neither).unwrap_err().kind,
            InvalidKind::Unknown
        );
    }

    #[test]
    fn a_change_that_one_of_them_cannot_take_is_refused_naming_it() {
        let update_nic = json!({"update_nics": [{"mac": "52:54:00:00:00:01", "link": "down"}]});
        let refused = update(&vm(), &object(update_nic)).unwrap_err();
        assert!(
            refused.message.contains("in the persistent configuration"),
            "{refused}"
        );
    }
}
