//! The read-only mount: a version of a file is an inode of its own, reading what is known costs no message,
//! and nothing older than what the writable mount shows is ever seen.

mod support;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use serde_json::{Value, json};
use support::direct::{Direct, Hosted, put, remove, uuid};
use support::listing::next_names;
use support::map::mapped;
use support::{Store, VMINFO, VMINFOD, run, until};
use vminfod::fs::ReadOnlyNumbers;

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

fn ino(path: &Path) -> u64 {
    fs::symlink_metadata(path).unwrap().ino()
}

/// Opens, reads once and closes, and nothing else.
fn cat_once(path: &Path) -> usize {
    let file = nix::fcntl::open(path, OFlag::O_RDONLY, Mode::empty()).unwrap();
    nix::unistd::read(&file, &mut [0; 4096]).unwrap()
}

/// Everything below a directory that is a file.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for name in names(dir) {
        let path = dir.join(name);
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            files(&path, found);
        } else if kind.is_file() {
            found.push(path);
        }
    }
}

trait Counted {
    fn read_only(&self) -> ReadOnlyNumbers;

    /// The messages that an act sends, forgetting left out, which comes when it likes.
    fn messages_of(&self, act: impl FnOnce()) -> BTreeMap<&'static str, u64> {
        let before: BTreeMap<_, _> = self.read_only().messages.into_iter().collect();
        act();
        let after = self.read_only().messages.into_iter();
        after
            .map(|(name, count)| (name, count - before[name]))
            .filter(|(name, count)| *count > 0 && *name != "forget")
            .collect()
    }
}

impl Counted for Direct {
    fn read_only(&self) -> ReadOnlyNumbers {
        self.mount().numbers().read_only().unwrap()
    }
}

/// Changes a VM, and waits until that is shown.
fn set(tree: &mut Direct, number: u128, alias: &str, tags: Value) {
    let seq = tree.publish(put(uuid(number), alias, &tags));
    tree.until_settled(seq);
}

#[test]
fn what_is_known_costs_no_message_to_open_read_stat_and_list() {
    let tree = Direct::new(3);
    let look = || {
        let mut found = Vec::new();
        files(&tree.read_only(""), &mut found);
        // Made anew at each look, and so looked up.
        found.retain(|path| !path.ends_with(".status"));
        assert!(found.len() > 10, "{found:?}");
        for path in &found {
            let size = fs::metadata(path).unwrap().len();
            assert_eq!(cat_once(path) as u64, size, "{}", path.display());
        }
    };
    look();
    let messages = tree.messages_of(look);
    // The status document is looked up each time, and that is all.
    let status = BTreeMap::from([("getattr", 1), ("lookup", 2)]);
    assert_eq!(messages, status);
}

#[test]
fn opening_is_asked_for_once_in_the_life_of_a_mount() {
    let tree = Direct::new(3);
    let mut found = Vec::new();
    files(&tree.read_only(""), &mut found);
    for path in &found {
        cat_once(path);
    }
    run(Command::new("ls").arg("-lR").arg(tree.read_only(""))).succeeded();
    let messages: BTreeMap<_, _> = Counted::read_only(&tree).messages.into_iter().collect();
    for once in ["open", "opendir", "flush", "getxattr", "listxattr"] {
        assert!(messages[once] <= 1, "{once}: {messages:?}");
    }
    assert_eq!(messages["release"], 0);
}

