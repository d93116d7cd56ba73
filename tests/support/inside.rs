//! A tree that the test itself mounts, and whose cache it writes: what is published, and when, is
//! up to the test, and looking at the counters costs no message.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;
use vminfod::cache::{Cache, Change, Writer};
use vminfod::fs::{Mount, MountOptions, Numbers, OpenTo, Places};
use vminfod::mutation::ReadOnly;
use vminfod::vm::Object;
use vminfod::vm::files::Rendered;

use super::until;

/// Messages that the kernel sends in its own time, so that no test can count them.
const IN_ITS_OWN_TIME: [&str; 1] = ["forget"];

/// A mounted tree and the writer of its cache.
pub struct Inside {
    /// The only writer.
    pub writer: Writer,
    /// What it writes.
    pub cache: Arc<Cache>,
    mount: Option<Mount>,
    numbers: Numbers,
    dir: TempDir,
}

/// The uuid of a test's VM.
pub fn uuid(number: usize) -> Uuid {
    Uuid::from_u128(0x1000_0000_0000_4000_8000_0000_0000_0000 + number as u128)
}

/// A small VM with something of everything. Its files are all of one time.
pub fn vm(number: usize) -> Object {
    let uuid = uuid(number);
    let object = json!({
        "zonename": uuid.to_string(),
        "brand": "joyent",
        "uuid": uuid.to_string(),
        "alias": format!("vm{number}"),
        "owner_uuid": "930896af-bf8c-48d4-885c-6573a94b1853",
        "quota": 10,
        "ram": 1024,
        "resolvers": ["10.0.0.2", "10.0.0.3"],
        "nics": [{"interface": "net0", "mac": "02:08:20:00:00:01", "ip": "10.0.0.7"}],
        "tags": {"role": "web", "env": "prod"},
        "last_modified": "2026-01-01T00:00:00.000Z",
        "state": "running",
    });
    match object {
        Value::Object(object) => object,
        _ => Object::new(),
    }
}

/// The change that makes a VM what it says.
pub fn put(object: &Object) -> Change {
    let uuid = object["uuid"].as_str().unwrap();
    Change::Put {
        uuid: uuid.parse().unwrap(),
        zonename: uuid.to_owned(),
        rendered: Rendered::new(object),
        via: "event",
        observed: SystemTime::now(),
        stale: None,
        txn: None,
    }
}

/// The change that removes a VM.
pub fn remove(number: usize) -> Change {
    Change::Remove {
        uuid: uuid(number),
        via: "event",
        txn: None,
    }
}

impl Inside {
    /// Mounts a tree of the VMs 0 to `vms`.
    pub fn new(vms: usize) -> Inside {
        Inside::with_history(vms, 64 << 20)
    }

    /// The same, which keeps this many bytes of events.
    pub fn with_history(vms: usize, history: usize) -> Inside {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("vms")).unwrap();
        let (cache, mut writer) = Cache::new(history);
        writer.load((0..vms).map(|number| put(&vm(number))).collect());
        let options = MountOptions {
            source: "test".to_owned(),
            group: None,
            open_to: OpenTo::Everybody,
        };
        let path = dir.path().join("vms");
        let mount = Mount::new(
            cache.clone(),
            &Places::Writable(path),
            &options,
            Arc::new(ReadOnly),
            String::new,
        )
        .unwrap();
        let numbers = mount.numbers();
        Inside {
            writer,
            cache,
            mount: Some(mount),
            numbers,
            dir,
        }
    }

    /// Where it is mounted.
    pub fn at(&self) -> PathBuf {
        self.dir.path().join("vms")
    }

    /// A folder beside the mount.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in the mount.
    pub fn path(&self, below: impl AsRef<Path>) -> PathBuf {
        self.at().join(below)
    }

    /// A file of a VM.
    pub fn file(&self, number: usize, below: &str) -> PathBuf {
        self.path(uuid(number).to_string()).join(below)
    }

    /// What a file of a VM holds.
    #[track_caller]
    pub fn read(&self, number: usize, below: &str) -> String {
        let path = self.file(number, below);
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }

    /// The mount.
    pub fn mount(&self) -> &Mount {
        self.mount.as_ref().unwrap()
    }

    /// Publishes and waits until the kernel's caches are right.
    #[track_caller]
    pub fn publish(&mut self, changes: Vec<Change>) -> u64 {
        self.writer.publish(changes);
        self.settled()
    }

    /// Publishes a VM with one member set, or without it if it is null, and waits.
    #[track_caller]
    pub fn set(&mut self, number: usize, property: &str, value: Value) -> u64 {
        let mut object = self.cache.vm(&uuid(number)).unwrap().rendered.object();
        if value.is_null() {
            object.shift_remove(property);
        } else {
            object.insert(property.to_owned(), value);
        }
        self.publish(vec![put(&object)])
    }

    /// Waits until what has been published is settled; returns its number.
    #[track_caller]
    pub fn settled(&self) -> u64 {
        let seq = self.cache.now().seq;
        until("what was published is settled", || {
            (self.numbers.settled() >= seq).then_some(seq)
        })
    }

    /// How many messages of each kind have come.
    pub fn messages(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.numbers.messages().into_iter();
        counts
            .filter(|(kind, _)| !IN_ITS_OWN_TIME.contains(kind))
            .collect()
    }

    /// Which messages come while something is done that opens and closes files, while no others are
    /// open. The kernel sends a RELEASE after close(2) has returned, so it is waited for.
    #[track_caller]
    pub fn messages_of(&self, act: impl FnOnce()) -> BTreeMap<&'static str, u64> {
        let closed = || {
            until("all files are closed", || {
                let counts = self.messages();
                (counts["open"] == counts["release"]).then_some(counts)
            })
        };
        let before = closed();
        act();
        let after = closed();
        let counts = after
            .into_iter()
            .map(|(kind, count)| (kind, count - before[kind]));
        counts.filter(|(_, count)| *count > 0).collect()
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        if let Some(mount) = self.mount.take() {
            mount.stop();
        }
    }
}
