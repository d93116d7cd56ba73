//! The zones source over real folders and real events.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;
use vminfod::source::zones::{Provider, Watcher, Zones, ZonesOptions};
use vminfod::source::{Listing, Loaded, Report, Source, Via};
use vminfod::vm::property::Part;

use crate::WATCHER;

const A: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const B: &str = "bbbbbbbb-0000-4000-8000-000000000002";
const C: &str = "cccccccc-0000-4000-8000-000000000003";

/// How long anything may take before a test gives up. Nothing is expected to take that long.
const PATIENCE: Duration = Duration::from_secs(20);

/// A zone store in a folder of its own.
struct Store {
    dir: TempDir,
}

impl Store {
    fn new(zones: &[&str]) -> Store {
        let store = Store {
            dir: TempDir::new().unwrap(),
        };
        for folder in [
            "etc/zones",
            "zones",
            "var/db/datasets",
            "var/run/zones",
            "tmp",
        ] {
            fs::create_dir_all(store.path(folder)).unwrap();
        }
        for zone in zones {
            store.add_files(zone);
        }
        store.write("etc/zones/index", &index(zones));
        store
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        fs::write(self.path(path), text).unwrap();
    }

    /// Replaces a file by rename.
    fn replace(&self, path: &str, text: &str) {
        self.write("new", text);
        fs::rename(self.path("new"), self.path(path)).unwrap();
    }

    fn add_files(&self, zone: &str) {
        fs::create_dir_all(self.path(&format!("zones/{zone}/config"))).unwrap();
        self.write(&xml_of(zone), &xml(zone, "100"));
        self.write(&tags_of(zone), "{}");
    }

    fn options(&self) -> ZonesOptions {
        ZonesOptions {
            datasets: Provider::Files,
            runtime: Provider::Files,
            watcher: WATCHER,
            ..ZonesOptions::new(self.dir.path())
        }
    }

    fn start(self) -> Host {
        let options = self.options();
        self.start_with(options)
    }

    fn start_with(self, options: ZonesOptions) -> Host {
        let (sender, reports) = channel();
        let zones = Zones::new(options);
        zones.start(sender).unwrap();
        Host {
            zones,
            reports,
            store: self,
        }
    }
}

fn index(zones: &[&str]) -> String {
    let lines = zones
        .iter()
        .map(|zone| format!("{zone}:installed:/zones/{zone}:{zone}\n"));
    std::iter::once("global:installed:/:\n".to_owned())
        .chain(lines)
        .collect()
}

fn xml_of(zone: &str) -> String {
    format!("etc/zones/{zone}.xml")
}

fn tags_of(zone: &str) -> String {
    format!("zones/{zone}/config/tags.json")
}

fn xml(zone: &str, cap: &str) -> String {
    format!(
        "<?xml version=\"1.0\"?>\n<zone name=\"{zone}\" zonepath=\"/zones/{zone}\" autoboot=\"true\" brand=\"joyent\">\
         <rctl name=\"zone.cpu-cap\"><rctl-value priv=\"privileged\" limit=\"{cap}\" action=\"deny\"/></rctl></zone>\n"
    )
}

/// A running source over a store.
struct Host {
    // Dropped before the folder.
    zones: Zones,
    reports: Receiver<Report>,
    store: Store,
}

impl Host {
    fn with(zones: &[&str]) -> Host {
        let host = Store::new(zones).start();
        assert_eq!(host.listing().vms.len(), zones.len());
        host
    }

    fn next(&self) -> Report {
        (self.reports.recv_timeout(PATIENCE))
            .unwrap_or_else(|_| panic!("no report; {:#}", self.zones.status()))
    }