#[test]
fn an_open_file_is_a_snapshot_and_the_name_leads_to_the_new_one() {
    let mut tree = Direct::new(2);
    let role = tree.read_only(format!("{}/tags/role", uuid(1)));
    let old = File::open(&role).unwrap();
    let document = File::open(tree.read_only(format!("{}/vm.json", uuid(1)))).unwrap();
    let all = File::open(tree.read_only("vms.json")).unwrap();
    let before = text(&tree.read_only("vms.json"));
    let (number, unchanged) = (
        ino(&role),
        ino(&tree.read_only(format!("{}/alias", uuid(1)))),
    );
    set(&mut tree, 1, "first", json!({"role": "of another length"}));
    assert_eq!(text(&role), "of another length\n");
    assert_ne!(ino(&role), number);
    assert_eq!(
        ino(&tree.read_only(format!("{}/alias", uuid(1)))),
        unchanged
    );
    // Neither was read before the change.
    assert_eq!(mapped(&old, 6).unwrap(), b"first\n");
    let mut buffer = [0; 64];
    assert_eq!(old.read_at(&mut buffer, 0).unwrap(), 6);
    assert_eq!(old.metadata().unwrap().len(), 6);
    let mut read = String::new();
    (&document).read_to_string(&mut read).unwrap();
    let read: Value = serde_json::from_str(&read).unwrap();
    assert_eq!(read["tags"]["role"], "first");
    let mut read = String::new();
    (&all).read_to_string(&mut read).unwrap();
    assert_eq!(read, before);
    assert_eq!(Counted::read_only(&tree).versions_kept, 3);
    drop((old, document, all));
    until("nobody holds the old versions", || {
        (Counted::read_only(&tree).versions_kept == 0).then_some(())
    });
}

#[test]
fn a_version_that_nobody_has_open_is_forgotten() {
    let mut tree = Direct::new(1);
    let role = tree.read_only(format!("{}/tags/role", uuid(1)));
    for round in 0..50 {
        assert_eq!(cat_once(&role), text(&role).len());
        set(&mut tree, 1, "first", json!({"role": format!("{round}")}));
        assert_eq!(text(&role), format!("{round}\n"));
    }
    until("the old versions are forgotten", || {
        (Counted::read_only(&tree).versions_kept == 0).then_some(())
    });
}

#[test]
fn what_is_removed_and_comes_back_is_another_file() {
    let mut tree = Direct::new(1);
    let dir = tree.read_only(format!("{}/tags", uuid(1)));
    let role = dir.join("role");
    let first = File::open(&role).unwrap();
    let number = ino(&role);
    set(&mut tree, 1, "first", json!({"other": "x"}));
    assert_eq!(names(&dir), ["other"]);
    assert!(!role.exists());
    set(&mut tree, 1, "first", json!({"other": "x", "role": "back"}));
    assert_eq!(names(&dir), ["other", "role"]);
    assert_eq!(text(&role), "back\n");
    assert_ne!(ino(&role), number);
    assert_eq!(mapped(&first, 6).unwrap(), b"first\n");
    // A file that becomes a directory, and one again.
    set(&mut tree, 1, "first", json!({"role": {"in": "it"}}));
    set(&mut tree, 1, "first", json!({"role": "file"}));
    assert_eq!(text(&role), "file\n");
}

