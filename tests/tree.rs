//! The tree of a mounted store: names, contents, sizes, modes, times, links and attributes, and that
//! nobody changes any of it.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;

use nix::mount::MsFlags;
use nix::sched::CloneFlags;
use nix::sys::stat::{Mode, SFlag};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use serde_json::{Value, json};
use support::inside::{self, Inside, put};
use support::{Mounted, Running, Store, VMINFOD, listing, until};
use tempfile::TempDir;
use vminfod::sample::change;

const VMS: usize = 30;

/// What a path in a VM's directory should be.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Dir,
    File(String),
}

/// The name of a key's file, as the contract has it.
fn encoded(key: &str) -> String {
    let name = key.replace('%', "%25").replace('/', "%2F");
    match name.strip_prefix('.') {
        Some(rest) => format!("%2E{rest}"),
        None => name,
    }
}

fn line(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text}\n"),
        other => format!("{other}\n"),
    }
}

/// Adds what a member of a document should be to what is expected.
fn expect(expected: &mut BTreeMap<String, Entry>, path: &str, value: &Value) {
    match value {
        Value::Null => {}
        Value::Object(members) => {
            expected.insert(path.to_owned(), Entry::Dir);
            for (key, value) in members {
                expect(expected, &format!("{path}/{}", encoded(key)), value);
            }
        }
        Value::Array(items) if !items.iter().any(Value::is_object) => {
            let lines = items.iter().map(line).collect();
            expected.insert(path.to_owned(), Entry::File(lines));
        }
        Value::Array(items) => {
            expected.insert(path.to_owned(), Entry::Dir);
            for (number, item) in items.iter().enumerate() {
                expect(
                    expected,
                    &format!("{path}/{}", element(path, number, item)),
                    item,
                );
            }
        }
        scalar => {
            expected.insert(path.to_owned(), Entry::File(line(scalar)));
        }
    }
}

/// The name of an element's directory: of a nic its interface, of a disk the end of its volume's
/// name, of a snapshot its name, else its number.
fn element(list: &str, number: usize, item: &Value) -> String {
    let text = |key: &str| item[key].as_str().unwrap().to_owned();
    match list {
        "nics" => text("interface"),
        "snapshots" => text("name"),
        "disks" => text("path").rsplit(['/', '-']).next().unwrap().to_owned(),
        _ => number.to_string(),
    }
}

/// What a VM's directory should hold.
fn expected(vm: &Value) -> BTreeMap<String, Entry> {
    let mut expected = BTreeMap::new();
    for (key, value) in vm.as_object().unwrap() {
        expect(&mut expected, &encoded(key), value);
    }
    // These lists are directories even when there is nothing in them.
    for list in ["nics", "disks", "filesystems", "snapshots", "pci_devices"] {
        if vm[list] == json!([]) {
            expected.insert(list.to_owned(), Entry::Dir);
        }
    }
    expected
}

/// Everything below a directory, by path, but for what `events` would make endless.
fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.symlink_metadata().unwrap().is_dir() {
            found.extend(walk(&path));
        }
        found.push(path);
    }
    found
}

fn found(dir: &Path) -> BTreeMap<String, Entry> {
    let relative = |path: &Path| path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
    let paths = walk(dir).into_iter();
    let entries = paths.map(|path| {
        let entry = if path.is_dir() {
            Entry::Dir
        } else {
            Entry::File(fs::read_to_string(&path).unwrap())
        };
        (relative(&path), entry)
    });
    entries.collect()
}

fn vms(mounted: &Mounted<'_>) -> Vec<Value> {
    serde_json::from_str(&mounted.read("vms.json")).unwrap()
}

