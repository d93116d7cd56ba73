//! The libvirt source against real libvirts: the test driver, and a libvirtd with QEMU. virsh is the other side.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use support::libvirt::{Host, mount};
use support::{Store, VMINFOD, is_running, run, until};

mod support;

/// The domain that the test driver has by default.
const TEST: &str = "6695eb01-f6a4-8304-79aa-97f2502e193f";

#[test]
fn the_domain_of_the_test_driver_is_a_vm() {
    let store = Store::new(0);
    let mounted = mount(&store, "test:///default", "private");
    assert_eq!(mounted.read(format!("{TEST}/state")), "running\n");
    assert_eq!(mounted.read(format!("{TEST}/alias")), "test\n");
    assert_eq!(mounted.read(format!("{TEST}/brand")), "test\n");
    assert_eq!(mounted.read(format!("{TEST}/ram")), "2048\n");
    assert_eq!(
        mounted.read(format!("{TEST}/max_physical_memory")),
        "8192\n"
    );
    assert_eq!(
        mounted.read(format!("{TEST}/nics/net0/mac")),
        "aa:bb:cc:dd:ee:ff\n"
    );
    assert_eq!(
        mounted.read(format!("{TEST}/disks/vda/path")),
        "/guest/diskimage1\n"
    );
    let xml = mounted.read(format!("{TEST}/domain.xml"));
    assert!(
        xml.starts_with("<domain type='test'") && xml.ends_with("</domain>\n"),
        "{xml}"
    );
    let mode = |name: &str| {
        let file = mounted.path(TEST).join(name);
        fs::metadata(file).unwrap().permissions().mode() & 0o777
    };
    assert_eq!(mode("domain.xml"), 0o400);
    assert_eq!(mode("alias"), 0o644);
    assert_eq!(mode("persistent"), 0o444);
    assert_eq!(mounted.status()["status"], "ok");
    assert_eq!(mounted.status()["source"], "libvirt at test:///default");
}

#[test]
fn a_thousand_domains_are_a_thousand_vms() {
    let store = Store::new(0);
    let domains: String = (0..1000)
        .map(|number| {
            format!(
                "<domain type='test'><name>vm{number}</name><memory>65536</memory>\
                 <os><type>hvm</type></os></domain>"
            )
        })
        .collect();
    let node = store.dir().join("node.xml");
    fs::write(&node, format!("<node>{domains}</node>")).unwrap();
    let mounted = mount(&store, &format!("test://{}", node.display()), "private");
    let vms = mounted.json("vms.json");
    let names: HashSet<&str> = (vms.as_array().unwrap().iter())
        .map(|vm| vm["alias"].as_str().unwrap())
        .collect();
    assert_eq!(names.len(), 1000);
    assert_eq!(mounted.status()["numVms"], 1000);
}

#[test]
fn only_the_program_of_the_libvirt_source_is_linked_to_libvirt() {
    let names = |program: &str| {
        let bytes = fs::read(program).unwrap();
        bytes.windows(12).any(|window| window == b"libvirt.so.0")
    };
    assert!(!names(VMINFOD));
    assert!(names(env!("CARGO_BIN_EXE_vminfod-libvirt")));
}

#[test]
fn a_build_without_the_headers_says_what_to_install_and_what_to_turn_off() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/.cargo/pkg-config");
    let asked = run(Command::new(script)
        .args(["--libs", "libvirt"])
        .env("PKG_CONFIG_LIBDIR", "/nonexistent")
        .env_remove("PKG_CONFIG_PATH"));
    assert_ne!(asked.code, Some(0));
    for name in ["libvirt-dev", "--no-default-features"] {
        assert!(asked.err.contains(name), "{}", asked.err);
    }
    let found = run(Command::new(script).args(["--libs", "libvirt"]));
    assert!(found.succeeded().contains("-lvirt"));
}