#[test]
fn a_vm_that_is_deleted_leaves_its_open_files_and_nothing_else() {
    let mut tree = Direct::new(3);
    let dir = tree.read_only(uuid(2).to_string());
    let held = File::open(dir.join("alias")).unwrap();
    let inside = File::open(&dir).unwrap();
    let number = ino(&dir.join("alias"));
    run(Command::new("ls").arg("-lR").arg(tree.read_only(""))).succeeded();
    let seq = tree.publish(remove(uuid(2)));
    tree.until_settled(seq);
    assert!(!dir.exists());
    assert!(!names(&tree.read_only("")).contains(&uuid(2).to_string()));
    assert_eq!(mapped(&held, 6).unwrap(), b"first\n");
    let below = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&inside));
    assert!(fs::read_dir(&below).is_err());
    let error = fs::metadata(format!("{below}/alias")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    // It comes back as another.
    set(&mut tree, 2, "again", json!({}));
    assert_eq!(text(&dir.join("alias")), "again\n");
    assert_ne!(ino(&dir.join("alias")), number);
    assert_eq!(
        fs::canonicalize(tree.read_only(".by/alias/again")).unwrap(),
        dir
    );
    assert!(names(&tree.read_only("")).contains(&uuid(2).to_string()));
    let mut buffer = [0; 64];
    assert_eq!(held.read_at(&mut buffer, 0).unwrap(), 6);
    let error = fs::metadata(format!("{below}/alias")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

/// What a directory that is open lists from its beginning; nothing when it has gone.
fn names_in(dir: &File) -> Vec<String> {
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(dir));
    match fs::read_dir(path) {
        Ok(entries) => entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect(),
        Err(error) if error.kind() == ErrorKind::NotFound => Vec::new(),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn whoever_is_in_a_directory_that_goes_finds_nothing_there() {
    let mut tree = Direct::new(2);
    let open = |path: &Path| {
        let dir = File::open(path).unwrap();
        assert!(dir.metadata().unwrap().is_dir());
        dir
    };
    let dirs = [
        open(&tree.read_only(format!("{}/tags", uuid(1)))),
        open(&tree.read_only(".by/state/running")),
        open(&tree.path(format!("{}/tags", uuid(1)))),
        open(&tree.path(".by/state/running")),
    ];
    set(&mut tree, 1, "first", Value::Null);
    for number in [1, 2] {
        let seq = tree.publish(remove(uuid(number)));
        tree.until_settled(seq);
    }
    for dir in &dirs {
        assert_eq!(names_in(dir), [""; 0]);
        assert_eq!(dir.metadata().unwrap_err().kind(), ErrorKind::NotFound);
    }
}

#[test]
fn links_follow_what_they_name() {
    let mut tree = Direct::new(2);
    let by = |below: &str| tree.read_only(format!(".by/{below}"));
    assert_eq!(
        names(&by("alias")),
        [format!("first~{}", uuid(1)), format!("first~{}", uuid(2))]
    );
    assert_eq!(names(&by("state/running")).len(), 2);
    set(&mut tree, 1, "web", json!({}));
    let by = |below: &str| tree.read_only(format!(".by/{below}"));
    assert_eq!(names(&by("alias")), ["first", "web"]);
    assert_eq!(
        fs::canonicalize(by("alias/web")).unwrap(),
        tree.read_only(uuid(1).to_string())
    );
    assert!(!by(&format!("alias/first~{}", uuid(2))).exists());
    let seq = tree.publish(remove(uuid(1)));
    tree.until_settled(seq);
    assert_eq!(names(&tree.read_only(".by/alias")), ["first"]);
    assert_eq!(
        names(&tree.read_only(".by/state/running")),
        [uuid(2).to_string()]
    );
}

#[test]
fn a_change_to_one_vm_leaves_the_listing_of_the_root_alone() {
    let mut tree = Direct::new(20);
    let root = tree.read_only("");
    assert_eq!(names(&root).len(), 20 + 8);
    cat_once(&tree.read_only("vms.json"));
    cat_once(&tree.read_only(format!("{}/alias", uuid(7))));
    set(&mut tree, 7, "changed", json!({}));
    let messages = tree.messages_of(|| assert_eq!(names(&root).len(), 28));
    assert!(messages.is_empty(), "{messages:?}");
}

/// The kernel dates a listing by whoever began to list last: an old one that is on its way while somebody else
/// begins may be kept as the new one. It happened in one of 200 rounds.
#[test]
fn who_lists_a_directory_spoils_it_for_nobody_else() {
    let mut tree = Direct::new(1);
    let tags = format!("{}/tags", uuid(1));
    let dirs = [tree.read_only(&tags), tree.path(&tags)];
    let tag = |round: usize| format!("round{round}");
    set(&mut tree, 1, "first", json!({"always": "x", tag(0): "x"}));
    let ended = AtomicBool::new(false);
    let lister = |dir: &PathBuf| {
        while !ended.load(Ordering::Relaxed) {
            // What replaces another name may be seen beside it, but one of them is there.
            let names = names(dir);
            assert!(names.len() >= 2, "{}: {names:?}", dir.display());
        }
    };
    let lister = &lister;
    thread::scope(|scope| {
        let mut listers = Vec::new();
        for dir in dirs.iter().cycle().take(12) {
            listers.push(scope.spawn(move || lister(dir)));
        }
        for round in 1..500 {
            let tag = tag(round);
            set(&mut tree, 1, "first", json!({"always": "x", &tag: "x"}));
            let stale = dirs.iter().find(|dir| !names(dir).contains(&tag));
            if let Some(dir) = stale {
                ended.store(true, Ordering::Relaxed);
                panic!("{} has no {tag}", dir.display());
            }
            if listers.iter().any(|lister| lister.is_finished()) {
                break;
            }
        }
        ended.store(true, Ordering::Relaxed);
    });
}

/// The race is forced: the settling stops when all that is old was taken from the kernel.
#[test]
fn whoever_looks_while_a_change_is_settled_sees_the_old_one_and_keeps_nothing_of_it() {
    let mut tree = Direct::new(2);
    let dir = tree.read_only(uuid(1).to_string());
    let gone = tree.read_only(uuid(2).to_string());
    let old = |tree: &Direct| {
        let shown = || {
            assert_eq!(text(&dir.join("tags/role")), "first\n");
            assert_eq!(fs::metadata(dir.join("tags/role")).unwrap().len(), 6);
            assert_eq!(names(&dir.join("tags")), ["role"]);
            assert!(!dir.join("tags/new").exists());
            assert_eq!(text(&gone.join("alias")), "first\n");
            assert_eq!(names(&tree.read_only(".by/state/running")).len(), 2);
            let link = tree.read_only(format!(".by/alias/first~{}", uuid(2)));
            assert!(fs::symlink_metadata(link).is_ok());
        };
        shown();
        assert!(names(&tree.read_only("")).contains(&uuid(2).to_string()));
    };
    old(&tree);
    let barriers = tree.mount().barriers().clone();
    let switch = barriers.switch.write();
    tree.writer.publish(vec![
        put(
            uuid(1),
            "first",
            &json!({"role": "the second", "new": "tag"}),
        ),
        remove(uuid(2)),
        put(uuid(3), "third", &json!({})),
    ]);
    let role = dir.join("tags/role");
    until("the old name is taken back", || {
        let asked = tree.messages_of(|| {
            fs::metadata(&role).unwrap();
            fs::metadata(&role).unwrap();
        });
        (asked.get("lookup").copied().unwrap_or_default() >= 2).then_some(())
    });
    old(&tree);
    let held = File::open(&role).unwrap();
    assert!(!tree.read_only(uuid(3).to_string()).exists());
    drop(switch);
    let newest = tree.cache().now().seq;
    tree.until_settled(newest);
    assert_eq!(text(&role), "the second\n");
    assert_eq!(fs::metadata(&role).unwrap().len(), 11);
    assert_eq!(names(&dir.join("tags")), ["new", "role"]);
    assert!(!gone.exists());
    assert_eq!(names(&tree.read_only("")).len(), 2 + 8);
    assert_eq!(mapped(&held, 6).unwrap(), b"first\n");
    assert_eq!(names(&tree.read_only(".by/state/running")).len(), 2);
    let link = tree.read_only(format!(".by/alias/first~{}", uuid(2)));
    assert!(fs::symlink_metadata(link).is_err());
}

/// The same race, of a name that nobody looks up again.
#[test]
fn a_version_that_was_looked_up_while_its_name_went_is_not_kept() {
    let mut tree = Direct::new(1);
    set(
        &mut tree,
        1,
        "first",
        json!({"role": "stays", "other": "goes"}),
    );
    let other = tree.read_only(format!("{}/tags/other", uuid(1)));
    assert_eq!(text(&other), "goes\n");
    let barriers = tree.mount().barriers().clone();
    let switch = barriers.switch.write();
    tree.writer
        .publish(vec![put(uuid(1), "first", &json!({"role": "stays"}))]);
    until("the name is taken back", || {
        let asked = tree.messages_of(|| {
            fs::metadata(&other).unwrap();
            fs::metadata(&other).unwrap();
        });
        (asked.get("lookup").copied().unwrap_or_default() >= 2).then_some(())
    });
    drop(switch);
    let newest = tree.cache().now().seq;
    tree.until_settled(newest);
    until("nothing of it is kept", || {
        (Counted::read_only(&tree).versions_kept == 0).then_some(())
    });
}

#[test]
fn who_reads_a_file_spoils_it_for_nobody_else() {
    let mut tree = Direct::new(1);
    let role = tree.read_only(format!("{}/tags/role", uuid(1)));
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let (role, ended) = (&role, &ended);
        for _ in 0..2 {
            scope.spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    cat_once(role);
                }
            });
        }
        let stale = (0..100).find_map(|round| {
            let value = "x".repeat(1 + round * 7 % 50);
            set(&mut tree, 1, "first", json!({"role": value}));
            let shown = text(role);
            (shown.trim_end() != value).then_some((value, shown))
        });
        ended.store(true, Ordering::Relaxed);
        assert_eq!(stale, None);
    });
}