fn uuid_of(vm: &Value) -> &str {
    vm["uuid"].as_str().unwrap()
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn mode(path: &Path) -> u32 {
    path.symlink_metadata().unwrap().permissions().mode() & 0o7777
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a program that must end by itself and succeed.
#[track_caller]
fn run(command: &mut Command) -> Output {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        text(&output.stderr)
    );
    output
}

#[test]
fn the_files_of_each_vm_hold_what_its_document_says() {
    let store = Store::new(VMS);
    let mounted = store.mount();
    let vms = vms(&mounted);
    assert_eq!(vms.len(), VMS);
    for listed in &vms {
        let dir = mounted.path(uuid_of(listed));
        let mut found = found(&dir);
        let Some(Entry::File(document)) = found.remove("vm.json") else {
            panic!("{}: no vm.json", dir.display())
        };
        let ctl = found.remove("ctl");
        assert!(matches!(ctl, Some(Entry::File(verbs)) if !verbs.is_empty()));
        assert_eq!(found.remove("last_error"), Some(Entry::File(String::new())));
        let vm: Value = serde_json::from_str(&document).unwrap();
        assert_eq!(&vm, listed);
        assert!(document.ends_with("\n}\n"));
        let expected = expected(&vm);
        for (path, entry) in &expected {
            assert_eq!(found.get(path), Some(entry), "{}/{path}", dir.display());
        }
        let more: Vec<_> = found
            .keys()
            .filter(|path| !expected.contains_key(*path))
            .collect();
        assert!(more.is_empty(), "{}: {more:?}", dir.display());
    }
    // The sample has what is easily shown wrong.
    let has = |what: &dyn Fn(&Value) -> bool| assert!(vms.iter().any(what));
    has(&|vm| vm["tags"].get("example.com/owner").is_some());
    has(&|vm| vm["alias"].as_str().is_some_and(|alias| !alias.is_ascii()));
    has(&|vm| vm.get("alias").is_none());
    has(&|vm| vm["zoneid"].is_null());
    has(&|vm| {
        vm["customer_metadata"]["motd"]
            .as_str()
            .is_some_and(|motd| motd.contains('\n'))
    });
    has(&|vm| vm["disks"][0].is_object());
    has(&|vm| vm["do_not_inventory"] == true);
}

#[test]
fn every_size_is_exact() {
    let store = Store::new(VMS);
    let mounted = store.mount();
    // Some history.
    let events = mounted.events();
    change::set_tag(&store.root(), &store.zones()[0], "role", &json!("changed")).unwrap();
    events.next();
    let uuid = uuid_of(&vms(&mounted)[0]).to_owned();
    let mut sizeless = [
        "events",
        "create",
        ".status",
        ".events/0",
        &format!(".events/{uuid}"),
    ]
    .map(|name| mounted.path(name))
    .to_vec();
    sizeless.extend(
        vms(&mounted)
            .iter()
            .map(|vm| mounted.path(uuid_of(vm)).join("ctl")),
    );
    for path in &sizeless {
        assert_eq!(path.metadata().unwrap().len(), 0, "{}", path.display());
    }
    let mut files = 0;
    for path in walk(&mounted.at)
        .iter()
        .filter(|path| !sizeless.contains(path))
    {
        let metadata = path.symlink_metadata().unwrap();
        if metadata.is_file() {
            let read = fs::read(path).unwrap().len() as u64;
            assert_eq!(metadata.len(), read, "{}", path.display());
            files += 1;
        } else if metadata.is_symlink() {
            let target = fs::read_link(path).unwrap();
            assert_eq!(metadata.len(), target.as_os_str().len() as u64);
        }
    }
    assert!(files > VMS * 20);
    assert!(mounted.path(".history").metadata().unwrap().len() > 0);
}

#[test]
fn vms_json_has_one_object_a_line() {
    let store = Store::new(VMS);
    let mounted = store.mount();
    let text = mounted.read("vms.json");
    let inside = text
        .strip_prefix("[\n")
        .unwrap()
        .strip_suffix("\n]\n")
        .unwrap();
    let lines: Vec<&str> = inside.split(",\n").collect();
    assert_eq!(inside.lines().count(), VMS);
    assert_eq!(lines.len(), VMS);
    for line in lines {
        let vm: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line, vm.to_string(), "compact");
        assert_eq!(vm, mounted.json(format!("{}/vm.json", uuid_of(&vm))));
    }
    let none = Store::new(0);
    assert_eq!(none.mount().read("vms.json"), "[\n]\n");
}