#[test]
fn a_source_without_an_uri_is_refused() {
    for source in ["libvirt", "libvirt:", "xen"] {
        let mut command = Command::new(VMINFOD);
        run(command.args(["mount", "--source", source, "/tmp"]))
            .failed_with(2, &[source, "libvirt:URI"]);
    }
}

#[test]
fn where_a_value_comes_from_is_said_in_the_words_of_libvirt() {
    let store = Store::new(0);
    let mounted = mount(&store, "test:///default", "private");
    for (file, source) in [
        ("alias", "xml"),
        ("nics/net0/mac", "xml"),
        ("state", "libvirt"),
    ] {
        let path = mounted.path(TEST).join(file);
        let mut getfattr = Command::new("getfattr");
        getfattr
            .args(["--only-values", "-n", "user.vminfod.source"])
            .arg(path);
        assert_eq!(run(&mut getfattr).succeeded(), source, "{file}");
    }
}

#[test]
fn the_life_of_a_domain_is_told_as_it_happens() {
    let host = Host::start();
    let uri = host.test();
    // It has its own default domain as long as somebody is connected: here that is the mount.
    let mounted = host.mount_at(&uri, "private,rescan=3600,libvirt_poll=3600");
    let virsh = |args: &[&str]| host.virsh_at(&uri, args).succeeded();
    let events = mounted.events();
    virsh(&["suspend", "test"]);
    let event = events.changed(TEST, "state");
    assert_eq!(event["vm"]["state"], "paused");
    assert_eq!(event["vm"]["state_reason"], "user");
    assert_eq!(event["via"], "event");
    virsh(&["resume", "test"]);
    assert_eq!(events.changed(TEST, "state")["vm"]["state"], "running");
    let uuid = host.define_at(&uri, "test", "web", "");
    let event = events.find(|event| event["type"] == "create");
    assert_eq!(event["uuid"], uuid.as_str());
    assert_eq!(mounted.read(format!("{uuid}/state")), "stopped\n");
    virsh(&["start", "web"]);
    assert_eq!(events.changed(&uuid, "state")["vm"]["state"], "running");
    virsh(&["destroy", "web"]);
    let event = events.changed(&uuid, "state");
    assert_eq!(event["vm"]["exit_reason"], "destroyed");
    virsh(&["undefine", "web"]);
    let event = events.find(|event| event["type"] == "delete");
    assert_eq!(
        (&event["uuid"], &event["via"]),
        (&json!(uuid), &json!("event"))
    );
    assert!(!mounted.path(&uuid).exists());
    assert_eq!(mounted.status()["missed"], json!({}));
}

