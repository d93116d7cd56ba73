//! `vmadm` over a real mount: what it reads, what it refuses, how it is used.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use support::{Finished, Mounted, Running, Store, VMADM, run};

mod support;

const NOBODY: &str = "00000000-0000-0000-0000-000000000000";

fn vmadm(mounted: &Mounted, arguments: &[&str]) -> Command {
    let mut command = Command::new(VMADM);
    command.args(arguments).env("VMINFOD_MOUNT", &mounted.at);
    command
}

fn ask(mounted: &Mounted, arguments: &[&str]) -> Finished {
    run(&mut vmadm(mounted, arguments))
}

/// What a command prints that must succeed and say nothing on standard error.
#[track_caller]
fn read(mounted: &Mounted, arguments: &[&str]) -> String {
    let finished = ask(mounted, arguments);
    assert_eq!(finished.err, "", "{arguments:?}");
    finished.succeeded()
}

fn vms(mounted: &Mounted) -> Vec<Value> {
    mounted.json("vms.json").as_array().unwrap().clone()
}

fn text(vm: &Value, property: &str) -> String {
    vm[property].as_str().unwrap_or_default().to_owned()
}

/// What `vmadm list` calls the memory of a VM.
fn ram(vm: &Value) -> u64 {
    let property = match vm["hvm"].as_bool() {
        Some(true) => "ram",
        _ => "max_physical_memory",
    };
    vm[property].as_u64().unwrap_or_default()
}

#[test]
fn list_shows_every_vm_by_memory_and_then_uuid() {
    let store = Store::new(30);
    let mounted = store.mount();
    let mut expected = vms(&mounted);
    expected.sort_by_key(|vm| {
        let ram = ram(vm);
        (ram == 0, ram, text(vm, "uuid"))
    });
    let lines: Vec<String> = expected
        .iter()
        .map(|vm| {
            let kind = match vm["brand"].as_str().unwrap() {
                "lx" => "LX",
                "kvm" => "KVM",
                "bhyve" => "BHYV",
                _ => "OS",
            };
            let alias = vm["alias"].as_str().unwrap_or("-");
            let (uuid, state) = (text(vm, "uuid"), text(vm, "state"));
            format!(
                "{uuid:<36}  {kind:<4}  {:<7}  {state:<16}  {alias}",
                ram(vm)
            )
        })
        .collect();
    let header = "UUID                                  TYPE  RAM      STATE             ALIAS";
    let listed = read(&mounted, &["list"]);
    let mut listed = listed.lines();
    assert_eq!(listed.next(), Some(header));
    assert_eq!(listed.collect::<Vec<_>>(), lines);
    assert_eq!(
        read(&mounted, &["list", "-H"]).lines().collect::<Vec<_>>(),
        lines
    );
}