    /// The next report that this makes something of. Others are passed over.
    fn until<T>(&self, wanted: impl Fn(&Report) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(&self.next()) {
                return found;
            }
        }
    }

    fn listing(&self) -> Listing {
        self.until(|report| match report {
            Report::Listing(listing) => Some(listing.clone()),
            _ => None,
        })
    }

    /// The next report of this zone that passes.
    fn changed(&self, zone: &str, wanted: impl Fn(&Loaded) -> bool) -> Loaded {
        self.until(|report| match report {
            Report::Changed(vms) => (vms.iter())
                .find(|vm| vm.zonename == zone && wanted(vm))
                .cloned(),
            _ => None,
        })
    }

    fn tag(&self, zone: &str, role: &str) -> Loaded {
        self.changed(zone, |vm| vm.vm.object()["tags"]["role"] == role)
    }

    fn gone(&self) -> Uuid {
        self.until(|report| match report {
            Report::Gone(uuid) => Some(*uuid),
            _ => None,
        })
    }

    /// What watches the folders of zones.
    fn by(&self) -> &str {
        let watches = &self.zones.status()["watches"];
        assert_eq!(
            watches["fanotify"] != 0,
            WATCHER == Watcher::Auto,
            "{watches}"
        );
        match WATCHER {
            Watcher::Auto => "fanotify",
            Watcher::Inotify => "inotify",
        }
    }

    /// Waits until the status shows something. What it shows comes with no report.
    fn status(&self, wanted: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let status = self.zones.status();
            if wanted(&status) {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "never shown: {status:#}");
            std::thread::yield_now();
        }
    }
}

fn role(name: &str) -> String {
    json!({ "role": name }).to_string()
}

fn uuid(text: &str) -> Uuid {
    text.parse().unwrap()
}

#[test]
fn the_first_report_lists_every_zone() {
    let host = Store::new(&[A, B]).start();
    let Report::Listing(listing) = host.next() else {
        panic!("not a listing");
    };
    assert_eq!(listing.incomplete, None);
    let mut found: Vec<&str> = listing.vms.iter().map(|vm| &*vm.zonename).collect();
    found.sort_unstable();
    assert_eq!(found, [A, B]);
    assert!(listing.vms.iter().all(|vm| vm.failed.is_empty()));
}

#[test]
fn a_missing_root_is_refused_by_name() {
    let (sender, _reports) = channel();
    let error = Zones::new(ZonesOptions::new("/nowhere/at/all"))
        .start(sender)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("zones root /nowhere/at/all: no such folder")
    );
}

#[test]
fn a_file_written_in_place_is_read() {
    let host = Host::with(&[A]);
    host.store.write(&tags_of(A), &role("web"));
    assert_eq!(host.tag(A, "web").via, Via::Event);
}

#[test]
fn a_file_replaced_by_rename_is_read() {
    let host = Host::with(&[A]);
    host.store.replace(&tags_of(A), &role("web"));
    host.tag(A, "web");
    host.store.replace(&xml_of(A), &xml(A, "300"));
    host.changed(A, |vm| vm.vm.object()["cpu_cap"] == 300);
}

#[test]
fn a_file_that_an_editor_moves_aside_is_followed() {
    let host = Host::with(&[A]);
    let backup = format!("{}~", tags_of(A));
    fs::rename(host.store.path(&tags_of(A)), host.store.path(&backup)).unwrap();
    host.store.write(&tags_of(A), &role("web"));
    host.tag(A, "web");
}