#[test]
fn what_virsh_changes_of_a_domain_of_qemu_the_mount_shows() {
    let host = Host::start();
    let (_, disk) = host.disk("2G");
    // Neither the rescan nor the poll helps: libvirt or its files have to announce each change.
    let mounted = host.mount("private,rescan=3600,libvirt_poll=3600");
    let events = mounted.events();
    let nic = "<interface type='user'><mac address='52:54:00:00:00:01'/></interface>";
    let devices = format!("{disk}{nic}");
    let uuid = host.define("web", &devices);
    assert_eq!(
        events.find(|event| event["type"] == "create")["uuid"],
        uuid.as_str()
    );
    let is = |property: &str, value: serde_json::Value| mounted.until(&uuid, property, value);
    let virsh = |args: &[&str]| host.virsh(args);
    is("quota", json!(2));
    is("state", json!("stopped"));
    let written = fs::metadata(host.path("etc/libvirt/qemu/web.xml")).unwrap();
    assert_eq!(
        fs::metadata(mounted.path(&uuid).join("uuid"))
            .unwrap()
            .mtime(),
        written.mtime()
    );

    virsh(&["setmaxmem", "web", "128M", "--config"]);
    is("max_physical_memory", json!(128));
    virsh(&["setmem", "web", "96M", "--config"]);
    is("ram", json!(96));
    virsh(&["setvcpus", "web", "3", "--config", "--maximum"]);
    is("max_vcpus", json!(3));
    virsh(&["setvcpus", "web", "2", "--config"]);
    is("vcpus", json!(2));
    virsh(&[
        "desc",
        "web",
        "--config",
        "--title",
        "--new-desc",
        "the web",
    ]);
    is("alias", json!("the web"));
    let tags =
        "<vm><tag name='role'>web</tag><customer_metadata name='k'>v</customer_metadata></vm>";
    virsh(&[
        "metadata",
        "web",
        "urn:vminfod:vm",
        "--config",
        "--key",
        "vminfod",
        "--set",
        tags,
    ]);
    is("tags", json!({"role": "web"}));
    is("customer_metadata", json!({"k": "v"}));
    virsh(&[
        "domif-setlink",
        "web",
        "52:54:00:00:00:01",
        "down",
        "--config",
    ]);
    mounted.until_vm(&uuid, "the link is down", |vm| {
        vm["nics"][0]["link"] == "down"
    });
    virsh(&["autostart", "web"]);
    is("autoboot", json!(true));
    virsh(&["autostart", "web", "--disable"]);
    is("autoboot", json!(false));
    virsh(&["autostart", "web"]);
    is("autoboot", json!(true));
    virsh(&["snapshot-create-as", "web", "before"]);
    mounted.until_vm(&uuid, "a snapshot", |vm| {
        vm["snapshots"][0]["name"] == "before"
    });
    virsh(&["snapshot-create-as", "web", "after"]);
    mounted.until_vm(&uuid, "two snapshots", |vm| {
        vm["snapshots"].as_array().unwrap().len() == 2
    });
    virsh(&["snapshot-delete", "web", "before"]);
    mounted.until_vm(&uuid, "one snapshot", |vm| {
        vm["snapshots"].as_array().unwrap().len() == 1
    });
    virsh(&["snapshot-delete", "web", "after"]);
    is("snapshots", json!([]));

    // A domain with these starts only where there are cgroups, so it is another.
    let tuned = host.define("tuned", "");
    let tune = |what: &str| virsh(&["schedinfo", "tuned", "--config", "--set", what]);
    tune("cpu_shares=2048");
    mounted.until(&tuned, "cpu_shares", 2048);
    tune("vcpu_quota=50000");
    mounted.until(&tuned, "cpu_cap", 50);

    virsh(&["start", "web"]);
    is("state", json!("running"));
    is("state_reason", json!("booted"));
    is("pid", json!(host.qemu_pid("web").as_raw()));
    mounted.until_vm(&uuid, "when it booted", |vm| {
        vm["boot_timestamp"].is_string()
    });
    virsh(&["suspend", "web"]);
    is("state", json!("paused"));
    virsh(&["resume", "web"]);
    is("state", json!("running"));
    virsh(&["domif-setlink", "web", "52:54:00:00:00:01", "up"]);
    mounted.until_vm(&uuid, "the link is up", |vm| vm["nics"][0]["link"] == "up");
    virsh(&["domif-setlink", "web", "52:54:00:00:00:01", "down"]);
    mounted.until_vm(&uuid, "the link is down", |vm| {
        vm["nics"][0]["link"] == "down"
    });
    virsh(&["desc", "web", "--live", "--title", "--new-desc", "live"]);
    is("alias", json!("live"));
    virsh(&["managedsave", "web"]);
    is("managed_save", json!(true));
    is("state_reason", json!("saved"));
    virsh(&["managedsave-remove", "web"]);
    is("managed_save", json!(false));
    virsh(&["start", "web"]);
    is("state", json!("running"));
    // A domain without a definition lives until it ends.
    virsh(&["undefine", "web"]);
    is("persistent", json!(false));
    virsh(&["destroy", "web"]);
    assert_eq!(
        events.find(|event| event["type"] == "delete")["uuid"],
        uuid.as_str()
    );
    assert_eq!(mounted.status()["missed"], json!({}));
}