/// A reader of a directory asks again until it is told that there is no more.
#[test]
fn a_listing_that_fits_into_one_piece_is_of_one_version() {
    let mut tree = Direct::new(1);
    let dirs = [
        tree.path(format!("{}/tags", uuid(1))),
        tree.read_only(format!("{}/tags", uuid(1))),
    ];
    let open: Vec<File> = dirs.iter().map(|dir| File::open(dir).unwrap()).collect();
    for dir in &open {
        assert_eq!(next_names(dir, 4096), [".", "..", "role"]);
    }
    // Of so many some lie behind the one that was there.
    let tags = (0..50).map(|number| (format!("new{number}"), json!(1)));
    set(&mut tree, 1, "first", Value::Object(tags.collect()));
    for dir in &open {
        assert_eq!(next_names(dir, 4096), Vec::<String>::new());
    }
    for dir in &dirs {
        assert_eq!(names(dir).len(), 50);
    }
}

#[test]
fn what_was_written_is_shown_before_the_write_returns() {
    let hosted = Hosted::new(3);
    let vm = names(&hosted.read_only(""))
        .into_iter()
        .find(|name| name.len() == 36)
        .unwrap();
    let quota = hosted.read_only(format!("{vm}/quota"));
    let tags = hosted.read_only(format!("{vm}/tags"));
    for round in 1..300 {
        let value = 1 + round * 7919 % 20_011;
        fs::write(hosted.path(format!("{vm}/quota")), value.to_string()).unwrap();
        let expected = format!("{value}\n");
        assert_eq!(fs::metadata(&quota).unwrap().len(), expected.len() as u64);
        assert_eq!(text(&quota), expected);
        if round % 10 == 0 {
            let tag = format!("round{round}");
            fs::write(hosted.path(format!("{vm}/tags/{tag}")), "x").unwrap();
            assert!(names(&tags).contains(&tag));
            let vms: Vec<Value> =
                serde_json::from_str(&text(&hosted.read_only("vms.json"))).unwrap();
            let shown = vms.iter().find(|shown| shown["uuid"] == *vm).unwrap();
            assert_eq!(shown["quota"], value);
            assert_eq!(shown["tags"][&tag], "x");
        }
    }
}