#[test]
fn every_file_of_a_zone_is_watched() {
    let host = Host::with(&[A]);
    host.store.write(
        &format!("zones/{A}/config/metadata.json"),
        r#"{"customer_metadata":{"a":"b"}}"#,
    );
    host.changed(A, |vm| vm.vm.object()["customer_metadata"]["a"] == "b");
    host.store.write(
        &format!("zones/{A}/config/routes.json"),
        r#"{"10.0.0.0/8":"10.0.0.1"}"#,
    );
    host.changed(A, |vm| vm.vm.object()["routes"]["10.0.0.0/8"] == "10.0.0.1");
    host.store.write(
        &format!("var/run/zones/{A}.json"),
        r#"{"zoneid":7,"state":"running"}"#,
    );
    host.changed(A, |vm| vm.vm.object()["zoneid"] == 7);
    let datasets = json!({ format!("zones/{A}"): {"type": "filesystem", "mountpoint": format!("/zones/{A}"), "quota": 10_737_418_240u64} });
    host.store
        .write(&format!("var/db/datasets/{A}.json"), &datasets.to_string());
    host.changed(A, |vm| vm.vm.object().get("quota") == Some(&json!(10)));
    host.store
        .write("tmp/.sysinfo.json", r#"{"Datacenter Name":"here"}"#);
    host.changed(A, |vm| {
        vm.vm.object().get("datacenter_name") == Some(&json!("here"))
    });
}

#[test]
fn a_deleted_config_folder_is_followed_when_it_comes_again() {
    let host = Host::with(&[A]);
    host.store.write(&tags_of(A), &role("web"));
    host.tag(A, "web");
    let config = host.store.path(&format!("zones/{A}/config"));
    for name in ["db", "mail"] {
        fs::remove_dir_all(&config).unwrap();
        host.changed(A, |vm| vm.vm.object()["tags"] == json!({}));
        fs::create_dir(&config).unwrap();
        host.store.write(&tags_of(A), &role(name));
        host.tag(A, name);
    }
}

#[test]
fn a_config_folder_that_is_replaced_at_any_moment_is_followed() {
    let host = Host::with(&[A]);
    let config = host.store.path(&format!("zones/{A}/config"));
    let next = host.store.path(&format!("zones/{A}/next"));
    for round in 0..300 {
        fs::create_dir(&next).unwrap();
        fs::rename(&config, host.store.path(&format!("old{round}"))).unwrap();
        fs::rename(&next, &config).unwrap();
        let name = format!("role{round}");
        host.store.write(&tags_of(A), &role(&name));
        // In between, the folder is replaced while it is being watched and read.
        if round % 10 == 0 {
            host.tag(A, &name);
        }
    }
    host.tag(A, "role299");
}

#[test]
fn folders_that_come_later_are_watched() {
    let store = Store::new(&[A]);
    fs::remove_dir_all(store.path("zones")).unwrap();
    fs::remove_dir_all(store.path("var")).unwrap();
    let host = store.start();
    host.listing();
    fs::create_dir_all(host.store.path(&format!("zones/{A}/config"))).unwrap();
    host.store.write(&tags_of(A), &role("web"));
    host.tag(A, "web");
    fs::create_dir_all(host.store.path("var/run/zones")).unwrap();
    host.store.write(
        &format!("var/run/zones/{A}.json"),
        r#"{"zoneid":7,"state":"running"}"#,
    );
    host.changed(A, |vm| vm.vm.object()["zoneid"] == 7);
}

#[test]
fn a_replaced_folder_is_followed() {
    let host = Host::with(&[A, B]);
    let (old, new) = (host.store.path("zones"), host.store.path("zones.new"));
    fs::create_dir_all(new.join(A).join("config")).unwrap();
    fs::rename(&old, host.store.path("zones.old")).unwrap();
    fs::rename(&new, &old).unwrap();
    host.store.write(&tags_of(A), &role("web"));
    host.tag(A, "web");
    // What happens in the old one is nobody's business any more.
    fs::create_dir_all(old.join(B).join("config")).unwrap();
    host.store.write(&tags_of(B), &role("db"));
    host.tag(B, "db");
}

#[test]
fn a_folder_behind_a_symbolic_link_is_watched() {
    let store = Store::new(&[A]);
    fs::remove_dir_all(store.path("var/run")).unwrap();
    fs::create_dir_all(store.path("run/zones")).unwrap();
    std::os::unix::fs::symlink("../run", store.path("var/run")).unwrap();
    let host = store.start();
    host.listing();
    host.store.write(
        &format!("run/zones/{A}.json"),
        r#"{"zoneid":7,"state":"running"}"#,
    );
    host.changed(A, |vm| vm.vm.object()["zoneid"] == 7);
}

/// A filesystem in memory, mounted as long as this is there.
struct OwnFilesystem(PathBuf);

impl OwnFilesystem {
    fn on(path: PathBuf) -> OwnFilesystem {
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("zone"), &path, Some("tmpfs"), flags, None::<&str>).unwrap();
        OwnFilesystem(path)
    }
}

