//! What the kernel keeps of the tree: that warm looks cost no message, and that nothing it keeps is
//! ever older than what somebody has been told.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use support::inside::{self, Inside, put, uuid};
use support::{Store, until};
use vminfod::sample::change;
use vminfod::vm::files::{FileId, Rendered};

/// Opens, reads once and closes, and nothing else.
fn cat_once(path: &Path) -> usize {
    let file = nix::fcntl::open(path, OFlag::O_RDONLY, Mode::empty()).unwrap();
    nix::unistd::read(&file, &mut [0; 4096]).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn size(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

/// All files and directories of a VM, but for `ctl`, which is another inode each time.
fn files_of(dir: &Path) -> Vec<PathBuf> {
    let mut files = vec![dir.to_owned()];
    for name in names(dir).into_iter().filter(|name| name != "ctl") {
        let path = dir.join(name);
        if path.is_dir() {
            files.extend(files_of(&path))
        } else {
            files.push(path)
        }
    }
    files
}

fn stat(files: &[PathBuf]) {
    for file in files {
        fs::metadata(file).unwrap();
    }
}

fn ls(dir: &Path) {
    let status = Command::new("ls")
        .arg(dir)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn reading_an_attribute_costs_an_open_a_read_and_a_release_and_nothing_else() {
    let tree = Inside::new(2);
    let quota = tree.file(0, "quota");
    cat_once(&quota);
    for _ in 0..3 {
        let messages = tree.messages_of(|| {
            assert_eq!(cat_once(&quota), 3);
        });
        assert_eq!(
            messages,
            BTreeMap::from([("open", 1), ("read", 1), ("release", 1)])
        );
    }
}

#[test]
fn a_repeated_stat_costs_no_message() {
    let tree = Inside::new(2);
    let files = files_of(&tree.file(0, ""));
    stat(&files);
    let messages = tree.messages_of(|| stat(&files));
    assert_eq!(messages, BTreeMap::new());
}

#[test]
fn a_warm_listing_costs_no_message() {
    let tree = Inside::new(50);
    let root = tree.at();
    let vm = tree.file(0, "");
    for dir in [&root, &vm, &tree.file(0, "tags"), &tree.path(".by/alias")] {
        ls(dir);
        ls(dir);
        assert_eq!(
            tree.messages_of(|| ls(dir)),
            BTreeMap::new(),
            "{}",
            dir.display()
        );
    }
}

#[test]
fn after_a_change_exactly_what_changed_is_asked_again() {
    let mut tree = Inside::new(3);
    let vms: Vec<_> = (0..3)
        .map(|number| files_of(&tree.file(number, "")))
        .collect();
    vms.iter().for_each(|files| stat(files));

    let touched = tree.messages()["setattr"] + 2;
    tree.set(0, "quota", json!(1000));
    // The changed files are touched, for inotify, in the daemon's own time.
    until("the changed files are touched", || {
        (tree.messages()["setattr"] == touched).then_some(())
    });

    let changed = ["", "quota", "vm.json"].map(|file| tree.file(0, file));
    let messages = tree.messages_of(|| {
        assert_eq!(size(&changed[1]), 5);
        assert_eq!(size(&changed[2]), tree.read(0, "vm.json").len() as u64);
    });
    assert!(messages["getattr"] >= 2, "{messages:?}");
    stat(&changed);
    for file in vms.iter().flatten() {
        let messages = tree.messages_of(|| stat(std::slice::from_ref(file)));
        assert_eq!(messages, BTreeMap::new(), "{}", file.display());
    }
}

#[test]
fn a_change_to_one_vm_leaves_the_listing_of_the_root_alone() {
    let mut tree = Inside::new(50);
    let root = tree.at();
    ls(&root);
    ls(&root);
    // What changed is touched, for inotify, in the daemon's own time: two files of the VM, and
    // `events`, `vms.json` and `.history`.
    let touched = tree.messages()["setattr"] + 5;
    tree.set(7, "quota", json!(1000));
    until("the changed files are touched", || {
        (tree.messages()["setattr"] == touched).then_some(())
    });
    assert_eq!(tree.messages_of(|| ls(&root)), BTreeMap::new());
}

#[test]
fn names_that_come_and_go_are_right_at_once() {
    let mut tree = Inside::new(2);
    let tags = tree.file(0, "tags");
    let nics = tree.file(0, "nics");
    for round in 0..20 {
        assert_eq!(names(&tags), ["env", "role"]);
        assert!(!tags.join("new").exists());
        tree.set(
            0,
            "tags",
            json!({"role": "web", "env": "prod", "new": round}),
        );
        assert_eq!(names(&tags), ["env", "new", "role"]);
        assert_eq!(tree.read(0, "tags/new"), format!("{round}\n"));
        assert_eq!(size(&tags.join("new")), format!("{round}\n").len() as u64);

        tree.set(0, "tags", json!({"env": "prod"}));
        assert_eq!(names(&tags), ["env"]);
        assert!(!tags.join("new").exists());
        assert!(!tags.join("role").exists());
        tree.set(0, "tags", json!({"role": "web", "env": "prod"}));

        assert!(tree.file(0, "quota").exists());
        tree.set(0, "quota", Value::Null);
        assert!(!tree.file(0, "quota").exists());
        assert!(!names(&tree.file(0, "")).contains(&"quota".to_owned()));
        tree.set(0, "quota", json!(10));
        assert_eq!(tree.read(0, "quota"), "10\n");

        assert_eq!(names(&nics), ["net0"]);
        tree.set(
            0,
            "nics",
            json!([{"interface": "net0"}, {"interface": "net1", "ip": "10.0.0.8"}]),
        );
        assert_eq!(names(&nics), ["net0", "net1"]);
        assert_eq!(names(&nics.join("net0")), ["interface"]);
        assert_eq!(tree.read(0, "nics/net1/ip"), "10.0.0.8\n");
        tree.set(0, "nics", json!([]));
        assert_eq!(names(&nics), Vec::<String>::new());
        assert!(!nics.join("net0").exists());
        tree.set(0, "nics", inside::vm(0)["nics"].clone());
        assert_eq!(tree.read(0, "nics/net0/ip"), "10.0.0.7\n");
    }
}

#[test]
fn the_stream_of_a_vm_goes_with_it() {
    let mut tree = Inside::new(2);
    let stream = tree.path(".events").join(uuid(0).to_string());
    for _ in 0..3 {
        assert!(stream.exists());
        tree.publish(vec![inside::remove(0)]);
        assert!(!stream.exists());
        tree.publish(vec![put(&inside::vm(0))]);
    }
    assert!(File::open(&stream).is_ok());
}

#[test]
fn links_that_come_and_go_are_right_at_once() {
    let mut tree = Inside::new(2);
    let states = tree.path(".by/state");
    let (zero, one) = (uuid(0).to_string(), uuid(1).to_string());
    for _ in 0..10 {
        assert_eq!(names(&states), ["running"]);
        assert_eq!(names(&states.join("running")), [&*zero, &*one]);
        assert_eq!(names(&tree.path(".by/alias")), ["vm0", "vm1"]);
        tree.set(0, "state", json!("stopped"));
        assert_eq!(names(&states), ["running", "stopped"]);
        assert_eq!(names(&states.join("running")), [&*one]);
        assert!(!states.join("running").join(&zero).exists());
        assert!(states.join("stopped").join(&zero).join("state").exists());
        tree.set(1, "state", json!("stopped"));
        assert_eq!(names(&states), ["stopped"]);
        assert!(!states.join("running").exists());

        tree.set(1, "alias", json!("vm0"));
        let both = [format!("vm0~{zero}"), format!("vm0~{one}")];
        assert_eq!(names(&tree.path(".by/alias")), both);
        assert!(!tree.path(".by/alias/vm0").exists());
        tree.set(1, "alias", json!("vm1"));
        assert!(tree.path(".by/alias/vm0/quota").exists());
        assert!(!tree.path(".by/alias").join(&both[0]).exists());
        tree.set(0, "state", json!("running"));
        tree.set(1, "state", json!("running"));
    }
}

#[test]
fn a_vm_made_again_before_anybody_looked_shows_its_new_values() {
    let mut tree = Inside::new(2);
    stat(&files_of(&tree.file(0, "")));
    // Its last_modified is the same: a dataset's properties are no part of that.
    let mut again = inside::vm(0);
    again.insert("quota".to_owned(), json!(1000));
    again.insert("tags".to_owned(), json!({"env": "prod"}));
    let barrier = tree.mount().barriers().publication.clone();
    let held = barrier.write();
    tree.writer.publish(vec![inside::remove(0)]);
    tree.writer.publish(vec![put(&again)]);
    drop(held);
    tree.settled();
    // A read would have the kernel ask again anyway.
    assert_eq!(size(&tree.file(0, "quota")), 5);
    let shown = size(&tree.file(0, "vm.json"));
    assert_eq!(shown, tree.read(0, "vm.json").len() as u64);
    assert_eq!(tree.read(0, "quota"), "1000\n");
    assert_eq!(names(&tree.file(0, "tags")), ["env"]);
}

#[test]
fn a_version_that_another_one_followed_before_it_was_settled_is_never_seen() {
    let mut tree = Inside::new(1);
    let barrier = tree.mount().barriers().publication.clone();
    let tags = tree.file(0, "tags");
    assert_eq!(names(&tags), ["env", "role"]);
    let publish = |tree: &mut Inside, tags: Value| {
        let mut vm = inside::vm(0);
        vm.insert("tags".to_owned(), tags);
        tree.writer.publish(vec![put(&vm)]);
    };
    let held = barrier.write();
    publish(&mut tree, json!({"role": "web", "passing": "by"}));
    assert_eq!(names(&tags), ["env", "role"]);
    assert!(!tags.join("passing").exists());
    publish(&mut tree, json!({"role": "web"}));
    drop(held);
    tree.settled();
    assert!(!tags.join("passing").exists());
    assert_eq!(names(&tags), ["role"]);
}

#[test]
fn of_a_publication_everything_is_shown_at_one_moment() {
    let mut tree = Inside::new(2);
    let quota = tree.file(0, "quota");
    let all = fs::read_to_string(tree.path("vms.json")).unwrap();
    let mut events = BufReader::new(File::open(tree.path("events")).unwrap());
    events.read_line(&mut String::new()).unwrap();
    let nothing_is_shown = |tree: &Inside| {
        assert_eq!(size(&quota), 3);
        assert_eq!(tree.read(0, "quota"), "10\n");
        assert!(!tree.file(0, "tags/new").exists());
        assert_eq!(names(&tree.file(0, "tags")), ["env", "role"]);
        assert_eq!(fs::read_to_string(tree.path("vms.json")).unwrap(), all);
        assert_eq!(size(&tree.path("vms.json")), all.len() as u64);
        assert_eq!(size(&tree.path(".history")), 0);
        assert!(!tree.path(".by/alias/new").exists());
    };
    nothing_is_shown(&tree);
    let barriers = tree.mount().barriers().clone();
    let (publication, switch) = (barriers.publication.write(), barriers.switch.write());
    let mut object = inside::vm(0);
    object.insert("quota".to_owned(), json!(1000));
    object.insert("alias".to_owned(), json!("new"));
    object.insert("tags".to_owned(), json!({"new": 1}));
    tree.writer.publish(vec![put(&object)]);
    nothing_is_shown(&tree);
    drop(publication);
    // Of what is about to change the kernel keeps nothing: each look is a question.
    until("the old attributes are taken back", || {
        let before = tree.messages()["getattr"];
        stat(&[quota.clone(), quota.clone()]);
        (tree.messages()["getattr"] - before >= 2).then_some(())
    });
    nothing_is_shown(&tree);
    drop(switch);

    let mut line = String::new();
    events.read_line(&mut line).unwrap();
    assert_eq!(size(&quota), 5);
    assert_eq!(tree.read(0, "quota"), "1000\n");
    assert_eq!(names(&tree.file(0, "tags")), ["new"]);
    assert!(tree.path(".by/alias/new").exists());
    let now = fs::read_to_string(tree.path("vms.json")).unwrap();
    assert_ne!(now, all);
    assert_eq!(size(&tree.path("vms.json")), now.len() as u64);
    assert_eq!(size(&tree.path(".history")), line.len() as u64);
}

/// How many versions a stress test makes: a prime, so that each length below it belongs to one.
const VERSIONS: usize = 499;

/// The value of a version, whose length jumps up and down and belongs to this version alone.
fn value(version: usize) -> String {
    let len = 8 + version * 197 % VERSIONS;
    format!("{version:-<len$}")
}

fn version_of_len(len: u64) -> usize {
    (0..VERSIONS)
        .find(|version| value(*version).len() as u64 + 1 == len)
        .expect("the length of a version")
}

/// The version whose size a file has.
fn size_of(path: &Path) -> usize {
    version_of_len(size(path))
}

#[track_caller]
fn version_of(text: &str) -> usize {
    let version = text.split('-').next().unwrap().parse().unwrap();
    assert_eq!(text, value(version), "a torn value");
    version
}

/// The tags of a version: its value, and a key that only it has.
fn tags(version: usize) -> Value {
    json!({"role": value(version), format!("only-{version}"): 1})
}

/// Reads everything in every way while somebody writes one version after the other, and
/// checks that nothing is torn, and nothing older than what `events` has told.
fn nothing_is_stale(root: &Path, uuid: &str, write: impl FnOnce()) {
    let told = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    let mut events = BufReader::with_capacity(1 << 16, File::open(root.join("events")).unwrap());
    let mut line = String::new();
    events.read_line(&mut line).unwrap();
    let dir = root.join(uuid).join("tags");
    let role = dir.join("role");
    let newest = |shown: usize, floor: usize, what: &str| {
        assert!(
            shown >= floor,
            "{what} shows version {shown}, and events have told of {floor}"
        );
    };
    let find = |vms: &Value| -> usize {
        let vms = vms.as_array().unwrap();
        let vm = vms.iter().find(|vm| vm["uuid"] == uuid).unwrap();
        version_of(vm["tags"]["role"].as_str().unwrap())
    };
    let tell = || {
        while told.load(Ordering::SeqCst) < VERSIONS - 1 {
            let mut line = String::new();
            events.read_line(&mut line).unwrap();
            let event: Value = serde_json::from_str(&line).unwrap();
            let Some(text) = event["vm"]["tags"]["role"].as_str() else {
                continue;
            };
            let version = version_of(text);
            told.store(version, Ordering::SeqCst);
            newest(size_of(&role), version, "stat after an event");
        }
        done.store(true, Ordering::SeqCst);
    };
    let look = || {
        loop {
            let last = done.load(Ordering::SeqCst);
            let floor = || told.load(Ordering::SeqCst);
            let at = floor();
            newest(
                version_of(fs::read_to_string(&role).unwrap().trim_end()),
                at,
                "read",
            );
            let at = floor();
            newest(size_of(&role), at, "stat");
            let at = floor();
            let file = File::open(&role).unwrap();
            let (mut head, mut tail) = ([0; 5], vec![0; 4096]);
            file.read_exact_at(&mut head, 0).unwrap();
            let rest = file.read_at(&mut tail, 5).unwrap();
            let text = String::from_utf8([&head[..], &tail[..rest]].concat()).unwrap();
            newest(version_of(text.trim_end()), at, "pread");
            let at = floor();
            for name in names(&dir) {
                if let Some(version) = name.strip_prefix("only-") {
                    newest(version.parse().unwrap(), at, "readdir");
                }
            }
            if at > 0 && dir.join(format!("only-{}", at - 1)).exists() {
                panic!(
                    "a name of version {} is there, and events have told of {at}",
                    at - 1
                );
            }
            if last {
                return;
            }
        }
    };
    let look_at_all = || {
        loop {
            let last = done.load(Ordering::SeqCst);
            let at = told.load(Ordering::SeqCst);
            newest(
                find(
                    &serde_json::from_str(&fs::read_to_string(root.join("vms.json")).unwrap())
                        .unwrap(),
                ),
                at,
                "vms.json",
            );
            let at = told.load(Ordering::SeqCst);
            let vm: Value =
                serde_json::from_str(&fs::read_to_string(root.join(uuid).join("vm.json")).unwrap())
                    .unwrap();
            newest(
                version_of(vm["tags"]["role"].as_str().unwrap()),
                at,
                "vm.json",
            );
            if last {
                return;
            }
        }
    };
    thread::scope(|scope| {
        let looks = [scope.spawn(look), scope.spawn(look)];
        let all = scope.spawn(look_at_all);
        let tell = scope.spawn(tell);
        write();
        tell.join().unwrap();
        looks.into_iter().for_each(|look| look.join().unwrap());
        all.join().unwrap();
    });
    assert_eq!(version_of_len(size(&role)), VERSIONS - 1);
}

#[test]
fn under_a_storm_of_publications_nothing_is_torn_or_older_than_an_event() {
    let mut tree = Inside::new(3);
    tree.set(0, "tags", tags(0));
    let root = tree.at();
    nothing_is_stale(&root, &uuid(0).to_string(), || {
        let mut object = inside::vm(0);
        for version in 1..VERSIONS {
            object.insert("tags".to_owned(), tags(version));
            tree.writer.publish(vec![put(&object)]);
        }
    });
}

#[test]
fn while_a_store_changes_nothing_is_torn_or_older_than_an_event() {
    let store = Store::new(3);
    let zone = store.zones().swap_remove(0);
    let file = store.path(format!("zones/{zone}/config/tags.json"));
    change::replace(&file, tags(0).to_string()).unwrap();
    let mounted = store.mount();
    let vms = mounted.json("vms.json");
    let vm = vms
        .as_array()
        .unwrap()
        .iter()
        .find(|vm| vm["zonename"] == *zone)
        .unwrap();
    nothing_is_stale(&mounted.at, vm["uuid"].as_str().unwrap(), || {
        for version in 1..VERSIONS {
            change::replace(&file, tags(version).to_string()).unwrap();
        }
    });
}

/// A touch, which comes after the event, would have the kernel ask again: so this looks before it.
#[test]
fn at_the_moment_of_an_event_sizes_and_times_are_already_right() {
    let mut tree = Inside::new(1);
    let how = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let events = nix::fcntl::open(&tree.path("events"), how, Mode::empty()).unwrap();
    let mut buffer = vec![0; 1 << 16];
    while nix::unistd::read(&events, &mut buffer).is_ok() {}
    let (role, tags) = (tree.file(0, "tags/role"), tree.file(0, "tags"));
    for round in 0..30 {
        let before = fs::metadata(&tags).unwrap().modified().unwrap();
        stat(&[role.clone(), tags.clone()]);
        // The tag, `vm.json` and `events`.
        let touched = tree.messages()["setattr"] + 3;
        let mut vm = inside::vm(0);
        vm.insert("tags".to_owned(), json!({"role": "x".repeat(round + 10)}));
        tree.writer.publish(vec![put(&vm)]);
        while nix::unistd::read(&events, &mut buffer).is_err() {}
        let expected = round as u64 + 11;
        assert_eq!(size(&role), expected);
        assert!(fs::metadata(&tags).unwrap().modified().unwrap() > before);
        until("the changed files are touched", || {
            (tree.messages()["setattr"] == touched).then_some(())
        });
    }
}

/// One event is enough to know that everything older has gone, also where putting the kernel right
/// takes long because many names change.
#[test]
fn when_the_first_event_of_many_is_told_no_name_and_no_size_of_before_is_left() {
    const VMS: usize = 200;
    let mut tree = Inside::new(VMS);
    let aliases = tree.path(".by/alias");
    let all = tree.path("vms.json");
    let how = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
    let events = nix::fcntl::open(&tree.path("events"), how, Mode::empty()).unwrap();
    let mut buffer = vec![0; 1 << 20];
    // The ready line, and then nothing.
    while nix::unistd::read(&events, &mut buffer).is_ok() {}
    for round in 0..10 {
        let before = names(&aliases);
        stat(
            &before
                .iter()
                .map(|name| aliases.join(name))
                .collect::<Vec<_>>(),
        );
        let size_before = size(&all);
        let renamed = (0..VMS).map(|number| {
            let mut vm = inside::vm(number);
            vm.insert(
                "alias".to_owned(),
                json!(format!("vm{number}-{:->round$}", "")),
            );
            put(&vm)
        });
        tree.writer.publish(renamed.collect());
        // It asks again and again, so that it is told at the earliest moment.
        while nix::unistd::read(&events, &mut buffer).is_err() {}
        for name in before.iter().rev() {
            let left = aliases.join(name).symlink_metadata();
            assert!(left.is_err(), "the link {name} is left over");
        }
        assert!(size(&all) > size_before);
        assert_eq!(names(&aliases).len(), VMS);
        tree.settled();
        while nix::unistd::read(&events, &mut buffer).is_ok() {}
    }
}

#[test]
fn a_file_that_becomes_a_directory_is_one_at_once() {
    let mut tree = Inside::new(1);
    let extra = tree.file(0, "extra");
    for _ in 0..3 {
        tree.set(0, "extra", json!("text"));
        assert_eq!(size(&extra), 5);
        let open = File::open(&extra).unwrap();
        tree.set(0, "extra", json!({"key": "value"}));
        assert_eq!(names(&extra), ["key"]);
        assert_eq!(tree.read(0, "extra/key"), "value\n");
        drop(open);
        tree.set(0, "extra", json!("text"));
        assert_eq!(tree.read(0, "extra"), "text\n");
    }
}

/// Two tags whose files would have the same number, in the order of their names.
fn colliding_tags() -> (String, String) {
    let mut taken = BTreeMap::new();
    for key in (0..).map(|number| format!("tag{number:06}")) {
        let mut object = inside::vm(0);
        object.retain(|name, _| name == "tags");
        object.insert("tags".to_owned(), json!({ &*key: "" }));
        let rendered = Rendered::new(&object);
        let tags = rendered.lookup(FileId::DIR, "tags").unwrap().id;
        let id = rendered.lookup(tags, &key).unwrap().id;
        if let Some(other) = taken.insert(id.0, key.clone()) {
            return (other, key);
        }
    }
    unreachable!("there are more keys than numbers")
}

#[test]
fn a_name_that_leaves_its_number_to_another_one_is_gone() {
    let (first, second) = colliding_tags();
    let mut tree = Inside::new(1);
    let tags = tree.file(0, "tags");
    for _ in 0..3 {
        tree.set(0, "tags", json!({&*first: "1", &*second: "22"}));
        assert_eq!(names(&tags), [&*first, &*second]);
        assert_eq!(
            (size(&tags.join(&first)), size(&tags.join(&second))),
            (2, 3)
        );
        tree.set(0, "tags", json!({&*second: "22"}));
        assert!(!tags.join(&first).exists());
        assert_eq!(names(&tags), [&*second]);
        assert_eq!(tree.read(0, &format!("tags/{second}")), "22\n");
    }
}

#[test]
fn below_by_each_thing_has_only_the_name_that_is_listed() {
    let mut tree = Inside::new(2);
    tree.set(0, "alias", json!("a/b"));
    tree.set(0, "state", json!("100%"));
    let by = tree.path(".by");
    assert_eq!(names(&by.join("alias")), ["a%2Fb", "vm1"]);
    assert_eq!(names(&by.join("state")), ["100%25", "running"]);
    for listed in ["alias/a%2Fb", "state/100%25", "alias/vm1"] {
        assert!(by.join(listed).exists(), "{listed}");
    }
    for other in [
        "alias/a%2fb",
        "alias/%61%2Fb",
        "alias/vm%31",
        "state/100%",
        "state/%72unning",
    ] {
        assert!(!by.join(other).exists(), "{other}");
    }
    tree.set(1, "alias", json!("a/b"));
    let uuid = uuid(1);
    assert!(by.join(format!("alias/a%2Fb~{uuid}")).exists());
    assert!(!by.join(format!("alias/a%2fb~{uuid}")).exists());
}

#[test]
fn a_directory_of_very_many_files_is_right_after_all_of_them_change() {
    let mut tree = Inside::new(1);
    let tags = |value: &str| {
        let keys = (0..40_000).map(|number| (format!("key{number}"), json!(value)));
        Value::Object(keys.collect())
    };
    tree.set(0, "tags", tags("1"));
    let dir = tree.file(0, "tags");
    let looked_at = dir.join("key7");
    assert_eq!(size(&looked_at), 2);
    let watch = Inotify::init(InitFlags::IN_NONBLOCK).unwrap();
    watch.add_watch(&dir, AddWatchFlags::IN_MODIFY).unwrap();
    let mut changed = tags("22");
    tree.set(0, "tags", changed.clone());
    assert_eq!(size(&looked_at), 3);

    // A watcher is told of the file that was looked at, and of one that changed alone.
    changed["key9"] = json!("333");
    tree.set(0, "tags", changed);
    let mut told = Vec::new();
    until("the last change is told", || {
        let events = watch.read_events().unwrap_or_default().into_iter();
        told.extend(events.filter_map(|event| event.name));
        (told.last()? == "key9").then_some(())
    });
    assert_eq!(told, ["key7", "key9"]);
    assert_eq!(tree.read(0, "tags/key9"), "333\n");
}