#[test]
fn what_nothing_announces_the_poll_of_statistics_finds() {
    let host = Host::start();
    let (disk, devices) = host.disk("2G");
    let mounted = host.mount("private,rescan=3600,libvirt_poll=0.2");
    let uuid = host.define("web", &devices);
    mounted.until(&uuid, "quota", 2);
    run(Command::new("qemu-img").args(["resize", "-q", &disk, "3G"])).succeeded();
    mounted.until(&uuid, "quota", 3);
    host.virsh(&["start", "web"]);
    mounted.until(&uuid, "state", "running");
    host.virsh(&["blockresize", "web", "vda", "4G"]);
    mounted.until(&uuid, "quota", 4);
    assert_eq!(mounted.status()["missed"], json!({}));
}

/// Lets a thread end that waits for it, also when a test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_libvirtd_that_is_killed_and_comes_back_loses_no_vm() {
    let mut host = Host::start();
    let (kept, undefined) = (host.define("kept", ""), host.define("undefined", ""));
    host.virsh(&["start", "kept"]);
    let (uri, store) = (host.qemu(), Store::new(0));
    let options = format!("private,libvirt_root={}", host.path("").display());
    let mounted = mount(&store, &uri, &options);
    let events = mounted.events();
    let (done, file) = (AtomicBool::new(false), mounted.path(&kept).join("state"));
    let times = std::env::var("VMINFOD_ROUNDS").map_or(1, |times| times.parse().unwrap());
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(fs::read_to_string(&file).unwrap(), "running\n");
            }
        });
        let ends = Ends(&done);
        for round in 0..10 * times {
            host.kill_libvirtd();
            for uuid in [&kept, &undefined] {
                until("the VM is stale", || mounted.stale(uuid));
            }
            assert_eq!(mounted.status()["numVms"], 2, "round {round}");
            host.start_libvirtd();
            for uuid in [&kept, &undefined] {
                until("the VM is repaired", || {
                    mounted.stale(uuid).is_none().then_some(())
                });
            }
        }
        drop(ends);
        reader.join().unwrap();
    });
    // What vanished meanwhile goes with the first whole listing, and only that.
    host.kill_libvirtd();
    until("the VM is stale", || mounted.stale(&undefined));
    fs::remove_file(host.path("etc/libvirt/qemu/undefined.xml")).unwrap();
    host.start_libvirtd();
    let event = events.find(|event| event["type"] == "delete");
    assert_eq!(event["uuid"], undefined.as_str());
    until("the other is repaired", || {
        mounted.stale(&kept).is_none().then_some(())
    });
    assert_eq!(mounted.status()["numVms"], 1);
    // And it still hears of changes.
    host.virsh(&["suspend", "kept"]);
    mounted.until(&kept, "state", "paused");
}

#[test]
fn a_libvirt_that_is_absent_at_the_start_is_found_when_it_comes() {
    let mut host = Host::stopped();
    let uri = host.test();
    let store = Store::new(0);
    let mounted = mount(&store, &uri, "private");
    assert_eq!(mounted.status()["numVms"], 0);
    let status = mounted.status()["status"].as_str().unwrap().to_owned();
    assert!(status.contains("libvirt-sock"), "{status}");
    host.start_libvirtd();
    mounted.until(TEST, "state", "running");
    until("it is well", || {
        (mounted.status()["status"] == "ok").then_some(())
    });
}

/// More than there are threads that read, and than libvirtd answers calls of one client at a time.
const HUNG: usize = 6;

