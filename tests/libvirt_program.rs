//! The program `vminfod-libvirt` by itself, over its pipes, changing domains of a libvirtd with QEMU. virsh is the
//! other side. The guests have only their BIOS, which listens to nobody.

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use support::libvirt::Host;
use support::{Lines, Running, run};
use uuid::Uuid;
use vminfod::source::libvirt::step::{Affect, Step};
use vminfod::source::libvirt::wire::{Answer, Change, Line, Request};
use vminfod::source::{Accepted, Failed, FailedKind};
use vminfod::vm::Object;

mod support;

const MAC: &str = "52:54:00:00:00:01";
const NIC: &str =
    "<interface type='user'><mac address='52:54:00:00:00:01'/><model type='virtio'/></interface>";
const DRIVE: &str =
    "<disk type='file' device='cdrom'><target dev='sda' bus='sata'/><readonly/></disk>";

/// The program, and what it says.
struct Program {
    running: Running,
    lines: Lines,
    number: u64,
}

impl Program {
    fn start(host: &Host) -> Program {
        Program::at(&host.qemu(), host)
    }

    fn at(uri: &str, host: &Host) -> Program {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vminfod-libvirt"));
        command
            .arg(uri)
            .arg("--root")
            .arg(host.path(""))
            .args(["--deadline", "1", "--poll", "1"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut running = Running::start(&mut command);
        let lines = Lines::of(running.0.stdout.take().unwrap());
        Program {
            running,
            lines,
            number: 0,
        }
    }

    fn ask(&mut self, uuid: &str, change: Change) -> u64 {
        self.number += 1;
        let uuid = Uuid::parse_str(uuid).unwrap();
        let request = Request::Change(self.number, uuid, change).encode();
        let stdin = self.running.0.stdin.as_mut().unwrap();
        stdin.write_all(request.as_bytes()).unwrap();
        self.number
    }

    #[track_caller]
    fn answer(&self, to: u64) -> Result<Answer, Failed> {
        loop {
            let line = self.lines.next();
            if let Some(Line::Answer(number, result)) = Line::decode(&line)
                && number == to
            {
                return result;
            }
        }
    }

    #[track_caller]
    fn change(&mut self, uuid: &str, change: Change) -> Result<Answer, Failed> {
        let number = self.ask(uuid, change);
        self.answer(number)
    }

    /// Makes steps that succeed.
    #[track_caller]
    fn steps(&mut self, uuid: &str, steps: Vec<Step>) -> (Value, Accepted) {
        let answer = self.change(uuid, Change::Steps(steps)).unwrap();
        (answer.vm.map_or(Value::Null, Value::from), answer.accepted)
    }

    /// Makes one step that is done when it returns.
    #[track_caller]
    fn done(&mut self, uuid: &str, step: Step) -> Value {
        let (vm, accepted) = self.steps(uuid, vec![step]);
        assert_eq!(accepted, Accepted::Done);
        vm
    }

    #[track_caller]
    fn refused(&mut self, uuid: &str, steps: Vec<Step>) -> Failed {
        self.change(uuid, Change::Steps(steps)).unwrap_err()
    }

    /// Waits until a domain is told to be so.
    #[track_caller]
    fn until(&self, uuid: &str, is: impl Fn(&Value) -> bool) -> Value {
        let found = self.lines.find(|line| match Line::decode(line) {
            Some(Line::Vm(loaded) | Line::Listed(loaded)) => {
                loaded.uuid.to_string() == uuid
                    && is(&serde_json::from_str(loaded.vm.json()).unwrap())
            }
            _ => false,
        });
        let Some(Line::Vm(loaded) | Line::Listed(loaded)) = Line::decode(&found) else {
            unreachable!()
        };
        serde_json::from_str(loaded.vm.json()).unwrap()
    }
}

fn object(value: Value) -> Object {
    value.as_object().unwrap().clone()
}

/// A domain with a nic, an empty drive, 64 MiB and 1 CPU of 4.
fn define(host: &Host, name: &str, devices: &str) -> String {
    let xml = format!(
        "<domain type='qemu'><name>{name}</name><memory unit='MiB'>64</memory><vcpu current='1'>4</vcpu>\
         <os><type>hvm</type></os><features><acpi/></features>\
         <devices>{NIC}{DRIVE}{devices}</devices></domain>"
    );
    let file = host.path(format!("{name}.xml"));
    fs::write(&file, xml).unwrap();
    host.virsh(&["define", file.to_str().unwrap()]);
    host.virsh(&["domuuid", name]).trim().to_owned()
}

fn xml(host: &Host, name: &str) -> String {
    host.virsh(&["dumpxml", "--inactive", name])
}

#[test]
fn each_change_of_a_stopped_domain_is_made() {
    let host = Host::start();
    let web = define(&host, "web", "");
    let mut program = Program::start(&host);
    let affect = Affect::Config;

    let vm = program.done(
        &web,
        Step::Title {
            title: Some("a <b> & 'c'".to_owned()),
            affect,
        },
    );
    assert_eq!(vm["alias"], "a <b> & 'c'");
    let vm = program.done(
        &web,
        Step::Title {
            title: None,
            affect,
        },
    );
    assert_eq!(vm["alias"], "web");

    let tags = json!({"role": "web & \"more\"", "n": 3, "f": 1.5, "yes": true, "empty": ""});
    let metadata = json!({"script": " \n#!/bin/sh\r\n\techo '<' \n", "blank": " \n "});
    let own = |tags: &Value, metadata: &Value| Step::Metadata {
        tags: object(tags.clone()),
        customer_metadata: object(metadata.clone()),
        affect,
    };
    let vm = program.done(&web, own(&tags, &metadata));
    assert_eq!((&vm["tags"], &vm["customer_metadata"]), (&tags, &metadata));
    let vm = program.done(&web, own(&json!({}), &json!({})));
    assert_eq!(
        (&vm["tags"], &vm["customer_metadata"]),
        (&json!({}), &json!({}))
    );
    assert!(!xml(&host, "web").contains("urn:vminfod:vm"));

    let vm = program.done(&web, Step::Autostart { on: true });
    assert_eq!(vm["autoboot"], true);
    assert!(host.virsh(&["dominfo", "web"]).contains("enable"));
    assert_eq!(
        program.done(&web, Step::Autostart { on: false })["autoboot"],
        false
    );

    let vm = program.done(&web, Step::MaxMemory { kib: 128 << 10 });
    assert_eq!(vm["max_physical_memory"], 128);
    let vm = program.done(
        &web,
        Step::Memory {
            kib: 96 << 10,
            affect,
        },
    );
    assert_eq!(vm["ram"], 96);
    let vm = program.done(&web, Step::MaxVcpus { count: 6 });
    assert_eq!(vm["max_vcpus"], 6);
    let vm = program.done(&web, Step::Vcpus { count: 3, affect });
    assert_eq!(vm["vcpus"], 3);
    let vm = program.done(
        &web,
        Step::CpuShares {
            shares: 2048,
            affect,
        },
    );
    assert_eq!(vm["cpu_shares"], 2048);
    let cap = |percent| Step::CpuCap { percent, affect };
    assert_eq!(program.done(&web, cap(Some(150)))["cpu_cap"], 150);
    assert_eq!(program.done(&web, cap(None)).get("cpu_cap"), None);

    let changes = object(json!({"link": "down", "network": "default"}));
    let mac = MAC.to_owned();
    let vm = program.done(
        &web,
        Step::UpdateNic {
            mac,
            changes,
            affect,
        },
    );
    assert_eq!(vm["nics"][0]["link"], "down");
    assert_eq!(vm["nics"][0]["network"], "default");
    let nic = json!({"mac": "52:54:00:00:00:02", "model": "e1000", "bridge": "br0", "mtu": 1400, "link": "down"});
    let nic = object(nic);
    let vm = program.done(
        &web,
        Step::AttachNic {
            nic: nic.clone(),
            affect,
        },
    );
    let new = vm["nics"][1].as_object().unwrap();
    assert!(
        nic.iter().all(|(name, value)| new.get(name) == Some(value)),
        "{new:?}"
    );
    let mac = "52:54:00:00:00:02".to_owned();
    let vm = program.done(&web, Step::DetachNic { mac, affect });
    assert_eq!(vm["nics"].as_array().unwrap().len(), 1);

    let (path, _) = host.disk("10M");
    let disk = object(
        json!({"name": "vdb", "path": path, "model": "virtio", "media": "disk", "format": "qcow2",
        "readonly": true, "serial": "a b"}),
    );
    let vm = program.done(
        &web,
        Step::AttachDisk {
            disk: disk.clone(),
            affect,
        },
    );
    let disks = vm["disks"].as_array().unwrap();
    let new = disks.iter().find(|disk| disk["name"] == "vdb").unwrap();
    assert!(
        disk.iter()
            .all(|(name, value)| new.get(name) == Some(value)),
        "{new}"
    );
    let vm = program.done(
        &web,
        Step::DetachDisk {
            name: "vdb".to_owned(),
            affect,
        },
    );
    assert_eq!(vm["disks"].as_array().unwrap().len(), 1);

    let media = |path: Option<&str>| Step::Media {
        name: "sda".to_owned(),
        path: path.map(str::to_owned),
        affect,
    };
    let vm = program.done(&web, media(Some("/somewhere/a.iso")));
    assert_eq!(vm["disks"][0]["path"], "/somewhere/a.iso");
    assert_eq!(
        program.done(&web, media(None))["disks"][0].get("path"),
        None
    );

    let answer = program
        .change(&web, Change::Steps(vec![Step::Undefine]))
        .unwrap();
    assert_eq!(answer.vm, None);
    assert_eq!(host.virsh(&["list", "--all", "--name"]).trim(), "");
    let gone = program.refused(&web, vec![Step::Start]);
    assert_eq!(gone.kind, FailedKind::Gone);
}

#[test]
fn each_change_of_a_running_domain_is_made() {
    let host = Host::start();
    let web = define(&host, "web", "");
    let mut program = Program::start(&host);
    let affect = Affect::Both;
    assert_eq!(program.done(&web, Step::Start)["state"], "running");
    let qemu = host.qemu_pid("web");

    let title = Some("shop".to_owned());
    assert_eq!(
        program.done(&web, Step::Title { title, affect })["alias"],
        "shop"
    );
    assert!(xml(&host, "web").contains("<title>shop</title>"));
    let tags = object(json!({"role": "db"}));
    let customer_metadata = Object::new();
    let vm = program.done(
        &web,
        Step::Metadata {
            tags,
            customer_metadata,
            affect,
        },
    );
    assert_eq!(vm["tags"], json!({"role": "db"}));
    assert!(xml(&host, "web").contains("urn:vminfod:vm"));

    // Nobody in the guest gives memory back.
    let (vm, accepted) = program.steps(
        &web,
        vec![Step::Memory {
            kib: 32 << 10,
            affect,
        }],
    );
    assert_eq!((&vm["ram"], accepted), (&json!(64), Accepted::Asked));
    assert!(xml(&host, "web").contains("<currentMemory unit='KiB'>32768<"));
    let vm = program.done(&web, Step::Vcpus { count: 2, affect });
    assert_eq!(vm["vcpus"], 2);
    let shares = Step::CpuShares { shares: 7, affect };
    let refused = program.refused(&web, vec![Step::Suspend, shares]);
    assert_eq!(refused.kind, FailedKind::Source);
    assert_eq!(refused.applied, ["suspend"]);
    assert!(
        refused.reason.starts_with("domain web: cpu_shares: "),
        "{}",
        refused.reason
    );
    assert_eq!(program.done(&web, Step::Resume)["state"], "running");

    let changes = object(json!({"link": "down"}));
    let mac = MAC.to_owned();
    let vm = program.done(
        &web,
        Step::UpdateNic {
            mac,
            changes,
            affect,
        },
    );
    assert_eq!(vm["nics"][0]["link"], "down");
    assert!(xml(&host, "web").contains("<link state='down'/>"));
    let nic = object(json!({"mac": "52:54:00:00:00:02", "model": "virtio", "type": "user"}));
    let vm = program.done(&web, Step::AttachNic { nic, affect });
    assert_eq!(vm["nics"][1]["mac"], "52:54:00:00:00:02");
    let (path, _) = host.disk("10M");
    let disk = object(
        json!({"name": "vdb", "path": path, "model": "virtio", "media": "disk", "format": "qcow2"}),
    );
    let vm = program.done(&web, Step::AttachDisk { disk, affect });
    let size = |vm: &Value| {
        let disks = vm["disks"].as_array().unwrap();
        disks.iter().find(|disk| disk["name"] == "vdb").unwrap()["size"].clone()
    };
    assert_eq!(size(&vm), 10);
    let name = || "vdb".to_owned();
    let vm = program.done(
        &web,
        Step::Resize {
            name: name(),
            bytes: 20 << 20,
        },
    );
    assert_eq!(size(&vm), 20);
    let shrunk = program.refused(
        &web,
        vec![Step::Resize {
            name: name(),
            bytes: 5 << 20,
        }],
    );
    assert_eq!(shrunk.kind, FailedKind::Invalid);
    // The guest does not let go of it, the definition does.
    let (vm, accepted) = program.steps(
        &web,
        vec![Step::DetachDisk {
            name: name(),
            affect,
        }],
    );
    assert_eq!((size(&vm), accepted), (json!(20), Accepted::Asked));
    assert!(!xml(&host, "web").contains("vdb"));

    let medium = host.path("a.iso");
    fs::write(&medium, vec![0; 1 << 20]).unwrap();
    let medium = medium.to_str().unwrap();
    let media = |path: Option<&str>| Step::Media {
        name: "sda".to_owned(),
        path: path.map(str::to_owned),
        affect,
    };
    let drive = |vm: &Value| {
        let disks = vm["disks"].as_array().unwrap();
        disks
            .iter()
            .find(|disk| disk["name"] == "sda")
            .unwrap()
            .get("path")
            .cloned()
    };
    assert_eq!(
        drive(&program.done(&web, media(Some(medium)))),
        Some(json!(medium))
    );
    assert!(xml(&host, "web").contains("a.iso"));
    assert_eq!(drive(&program.done(&web, media(None))), None);
    assert!(!xml(&host, "web").contains("a.iso"));
    let missing = program.refused(&web, vec![media(Some("/nowhere/b.iso"))]);
    assert_eq!(missing.kind, FailedKind::Invalid);

    assert_eq!(program.steps(&web, vec![Step::Shutdown]).1, Accepted::Asked);
    assert_eq!(program.steps(&web, vec![Step::Reboot]).1, Accepted::Asked);
    assert_eq!(host.qemu_pid("web"), qemu);
    assert_eq!(program.done(&web, Step::Suspend)["state"], "paused");
    assert_eq!(program.done(&web, Step::Resume)["state"], "running");
    let busy = program.refused(&web, vec![Step::Start]);
    assert_eq!(busy.kind, FailedKind::Busy);
    assert!(
        busy.reason.contains("domain web: start: "),
        "{}",
        busy.reason
    );
    let (vm, _) = program.steps(&web, vec![Step::Destroy, Step::Undefine]);
    assert_eq!(vm, Value::Null);
}

#[test]
fn a_stopped_domains_disk_is_resized_in_its_pool() {
    let host = Host::start();
    let (path, device) = host.disk("10M");
    let web = define(&host, "web", &device);
    let mut program = Program::start(&host);
    let resize = |mib: u64| {
        vec![Step::Resize {
            name: "vda".to_owned(),
            bytes: mib << 20,
        }]
    };
    let refused = program.refused(&web, resize(20));
    assert_eq!(refused.kind, FailedKind::Invalid);
    assert!(
        refused.reason.contains("disks[vda].size: ") && refused.reason.contains("pool-define-as")
    );
    let folder = host.path("");
    let folder = folder.to_str().unwrap().trim_end_matches('/');
    host.virsh(&["pool-create-as", "p", "dir", "--target", folder]);
    // The pool does not know of a file that comes now.
    let late = host.path("late.qcow2");
    let late = late.to_str().unwrap();
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2", late, "10M"])).succeeded();
    let media = Step::AttachDisk {
        disk: object(
            json!({"name": "vdb", "path": late, "model": "virtio", "media": "disk", "format": "qcow2"}),
        ),
        affect: Affect::Config,
    };
    program.done(&web, media);
    program.steps(&web, resize(20));
    let later = Step::Resize {
        name: "vdb".to_owned(),
        bytes: 30 << 20,
    };
    program.steps(&web, vec![later]);
    let size = |path: &str| {
        let info = run(Command::new("qemu-img").args(["info", "--output=json", path])).succeeded();
        serde_json::from_str::<Value>(&info).unwrap()["virtual-size"].clone()
    };
    assert_eq!(size(&path), 20 << 20);
    assert_eq!(size(late), 30 << 20);
    let shrunk = program.refused(&web, resize(5));
    assert_eq!(shrunk.kind, FailedKind::Invalid);
    assert_eq!(size(&path), 20 << 20);
    host.virsh(&["pool-destroy", "p"]);
}

#[test]
fn a_domain_is_created_and_refused_when_it_exists() {
    let host = Host::start();
    let mut program = Program::start(&host);
    let (path, _) = host.disk("10M");
    let uuid = Uuid::new_v4().to_string();
    let target = json!({
        "zonename": "new", "alias": "the new one", "brand": "qemu", "max_physical_memory": 96, "ram": 64.5,
        "vcpus": 1, "max_vcpus": 2, "autoboot": true, "tags": {"a": 1}, "vnc_port": -1,
        "nics": [{"mac": MAC, "model": "virtio"}],
        "disks": [{"name": "vda", "path": path, "model": "virtio", "media": "disk", "format": "qcow2", "boot": true}],
    });
    let create = |target: &Value| Change::Create(object(target.clone()));
    let answer = program.change(&uuid, create(&target)).unwrap();
    let vm = Value::from(answer.vm.unwrap());
    let expected = [
        ("zonename", json!("new")),
        ("alias", json!("the new one")),
        ("state", json!("running")),
        ("autoboot", json!(true)),
        ("max_physical_memory", json!(96)),
        ("max_vcpus", json!(2)),
        ("vcpus", json!(1)),
        ("tags", json!({"a": 1})),
    ];
    for (name, value) in expected {
        assert_eq!(vm[name], value, "{name}");
    }
    assert!(vm["vnc_port"].as_u64().unwrap() >= 5900);
    assert_eq!(vm["disks"][0]["boot"], true);

    let exists = program.change(&uuid, create(&target)).unwrap_err();
    assert_eq!(exists.kind, FailedKind::Exists);
    let other = Uuid::new_v4().to_string();
    let exists = program.change(&other, create(&target)).unwrap_err();
    assert_eq!(exists.kind, FailedKind::Exists);
    let mut broken = target.clone();
    broken["zonename"] = "broken".into();
    broken["disks"][0]["path"] = "/nowhere/disk".into();
    let failed = program.change(&other, create(&broken)).unwrap_err();
    assert_eq!(
        (failed.kind, failed.applied),
        (FailedKind::Source, vec!["created".to_owned()])
    );
    assert!(
        failed
            .reason
            .starts_with("domain broken: it was created, but does not start: ")
    );
    assert!(host.virsh(&["dominfo", "broken"]).contains("shut off"));
}

#[test]
fn a_reboot_shows_in_its_timestamp_until_the_domain_stops() {
    let host = Host::start();
    let web = define(&host, "web", "");
    let mut program = Program::start(&host);
    let vm = program.done(&web, Step::Start);
    assert_eq!(vm.get("reboot_timestamp"), None);
    host.virsh(&["reset", "web"]);
    let first = program.until(&web, |vm| vm["reboot_timestamp"].is_string());
    assert!(first["reboot_timestamp"].as_str() >= first["boot_timestamp"].as_str());
    program.done(&web, Step::Reset);
    let second = support::until("the second reboot shows", || {
        let (vm, _) = program.steps(&web, vec![]);
        (vm["reboot_timestamp"].is_string() && vm["reboot_timestamp"] != first["reboot_timestamp"])
            .then_some(vm)
    });
    assert_eq!(second["boot_timestamp"], first["boot_timestamp"]);
    let vm = program.done(&web, Step::Destroy);
    assert_eq!(vm.get("reboot_timestamp"), None);
    host.until_let_go("web");
    let vm = program.done(&web, Step::Start);
    assert_eq!(vm.get("reboot_timestamp"), None);
}

#[test]
fn a_domain_that_hangs_holds_up_no_other_and_can_be_ended() {
    let host = Host::start();
    let web = define(&host, "web", "");
    let other = define(&host, "other", "");
    let mut program = Program::start(&host);
    program.done(&web, Step::Start);
    let pid = host.qemu_pid("web");
    kill(pid, Signal::SIGSTOP).unwrap();
    // More changes than libvirtd serves calls of one client.
    let asked: Vec<u64> = (0..8)
        .map(|_| program.ask(&web, Change::Steps(vec![Step::Suspend])))
        .collect();
    for on in [true, false] {
        assert_eq!(program.done(&other, Step::Autostart { on })["autoboot"], on);
    }
    // It is told as soon as some call has waited for longer than the deadline.
    let hangs = support::until("it is told that it hangs", || {
        program.change(&web, Change::Steps(vec![])).err()
    });
    assert_eq!(hangs.kind, FailedKind::Source);
    assert!(hangs.reason.contains("does not answer"), "{}", hangs.reason);
    let vm = program.done(&web, Step::Destroy);
    assert_eq!(vm["state"], "stopped");
    drop(asked);
}

#[test]
fn what_was_begun_is_ended_when_the_daemon_ends() {
    let host = Host::start();
    let web = define(&host, "web", "");
    let mut program = Program::start(&host);
    let steps = ["one", "two", "three"].map(|title| Step::Title {
        title: Some(title.to_owned()),
        affect: Affect::Config,
    });
    program.change(&web, Change::Steps(vec![])).unwrap();
    program.done(&web, Step::Start);
    let pid = host.qemu_pid("web");
    kill(pid, Signal::SIGSTOP).unwrap();
    let mut all = vec![Step::Suspend];
    all.extend(steps);
    program.ask(&web, Change::Steps(all));
    // It has begun once libvirt waits for the domain.
    support::until("the call is being made", || {
        let control = host.virsh(&["domcontrol", "web"]);
        (!control.trim().starts_with("ok")).then_some(())
    });
    drop(program.running.0.stdin.take());
    kill(pid, Signal::SIGCONT).unwrap();
    assert!(program.running.ended().success());
    assert!(xml(&host, "web").contains("<title>three</title>"));
}

#[test]
fn the_test_drivers_domains_are_changed_in_the_program() {
    let host = Host::stopped();
    let mut program = Program::at("test:///default", &host);
    let uuid = "6695eb01-f6a4-8304-79aa-97f2502e193f";
    assert_eq!(program.done(uuid, Step::Suspend)["state"], "paused");
    assert_eq!(program.done(uuid, Step::Resume)["state"], "running");
    let create =
        json!({"zonename": "new", "brand": "test", "ram": 64, "vcpus": 1, "autoboot": true});
    let new = Uuid::new_v4().to_string();
    let answer = program
        .change(&new, Change::Create(object(create)))
        .unwrap();
    assert_eq!(answer.vm.unwrap()["state"], "running");
    let (vm, _) = program.steps(&new, vec![Step::Destroy, Step::Undefine]);
    assert_eq!(vm, Value::Null);
}
