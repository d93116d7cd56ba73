//! What a host can do wrong: each is said in one clear message, and nothing else suffers.

mod support;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen,
    Request,
};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use parking_lot::Mutex;
use serde_json::{Value, json};
use support::{Finished, Mounted, Store, VMINFOD, mount_entry, run, until};
use vminfod::sample::change;

/// Tries to mount, which must fail.
fn mount(root: &Path, mountpoint: &Path) -> Finished {
    run(Command::new(VMINFOD)
        .arg("mount")
        .arg("--zones-root")
        .arg(root)
        .arg(mountpoint))
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_zone_root_that_is_missing_or_a_file_is_named() {
    let store = Store::new(1);
    let file = store.path("etc/zones/index");
    for (root, problem) in [
        (store.dir().join("none"), "no such folder"),
        (file, "not a folder"),
    ] {
        mount(&root, &store.mountpoint()).failed_with(1, &[text(&root), problem, "--zones-root"]);
    }
    assert_eq!(mount_entry(&store.mountpoint()), None);
}

#[test]
fn a_zone_root_that_the_user_may_not_read_is_named() {
    let store = Store::new(1);
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(store.dir(), open).unwrap();
    fs::set_permissions(store.root(), fs::Permissions::from_mode(0o700)).unwrap();
    // The build may lie in a folder of root's.
    let program = store.dir().join("vminfod");
    run(Command::new("cp").arg(VMINFOD).arg(&program)).succeeded();
    let mut nobody = Command::new("setpriv");
    nobody
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program);
    nobody
        .args(["mount", "--zones-root"])
        .arg(store.root())
        .arg(store.mountpoint());
    run(&mut nobody).failed_with(1, &[text(&store.root()), "permission denied", "root"]);
}

#[test]
fn a_root_without_an_index_is_mounted_empty_and_says_so() {
    let store = Store::new(1);
    fs::remove_file(store.path("etc/zones/index")).unwrap();
    let mounted = store.mount();
    assert_eq!(mounted.json("vms.json"), json!([]));
    let reason = mounted.status()["fswatcher"]["index"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(reason.contains("etc/zones/index: missing"), "{reason}");
}

#[test]
fn a_mount_point_that_cannot_be_used_is_named() {
    let store = Store::new(1);
    let missing = store.dir().join("none");
    mount(&store.root(), &missing).failed_with(1, &[text(&missing), "mkdir"]);

    let file = store.dir().join("file");
    File::create(&file).unwrap();
    mount(&store.root(), &file).failed_with(1, &[text(&file), "not a directory"]);
    let below = file.join("below");
    mount(&store.root(), &below).failed_with(1, &[text(&below), "Not a directory"]);

    let full = store.root();
    mount(&store.root(), &full).failed_with(1, &[text(&full), "not empty"]);
    mount(&store.root(), Path::new("/proc"))
        .failed_with(1, &["/proc", "already mounted", "umount"]);
}

#[test]
fn a_second_mount_is_refused_and_leaves_the_first_alone() {
    let store = Store::new(2);
    let mounted = store.mount();
    mount(&store.root(), &mounted.at)
        .failed_with(1, &[text(&mounted.at), "already mounted", "umount"]);
    assert_eq!(mounted.json("vms.json").as_array().unwrap().len(), 2);
    assert_eq!(mounted.status()["pid"], mounted.daemon.id());
}

#[test]
fn a_mount_left_dead_by_a_crash_is_cleared_away_and_mounted_again() {
    let store = Store::new(2);
    let link = store.dir().join("link");
    std::os::unix::fs::symlink("vms", &link).unwrap();
    for mountpoint in [store.mountpoint(), link] {
        let mut crashed = store.mount();
        crashed.signal(Signal::SIGKILL);
        crashed.ended();
        let dead = fs::read(store.mountpoint().join(".status")).unwrap_err();
        assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN));

        let mut again = Command::new(VMINFOD);
        again.args(["mount", "--foreground", "--tell-ready", "--zones-root"]);
        let mounted = Mounted::start(&store, {
            again.arg(store.root()).arg(&mountpoint);
            again
        });
        assert_eq!(mounted.json("vms.json").as_array().unwrap().len(), 2);
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let shown = format!(" {} ", text(&store.mountpoint()));
        assert_eq!(mounts.matches(&shown).count(), 1, "the dead one has gone");
    }
}