impl Drop for OwnFilesystem {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn zones_on_filesystems_of_their_own_are_watched() {
    let store = Store::new(&[A, B]);
    let zones = [A, B].map(|zone| OwnFilesystem::on(store.path(&format!("zones/{zone}"))));
    for zone in [A, B] {
        store.add_files(zone);
    }
    let host = store.start();
    host.listing();
    for round in ["web", "db"] {
        for zone in [A, B] {
            host.store.write(&tags_of(zone), &role(round));
            host.tag(zone, round);
        }
    }
    let count = |by| host.zones.status()["watches"][by].as_u64().unwrap();
    match WATCHER {
        Watcher::Auto => assert_eq!((count("inotify"), count("fanotify")), (10, 4)),
        Watcher::Inotify => assert_eq!((count("inotify"), count("fanotify")), (14, 0)),
    }
    // Before their folders.
    drop(zones);
}

#[test]
fn a_zone_comes_and_goes_with_the_index() {
    let host = Host::with(&[A]);
    host.store.add_files(B);
    host.store.replace("etc/zones/index", &index(&[A, B]));
    host.changed(B, |vm| vm.failed.is_empty());
    host.store.write(&tags_of(B), &role("web"));
    host.tag(B, "web");
    host.store.write("etc/zones/index", &index(&[B]));
    assert_eq!(host.gone(), uuid(A));
    host.store.write("etc/zones/index", &index(&[A, B]));
    host.changed(A, |vm| vm.failed.is_empty());
}

#[test]
fn a_truncated_index_deletes_nothing() {
    let host = Host::with(&[A, B]);
    host.store.write("etc/zones/index", "");
    host.status(|status| {
        status["index"]
            .as_str()
            .is_some_and(|reason| reason.contains("empty"))
    });
    host.zones.rescan();
    let listing = host.listing();
    assert!(listing.incomplete.is_some());
    assert_eq!(listing.vms.len(), 2);
    fs::remove_file(host.store.path("etc/zones/index")).unwrap();
    host.zones.rescan();
    assert!(host.listing().incomplete.is_some());
    host.store.write("etc/zones/index", &index(&[B]));
    assert_eq!(host.gone(), uuid(A));
    host.status(|status| status["index"].is_null());
}

#[test]
fn an_index_caught_half_written_deletes_nothing() {
    use std::io::Write;
    let host = Host::with(&[A, B]);
    let whole = index(&[A, B, C]);
    let half = index(&[A]);
    // The first half ends with a line, and the file stays open while it is looked at.
    let mut file = fs::File::create(host.store.path("etc/zones/index")).unwrap();
    file.write_all(half.as_bytes()).unwrap();
    host.zones.reload(uuid(A));
    host.changed(A, |_| true);
    file.write_all(&whole.as_bytes()[half.len()..]).unwrap();
    drop(file);
    loop {
        match host.next() {
            Report::Gone(uuid) => panic!("{uuid} was deleted"),
            Report::Changed(vms) if vms.iter().any(|vm| vm.zonename == C) => break,
            _ => {}
        }
    }
}

#[test]
fn a_store_that_was_away_is_followed_when_it_is_back() {
    let store = Store::new(&[A]);
    let root = store.path("root");
    fs::create_dir(&root).unwrap();
    for folder in ["etc", "zones", "var", "tmp"] {
        fs::rename(store.path(folder), root.join(folder)).unwrap();
    }
    let options = ZonesOptions {
        root: root.clone(),
        ..store.options()
    };
    let host = store.start_with(options);
    assert_eq!(host.listing().vms.len(), 1);
    let away = host.store.path("away");
    fs::rename(&root, &away).unwrap();
    host.status(|status| !status["index"].is_null());
    // What is there again is a copy, so that no watch can have survived.
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([&away, &root])
        .status()
        .unwrap();
    assert!(copied.success());
    host.changed(A, |vm| vm.failed.is_empty());
    host.store
        .write(&format!("root/{}", tags_of(A)), &role("web"));
    host.tag(A, "web");
}

#[test]
fn a_zone_that_gets_another_uuid_is_another_vm() {
    let host = Host::with(&[A]);
    host.store.write(
        "etc/zones/index",
        &format!("{A}:installed:/zones/{A}:{C}\n"),
    );
    assert_eq!(host.gone(), uuid(A));
    assert_eq!(host.changed(A, |_| true).uuid, uuid(C));
}

#[test]
fn a_uuid_that_moves_to_another_zone_is_not_gone() {
    let host = Host::with(&[A]);
    host.store.add_files("web");
    host.store.write(
        "etc/zones/index",
        &format!("web:installed:/zones/web:{A}\n"),
    );
    let vm = host.until(|report| match report {
        Report::Gone(uuid) => panic!("{uuid} was deleted"),
        Report::Changed(vms) => vms.iter().find(|vm| vm.zonename == "web").cloned(),
        _ => None,
    });
    assert_eq!(vm.uuid, uuid(A));
}

#[test]
fn a_zone_without_a_place_is_in_the_status_at_once() {
    let host = Host::with(&[A]);
    let twin = format!("{}twin:installed:/zones/twin:{A}\n", index(&[A]));
    host.store.write("etc/zones/index", &twin);
    let status = host.status(|status| !status["unplaced"].as_array().unwrap().is_empty());
    assert_eq!(status["unplaced"][0]["zonename"], "twin");
}

#[test]
fn an_xml_that_vanishes_for_a_moment_is_no_failure() {
    let host = Host::with(&[A]);
    let (xml_file, aside) = (host.store.path(&xml_of(A)), host.store.path("aside"));
    fs::rename(&xml_file, &aside).unwrap();
    // It has been seen to be missing once the reading that this asks for has been answered.
    host.zones.reload(uuid(A));
    fs::rename(&aside, &xml_file).unwrap();
    host.store.replace(&xml_of(A), &xml(A, "300"));
    loop {
        let vm = host.changed(A, |_| true);
        assert!(vm.failed.is_empty(), "{:?}", vm.failed);
        if vm.vm.object()["cpu_cap"] == 300 {
            break;
        }
    }
}

#[test]
fn an_xml_that_stays_away_is_a_failure_that_heals() {
    let host = Host::with(&[A]);
    fs::remove_file(host.store.path(&xml_of(A))).unwrap();
    let vm = host.changed(A, |vm| !vm.failed.is_empty());
    assert_eq!(vm.failed[0].part, Part::Zone);
    host.store.write(&xml_of(A), &xml(A, "300"));
    host.changed(A, |vm| vm.failed.is_empty());
}

#[test]
fn what_only_a_scan_found_says_so() {
    let store = Store::new(&[A, B]);
    let options = store.options();
    let faults = options.faults.clone();
    let host = store.start_with(options);
    host.listing();
    faults.deaf.store(true, Ordering::Relaxed);
    host.store.write(&tags_of(A), &role("web"));
    host.zones.rescan();
    let listing = host.listing();
    let vm = listing.vms.iter().find(|vm| vm.zonename == A).unwrap();
    assert_eq!(
        (vm.via, &vm.vm.object()["tags"]["role"]),
        (Via::Scan, &json!("web"))
    );
    faults.deaf.store(false, Ordering::Relaxed);
    host.store.write(&tags_of(A), &role("db"));
    assert_eq!(host.tag(A, "db").via, Via::Event);
}

#[test]
fn a_scan_reads_only_what_looks_otherwise() {
    let store = Store::new(&[A, B]);
    let options = store.options();
    let faults = options.faults.clone();
    let host = store.start_with(options);
    host.listing();
    faults.deaf.store(true, Ordering::Relaxed);
    // Of files that were just written nobody knows whether they would look otherwise.
    let same = |listing: &Listing| listing.same.len();
    while {
        host.zones.rescan();
        let listing = host.listing();
        assert_eq!(listing.vms.len() + same(&listing), 2);
        same(&listing) < 2
    } {}
    // Nothing but the time of the last change of anything tells this from what was there.
    let file = host.store.path(&tags_of(A));
    let modified = file.metadata().unwrap().modified().unwrap();
    host.store.write(&tags_of(A), "[]");
    fs::File::open(&file)
        .unwrap()
        .set_modified(modified)
        .unwrap();
    host.zones.rescan();
    let listing = host.listing();
    assert_eq!((listing.vms.len(), same(&listing)), (1, 1));
    assert_eq!(
        (listing.vms[0].zonename.as_str(), listing.vms[0].via),
        (A, Via::Scan)
    );
}

#[test]
fn what_was_announced_during_a_scan_was_not_missed() {
    let host = Host::with(&[A, B]);
    for round in 0..50 {
        let name = format!("role{round}");
        host.zones.rescan();
        host.store.replace(&tags_of(A), &role(&name));
        let listing = host.listing();
        let vm = listing.vms.iter().find(|vm| vm.zonename == A).unwrap();
        if vm.vm.object()["tags"]["role"] == *name {
            assert_eq!(vm.via, Via::Event);
        } else {
            host.tag(A, &name);
        }
    }
}

#[test]
fn an_overflowing_queue_starts_a_scan() {
    let store = Store::new(&[A, B]);
    let options = store.options();
    let faults = options.faults.clone();
    let host = store.start_with(options);
    host.listing();
    let limit = format!("/proc/sys/fs/{}/max_queued_events", host.by());
    let limit: usize = fs::read_to_string(limit).unwrap().trim().parse().unwrap();
    faults.hang(&["inotify"]);
    // All names differ, or the kernel would merge their events.
    let file = |number| host.store.path(&format!("zones/{A}/config/{number}"));
    fs::write(file(0), "").unwrap();
    for number in 0..limit + 1 {
        fs::rename(file(number), file(number + 1)).unwrap();
    }
    host.store.write(&tags_of(B), &role("web"));
    faults.hang(&[]);
    let listing = host.listing();
    let vm = listing.vms.iter().find(|vm| vm.zonename == B).unwrap();
    assert_eq!(vm.vm.object()["tags"]["role"], "web");
    host.status(|status| status["overflows"] == 1);
}

#[test]
fn a_hung_zone_is_silent_and_holds_up_nobody() {
    let store = Store::new(&[A, B, C]);
    let options = ZonesOptions {
        load_deadline: Duration::from_millis(100),
        ..store.options()
    };
    let faults = options.faults.clone();
    let host = store.start_with(options);
    host.listing();
    faults.hang(&[A, B]);
    host.zones.reload(uuid(A));
    host.zones.reload(uuid(B));
    let reason = host.until(|report| match report {
        Report::Silent { reason, .. } => Some(reason.clone()),
        _ => None,
    });
    assert!(reason.contains("no answer within 100ms"), "{reason}");
    host.status(|status| status["silent"].as_object().unwrap().len() == 2);
    host.store.write(&tags_of(C), &role("web"));
    host.tag(C, "web");
    host.zones.rescan();
    let listing = host.listing();
    assert_eq!(listing.vms.len(), 1);
    assert_eq!(listing.silent.len(), 2);
    assert_eq!(listing.incomplete, None);
    faults.hang(&[]);
    host.status(|status| status["silent"].as_object().unwrap().is_empty());
}

#[test]
fn a_silent_zone_heals_by_its_late_answer() {
    let store = Store::new(&[A]);
    let options = ZonesOptions {
        load_deadline: Duration::from_millis(50),
        ..store.options()
    };
    let faults = options.faults.clone();
    faults.hang(&[A]);
    let host = store.start_with(options);
    let listing = host.listing();
    assert_eq!((listing.vms.len(), listing.silent.len()), (0, 1));
    faults.hang(&[]);
    host.changed(A, |vm| vm.failed.is_empty());
}

#[test]
fn what_cannot_be_watched_is_polled_and_the_status_says_what_to_raise() {
    let store = Store::new(&[A, B]);
    let options = ZonesOptions {
        watcher: Watcher::Inotify,
        max_watches: 11,
        ..store.options()
    };
    let host = store.start_with(options);
    host.listing();
    for zone in [A, B] {
        host.store.write(&tags_of(zone), &role("web"));
        assert_eq!(host.tag(zone, "web").via, Via::Event);
    }
    let watches = &host.zones.status()["watches"];
    assert_ne!(watches["polled"], 0);
    assert!(
        watches["hint"]
            .as_str()
            .unwrap()
            .contains("fs.inotify.max_user_watches=")
    );
}

#[test]
fn without_any_watch_everything_is_polled() {
    let store = Store::new(&[A]);
    let options = ZonesOptions {
        watcher: Watcher::Inotify,
        max_watches: 0,
        ..store.options()
    };
    let host = store.start_with(options);
    host.listing();
    host.store.replace(&xml_of(A), &xml(A, "300"));
    host.changed(A, |vm| vm.vm.object()["cpu_cap"] == 300);
    host.store.add_files(B);
    host.store.replace("etc/zones/index", &index(&[B]));
    assert_eq!(host.gone(), uuid(A));
}

#[test]
fn a_burst_ends_with_the_last_state() {
    let host = Host::with(&[A, B]);
    for round in 0..1000 {
        host.store
            .write(&tags_of([A, B][round % 2]), &role(&format!("role{round}")));
    }
    let mut last = std::collections::HashMap::new();
    while last.get(A) != Some(&json!("role998")) || last.get(B) != Some(&json!("role999")) {
        if let Report::Changed(vms) = host.next() {
            for vm in vms {
                let role = vm.vm.object().get("tags").map(|tags| tags["role"].clone());
                last.insert(vm.zonename, role.unwrap_or_default());
            }
        }
    }
}