#[test]
fn the_links_lead_to_their_vms_and_none_is_missing() {
    let store = Store::new(VMS);
    let mounted = store.mount();
    let vms = vms(&mounted);
    let by = |folder: &str, property: &str| {
        let mut expected: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for vm in &vms {
            let value = encoded(vm[property].as_str().unwrap());
            expected
                .entry(value)
                .or_default()
                .insert(uuid_of(vm).to_owned());
        }
        let dir = mounted.path(".by").join(folder);
        assert_eq!(names(&dir), expected.keys().cloned().collect());
        for (value, uuids) in expected {
            assert_eq!(names(&dir.join(&value)), uuids);
            for uuid in uuids {
                let link = dir.join(&value).join(&uuid);
                assert_eq!(
                    fs::read_link(&link).unwrap(),
                    Path::new("../../..").join(&uuid)
                );
                assert_eq!(
                    fs::read_to_string(link.join("uuid")).unwrap(),
                    format!("{uuid}\n")
                );
            }
        }
    };
    by("state", "state");
    by("owner", "owner_uuid");

    let aliases = vms.iter().filter_map(|vm| vm["alias"].as_str());
    let mut expected = BTreeSet::new();
    for vm in vms.iter().filter(|vm| vm.get("alias").is_some()) {
        let alias = vm["alias"].as_str().unwrap();
        let uuid = uuid_of(vm);
        let shared = aliases.clone().filter(|other| *other == alias).count() > 1;
        let name = if shared {
            format!("{}~{uuid}", encoded(alias))
        } else {
            encoded(alias)
        };
        let link = mounted.path(".by/alias").join(&name);
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../..").join(uuid));
        assert_eq!(
            fs::read_to_string(link.join("uuid")).unwrap(),
            format!("{uuid}\n")
        );
        expected.insert(name);
    }
    assert_eq!(names(&mounted.path(".by/alias")), expected);
    assert!(
        expected
            .iter()
            .filter(|name| name.starts_with("twin~"))
            .count()
            == 2
    );
    assert!(!mounted.path(".by/alias/twin").exists());
}

#[test]
fn what_is_listed_is_just_what_the_contract_names() {
    let store = Store::new(3);
    let mounted = store.mount();
    let mut expected: BTreeSet<String> = vms(&mounted)
        .iter()
        .map(|vm| uuid_of(vm).to_owned())
        .collect();
    let fixed = [
        "events", "vms.json", "create", ".status", ".errors", ".events", ".history", ".by",
    ];
    expected.extend(fixed.map(str::to_owned));
    assert_eq!(names(&mounted.at), expected);
    assert_eq!(
        names(&mounted.path(".by")),
        ["alias", "owner", "state"].map(str::to_owned).into()
    );
    assert!(names(&mounted.path(".events")).is_empty());
}

#[test]
fn a_listing_by_small_pieces_loses_nothing_and_shows_nothing_twice() {
    const ALWAYS: usize = 300;
    // VMs that come and go between two pieces, and the size of the pieces.
    let churn = prop::collection::vec((ALWAYS..ALWAYS + 40, any::<bool>()), 40..80);
    let mut runner = TestRunner::new(Config {
        cases: 6,
        failure_persistence: None,
        ..Config::default()
    });
    let tree = std::cell::RefCell::new(Inside::new(ALWAYS));
    let always: BTreeSet<String> = (0..ALWAYS)
        .map(|number| inside::uuid(number).to_string())
        .collect();
    runner
        .run(&(churn, 280usize..1200), |(churn, size)| {
            let mut tree = tree.borrow_mut();
            for below in [".", ".by/alias", ".by/state/running"] {
                let dir = File::open(tree.path(below)).unwrap();
                let mut changes = churn.iter().cycle();
                let mut seen = Vec::new();
                loop {
                    let names = listing::next_names(&dir, size);
                    if names.is_empty() {
                        break;
                    }
                    seen.extend(names);
                    let (number, comes) = *changes.next().unwrap();
                    let change = if comes {
                        put(&inside::vm(number))
                    } else {
                        inside::remove(number)
                    };
                    tree.publish(vec![change]);
                }
                let unique: BTreeSet<&String> = seen.iter().collect();
                prop_assert_eq!(unique.len(), seen.len(), "a name twice in {}", below);
                let lost = if below == ".by/alias" {
                    (0..ALWAYS)
                        .filter(|number| !unique.contains(&format!("vm{number}")))
                        .count()
                } else {
                    always.iter().filter(|name| !unique.contains(name)).count()
                };
                prop_assert_eq!(lost, 0, "names lost in {}", below);
            }
            Ok(())
        })
        .unwrap();
}