#[test]
fn a_mount_whose_daemon_hangs_is_not_taken_for_a_dead_one() {
    let store = Store::new(1);
    let mounted = store.mount();
    mounted.signal(Signal::SIGSTOP);
    mount(&store.root(), &mounted.at).failed_with(1, &[text(&mounted.at), "already mounted"]);
    mounted.signal(Signal::SIGCONT);
    assert_eq!(mounted.status()["pid"], mounted.daemon.id());
}

#[test]
fn without_a_fuse_device_the_message_says_how_to_get_it() {
    let store = Store::new(1);
    // A /dev of its own that has nothing but null.
    let script = r#"
        set -e
        mkdir "$1/dev" && mount -t tmpfs none "$1/dev"
        touch "$1/dev/null" && mount --bind /dev/null "$1/dev/null"
        mount --rbind "$1/dev" /dev
        exec "$2" mount --zones-root "$1/store" "$1/vms""#;
    let mut shell = Command::new("unshare");
    shell.args([
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
    ]);
    run(shell.arg(store.dir()).arg(VMINFOD))
        .failed_with(1, &["/dev/fuse", "modprobe fuse", "container"]);
}

/// What can happen to a file, and its name.
type Breakage = (&'static str, fn(&Path));

/// What can stand where a good file belongs.
fn breakages() -> Vec<Breakage> {
    vec![
        ("truncated", |path| {
            let whole = fs::read(path).unwrap();
            change::replace(path, &whole[..whole.len() / 2]).unwrap();
        }),
        ("empty", |path| change::replace(path, "").unwrap()),
        ("binary", |path| {
            change::replace(path, b"\x7fELF\x02\x01\x01\0\xff\xfe\0\0").unwrap()
        }),
        ("100 MB", |path| {
            let beside = path.with_extension("new");
            File::create(&beside).unwrap().set_len(100 << 20).unwrap();
            fs::rename(&beside, path).unwrap();
        }),
        ("bomb", |path| change::replace(path, bomb()).unwrap()),
        ("FIFO", |path| {
            let beside = path.with_extension("new");
            nix::unistd::mkfifo(&beside, Mode::S_IRWXU).unwrap();
            fs::rename(&beside, path).unwrap();
        }),
    ]
}

/// Entities of entities, which would make 10^9 of one; and as JSON no less than a deep nesting.
fn bomb() -> String {
    let mut text = String::from("<?xml version=\"1.0\"?><!DOCTYPE zone [<!ENTITY e0 \"boom\">");
    for depth in 1..10 {
        let inner = format!("&e{};", depth - 1).repeat(10);
        text += &format!("<!ENTITY e{depth} \"{inner}\">");
    }
    text + "]><zone name=\"&e9;\"/>"
}

#[test]
fn a_broken_file_makes_only_its_vm_stale_which_keeps_its_values_and_heals() {
    let store = Store::new(5);
    let mounted = store.mount();
    let zones = store.zones();
    let healthy = zones[4].clone();
    let files: Vec<(&str, PathBuf)> = vec![
        (&zones[0], store.path(format!("etc/zones/{}.xml", zones[0]))),
        (
            &zones[1],
            store.path(format!("zones/{}/config/tags.json", zones[1])),
        ),
        (
            &zones[2],
            store.path(format!("zones/{}/config/metadata.json", zones[2])),
        ),
        (
            &zones[3],
            store.path(format!("var/db/datasets/{}.json", zones[3])),
        ),
    ];
    for (zone, _) in &files {
        change::set_tag(&store.root(), zone, "kept", &json!("yes")).unwrap();
    }
    let uuids: Vec<String> = files.iter().map(|(zone, _)| mounted.uuid(zone)).collect();
    until("all is as it will be kept", || {
        let kept = |uuid| mounted.json(format!("{uuid}/vm.json"))["tags"]["kept"] == "yes";
        uuids.iter().all(kept).then_some(())
    });
    let good: Vec<(Value, Vec<u8>)> = (uuids.iter().zip(&files))
        .map(|(uuid, (_, path))| {
            (
                mounted.json(format!("{uuid}/vm.json")),
                fs::read(path).unwrap(),
            )
        })
        .collect();
    let events = mounted.events();

    for (what, spoil) in breakages() {
        for (_, path) in &files {
            spoil(path);
        }
        for ((uuid, (_, path)), (vm, _)) in uuids.iter().zip(&files).zip(&good) {
            let reason = until(&format!("{what}: {} is stale", path.display()), || {
                mounted.stale(uuid)
            });
            let name = path.strip_prefix(store.root()).unwrap();
            let problem = match (what, name.extension().unwrap().to_str().unwrap()) {
                ("100 MB", _) => "larger than",
                ("FIFO", _) => "a FIFO stands",
                ("bomb", "xml") => "DOCTYPE declares entities",
                (_, "xml") => "XML",
                ("empty", _) => "empty",
                _ => "not JSON",
            };
            let said = format!("{}: ", name.display());
            assert!(
                reason.contains(&said) && reason.contains(problem),
                "{what}: {reason}"
            );
            assert_eq!(mounted.status()["stale"][uuid], *reason, "{what}");
            // When it was last changed is known even of a file that makes no sense.
            assert_eq!(
                but_when(mounted.json(format!("{uuid}/vm.json"))),
                but_when(vm.clone()),
                "{what}"
            );
        }
        change::set_tag(&store.root(), &healthy, "during", &json!(what)).unwrap();
        let event = events.find(|event| event["vm"]["tags"]["during"] == what);
        assert_eq!(event["zonename"], *healthy);
        assert_eq!(mounted.stale(event["uuid"].as_str().unwrap()), None);

        for ((_, path), (_, content)) in files.iter().zip(&good) {
            change::replace(path, content).unwrap();
        }
        for (uuid, (vm, _)) in uuids.iter().zip(&good) {
            until(&format!("{what}: {uuid} heals"), || {
                mounted.stale(uuid).is_none().then_some(())
            });
            assert_eq!(
                but_when(mounted.json(format!("{uuid}/vm.json"))),
                but_when(vm.clone()),
                "{what}"
            );
        }
        assert_eq!(mounted.status()["stale"], json!({}), "{what}");
    }
}

/// A VM without the time of its last change.
fn but_when(mut vm: Value) -> Value {
    vm.as_object_mut().unwrap().remove("last_modified");
    vm
}

#[test]
fn a_vm_that_was_never_readable_is_in_the_status_and_appears_when_it_heals() {
    let store = Store::new(2);
    let zone = store.zones()[0].clone();
    let xml = store.path(format!("etc/zones/{zone}.xml"));
    for (what, spoil) in breakages() {
        let good = fs::read(&xml).unwrap();
        spoil(&xml);
        let mounted = store.mount();
        let events = mounted.events();
        assert_eq!(
            mounted.json("vms.json").as_array().unwrap().len(),
            1,
            "{what}"
        );
        let unreadable = mounted.status()["unreadable"].clone();
        let (uuid, reason) = unreadable.as_object().unwrap().iter().next().unwrap();
        assert!(
            reason
                .as_str()
                .unwrap()
                .contains(&format!("etc/zones/{zone}.xml: ")),
            "{what}: {reason}"
        );

        change::replace(&xml, good).unwrap();
        let event = events.find(|event| event["type"] == "create");
        assert_eq!(event["uuid"], *uuid, "{what}");
        assert_eq!(
            mounted.json(format!("{uuid}/vm.json")),
            event["vm"],
            "{what}"
        );
        assert_eq!(mounted.status()["unreadable"], json!({}), "{what}");
        assert_eq!(mounted.stale(uuid), None, "{what}");
    }
}

#[test]
fn tags_that_were_never_readable_are_empty_until_they_are() {
    let store = Store::new(1);
    let zone = store.zones()[0].clone();
    let path = store.path(format!("zones/{zone}/config/tags.json"));
    change::replace(&path, "{").unwrap();
    let mounted = store.mount();
    let uuid = mounted.uuid(&zone);
    assert_eq!(mounted.json(format!("{uuid}/vm.json"))["tags"], json!({}));
    assert!(
        mounted
            .stale(&uuid)
            .unwrap()
            .contains("tags.json: not JSON")
    );
    change::replace(&path, r#"{"role": "healed"}"#).unwrap();
    until("the tag is there", || {
        mounted
            .path(format!("{uuid}/tags/role"))
            .exists()
            .then_some(())
    });
    assert_eq!(mounted.stale(&uuid), None);
}

#[test]
fn zones_without_a_uuid_or_with_that_of_another_are_in_the_status_only() {
    let store = Store::new(3);
    let zones = store.zones();
    let index = fs::read_to_string(store.path("etc/zones/index")).unwrap();
    let more = format!(
        "{index}web:installed:/zones/web:\nsecond:installed:/zones/second:{uuid}\n",
        uuid = zones[0],
    );
    change::replace(&store.path("etc/zones/index"), more).unwrap();
    let mounted = store.mount();
    assert_eq!(mounted.json("vms.json").as_array().unwrap().len(), 3);
    let unplaced = mounted.status()["unplaced"].clone();
    let reasons: Vec<(&str, &str)> = (unplaced.as_array().unwrap().iter())
        .map(|zone| {
            (
                zone["zonename"].as_str().unwrap(),
                zone["reason"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(reasons.len(), 2);
    assert_eq!((reasons[0].0, reasons[1].0), ("web", "second"));
    assert!(
        reasons[0].1.contains("uuid") && reasons[1].1.contains(&zones[0]),
        "{reasons:?}"
    );
    assert_eq!(
        mounted.read(format!("{}/zonename", zones[0])),
        format!("{}\n", zones[0])
    );
}

#[test]
fn an_alias_of_two_vms_leads_to_neither_but_each_has_a_link_with_its_uuid() {
    let store = Store::new(4);
    let mounted = store.mount();
    let vms = mounted.json("vms.json");
    let vm = vms
        .as_array()
        .unwrap()
        .iter()
        .find(|vm| vm["alias"].is_string())
        .unwrap();
    let (alias, first) = (vm["alias"].as_str().unwrap(), vm["uuid"].as_str().unwrap());
    let link = mounted.path(".by/alias").join(alias);
    assert_eq!(
        fs::read_link(&link).unwrap(),
        Path::new("../..").join(first)
    );

    // The index may name a VM's XML by another name than the zone's own: only the files count.
    let (second, name) = (
        "0b5e2f11-8c7d-4d2a-b6a1-3e9f70c2d844",
        vm["zonename"].as_str().unwrap(),
    );
    let xml = fs::read(store.path(format!("etc/zones/{name}.xml"))).unwrap();
    fs::write(store.path(format!("etc/zones/{second}.xml")), xml).unwrap();
    let events = mounted.events();
    let index = fs::read_to_string(store.path("etc/zones/index")).unwrap();
    let both = format!("{index}{second}:installed:/zones/{second}:{second}\n");
    change::replace(&store.path("etc/zones/index"), both).unwrap();
    events.find(|event| event["type"] == "create" && event["uuid"] == second);
    assert!(fs::read_link(&link).is_err());
    for uuid in [first, second] {
        let own = mounted.path(".by/alias").join(format!("{alias}~{uuid}"));
        assert_eq!(fs::read_link(&own).unwrap(), Path::new("../..").join(uuid));
    }

    change::replace(&store.path("etc/zones/index"), index).unwrap();
    events.find(|event| event["type"] == "delete" && event["uuid"] == second);
    assert_eq!(
        fs::read_link(&link).unwrap(),
        Path::new("../..").join(first)
    );
}

#[test]
fn an_index_that_makes_no_sense_deletes_nothing_and_one_that_does_deletes() {
    let store = Store::new(4);
    let mounted = store.mount_with(&["-o", "rescan=0.2"]);
    let zones = store.zones();
    let index = store.path("etc/zones/index");
    let good = fs::read_to_string(&index).unwrap();
    let events = mounted.events();
    let mut broken = breakages();
    broken.push(("deleted", |path| fs::remove_file(path).unwrap()));
    broken.push(("emptied in place", |path| drop(File::create(path).unwrap())));
    broken.push(("cut in place", |path| {
        let file = File::options().write(true).open(path).unwrap();
        file.set_len(file.metadata().unwrap().len() - 10).unwrap();
    }));
    for (what, spoil) in broken {
        spoil(&index);
        let watcher = || mounted.status()["fswatcher"].clone();
        let reason = until(&format!("{what}: it is noticed"), || {
            watcher()["index"].as_str().map(str::to_owned)
        });
        assert!(reason.starts_with("etc/zones/index: "), "{what}: {reason}");
        // Nor do scans delete anything.
        let scans = || watcher()["scans"]["count"].as_u64().unwrap();
        let before = scans();
        until(&format!("{what}: scans go on"), || {
            (scans() > before + 2).then_some(())
        });
        change::set_tag(&store.root(), &zones[0], "index", &json!(what)).unwrap();
        events.find(|event| {
            assert_eq!(event["type"], "modify", "{what}: {event}");
            event["vm"]["tags"]["index"] == what
        });
        assert_eq!(
            mounted.json("vms.json").as_array().unwrap().len(),
            4,
            "{what}"
        );
        change::replace(&index, &good).unwrap();
        until(&format!("{what}: it is good again"), || {
            watcher()["index"].is_null().then_some(())
        });
    }
    let last = format!("{}:", zones[3]);
    let fewer: String = good
        .split_inclusive('\n')
        .filter(|line| !line.starts_with(&last))
        .collect();
    change::replace(&index, "").unwrap();
    change::replace(&index, fewer).unwrap();
    let event = events.find(|event| event["type"] == "delete");
    assert_eq!(event["zonename"], zones[3]);
    assert_eq!(mounted.json("vms.json").as_array().unwrap().len(), 3);
}

/// A filesystem in this process in which every name is a file whose reads are not answered before
/// [`Hanging::release`].
struct Hanging {
    at: PathBuf,
    reads: Arc<Mutex<Reads>>,
    _session: BackgroundSession,
}

/// What its files hold, once they are read.
const CONTENT: &[u8] = br#"{"from": "the other side"}"#;

#[derive(Default)]
struct Reads {
    released: bool,
    waiting: Vec<ReplyData>,
}

impl Hanging {
    fn mount(at: PathBuf) -> Hanging {
        let reads = Arc::<Mutex<Reads>>::default();
        let filesystem = Unanswering(reads.clone());
        let session = fuser::spawn_mount(filesystem, &at, &Config::default()).unwrap();
        Hanging {
            at,
            reads,
            _session: session,
        }
    }

    fn is_read(&self) -> bool {
        !self.reads.lock().waiting.is_empty()
    }

    /// Answers all reads, also those to come.
    fn release(&self) {
        let mut reads = self.reads.lock();
        reads.released = true;
        for reply in reads.waiting.drain(..) {
            reply.data(CONTENT);
        }
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        // A process with an unanswered read cannot even be killed.
        self.release();
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

struct Unanswering(Arc<Mutex<Reads>>);

impl Unanswering {
    fn attr(ino: INodeNo) -> FileAttr {
        let (kind, perm) = match ino {
            INodeNo::ROOT => (FileType::Directory, 0o755),
            _ => (FileType::RegularFile, 0o644),
        };
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino,
            size: CONTENT.len() as u64,
            blocks: 1,
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }
}

impl Filesystem for Unanswering {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let names = ["metadata.json", "tags.json", "routes.json"];
        match names.iter().position(|known| name == *known) {
            Some(at) => reply.entry(
                &Duration::ZERO,
                &Self::attr(INodeNo(at as u64 + 2)),
                Generation(0),
            ),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::ZERO, &Self::attr(ino));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        _: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut reads = self.0.lock();
        match (reads.released, offset) {
            (false, _) => reads.waiting.push(reply),
            (true, 0) => reply.data(CONTENT),
            (true, _) => reply.data(&[]),
        }
    }
}

#[test]
fn folders_that_hang_make_only_their_vms_stale_and_scans_still_end() {
    // More than there are threads to read them.
    let count = std::thread::available_parallelism().unwrap().get().max(2) + 1;
    let store = Store::new(count + 2);
    let mounted = store.mount_with(&["-o", "rescan=0.5"]);
    let zones = store.zones();
    let (hung, healthy) = zones.split_at(count);
    let uuids: Vec<String> = hung.iter().map(|zone| mounted.uuid(zone)).collect();
    let before = mounted.json("vms.json");
    let folders: Vec<Hanging> = (hung.iter())
        .map(|zone| Hanging::mount(store.path(format!("zones/{zone}/config"))))
        .collect();
    until("their files are read", || {
        folders.iter().all(Hanging::is_read).then_some(())
    });
    let events = mounted.events();
    let scans = || {
        mounted.status()["fswatcher"]["scans"]["count"]
            .as_u64()
            .unwrap()
    };
    let scanned = scans();

    for (zone, uuid) in hung.iter().zip(&uuids) {
        let reason = until("it is stale", || mounted.stale(uuid));
        assert!(
            reason.contains(zone) && reason.contains("no answer"),
            "{reason}"
        );
        assert_eq!(mounted.status()["stale"][uuid], reason);
    }
    assert_eq!(mounted.json("vms.json"), before);
    assert_eq!(mounted.status()["stale"].as_object().unwrap().len(), count);

    for (number, zone) in healthy.iter().enumerate() {
        change::set_tag(&store.root(), zone, "hung", &json!(number)).unwrap();
        let event = events.find(|event| event["vm"]["tags"]["hung"] == number);
        assert_eq!(
            (&event["zonename"], &event["via"]),
            (&json!(zone), &json!("event"))
        );
    }
    until("scans end", || (scans() > scanned + 1).then_some(()));
    assert_eq!(
        mounted.json("vms.json").as_array().unwrap().len(),
        count + 2
    );

    for (folder, uuid) in folders.iter().zip(&uuids) {
        folder.release();
        until("it heals", || mounted.stale(uuid).is_none().then_some(()));
        until("it shows what was read at last", || {
            let vm = mounted.json(format!("{uuid}/vm.json"));
            (vm["tags"]["from"] == "the other side").then_some(())
        });
    }
}

#[test]
fn a_daemon_with_a_hung_folder_still_unmounts_at_once() {
    let store = Store::new(2);
    let mut mounted = store.mount_with(&["-o", "rescan=0.2"]);
    let hanging = Hanging::mount(store.path(format!("zones/{}/config", store.zones()[0])));
    until("its file is read", || hanging.is_read().then_some(()));
    mounted.signal(Signal::SIGTERM);
    until("it is unmounted", || {
        mount_entry(&mounted.at).is_none().then_some(())
    });
    // The kernel lets the process end only when its read does.
    hanging.release();
    assert!(mounted.ended().success());
}

/// A mount in a user namespace in which one limit of inotify is as low as this.
struct Limited<'a>(Mounted<'a>);

impl Limited<'_> {
    fn mount<'a>(store: &'a Store, limit: &str, value: u32) -> Limited<'a> {
        // Those below `user` are the limits of the namespace alone; those in `fs` are everybody's.
        let script = r#"echo "$2" >"/proc/sys/user/$1"; log=$3; shift 3; exec "$@" 2>"$log""#;
        let mut command = Command::new("unshare");
        command.args([
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-ec",
            script,
            "sh",
        ]);
        command
            .arg(limit)
            .arg(value.to_string())
            .arg(store.dir().join("log"))
            .arg(VMINFOD);
        command.args(["mount", "--foreground", "--tell-ready", "--zones-root"]);
        Limited(Mounted::start(store, {
            command.arg(store.root()).arg(store.mountpoint());
            command
        }))
    }

    /// What cat(1) reads in the mount, which only its namespace sees.
    fn json(&self, below: &str) -> Value {
        let mut cat = Command::new("nsenter");
        cat.args(["--user", "--mount", "--preserve-credentials", "--target"]);
        cat.arg(self.0.daemon.id().to_string())
            .arg("cat")
            .arg(self.0.path(below));
        serde_json::from_str(&run(&mut cat).succeeded()).unwrap()
    }
}

#[test]
fn what_exceeds_the_limits_of_inotify_is_polled_and_status_and_log_say_what_to_raise() {
    // The folders that all zones share take ten; so some of the zones are watched.
    for (limit, value, name) in [
        ("max_inotify_watches", 15, "fs.inotify.max_user_watches"),
        ("max_inotify_watches", 0, "fs.inotify.max_user_watches"),
        ("max_inotify_instances", 0, "fs.inotify.max_user_instances"),
    ] {
        let store = Store::new(5);
        let mounted = Limited::mount(&store, limit, value);
        let watches = mounted.json(".status")["fswatcher"]["watches"].clone();
        let hint = watches["hint"].as_str().unwrap();
        assert!(hint.contains(&format!("sysctl -w {name}=")), "{hint}");
        let log = fs::read_to_string(store.dir().join("log")).unwrap();
        assert!(log.contains(hint), "{log}");
        let polled = watches["polled"].as_u64().unwrap();
        assert!(polled > 0 && (polled == 5) == (value == 0), "{watches}");
        for zone in store.zones() {
            change::set_tag(&store.root(), &zone, "seen", &json!(name)).unwrap();
        }
        until("all changes are seen", || {
            let vms = mounted.json("vms.json");
            let seen = |vm: &Value| vm["tags"]["seen"] == name;
            vms.as_array().unwrap().iter().all(seen).then_some(())
        });
    }
}
