//! Everybody at once, on both mounts: writers, changes behind the daemon's back, VMs that come and go, and
//! readers in every way there is. Each reader checks that what it sees is whole, has the right size,
//! and is never older than what any finished write or any earlier read has established, by
//! whatever way and through whatever mount.
//!
//! It runs for [`seconds`]: `VMINFOD_TORTURE_SECONDS`, which `mount-scripts/torture` sets to an hour.

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::map::mapped;
use support::{Store, until};
use vminfod::sample::change;

const VMS: usize = 6;

/// How many lengths the values have: a prime, so that versions that follow each other differ wildly.
const LENGTHS: u64 = 4999;

fn seconds() -> Duration {
    let seconds = std::env::var("VMINFOD_TORTURE_SECONDS");
    Duration::from_secs(seconds.map_or(60, |seconds| seconds.parse().unwrap()))
}

/// The value of a version: it says which, and has a length of its own.
fn value(version: u64) -> String {
    let len = 24 + (version * 197 % LENGTHS) as usize;
    format!("{version:-<len$}")
}

/// The name of a tag that only one version has.
fn only(version: u64) -> String {
    format!("only-{version}")
}

/// What is known of one changing thing.
#[derive(Default)]
struct Known {
    /// No read that begins now may find less.
    floor: AtomicU64,
    /// The last version that somebody has begun to write.
    issued: AtomicU64,
}

impl Known {
    /// Checks what a look that began after `floor` was taken has found, and that nobody finds less later.
    #[track_caller]
    fn saw(&self, version: u64, floor: u64, what: &str) {
        assert!(
            version >= floor,
            "{what} shows version {version}, but {floor} was seen before"
        );
        self.floor.fetch_max(version, Ordering::SeqCst);
    }

    fn floor(&self) -> u64 {
        self.floor.load(Ordering::SeqCst)
    }

    /// The same of a look at a size only.
    #[track_caller]
    fn saw_size(&self, size: u64, floor: u64, what: &str) {
        let issued = self.issued.load(Ordering::SeqCst);
        let version = (floor..=issued).find(|version| value(*version).len() as u64 + 1 == size);
        let Some(version) = version else {
            panic!("{what} shows {size} bytes, which no version from {floor} to {issued} has");
        };
        self.saw(version, floor, what);
    }
}

#[derive(Default)]
struct Vm {
    uuid: String,
    /// Its tags.
    tags: Known,
    /// Its quota.
    quota: Known,
}

struct Torture {
    writable: PathBuf,
    read_only: PathBuf,
    vms: Vec<Vm>,
    ended: AtomicBool,
    writes: AtomicU64,
    looks: AtomicU64,
}

#[track_caller]
fn version_of(text: &str) -> u64 {
    let version = text.split('-').next().unwrap().parse().unwrap();
    assert_eq!(text, value(version), "a torn value");
    version
}