/// Modes as the contract has them, with and without a group.
#[track_caller]
fn assert_modes(mounted: &Mounted<'_>, group: impl Fn(u32) -> u32) {
    let vms = vms(mounted);
    let check = |path: PathBuf, expected: u32| {
        let expected = group(expected);
        assert_eq!(
            mode(&path),
            expected,
            "{}: {expected:o} expected",
            path.display()
        );
    };
    for (path, expected) in [
        ("", 0o555),
        ("events", 0o400),
        ("vms.json", 0o400),
        (".history", 0o400),
        (".errors", 0o400),
        ("create", 0o600),
        (".status", 0o444),
        (".events/0", 0o400),
        (".by", 0o555),
        (".by/alias", 0o555),
        (".by/state/running", 0o555),
    ] {
        check(mounted.path(path), expected);
    }
    for vm in &vms {
        let dir = mounted.path(uuid_of(vm));
        for (path, expected) in [
            ("", 0o755),
            ("vm.json", 0o600),
            ("ctl", 0o600),
            ("last_error", 0o400),
            ("uuid", 0o444),
            ("state", 0o444),
            ("quota", 0o644),
            ("tags", 0o755),
            ("customer_metadata", 0o755),
            ("customer_metadata/root_authorized_keys", 0o644),
            ("internal_metadata", 0o700),
            ("nics", 0o555),
            ("nics/net0", 0o755),
            ("nics/net0/mac", 0o444),
            ("nics/net0/ip", 0o644),
        ] {
            if dir.join(path).exists() {
                check(dir.join(path), expected);
            }
        }
        for key in vm["internal_metadata"].as_object().unwrap().keys() {
            check(dir.join("internal_metadata").join(encoded(key)), 0o600);
        }
    }
    let with = |property: &str, key: &str| {
        let vm = vms
            .iter()
            .find(|vm| vm[property].get(key).is_some())
            .unwrap();
        mounted.path(uuid_of(vm)).join(property).join(key)
    };
    check(with("customer_metadata", "root_pw"), 0o600);
    let vnc = vms
        .iter()
        .find(|vm| vm.get("vnc_password").is_some())
        .unwrap();
    check(mounted.path(uuid_of(vnc)).join("vnc_password"), 0o600);
}

#[test]
fn modes_are_as_the_contract_has_them() {
    let store = Store::new(VMS);
    let mounted = store.mount();
    assert_modes(&mounted, |mode| mode);
    let root = mounted.at.metadata().unwrap();
    assert_eq!((root.uid(), root.gid()), (0, 0));
}

#[test]
fn a_group_gets_the_rights_of_the_owner() {
    let store = Store::new(VMS);
    let group = nix::unistd::Group::from_name("daemon").unwrap().unwrap();
    let mounted = store.mount_with(&["-o", "group=daemon"]);
    assert_modes(&mounted, |mode| mode | (mode & 0o700) >> 3);
    for path in walk(&mounted.path(".by"))
        .iter()
        .chain([&mounted.path("vms.json")])
    {
        assert_eq!(path.symlink_metadata().unwrap().gid(), group.gid.as_raw());
    }
    let cat = |group: &str| {
        let mut cat = Command::new("setpriv");
        cat.args([
            "--reuid=nobody",
            &format!("--regid={group}"),
            "--clear-groups",
            "cat",
        ]);
        // The mount lies in a folder that only root may enter: from within it can be read.
        cat.arg("vms.json")
            .current_dir(&mounted.at)
            .output()
            .unwrap()
    };
    assert!(cat("daemon").status.success());
    let refused = cat("nogroup");
    assert!(!refused.status.success());
    assert!(text(&refused.stderr).contains("Permission denied"));
}

/// Everything that can be seen of a tree from outside.
fn look(dir: &Path) -> Vec<(PathBuf, u64, u32, i64, i64, Vec<u8>)> {
    let sizeless = ["events", ".status"].map(|name| dir.join(name));
    let mut seen: Vec<_> = walk(dir)
        .into_iter()
        .filter(|path| !sizeless.contains(path))
        .map(|path| {
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            let (mode, mtime) = (metadata.mode(), (metadata.mtime(), metadata.mtime_nsec()));
            (path, metadata.ino(), mode, mtime.0, mtime.1, content)
        })
        .collect();
    seen.sort();
    seen
}