#[test]
fn a_parsable_list_has_the_columns_in_the_order_asked_for() {
    let store = Store::new(30);
    let mounted = store.mount();
    let mut expected: Vec<String> = vms(&mounted)
        .iter()
        .filter(|vm| vm["state"] == "running")
        .map(|vm| {
            let ip = text(&vm["nics"][0], "ip");
            format!("{}:{ip}:{}", text(vm, "uuid"), ram(vm))
        })
        .collect();
    expected.sort_unstable_by(|a, b| b.cmp(a));
    let arguments = ["list", "-po", "uuid,nics.0.ip,ram", "-s", "-uuid"];
    let listed = read(&mounted, &[&arguments[..], &["state=running"]].concat());
    assert_eq!(listed.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn all_filters_must_hold_and_lead_into_lists_and_maps() {
    let store = Store::new(30);
    let mounted = store.mount();
    let all = vms(&mounted);
    let vm = all
        .iter()
        .find(|vm| vm["nics"][0]["ip"].is_string() && vm["alias"].is_string())
        .unwrap();
    let (uuid, alias) = (text(vm, "uuid"), text(vm, "alias"));
    let ip = format!("nics.*.ip={}", text(&vm["nics"][0], "ip"));
    let found = |filters: &[&str]| read(&mounted, &[&["lookup"], filters].concat());
    assert_eq!(found(&[&ip]), format!("{uuid}\n"));
    assert_eq!(
        found(&[&ip, &format!("alias={alias}")]),
        format!("{uuid}\n")
    );
    assert_eq!(found(&[&ip, "alias=someone else"]), "");
    let regex = format!("alias=~^{}$", alias.to_uppercase());
    assert!(found(&[&regex]).contains(&uuid));

    let tagged = all.iter().filter(|vm| vm["tags"]["role"] == "web").count();
    assert_eq!(found(&["tags.role=web"]).lines().count(), tagged);
    let kvm = all.iter().filter(|vm| vm["brand"] == "kvm").count();
    assert!(kvm > 0);
    assert_eq!(found(&["type=KVM"]).lines().count(), kvm);
}

#[test]
fn lookup_prints_json_with_type_and_ram() {
    let store = Store::new(30);
    let mounted = store.mount();
    let found: Value = serde_json::from_str(&read(&mounted, &["lookup", "-j"])).unwrap();
    let all = vms(&mounted);
    assert_eq!(found.as_array().unwrap().len(), all.len());
    for (found, vm) in found.as_array().unwrap().iter().zip(&all) {
        let mut expected = vm.clone();
        expected["type"] = found["type"].clone();
        expected["ram"] = found["ram"].clone();
        assert_eq!(found, &expected);
        assert_eq!(found["ram"], ram(vm));
        assert!(found["type"].is_string());
    }

    let uuid = text(&all[0], "uuid");
    let one = ["lookup", "-j1", "-o", "state,uuid", &format!("uuid={uuid}")];
    let state = text(&all[0], "state");
    assert_eq!(
        read(&mounted, &one),
        format!("[\n  {{\n    \"state\": \"{state}\",\n    \"uuid\": \"{uuid}\"\n  }}\n]\n")
    );
}

#[test]
fn a_unique_lookup_finds_exactly_one() {
    let store = Store::new(30);
    let mounted = store.mount();
    let uuid = text(&vms(&mounted)[3], "uuid");
    let one = read(&mounted, &["lookup", "-1", &format!("uuid={uuid}")]);
    assert_eq!(one, format!("{uuid}\n"));
    for (filter, count) in [("uuid=~.", 30), ("alias=nobody", 0)] {
        let refused = ask(&mounted, &["lookup", "-1", filter]);
        assert_eq!(
            refused.err,
            format!("Requested unique lookup but found {count} results.\n")
        );
        assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    }
}

#[test]
fn what_is_no_key_is_refused_in_the_words_of_smartos() {
    let store = Store::new(1);
    let mounted = store.mount();
    let cases: [(&[&str], &str); 8] = [
        (&["list", "colour=red"], "Invalid filter key: \"colour\"\n"),
        (
            &["list", "nics.*.colour=red"],
            "Invalid filter key: \"nics.*.colour\"\n",
        ),
        (&["lookup", "colour=~r"], "Invalid lookup key: \"colour\"\n"),
        (&["list", "-o", "uuid,k"], "Invalid order key: \"k\"\n"),
        (
            &["list", "-o", "nics.*.ip"],
            "Invalid order key: \"nics.*.ip\"\n",
        ),
        (&["list", "-s", "f"], "invalid sort field: f\n"),
        (&["list", "-s", "uuid,-f"], "invalid sort field: -f\n"),
        (&["lookup", "-o", "uuid"], "Cannot specify -o without -j\n"),
    ];
    for (arguments, message) in cases {
        let refused = ask(&mounted, arguments);
        assert_eq!(refused.err, message, "{arguments:?}");
        assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
    }
}

#[test]
fn get_prints_the_vm_by_uuid_or_zonename() {
    let store = Store::new(5);
    let uuid = store.name_zone("webzone");
    let mounted = store.mount();
    assert_eq!(mounted.uuid("webzone"), uuid);
    let expected = mounted.read(format!("{uuid}/vm.json"));
    for arguments in [
        ["get", &uuid],
        ["json", &uuid],
        ["get", &uuid.to_uppercase()],
        ["get", "webzone"],
    ] {
        assert_eq!(read(&mounted, &arguments), expected);
    }
}

#[test]
fn a_vm_that_does_not_exist_is_no_zone_for_every_verb() {
    let store = Store::new(1);
    let mounted = store.mount();
    for name in [NOBODY, "nobody", "../etc"] {
        let plain = format!("zoneadm: {name}: No such zone configured\n");
        let cases: [(&[&str], String); 10] = [
            (&["get"], plain.clone()),
            (&["update", "quota=20"], plain.clone()),
            (&["start"], format!("Unable to start VM {name}: {plain}")),
            (&["stop", "-F"], plain.clone()),
            (&["reboot"], plain.clone()),
            (&["kill"], plain.clone()),
            (&["kill", "-9"], plain.clone()),
            (&["delete"], format!("Failed to delete VM {name}: {plain}")),
            (&["create-snapshot"], plain.clone()),
            (&["rollback-snapshot"], plain.clone()),
        ];
        for (arguments, message) in cases {
            let (verb, rest) = arguments.split_first().unwrap();
            let mut all = vec![*verb, name];
            all.extend(rest);
            if verb.ends_with("snapshot") {
                all.push("before");
            }
            let refused = ask(&mounted, &all);
            assert_eq!(refused.err, message, "{all:?}");
            assert_eq!((refused.code, refused.out.as_str()), (Some(1), ""));
        }
    }
}

#[test]
fn a_vm_that_is_so_already_is_left_alone() {
    let store = Store::new(10);
    let mounted = store.mount();
    for (state, verbs) in [
        ("running", ["start", "boot"]),
        ("stopped", ["stop", "halt"]),
    ] {
        let all = vms(&mounted);
        let vm = all.iter().find(|vm| vm["state"] == state).unwrap();
        let uuid = text(vm, "uuid");
        for verb in verbs {
            ask(&mounted, &[verb, &uuid]).said(&format!("VM {uuid} is already '{state}'"));
        }
        assert_eq!(mounted.read(format!("{uuid}/state")), format!("{state}\n"));
    }
}

#[test]
fn events_are_printed_as_vminfo_prints_them() {
    let store = Store::new(2);
    let mounted = store.mount();
    let zone = store.zones().remove(0);
    let uuid = mounted.uuid(&zone);
    let mut running = Vec::new();
    let mut streams = Vec::new();
    for arguments in [
        &["events", "-r"][..],
        &["events", "-rj"],
        &["events", "-rf", &uuid],
    ] {
        let (program, lines) = Running::printing(&mut vmadm(&mounted, arguments));
        let ready = lines.next();
        assert!(ready.contains("ready"), "{ready}");
        running.push(program);
        streams.push(lines);
    }
    fs::write(
        store.path(format!("zones/{zone}/config/tags.json")),
        json!({"colour": "red"}).to_string(),
    )
    .unwrap();
    let short = streams[0].find(|line| line.contains("tags.colour"));
    let begin = format!(" {} ", &uuid[..8]);
    assert!(short.contains(&begin), "{short}");
    assert!(
        short.ends_with(" modify: tags.colour added :: undefined -> \"red\""),
        "{short}"
    );
    let event: Value =
        serde_json::from_str(&streams[1].find(|line| line.contains("colour"))).unwrap();
    assert_eq!(event["vm"]["tags"]["colour"], "red");
    let full = streams[2].find(|line| line.contains("tags.colour"));
    assert!(full.contains(&format!("Z] {uuid} ")), "{full}");
}

#[test]
fn what_needs_smartos_says_what_it_needs() {
    let store = Store::new(1);
    let mounted = store.mount();
    let uuid = mounted.uuid(&store.zones()[0]);
    for (verb, needs) in [
        ("console", "a hypervisor"),
        ("info", "a hypervisor"),
        ("sysrq", "a hypervisor"),
        ("reprovision", "an image store"),
        ("send", "a stream"),
        ("receive", "a stream"),
        ("recv", "a stream"),
        ("install", "zoneadm"),
    ] {
        for arguments in [
            &[verb][..],
            &[verb, &uuid, "nmi"],
            &[verb, &uuid, "-f", "x"],
        ] {
            let named = if verb == "recv" { "receive" } else { verb };
            let begin = format!("vmadm {named}: needs {needs}");
            ask(&mounted, arguments).failed_with(1, &[&begin]);
        }
    }
}

#[test]
fn a_payload_that_is_none_is_refused_before_anything_is_written() {
    let store = Store::new(1);
    let mounted = store.mount();
    let uuid = mounted.uuid(&store.zones()[0]);
    let missing = store.dir().join("missing.json");
    let missing = missing.to_str().unwrap();
    let broken = store.dir().join("broken.json");
    fs::write(&broken, "{\"quota\": ").unwrap();
    let broken = broken.to_str().unwrap();
    for command in [
        &["create"][..],
        &["update", &uuid],
        &["validate", "create"],
        &["validate", "update", "lx"],
    ] {
        let with = |rest: &[&str]| ask(&mounted, &[command, rest].concat());
        let refused = with(&["-f", missing]);
        assert_eq!(refused.err, format!("File: {missing} does not exist.\n"));
        assert_eq!(refused.code, Some(1));
        with(&["-f", broken]).failed_with(1, &["Invalid JSON payload: EOF"]);
        // Standard input is empty here.
        with(&[]).failed_with(1, &["Invalid JSON payload: EOF"]);
        with(&["-f", "-"]).failed_with(1, &["Invalid JSON payload: EOF"]);
    }
}

#[test]
fn the_mount_is_found_by_option_environment_or_is_said_to_be_missing() {
    let store = Store::new(1);
    let mounted = store.mount();
    let listed = read(&mounted, &["list"]);
    let elsewhere = run(Command::new(VMADM)
        .args(["list", "--mount"])
        .arg(&mounted.at)
        .env("VMINFOD_MOUNT", "/nowhere"));
    assert_eq!(elsewhere.succeeded(), listed);
    let arguments = ["--mount", "/nowhere", "get", NOBODY];
    ask(&mounted, &arguments).failed_with(1, &["/nowhere: no such directory; "]);
}

#[test]
fn wrong_usage_is_answered_with_the_usage_on_standard_error() {
    let store = Store::new(1);
    let mounted = store.mount();
    for arguments in [
        &[][..],
        &["frobnicate"],
        &["list", "-x"],
        &["list", "running"],
        &["list", "alias=~("],
        &["lookup", "alias"],
        &["get"],
        &["get", NOBODY, "more"],
        &["update", NOBODY, "quota"],
        &["update", NOBODY, "-f", "x", "quota=1"],
        &["stop"],
        &["stop", "-t", "soon", NOBODY],
        &["stop", "-F", "-t", "1", NOBODY],
        &["kill", "-9"],
        &["kill", "-s", "TERM", "-9", NOBODY],
        &["validate"],
        &["validate", "delete"],
        &["validate", "update"],
        &["create-snapshot", NOBODY],
        &["events", "--since"],
    ] {
        let refused = ask(&mounted, arguments);
        assert_eq!(refused.code, Some(2), "{arguments:?} {refused:?}");
        assert!(
            refused.err.contains("Usage: vmadm"),
            "{arguments:?} {refused:?}"
        );
        assert_eq!(refused.out, "", "{arguments:?}");
    }
}

#[test]
fn a_payload_is_not_read_from_a_terminal() {
    let store = Store::new(1);
    let mounted = store.mount();
    // script(1) gives the program a terminal.
    for (verb, command) in [
        ("create", "create"),
        ("update", &format!("update {NOBODY}")),
        ("validate", "validate create"),
    ] {
        let mut script = Command::new("script");
        script
            .args(["-qec", &format!("{VMADM} {command}"), "/dev/null"])
            .env("VMINFOD_MOUNT", &mounted.at)
            .stdin(Stdio::null());
        let output = script.output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let message = format!("Will not {verb} from stdin when stdin is a tty.");
        assert!(said.contains(&message), "{said}");
        assert_eq!(output.status.code(), Some(2), "{said}");
    }
}

#[test]
fn every_verb_explains_itself_with_an_example() {
    let store = Store::new(1);
    let mounted = store.mount();
    let help = read(&mounted, &["help"]);
    assert_eq!(read(&mounted, &["--help"]), help);
    for verb in [
        "list",
        "lookup",
        "get",
        "create",
        "update",
        "delete",
        "start",
        "stop",
        "reboot",
        "kill",
        "validate",
        "create-snapshot",
        "rollback-snapshot",
        "delete-snapshot",
        "events",
        "console",
        "info",
        "sysrq",
        "reprovision",
        "send",
        "install",
        "receive",
    ] {
        assert!(help.contains(&format!("\n  {verb} ")), "{verb}");
        let explained = read(&mounted, &[verb, "--help"]);
        assert!(explained.contains("Example"), "{verb}: {explained}");
    }
    for alias in ["json", "boot", "halt", "destroy", "recv"] {
        assert!(read(&mounted, &[alias, "--help"]).contains("Example"));
    }
}

#[test]
fn who_may_not_read_vms_is_told_why() {
    let store = Store::new(1);
    let mounted = store.mount();
    // The way to the mount must be open to everybody, so that the file itself is what refuses.
    fs::set_permissions(store.dir(), fs::Permissions::from_mode(0o755)).unwrap();
    // So must be the program.
    let program = store.dir().join("vmadm");
    fs::copy(VMADM, &program).unwrap();
    let mut stranger = Command::new("setpriv");
    stranger
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(&program)
        .arg("list")
        .env("VMINFOD_MOUNT", &mounted.at);
    run(&mut stranger).failed_with(1, &["vms.json: permission denied; ", "-o group="]);
}