#[test]
fn what_belongs_to_writing_leads_to_the_writable_mount_and_the_status_is_a_file() {
    let store = Store::new(2);
    let beside = format!("ro_mount={}", store.read_only().display());
    let mounted = store.mount_with(&["-o", &beside]);
    let root = store.read_only();
    for name in ["events", ".errors", ".events", ".history"] {
        let target = fs::read_link(root.join(name)).unwrap();
        assert_eq!(target, mounted.path(name));
    }
    assert_eq!(
        fs::read_link(root.join("vms.json")).unwrap(),
        Path::new(".all/vms.json")
    );
    assert!(names(&root).contains(&".status".to_owned()));
    let status = root.join(".status");
    let file = File::open(&status).unwrap();
    let size = file.metadata().unwrap().len();
    let mut read = String::new();
    (&file).read_to_string(&mut read).unwrap();
    assert_eq!(read.len() as u64, size);
    let read: Value = serde_json::from_str(&read).unwrap();
    assert_eq!(read["numVms"], 2);
    assert_ne!(text(&status), text(&status), "it tells the time");
    let copy = store.dir().join("copy");
    run(Command::new("cp").args([&status, &copy])).succeeded();
    assert!(text(&copy).contains("numVms"));
    let vm = mounted.uuid(&store.zones()[0]);
    for (path, data) in [("quota", "1"), ("tags/new", "x")] {
        let error = fs::write(root.join(&vm).join(path), data).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    }
    let error = fs::remove_dir_all(root.join(&vm)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
    // Everything a reader can get at is the same in both.
    let diff = Command::new("diff")
        .arg("-r")
        .args([mounted.path(&vm), root.join(&vm)])
        .output()
        .unwrap();
    let said = String::from_utf8(diff.stdout).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "only ctl and last_error: {said}");
    assert_eq!(
        text(&root.join("vms.json")),
        text(&mounted.path("vms.json"))
    );
}