#[test]
fn nobody_changes_anything() {
    let store = Store::new(3);
    let mounted = store.mount();
    let mut before = look(&mounted.at);
    let uuid = uuid_of(&vms(&mounted)[0]).to_owned();
    let vm = mounted.path(&uuid);
    let tag = vm.join("tags/role");
    let outside = store.dir().join("outside");
    fs::write(&outside, "x").unwrap();

    for target in [&mounted.at, &vm, &tag] {
        let rm = Command::new("rm")
            .arg("-rf")
            .arg(target)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!rm.status.success());
        assert!(
            text(&rm.stderr).contains("Operation not permitted"),
            "{}",
            text(&rm.stderr)
        );
    }
    #[track_caller]
    fn refused(result: io::Result<()>) {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::EPERM));
    }
    for path in [
        &mounted.path("events"),
        &vm.join("state"),
        &tag,
        &mounted.path(".by/alias"),
    ] {
        let parent = path.parent().unwrap();
        refused(fs::rename(path, parent.join("elsewhere")));
        refused(fs::create_dir(parent.join("new")));
        refused(std::os::unix::fs::symlink("x", parent.join("new")));
        refused(fs::set_permissions(path, fs::Permissions::from_mode(0o777)));
        refused(std::os::unix::fs::chown(path, Some(1), None));
    }
    for file in [&mounted.path("events"), &vm.join("state"), &tag] {
        refused(fs::remove_file(file));
        refused(fs::hard_link(file, vm.join("link")));
    }
    for file in ["events", ".status"]
        .map(|file| mounted.path(file))
        .iter()
        .chain([&vm.join("state")])
    {
        refused(fs::OpenOptions::new().write(true).open(file).map(drop));
    }
    refused(File::create(mounted.path("new")).map(drop));
    refused(File::create(mounted.path(".by/alias/new")).map(drop));
    refused(File::create(vm.join("tags/.new.swp")).map(drop));
    for dir in [&vm, &vm.join("tags"), &mounted.path(".by")] {
        refused(fs::remove_dir(dir));
    }
    refused(fs::remove_file(walk(&mounted.path(".by/alias")).remove(0)));
    // Between filesystems mv(1) copies, and only then removes.
    let fails = |program: &str, args: &[&Path]| {
        let output = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success(), "{program} {args:?}");
    };
    fails("mv", &[&tag, &store.dir().join("moved")]);
    fails("mv", &[&outside, &vm]);
    fails("touch", &[&vm.join("new")]);
    fails(
        "setfattr",
        &[
            "-n".as_ref(),
            "user.x".as_ref(),
            "-v".as_ref(),
            "y".as_ref(),
            &*tag,
        ],
    );
    // A new size or time is taken and forgotten.
    nix::unistd::truncate(&tag, 0).unwrap();
    run(Command::new("touch").arg("-d").arg("2001-01-01").arg(&tag));

    // But for those that say so of the renames.
    let mut after = look(&mounted.at);
    for all in [&mut before, &mut after] {
        all.retain(|(path, ..)| !path.ends_with("last_error") && !path.ends_with(".errors"));
    }
    assert_eq!(after, before);
}

#[test]
fn inode_numbers_are_the_same_after_a_restart() {
    let store = Store::new(VMS);
    let numbers = || {
        let mounted = store.mount();
        let paths = walk(&mounted.at).into_iter();
        let numbers: BTreeMap<PathBuf, u64> = paths
            .map(|path| (path.clone(), path.symlink_metadata().unwrap().ino()))
            .collect();
        numbers
    };
    let first = numbers();
    assert_eq!(first, numbers());
    let links: BTreeSet<&Path> = first
        .keys()
        .filter(|path| path.is_symlink())
        .map(PathBuf::as_path)
        .collect();
    assert!(links.is_empty(), "nothing is mounted any more");
    let files = first
        .iter()
        .filter(|(path, _)| !path.components().any(|part| part.as_os_str() == ".by"));
    let numbers: BTreeSet<u64> = files.clone().map(|(_, number)| *number).collect();
    assert_eq!(numbers.len(), files.count(), "two files have one number");
}

#[test]
fn times_are_those_of_the_last_change() {
    let store = Store::new(3);
    let mounted = store.mount();
    let seconds = |path: &Path| path.metadata().unwrap().mtime();
    let exact = |path: &Path| {
        let metadata = path.metadata().unwrap();
        (metadata.mtime(), metadata.mtime_nsec())
    };
    for vm in &vms(&mounted) {
        let dir = mounted.path(uuid_of(vm));
        let modified = vm["last_modified"].as_str().unwrap();
        let date = run(Command::new("date").args(["-d", modified, "+%s"]));
        let modified: i64 = text(&date.stdout).trim().parse().unwrap();
        assert_eq!(seconds(&dir), modified);
        for path in walk(&dir) {
            assert_eq!(seconds(&path), modified, "{}", path.display());
        }
    }
    let events = mounted.events();
    let zone = &store.zones()[0];
    change::set_tag(&store.root(), zone, "role", &json!("changed")).unwrap();
    let event = events.find(|event| event["zonename"] == **zone);
    let dir = mounted.path(event["uuid"].as_str().unwrap());
    let all = walk(&dir).into_iter();
    let changed = ["tags", "tags/role", "vm.json", "last_modified"].map(|name| dir.join(name));
    let newest = exact(&dir);
    assert_eq!(exact(&changed[1]), newest);
    assert!(newest.0 > seconds(&dir.join("uuid")));
    for path in all {
        assert_eq!(
            exact(&path) == newest,
            changed.contains(&path),
            "{}",
            path.display()
        );
    }
}

