//! A mount that the test serves itself: it publishes what it likes, one change at a time.
//!
//! Its streams must not be read by the test's own threads but without blocking: a process that
//! dies while it waits for itself cannot end.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;
use vminfod::cache::{Cache, Change, Published, Writer};
use vminfod::fs::{Mount, MountOptions, OpenTo, Places};
use vminfod::ingest::{self, Health};
use vminfod::mutation::{Changes, Mutations, ReadOnly, Timeouts};
use vminfod::source::Source;
use vminfod::source::zones::{Faults, Zones, ZonesOptions};
use vminfod::vm::files::Rendered;
use vminfod::vm::property;

use super::{Store, until};

/// A mount with the writer of its cache.
pub struct Direct {
    dir: TempDir,
    /// Publishes.
    pub writer: Writer,
    mount: Option<Mount>,
}

fn mount_options() -> MountOptions {
    MountOptions {
        source: "zones".to_owned(),
        group: None,
        open_to: OpenTo::Everybody,
    }
}

/// The uuid of the VM with this number.
pub fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(number << 64 | number)
}

/// A VM with an alias and tags, as it would be read.
pub fn put(uuid: Uuid, alias: &str, tags: &Value) -> Change {
    let object = json!({
        "zonename": uuid.to_string(),
        "uuid": uuid.to_string(),
        "brand": "joyent",
        "state": "running",
        "alias": alias,
        "tags": tags,
    });
    let Value::Object(mut object) = object else {
        unreachable!("it is written as one")
    };
    property::sort(&mut object);
    let zonename = uuid.to_string();
    let observed = SystemTime::now();
    Change::Put {
        uuid,
        zonename,
        rendered: Rendered::new(&object),
        via: "event",
        observed,
        stale: None,
        txn: None,
    }
}

/// The VM is deleted.
pub fn remove(uuid: Uuid) -> Change {
    Change::Remove {
        uuid,
        via: "event",
        txn: None,
    }
}

impl Direct {
    /// A mount of VMs with the numbers from 1 to `vms`.
    pub fn new(vms: u128) -> Direct {
        let (cache, mut writer) = Cache::new(64 << 20);
        writer.load(
            (1..=vms)
                .map(|number| put(uuid(number), "first", &json!({"role": "first"})))
                .collect(),
        );
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("vms");
        let beside = dir.path().join("read-only");
        fs::create_dir(&at).unwrap();
        fs::create_dir(&beside).unwrap();
        let places = Places::Both {
            writable: at,
            read_only: beside,
        };
        let mount = Mount::new(cache, &places, &mount_options(), Arc::new(ReadOnly), || {
            "{}\n".to_owned()
        })
        .unwrap();
        Direct {
            dir,
            writer,
            mount: Some(mount),
        }
    }

    /// A path in the mount.
    pub fn path(&self, below: impl AsRef<std::path::Path>) -> PathBuf {
        self.dir.path().join("vms").join(below)
    }

    /// A path in the read-only mount.
    pub fn read_only(&self, below: impl AsRef<std::path::Path>) -> PathBuf {
        self.dir.path().join("read-only").join(below)
    }

    /// The cache.
    pub fn cache(&self) -> Arc<Cache> {
        self.writer.cache().clone()
    }

    /// The mount.
    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    /// Publishes one change and returns its number.
    #[track_caller]
    pub fn publish(&mut self, change: Change) -> u64 {
        let published: Vec<Published> = self.writer.publish(vec![change]);
        published.first().expect("a change").seq
    }

    /// The number before that of the first event.
    pub fn base(&self) -> u64 {
        self.cache().events().base()
    }

    /// Waits until the kernel's caches are right for a change.
    #[track_caller]
    pub fn until_settled(&self, seq: u64) {
        let numbers = self.mount().numbers();
        until("the change is settled", || {
            (numbers.settled() >= seq).then_some(())
        });
    }
}

impl Drop for Direct {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.stop();
        }
    }
}

/// A store that is watched and mounted by the test itself, so that it can break the watching.
pub struct Hosted {
    /// The store.
    pub store: Store,
    /// The cache.
    pub cache: Arc<Cache>,
    /// Breaks things.
    pub faults: Arc<Faults>,
    /// What ingest knows.
    pub health: Arc<Mutex<Health>>,
    source: Arc<Zones>,
    mount: Option<Mount>,
}

impl Hosted {
    /// A store of `vms` VMs, all of them listed.
    pub fn new(vms: usize) -> Hosted {
        Hosted::with(vms, Timeouts::default())
    }

    /// The same, whose changes wait so long for their confirmation.
    pub fn with(vms: usize, timeouts: Timeouts) -> Hosted {
        let store = Store::new(vms);
        let options = ZonesOptions::new(store.root());
        let faults = options.faults.clone();
        let source = Arc::new(Zones::new(options));
        let (cache, writer) = Cache::new(64 << 20);
        let health: Arc<Mutex<Health>> = Arc::default();
        let (reports, reported) = mpsc::channel();
        let mutations = Mutations::new(cache.clone(), source.clone(), source.applier(), timeouts);
        source.start(reports).unwrap();
        let (ingest, ours) = (health.clone(), mutations.clone());
        thread::spawn(move || {
            ingest::run(writer, reported, ingest, &move |uuid, old, new| {
                ours.txn(uuid, old, new)
            });
        });
        until("the store is listed", || health.lock().ready.then_some(()));
        mutations.shown(&cache.now());
        let mount = Mount::new(
            cache.clone(),
            &Places::Both {
                writable: store.mountpoint(),
                read_only: store.read_only(),
            },
            &mount_options(),
            Arc::new(mutations),
            String::new,
        )
        .unwrap();
        Hosted {
            store,
            cache,
            faults,
            health,
            source,
            mount: Some(mount),
        }
    }

    /// A path in the mount.
    pub fn path(&self, below: impl AsRef<std::path::Path>) -> PathBuf {
        self.store.mountpoint().join(below)
    }

    /// A path in the read-only mount.
    pub fn read_only(&self, below: impl AsRef<std::path::Path>) -> PathBuf {
        self.store.read_only().join(below)
    }

    /// What a file holds.
    #[track_caller]
    pub fn read(&self, below: impl AsRef<std::path::Path>) -> String {
        fs::read_to_string(self.path(below)).unwrap()
    }

    /// How many writers wait for their change.
    pub fn writers_waiting(&self) -> usize {
        self.mount.as_ref().unwrap().numbers().writers_waiting()
    }

    /// Scans everything, and waits until that has been published.
    #[track_caller]
    pub fn rescan(&self) {
        let scans = || self.health.lock().listings.back().map(|scanned| scanned.at);
        let before = scans();
        self.source.rescan();
        until("the scan is published", || {
            (scans() != before).then_some(())
        });
    }

    /// Waits until the kernel's caches and the streams are right for all that was published.
    #[track_caller]
    pub fn until_settled(&self) {
        let numbers = self.mount.as_ref().unwrap().numbers();
        let seq = self.cache.now().seq;
        until("the changes are settled", || {
            (numbers.settled() >= seq).then_some(())
        });
    }
}

impl Drop for Hosted {
    fn drop(&mut self) {
        self.faults.hang(&[]);
        if let Some(mount) = self.mount.take() {
            mount.stop();
        }
    }
}