#[test]
fn domains_that_hang_make_only_themselves_stale() {
    let host = Host::start();
    let well = host.define("well", "");
    host.virsh(&["start", "well"]);
    let hung: Vec<(String, Pid)> = (0..HUNG)
        .map(|number| {
            let name = format!("hung{number}");
            let uuid = host.define(&name, "");
            host.virsh(&["start", &name]);
            (uuid, host.qemu_pid(&name))
        })
        .collect();
    let mounted = host.mount("private,rescan=1,libvirt_poll=3600,load_deadline=0.5");
    for (_, qemu) in &hung {
        kill(*qemu, Signal::SIGSTOP).unwrap();
    }
    for (number, (uuid, _)) in hung.iter().enumerate() {
        let reason = until("a hung one is stale", || mounted.stale(uuid));
        assert!(reason.contains(&format!("domain hung{number}")), "{reason}");
        assert_eq!(mounted.read(format!("{uuid}/state")), "running\n");
    }
    for (verb, state) in [("suspend", "paused"), ("resume", "running")] {
        host.virsh(&[verb, "well"]);
        mounted.until(&well, "state", state);
    }
    until("the other is not stale", || {
        mounted.stale(&well).is_none().then_some(())
    });
    // A listing begins when the one before has ended, which waits for none of those that hang.
    let listings = || mounted.status()["fswatcher"]["libvirt"]["announced"]["listings"].as_u64();
    let before = listings().unwrap();
    until("a listing has ended", || {
        (listings() >= Some(before + 2)).then_some(())
    });
    for (_, qemu) in &hung {
        kill(*qemu, Signal::SIGCONT).unwrap();
    }
    for (uuid, _) in &hung {
        until("it is repaired", || {
            mounted.stale(uuid).is_none().then_some(())
        });
    }
}

#[test]
fn a_libvirtd_that_hangs_stops_no_reader_and_is_found_again() {
    let host = Host::start();
    let uri = host.test();
    let mounted = host.mount_at(&uri, "private,load_deadline=0.5");
    kill(host.libvirtd(), Signal::SIGSTOP).unwrap();
    let reason = until("the VM is stale", || {
        assert_eq!(mounted.read(format!("{TEST}/state")), "running\n");
        mounted.stale(TEST)
    });
    assert!(!reason.is_empty());
    kill(host.libvirtd(), Signal::SIGCONT).unwrap();
    until("it is repaired", || {
        mounted.stale(TEST).is_none().then_some(())
    });
}

#[test]
fn the_program_that_asks_libvirt_ends_with_the_daemon() {
    let store = Store::new(0);
    let mut mounted = mount(&store, "test:///default", "private");
    let pid = mounted.status()["fswatcher"]["program"]["pid"].as_u64();
    let pid = pid.unwrap();
    assert!(is_running(pid));
    mounted.signal(Signal::SIGKILL);
    mounted.ended();
    until("the program ends", || (!is_running(pid)).then_some(()));
}

#[test]
fn mounting_in_the_background_lets_go_of_whoever_mounts() {
    let store = Store::new(0);
    let at = store.mountpoint();
    // This would wait for the end of standard error, if anybody still held it.
    let mut command = Command::new(VMINFOD);
    run(command
        .args(["mount", "--source", "libvirt:test:///default"])
        .arg(&at))
    .succeeded();
    assert!(at.join(TEST).join("state").exists());
    run(Command::new(VMINFOD).arg("umount").arg(&at)).succeeded();
}

#[test]
fn the_program_that_asks_libvirt_is_started_again_when_it_is_killed() {
    let host = Host::start();
    let uuid = host.define("web", "");
    let mounted = host.mount("private");
    let pid = || mounted.status()["fswatcher"]["program"]["pid"].as_i64();
    let first = pid().unwrap();
    kill(Pid::from_raw(first as i32), Signal::SIGKILL).unwrap();
    until("another runs", || pid().filter(|pid| *pid != first));
    until("it has listed", || {
        mounted.stale(&uuid).is_none().then_some(())
    });
    host.virsh(&["autostart", "web"]);
    mounted.until(&uuid, "autoboot", true);
    assert_eq!(mounted.status()["fswatcher"]["program"]["starts"], 2);
}