/// The extended attribute of a file, as getfattr(1) shows it.
fn xattr(path: &Path, name: &str) -> Option<String> {
    let name = format!("user.vminfod.{name}");
    let mut getfattr = Command::new("getfattr");
    getfattr
        .args(["--only-values", "--absolute-names", "-n", &name])
        .arg(path);
    let output = getfattr.output().unwrap();
    output.status.success().then(|| text(&output.stdout))
}

#[test]
fn extended_attributes_say_where_a_value_comes_from() {
    let store = Store::new(3);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let vm = vms(&mounted)
        .into_iter()
        .find(|vm| vm["zonename"] == **zone)
        .unwrap();
    let dir = mounted.path(uuid_of(&vm));
    for (file, source) in [
        ("alias", "xml"),
        ("tags/role", "tags"),
        ("quota", "datasets"),
        ("customer_metadata/root_authorized_keys", "metadata"),
        ("zone_state", "runtime"),
    ] {
        assert_eq!(
            xattr(&dir.join(file), "source").as_deref(),
            Some(source),
            "{file}"
        );
    }
    assert_eq!(
        xattr(&dir.join("tags/role"), "generation").as_deref(),
        Some(mounted.base().to_string().as_str())
    );
    assert_eq!(xattr(&dir.join("tags/role"), "stale"), None);
    let events = mounted.events();
    change::set_tag(&store.root(), zone, "role", &json!("changed")).unwrap();
    let event = events.find(|event| event["zonename"] == **zone);
    let of = |name| xattr(&dir.join("tags/role"), name);
    assert_eq!(of("generation"), Some(event["seq"].to_string()));
    assert_eq!(of("via").as_deref(), event["via"].as_str());
    let observed = of("observed").unwrap();
    run(Command::new("date").args(["-d", &observed]));
    assert!(
        *observed <= *event["date"].as_str().unwrap(),
        "it was read before it was published"
    );

    let listed = run(Command::new("getfattr")
        .arg("--absolute-names")
        .arg(dir.join("alias")));
    let names = text(&listed.stdout);
    for name in ["source", "observed", "via", "generation"] {
        assert!(names.contains(&format!("user.vminfod.{name}\n")), "{names}");
    }
    assert!(!names.contains("stale"), "{names}");
}

#[test]
fn a_vm_whose_xml_is_broken_is_stale_until_it_is_whole_again() {
    let store = Store::new(3);
    let mounted = store.mount();
    let zone = &store.zones()[0];
    let dir = mounted.path(uuid_of(
        vms(&mounted)
            .iter()
            .find(|vm| vm["zonename"] == **zone)
            .unwrap(),
    ));
    let alias = dir.join("hostname");
    let shown = fs::read_to_string(&alias).unwrap();
    let path = store.path(format!("etc/zones/{zone}.xml"));
    let whole = fs::read(&path).unwrap();
    change::replace(&path, &whole[..whole.len() / 2]).unwrap();
    let reason = until("the VM is stale", || xattr(&alias, "stale"));
    assert!(reason.contains("xml"), "{reason}");
    assert_eq!(
        fs::read_to_string(&alias).unwrap(),
        shown,
        "its last good value"
    );
    let listed = mounted.status()["stale"].as_object().unwrap().len();
    assert_eq!(listed, 1);
    change::replace(&path, &whole).unwrap();
    until("the VM is whole again", || {
        xattr(&alias, "stale").is_none().then_some(())
    });
}

#[test]
fn vms_that_are_not_to_be_inventoried_are_shown() {
    let store = Store::new(VMS);
    let mounted = store.mount();
    let hidden: Vec<Value> = vms(&mounted)
        .into_iter()
        .filter(|vm| vm["do_not_inventory"] == true)
        .collect();
    assert!(!hidden.is_empty());
    for vm in hidden {
        assert_eq!(
            mounted.read(format!("{}/do_not_inventory", uuid_of(&vm))),
            "true\n"
        );
    }
}