fn tags(version: u64) -> Value {
    json!({"role": value(version), only(version): "x"})
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

impl Torture {
    fn mounts(&self) -> [&Path; 2] {
        [&self.writable, &self.read_only]
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }

    /// Calls a look at each VM through each mount until the end.
    fn look(&self, look: impl Fn(&Vm, &Path)) {
        while !self.has_ended() {
            for vm in &self.vms {
                for mount in self.mounts() {
                    look(vm, &mount.join(&vm.uuid));
                    self.looks.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Writes the tags by turns through the mount and into the store, and the quota in between.
    fn write(&self, vm: &Vm, file: &Path) {
        let dir = self.writable.join(&vm.uuid);
        for version in 1.. {
            if self.has_ended() {
                return;
            }
            vm.tags.issued.store(version, Ordering::SeqCst);
            if version % 3 == 0 {
                change::replace(file, tags(version).to_string()).unwrap();
            } else {
                let payload =
                    json!({"set_tags": tags(version), "remove_tags": [only(version - 1)]});
                fs::write(dir.join("vm.json"), payload.to_string()).unwrap();
                vm.tags.floor.fetch_max(version, Ordering::SeqCst);
            }
            let quota = version * 7919 % 100_003 + version * 100_003;
            vm.quota.issued.store(quota, Ordering::SeqCst);
            fs::write(dir.join("quota"), format!("{quota}\n")).unwrap();
            vm.quota.floor.fetch_max(quota, Ordering::SeqCst);
            self.writes.fetch_add(2, Ordering::Relaxed);
        }
    }

    /// Makes and deletes VMs.
    fn come_and_go(&self) {
        let payload =
            json!({"brand": "joyent", "image_uuid": "01b2c898-945f-11e1-a523-af1afbe22822",
            "alias": "passing", "quota": 1, "autoboot": false})
            .to_string();
        while !self.has_ended() {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .open(self.writable.join("create"))
                .unwrap();
            file.write_all(payload.as_bytes()).unwrap();
            let mut buffer = [0; 64];
            let len = file.read_at(&mut buffer, 0).unwrap();
            let uuid = std::str::from_utf8(&buffer[..len]).unwrap().trim_end();
            for mount in self.mounts() {
                assert!(names(mount).contains(&uuid.to_owned()), "not listed");
                let alias = fs::read_to_string(mount.join(uuid).join("alias")).unwrap();
                assert_eq!(alias, "passing\n");
                assert!(mount.join(".by/alias/passing").exists());
            }
            fs::write(self.writable.join(uuid).join("ctl"), "delete\n").unwrap();
            for mount in self.mounts() {
                assert!(!names(mount).contains(&uuid.to_owned()), "still listed");
                assert!(!mount.join(uuid).exists());
                assert!(!mount.join(".by/alias/passing").exists());
            }
            self.writes.fetch_add(2, Ordering::Relaxed);
        }
    }

    fn look_at_files(&self) {
        self.look(|vm, dir| {
            let what = |what: &str| format!("{what} of {}", dir.display());
            let floor = vm.tags.floor();
            let text = fs::read_to_string(dir.join("tags/role")).unwrap();
            let version = version_of(text.strip_suffix('\n').unwrap());
            vm.tags.saw(version, floor, &what("open and read"));
            let floor = vm.quota.floor();
            let quota = fs::read_to_string(dir.join("quota")).unwrap();
            let quota = quota.trim_end().parse().unwrap();
            vm.quota.saw(quota, floor, &what("quota"));
        });
    }

    fn look_at_sizes(&self) {
        self.look(|vm, dir| {
            let what = |what: &str| format!("{what} of {}", dir.display());
            let floor = vm.tags.floor();
            let size = fs::metadata(dir.join("tags/role")).unwrap().len();
            vm.tags.saw_size(size, floor, &what("stat"));
            let floor = vm.tags.floor();
            let file = File::open(dir.join("tags/role")).unwrap();
            let size = file.metadata().unwrap().len();
            vm.tags.saw_size(size, floor, &what("fstat"));
        });
    }

    fn look_at_names(&self) {
        self.look(|vm, dir| {
            let what = |what: &str| format!("{what} of {}", dir.display());
            let floor = vm.tags.floor();
            let names = names(&dir.join("tags"));
            let versions = names.iter().filter_map(|name| name.strip_prefix("only-"));
            let versions: Vec<u64> = versions.map(|version| version.parse().unwrap()).collect();
            let [version] = versions[..] else {
                panic!("{}: {names:?}", what("readdir"));
            };
            vm.tags.saw(version, floor, &what("readdir"));
            let floor = vm.tags.floor();
            if floor > 0 {
                let old = dir.join("tags").join(only(floor - 1));
                assert!(!old.exists(), "{}: {}", what("lookup"), old.display());
            }
        });
    }

    fn look_at_documents(&self) {
        while !self.has_ended() {
            for mount in self.mounts() {
                let floors: Vec<u64> = self.vms.iter().map(|vm| vm.tags.floor()).collect();
                let text = fs::read_to_string(mount.join("vms.json")).unwrap();
                let all: Vec<Value> = serde_json::from_str(&text).unwrap();
                for (vm, floor) in self.vms.iter().zip(floors) {
                    let shown = all.iter().find(|shown| shown["uuid"] == vm.uuid).unwrap();
                    let version = version_of(shown["tags"]["role"].as_str().unwrap());
                    vm.tags
                        .saw(version, floor, &format!("vms.json of {}", mount.display()));
                    let floor = vm.tags.floor();
                    let path = mount.join(&vm.uuid).join("vm.json");
                    let shown: Value =
                        serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
                    let version = version_of(shown["tags"]["role"].as_str().unwrap());
                    vm.tags.saw(version, floor, &path.display().to_string());
                    assert!(shown["tags"][only(version)].is_string(), "a mixed version");
                    self.looks.fetch_add(1, Ordering::Relaxed);
                }
            }
        }
    }

    /// Reads files that stay open: on the writable mount each read at 0 is fresh, on the read-only one the
    /// version stays.
    fn look_at_open_files(&self) {
        let open = |mount: &Path, vm: &Vm| {
            let path = mount.join(&vm.uuid).join("tags/role");
            File::open(path).unwrap()
        };
        let fresh: Vec<File> = self.vms.iter().map(|vm| open(&self.writable, vm)).collect();
        while !self.has_ended() {
            let held: Vec<(File, u64)> = self
                .vms
                .iter()
                .map(|vm| {
                    let floor = vm.tags.floor();
                    let file = open(&self.read_only, vm);
                    let size = file.metadata().unwrap().len();
                    vm.tags
                        .saw_size(size, floor, "fstat of the read-only mount");
                    (file, size)
                })
                .collect();
            for round in 0..50 {
                for ((vm, fresh), (held, size)) in self.vms.iter().zip(&fresh).zip(&held) {
                    let mut buffer = vec![0; 8192];
                    let floor = vm.tags.floor();
                    // In two pieces, which belong together.
                    let head = fresh.read_at(&mut buffer[..7], 0).unwrap();
                    let rest = fresh.read_at(&mut buffer[7..], 7).unwrap();
                    let text = std::str::from_utf8(&buffer[..head + rest]).unwrap();
                    let version = version_of(text.strip_suffix('\n').unwrap());
                    vm.tags.saw(version, floor, "pread of an open file");

                    let mut buffer = vec![0; 8192];
                    let len = match round % 2 {
                        0 => held.read_at(&mut buffer, 0).unwrap(),
                        _ => {
                            let map = mapped(held, *size as usize).unwrap();
                            buffer[..map.len()].copy_from_slice(&map);
                            map.len()
                        }
                    };
                    assert_eq!(
                        len as u64, *size,
                        "a version that was held changed its size"
                    );
                    let text = std::str::from_utf8(&buffer[..len]).unwrap();
                    version_of(text.strip_suffix('\n').unwrap());
                    self.looks.fetch_add(2, Ordering::Relaxed);
                }
                thread::yield_now();
            }
        }
    }
}

#[test]
fn nothing_is_ever_torn_or_older_than_what_was_seen() {
    let store = Store::new(VMS);
    let zones = store.zones();
    let files: Vec<PathBuf> = zones
        .iter()
        .map(|zone| store.path(format!("zones/{zone}/config/tags.json")))
        .collect();
    for file in &files {
        change::replace(file, tags(0).to_string()).unwrap();
    }
    let beside = format!("ro_mount={}", store.read_only().display());
    let mounted = store.mount_with(&["-o", &beside]);
    let vms = zones.iter().map(|zone| Vm {
        uuid: mounted.uuid(zone),
        ..Vm::default()
    });
    let torture = Torture {
        writable: mounted.at.clone(),
        read_only: store.read_only(),
        vms: vms.collect(),
        ended: AtomicBool::new(false),
        writes: AtomicU64::new(0),
        looks: AtomicU64::new(0),
    };
    let end = Instant::now() + seconds();
    thread::scope(|scope| {
        let torture = &torture;
        let mut threads = Vec::new();
        for (vm, file) in torture.vms.iter().zip(&files) {
            threads.push(scope.spawn(|| torture.write(vm, file)));
        }
        threads.push(scope.spawn(|| torture.come_and_go()));
        threads.push(scope.spawn(|| torture.look_at_files()));
        threads.push(scope.spawn(|| torture.look_at_sizes()));
        threads.push(scope.spawn(|| torture.look_at_names()));
        threads.push(scope.spawn(|| torture.look_at_documents()));
        threads.push(scope.spawn(|| torture.look_at_open_files()));
        // Who fails ends it for all.
        while Instant::now() < end && !threads.iter().any(|thread| thread.is_finished()) {
            thread::sleep(Duration::from_millis(50));
        }
        torture.ended.store(true, Ordering::SeqCst);
        for thread in threads {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    until("all old versions are forgotten", || {
        let kept = &mounted.status()["readOnlyMount"]["versionsKept"];
        (kept.as_u64().unwrap() <= 2).then_some(())
    });
    println!(
        "{} writes and {} looks",
        torture.writes.load(Ordering::Relaxed),
        torture.looks.load(Ordering::Relaxed)
    );
}