#[test]
fn a_read_only_mount_alone_follows_its_source_and_ends_with_its_unmount() {
    let store = Store::new(2);
    let mut mounted = store.mount_with(&["--read-only"]);
    let zone = store.zones().swap_remove(0);
    let vm = names(&mounted.at)
        .into_iter()
        .find(|name| {
            name.len() == 36 && text(&mounted.path(format!("{name}/zonename"))).trim() == zone
        })
        .unwrap();
    assert!(!mounted.path("events").exists());
    assert!(!mounted.path("create").exists());
    let mut events = Command::new(VMINFO);
    events.arg("--mount").arg(&mounted.at).arg("events");
    run(&mut events).failed_with(1, &["a read-only mount", "ro_mount"]);
    let tags = store.path(format!("zones/{zone}/config/tags.json"));
    for round in 0..20 {
        let value = "x".repeat(round + 1);
        vminfod::sample::change::replace(&tags, json!({"role": value}).to_string()).unwrap();
        until("the tag is shown", || {
            let shown = fs::read_to_string(mounted.path(format!("{vm}/tags/role")));
            (shown.ok()?.trim() == value).then_some(())
        });
    }
    run(Command::new(VMINFOD).arg("umount").arg(&mounted.at)).succeeded();
    assert!(mounted.ended().success());
}

#[test]
fn unmounting_the_read_only_mount_leaves_the_writable_one_and_the_other_way_both_end() {
    let store = Store::new(2);
    let beside = format!("ro_mount={}", store.read_only().display());
    let mut mounted = store.mount_with(&["-o", &beside]);
    let vm = mounted.uuid(&store.zones()[0]);
    cat_once(&store.read_only().join(&vm).join("alias"));
    run(Command::new("umount").arg(store.read_only())).succeeded();
    assert!(names(&store.read_only()).is_empty());
    until("what the kernel held of it is forgotten", || {
        let held = mounted.status()["readOnlyMount"]["inodesHeld"].as_u64();
        (held == Some(0)).then_some(())
    });
    fs::write(mounted.path(format!("{vm}/alias")), "changed").unwrap();
    assert_eq!(mounted.read(format!("{vm}/alias")), "changed\n");
    run(Command::new("umount").arg(&mounted.at)).succeeded();
    assert!(mounted.ended().success());

    let mut mounted = store.mount_with(&["-o", &beside]);
    assert_eq!(
        text(&store.read_only().join(&vm).join("alias")),
        "changed\n"
    );
    run(Command::new(VMINFOD).arg("umount").arg(&mounted.at)).succeeded();
    assert!(mounted.ended().success());
    assert!(names(&store.read_only()).is_empty());
}

#[test]
fn contradictory_options_are_refused() {
    let store = Store::new(1);
    let refused = |args: &[&str]| {
        let mut command = Command::new(VMINFOD);
        command.arg("mount").args(args).arg("--zones-root");
        run(command.arg(store.root()).arg(store.mountpoint()))
    };
    refused(&["--read-only", "-o", "ro_mount=/tmp"]).failed_with(2, &["ro_mount"]);
    refused(&["-o", "ro_mount=/nowhere/at/all"]).failed_with(1, &["/nowhere/at/all"]);
    let same = format!("ro_mount={}/./", store.mountpoint().display());
    refused(&["-o", &same]).failed_with(1, &["ro_mount", "another directory"]);
    assert!(names(&store.mountpoint()).is_empty());
}