#[test]
fn a_zone_without_a_uuid_is_only_in_the_status() {
    let store = Store::new(3);
    let index = store.path("etc/zones/index");
    let text = fs::read_to_string(&index).unwrap();
    change::replace(&index, format!("{text}plain:installed:/zones/plain:\n")).unwrap();
    let zone = store.zones().remove(0);
    fs::copy(
        store.path(format!("etc/zones/{zone}.xml")),
        store.path("etc/zones/plain.xml"),
    )
    .unwrap();
    let mounted = store.mount();
    assert_eq!(vms(&mounted).len(), 3);
    assert!(!mounted.path("plain").exists());
    let unplaced = &mounted.status()["unplaced"];
    assert_eq!(unplaced.as_array().unwrap().len(), 1);
    assert_eq!(unplaced[0]["zonename"], "plain");
    assert!(
        unplaced[0]["reason"].as_str().unwrap().contains("uuid"),
        "{unplaced}"
    );
}

#[test]
fn programs_that_read_a_whole_vm_come_to_an_end() {
    let store = Store::new(3);
    let mounted = store.mount();
    let vm = vms(&mounted).remove(0);
    let dir = mounted.path(uuid_of(&vm));
    let copy = store.dir().join("copy");

    let find = run(Command::new("find").arg(&mounted.at));
    assert_eq!(
        text(&find.stdout).lines().count(),
        walk(&mounted.at).len() + 1
    );
    let shell = format!("grep -r {} {}/*/", uuid_of(&vm), mounted.at.display());
    let grep = run(Command::new("sh").args(["-c", &shell]));
    assert!(text(&grep.stdout).contains(&format!("{}/uuid:", dir.display())));
    run(Command::new("cp").arg("-r").arg(&dir).arg(&copy));
    run(Command::new("diff").arg("-r").arg(&dir).arg(&copy));

    let archive = store.dir().join("vm.tar");
    let tar = run(Command::new("tar")
        .arg("cf")
        .arg(&archive)
        .arg("-C")
        .arg(&dir)
        .arg("."));
    assert_eq!(text(&tar.stderr), "");
    run(Command::new("tar")
        .arg("df")
        .arg(&archive)
        .arg("-C")
        .arg(&dir));
}

/// A store that `nobody` mounts, with the program and the store in a folder that is his.
struct Unprivileged {
    store: Store,
    _bin: TempDir,
    vminfod: PathBuf,
}

/// Runs a test in a mount namespace of its own, where everybody may use FUSE: on most hosts that is
/// so anyway, but a container's /dev/fuse may be for root alone. The namespace is that of one
/// thread and of the programs it starts, and goes with them.
fn where_everybody_may_mount(test: impl FnOnce() + Send) {
    let own = || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&Path>;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("fuse");
        let device = fs::metadata("/dev/fuse").unwrap().rdev();
        nix::sys::stat::mknod(&open, SFlag::S_IFCHR, Mode::empty(), device).unwrap();
        fs::set_permissions(&open, fs::Permissions::from_mode(0o666)).unwrap();
        nix::mount::mount(Some(&open), "/dev/fuse", none, MsFlags::MS_BIND, none).unwrap();
        test();
    };
    thread::scope(|scope| scope.spawn(own).join().unwrap());
}

/// A command that `nobody` runs.
fn as_nobody(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"])
        .arg(program);
    command.stdin(Stdio::null());
    command
}

impl Unprivileged {
    fn new() -> Unprivileged {
        let store = Store::new(3);
        let bin = tempfile::tempdir().unwrap();
        // Where the tests were built, others may not be allowed to look.
        let vminfod = bin.path().join("vminfod");
        fs::copy(VMINFOD, &vminfod).unwrap();
        fs::set_permissions(bin.path(), fs::Permissions::from_mode(0o755)).unwrap();
        run(Command::new("chown")
            .args(["-R", "nobody:nogroup"])
            .arg(store.dir()));
        Unprivileged {
            store,
            _bin: bin,
            vminfod,
        }
    }

    fn mount(&self) -> Mounted<'_> {
        let mut mount = as_nobody(&self.vminfod);
        mount.args(["mount", "--foreground", "--tell-ready", "--zones-root"]);
        mount.arg(self.store.root()).arg(self.store.mountpoint());
        Mounted::start(&self.store, mount)
    }
}

