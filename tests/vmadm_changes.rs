//! `vmadm` over a real mount: what it changes. Each change is looked for in the mount and in the
//! store after the command has ended, without waiting.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use support::{Finished, Mounted, Store, VMADM, run};

mod support;

const IMAGE: &str = "63d6e664-3f1f-11e8-aef6-a3120cf8dd9d";

fn vmadm(mounted: &Mounted, arguments: &[&str]) -> Command {
    let mut command = Command::new(VMADM);
    command.args(arguments).env("VMINFOD_MOUNT", &mounted.at);
    command
}

fn ask(mounted: &Mounted, arguments: &[&str]) -> Finished {
    run(&mut vmadm(mounted, arguments))
}

/// Runs it with a payload on standard input.
fn pipe(mounted: &Mounted, arguments: &[&str], payload: &str) -> Finished {
    let mut child = vmadm(mounted, arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(payload.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    Finished {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The uuid of an ordinary zone in this state.
#[track_caller]
fn zone_in(mounted: &Mounted, state: &str) -> String {
    let vms = mounted.json("vms.json");
    let vm = vms.as_array().unwrap().iter().find(|vm| {
        let ordinary = vm["hvm"] != true && vm["zonename"] == vm["uuid"];
        vm["state"] == state && ordinary && vm["alias"].is_string()
    });
    vm.unwrap()["uuid"].as_str().unwrap().to_owned()
}

fn vm(mounted: &Mounted, uuid: &str) -> Value {
    mounted.json(format!("{uuid}/vm.json"))
}

fn index(store: &Store) -> String {
    fs::read_to_string(store.path("etc/zones/index")).unwrap()
}

#[test]
fn a_vm_is_created_from_a_file_and_from_standard_input() {
    let store = Store::new(3);
    let mounted = store.mount();
    let payload = json!({"brand": "joyent", "image_uuid": IMAGE, "alias": "made"}).to_string();
    let file = store.dir().join("payload.json");
    fs::write(&file, &payload).unwrap();
    for finished in [
        ask(&mounted, &["create", "-f", file.to_str().unwrap()]),
        pipe(&mounted, &["create"], &payload),
        pipe(&mounted, &["create", "-f", "-"], &payload),
    ] {
        assert_eq!((finished.code, finished.out.as_str()), (Some(0), ""));
        let uuid = finished
            .err
            .strip_prefix("Successfully created VM ")
            .unwrap()
            .trim_end();
        assert_eq!(vm(&mounted, uuid)["alias"], "made");
        assert!(index(&store).contains(uuid));
    }
    let found = ask(&mounted, &["lookup", "alias=made"]).succeeded();
    assert_eq!(found.lines().count(), 3);
}

#[test]
fn a_refused_creation_says_why_and_makes_nothing() {
    let store = Store::new(3);
    let mounted = store.mount();
    let taken = mounted.uuid(&store.zones()[0]);
    let cases = [
        (json!({"image_uuid": IMAGE}), "brand"),
        (json!({"brand": "joyent"}), "image_uuid"),
        (
            json!({"brand": "joyent", "image_uuid": IMAGE, "quota": "lots"}),
            "quota",
        ),
        (
            json!({"brand": "joyent", "image_uuid": IMAGE, "colour": "red"}),
            "colour",
        ),
        (
            json!({"brand": "joyent", "image_uuid": IMAGE, "uuid": taken}),
            &taken,
        ),
    ];
    for (payload, names) in cases {
        pipe(&mounted, &["create"], &payload.to_string()).failed_with(1, &[names]);
    }
    assert_eq!(mounted.json("vms.json").as_array().unwrap().len(), 3);
}

#[test]
fn words_are_set_and_empty_ones_removed() {
    let store = Store::new(10);
    let mounted = store.mount();
    let uuid = zone_in(&mounted, "running");
    ask(
        &mounted,
        &[
            "update",
            &uuid,
            "quota=23",
            "alias=7",
            "resolvers=8.8.8.8,1.1.1.1",
            "set_tags={\"role\":\"web\"}",
        ],
    )
    .said(&format!("Successfully updated VM {uuid}"));
    let now = vm(&mounted, &uuid);
    assert_eq!(now["quota"], 23);
    assert_eq!(now["alias"], "7");
    assert_eq!(now["resolvers"], json!(["8.8.8.8", "1.1.1.1"]));
    assert_eq!(now["tags"]["role"], "web");

    ask(&mounted, &["update", &uuid, "alias=", "remove_tags=role"])
        .said(&format!("Successfully updated VM {uuid}"));
    let now = vm(&mounted, &uuid);
    assert_eq!(now["alias"], Value::Null);
    assert_eq!(now["tags"]["role"], Value::Null);
}

#[test]
fn an_update_is_taken_from_a_file_or_standard_input_however_long() {
    let store = Store::new(10);
    let mounted = store.mount();
    let uuid = zone_in(&mounted, "stopped");
    let long = "x".repeat(300_000);
    let payload = json!({"set_customer_metadata": {"long": long}, "quota": 31}).to_string();
    pipe(&mounted, &["update", &uuid], &payload).said(&format!("Successfully updated VM {uuid}"));
    let now = vm(&mounted, &uuid);
    assert_eq!(now["quota"], 31);
    assert_eq!(now["customer_metadata"]["long"], long);

    let file = store.dir().join("payload.json");
    fs::write(
        &file,
        json!({"remove_customer_metadata": ["long"]}).to_string(),
    )
    .unwrap();
    ask(&mounted, &["update", &uuid, "-f", file.to_str().unwrap()])
        .said(&format!("Successfully updated VM {uuid}"));
    assert_eq!(
        vm(&mounted, &uuid)["customer_metadata"]["long"],
        Value::Null
    );
}

#[test]
fn what_get_prints_can_be_edited_and_given_back() {
    let store = Store::new(10);
    let mounted = store.mount();
    let uuid = zone_in(&mounted, "running");
    let mut object: Value =
        serde_json::from_str(&ask(&mounted, &["get", &uuid]).succeeded()).unwrap();
    object["quota"] = json!(41);
    object["tags"]["edited"] = json!(true);
    pipe(&mounted, &["update", &uuid], &object.to_string())
        .said(&format!("Successfully updated VM {uuid}"));
    let now = vm(&mounted, &uuid);
    assert_eq!(now["quota"], 41);
    assert_eq!(now["tags"]["edited"], true);
}

#[test]
fn a_refused_update_names_the_property_and_changes_nothing() {
    let store = Store::new(10);
    let mounted = store.mount();
    let uuid = zone_in(&mounted, "running");
    let before = vm(&mounted, &uuid);
    for (words, named) in [
        (["quota=5", "colour=red"], "colour"),
        (["quota=5", "state=stopped"], "state"),
        (["quota=5", "max_lwps=many"], "max_lwps"),
        (["quota=5", "autoboot=perhaps"], "autoboot"),
    ] {
        let arguments = [&["update", &uuid], &words[..]].concat();
        ask(&mounted, &arguments).failed_with(1, &[named]);
    }
    assert_eq!(vm(&mounted, &uuid), before);
}

#[test]
fn a_vm_is_stopped_started_and_rebooted() {
    let store = Store::new(10);
    let mounted = store.mount();
    let uuid = zone_in(&mounted, "running");
    let state = || mounted.read(format!("{uuid}/state"));
    let stopped = format!("Successfully completed stop for VM {uuid}");
    let started = format!("Successfully started VM {uuid}");

    ask(&mounted, &["stop", &uuid]).said(&stopped);
    assert_eq!(state(), "stopped\n");
    ask(&mounted, &["stop", &uuid]).said(&format!("VM {uuid} is already 'stopped'"));

    ask(&mounted, &["start", &uuid]).said(&started);
    assert_eq!(state(), "running\n");
    ask(&mounted, &["boot", &uuid]).said(&format!("VM {uuid} is already 'running'"));

    let zoneid = mounted.read(format!("{uuid}/zoneid"));
    ask(&mounted, &["reboot", &uuid]).said(&format!("Successfully completed reboot for VM {uuid}"));
    assert_eq!(state(), "running\n");
    assert_ne!(mounted.read(format!("{uuid}/zoneid")), zoneid);
    ask(&mounted, &["reboot", "-F", &uuid])
        .said(&format!("Successfully completed reboot for VM {uuid}"));

    ask(&mounted, &["halt", "-F", &uuid]).said(&stopped);
    ask(&mounted, &["boot", &uuid]).said(&started);
    ask(&mounted, &["stop", "-t", "10", &uuid]).said(&stopped);
    assert_eq!(state(), "stopped\n");
}

#[test]
fn a_signal_is_sent_as_it_was_named() {
    let store = Store::new(10);
    let mounted = store.mount();
    for (arguments, signal) in [
        (&["-s", "SIGUSR1"][..], "SIGUSR1"),
        (&["-HUP"], "HUP"),
        (&[], "SIGTERM"),
        (&["-9"], "9"),
        (&["-s", "KILL"], "KILL"),
    ] {
        let uuid = zone_in(&mounted, "running");
        let all = [&["kill", &uuid], arguments].concat();
        ask(&mounted, &all).said(&format!(
            "Sent signal \"{signal}\" to init process for VM {uuid}"
        ));
    }
    let uuid = zone_in(&mounted, "running");
    ask(&mounted, &["kill", "-NOSUCH", &uuid]).failed_with(1, &["NOSUCH"]);
}

#[test]
fn a_deleted_vm_is_gone_everywhere() {
    let store = Store::new(10);
    let mounted = store.mount();
    for (verb, state) in [("delete", "running"), ("destroy", "stopped")] {
        let uuid = zone_in(&mounted, state);
        ask(&mounted, &[verb, &uuid]).said(&format!("Successfully deleted VM {uuid}"));
        assert!(!mounted.path(&uuid).exists());
        assert!(!mounted.read("vms.json").contains(&uuid));
        assert!(!index(&store).contains(&uuid));
        let again = ask(&mounted, &[verb, &uuid]);
        assert_eq!(
            again.err,
            format!("Failed to delete VM {uuid}: zoneadm: {uuid}: No such zone configured\n")
        );
    }
}

#[test]
fn snapshots_are_taken_gone_back_to_and_removed() {
    let store = Store::new(10);
    let mounted = store.mount();
    let uuid = zone_in(&mounted, "stopped");
    let names = || -> Vec<Value> {
        let snapshots = vm(&mounted, &uuid)["snapshots"].clone();
        let snapshots = snapshots.as_array().cloned().unwrap_or_default();
        snapshots
            .iter()
            .map(|snapshot| snapshot["name"].clone())
            .collect()
    };
    ask(&mounted, &["create-snapshot", &uuid, "before"])
        .said(&format!("Created snapshot before for VM {uuid}"));
    assert!(names().contains(&json!("before")));
    ask(&mounted, &["rollback-snapshot", &uuid, "before"])
        .said(&format!("Rolled back snapshot before for VM {uuid}"));
    ask(&mounted, &["delete-snapshot", &uuid, "before"])
        .said(&format!("Deleted snapshot before for VM {uuid}"));
    assert!(!names().contains(&json!("before")));
    ask(&mounted, &["delete-snapshot", &uuid, "before"]).failed_with(1, &["before"]);
}

#[test]
fn a_vm_is_named_by_its_zonename_too() {
    let store = Store::new(5);
    let uuid = store.name_zone("webzone");
    let mounted = store.mount();
    ask(&mounted, &["update", "webzone", "quota=77"]).said("Successfully updated VM webzone");
    assert_eq!(mounted.read(format!("{uuid}/quota")), "77\n");
    let state = mounted.read(format!("{uuid}/state"));
    let (verb, words) = match state.trim_end() {
        "running" => ("stop", "Successfully completed stop for VM webzone"),
        _ => ("start", "Successfully started VM webzone"),
    };
    ask(&mounted, &[verb, "webzone"]).said(words);
    ask(&mounted, &["delete", "webzone"]).said("Successfully deleted VM webzone");
    assert!(!mounted.path(&uuid).exists());
}

#[test]
fn validate_tells_what_would_be_refused_and_applies_nothing() {
    let store = Store::new(10);
    let mounted = store.mount();
    let uuid = zone_in(&mounted, "running");
    let before = mounted.read("vms.json");
    let validate = |arguments: &[&str], payload: Value| {
        pipe(
            &mounted,
            &[&["validate"], arguments].concat(),
            &payload.to_string(),
        )
    };

    let payload = json!({"brand": "joyent", "image_uuid": IMAGE});
    validate(&["create"], payload).said("VALID 'create' payload for joyent brand VMs.");
    validate(&["create"], json!({"brand": "joyent", "quota": 5})).failed_with(
        1,
        &[
            "INVALID 'create' payload for joyent brand VMs: ",
            "image_uuid",
        ],
    );
    validate(&["create"], json!({"image_uuid": IMAGE}))
        .failed_with(1, &["INVALID 'create' payload: ", "brand"]);

    let brand = mounted.read(format!("{uuid}/brand"));
    let brand = brand.trim_end();
    validate(&["update", &uuid], json!({"quota": 5}))
        .said(&format!("VALID 'update' payload for {brand} brand VMs."));
    validate(&["update", &uuid], json!({"quota": 5, "colour": "red"})).failed_with(
        1,
        &[
            &format!("INVALID 'update' payload for {brand} brand VMs: "),
            "colour",
        ],
    );
    for brand in ["joyent", "joyent-minimal", "builder", "lx", "kvm", "bhyve"] {
        validate(
            &["update", brand],
            json!({"quota": 5, "update_nics": [
                {"mac": "02:08:20:aa:bb:cc", "ip": "10.0.0.9", "netmask": "255.255.255.0"},
            ]}),
        )
        .said(&format!("VALID 'update' payload for {brand} brand VMs."));
        validate(&["update", brand], json!({"brand": "lx"}))
            .failed_with(1, &["INVALID 'update' payload", "brand"]);
    }
    assert_eq!(mounted.read("vms.json"), before);
}