#[test]
fn an_ordinary_user_has_a_mount_of_his_own() {
    where_everybody_may_mount(an_ordinary_user_has_a_mount_of_his_own_there);
}

fn an_ordinary_user_has_a_mount_of_his_own_there() {
    let home = Unprivileged::new();
    let mounted = home.mount();
    let cat = |name: &str| as_nobody("cat").arg(mounted.path(name)).output().unwrap();
    let all: Value = serde_json::from_slice(&cat("vms.json").stdout).unwrap();
    assert_eq!(all.as_array().unwrap().len(), 3);
    let uuid = uuid_of(&all[0]).to_owned();
    assert_eq!(
        text(&cat(&format!("{uuid}/uuid")).stdout),
        format!("{uuid}\n")
    );
    assert_eq!(text(&cat(&format!("{uuid}/vm.json")).stderr), "");

    // Not even root looks into it.
    assert_eq!(
        fs::read_dir(&mounted.at).unwrap_err().kind(),
        io::ErrorKind::PermissionDenied
    );

    let rm = as_nobody("rm")
        .arg("-rf")
        .arg(mounted.path(&uuid))
        .output()
        .unwrap();
    assert!(text(&rm.stderr).contains("Operation not permitted"));
    let mut write = as_nobody("sh");
    write
        .arg("-c")
        .arg(format!("echo x > {}/state", mounted.path(&uuid).display()));
    assert!(text(&write.output().unwrap().stderr).contains("Operation not permitted"));
    assert_eq!(
        text(&cat(&format!("{uuid}/uuid")).stdout),
        format!("{uuid}\n")
    );
}

#[test]
fn an_ordinary_user_hears_of_changes() {
    where_everybody_may_mount(an_ordinary_user_hears_of_changes_there);
}

fn an_ordinary_user_hears_of_changes_there() {
    let home = Unprivileged::new();
    let mounted = home.mount();
    let zones = home.store.zones();
    let mut cat = as_nobody("cat");
    cat.arg(mounted.path("events")).stdout(Stdio::piped());
    let mut cat = Running::start(&mut cat);
    let mut events = BufReader::new(cat.0.stdout.take().unwrap()).lines();
    let ready: Value = serde_json::from_str(&events.next().unwrap().unwrap()).unwrap();
    assert_eq!(ready["type"], "ready");
    let mut inotify = as_nobody("inotifywait");
    inotify.args(["-m", "-e", "modify,create,delete", "--format", "%e %w%f"]);
    inotify
        .arg(&mounted.at)
        .arg(mounted.path(&zones[1]).join("tags"));
    inotify.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut inotify = Running::start(&mut inotify);
    let mut said = BufReader::new(inotify.0.stderr.take().unwrap()).lines();
    while !said
        .next()
        .unwrap()
        .unwrap()
        .contains("Watches established")
    {}
    let mut heard = BufReader::new(inotify.0.stdout.take().unwrap()).lines();
    let mut hears = |what: &str, path: &Path| {
        let expected = format!("{what} {}", path.display());
        let heard = heard.by_ref();
        assert!(
            heard.any(|line| line.unwrap().starts_with(&expected)),
            "{expected}"
        );
    };

    change::set_tag(&home.store.root(), &zones[1], "role", &json!("changed")).unwrap();
    let event: Value = serde_json::from_str(&events.next().unwrap().unwrap()).unwrap();
    assert_eq!(event["vm"]["tags"]["role"], "changed");
    let file = mounted
        .path(event["uuid"].as_str().unwrap())
        .join("tags/role");
    hears("MODIFY", &file);
    let role = as_nobody("cat").arg(&file).output().unwrap();
    assert_eq!(text(&role.stdout), "changed\n");

    change::remove(&home.store.root(), &zones[0]).unwrap();
    let event: Value = serde_json::from_str(&events.next().unwrap().unwrap()).unwrap();
    assert_eq!(event["type"], "delete");
    hears(
        "DELETE,ISDIR",
        &mounted.path(event["uuid"].as_str().unwrap()),
    );
    change::add(&home.store.root(), 1, 50).unwrap();
    let event: Value = serde_json::from_str(&events.next().unwrap().unwrap()).unwrap();
    assert_eq!(event["type"], "create");
    hears(
        "CREATE,ISDIR",
        &mounted.path(event["uuid"].as_str().unwrap()),
    );
}
