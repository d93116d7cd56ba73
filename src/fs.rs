//! Names and contents of the tree, and the mount. Only here is fuser; no source is ever seen here.
//!
//! `tree` answers from memory what there is; `writable` and `readonly` adapt it to fuser's requests, each
//! with one rule that makes it coherent; `writing` turns what is written into changes of VMs. Beside the
//! threads of fuser, which answer requests and never wait, there are:
//!
//! - `settle` shows what was published, when the kernel has nothing older cached (`settle`);
//! - `streams` answers readers of events when there are some (`stream`);
//! - `interrupts` lets go of readers and writers that have a signal (`wait`);
//! - `announce` makes names come and go through the VFS, and looks at what changed (`announce`);
//! - `look` looks at what changed in the read-only mount;
//! - `touch-N` raise IN_MODIFY (`touch`).
//!
//! The last three enter the mounts themselves, and so have no descriptors but their own (`door`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, Errno, Filesystem, MountOption, Session, SessionACL};
use uuid::Uuid;

use crate::cache::Cache;
use crate::mutation::Changes;

mod announce;
mod door;
mod errno;
mod handle;
mod held;
mod inode;
mod kernel;
mod messages;
pub mod mountpoint;
mod poll;
mod readonly;
mod settle;
mod stream;
mod sys;
mod touch;
mod tree;
mod wait;
mod writable;
mod writing;

use announce::Announcing;
use handle::Handles;
pub use handle::Listener;
use held::Held;
use kernel::Kernel;
use messages::Messages;
use mountpoint::{Busy, MountError};
use poll::Polls;
use readonly::ReadOnly;
pub use settle::Barriers;
use settle::Settler;
use stream::Streams;
use touch::Touches;
use tree::{Ownership, Tree};
use wait::Interrupts;
use writable::Writable;
use writable::caches::Caches;
use writing::Writes;
use writing::errors::Failed;

/// How a tree is to be mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    /// The name of the source, as mount(8) shows it: `zones`.
    pub source: String,
    /// The group that gets the owner's rights.
    pub group: Option<u32>,
    /// Whom the mount is open to.
    pub open_to: OpenTo,
}

/// Where a tree is mounted: at one place at least.
#[derive(Clone, Debug)]
pub enum Places {
    /// Where VMs can be changed.
    Writable(PathBuf),
    /// Where they can only be read, faster.
    ReadOnly(PathBuf),
    /// Both.
    Both {
        /// The writable mount.
        writable: PathBuf,
        /// The read-only one.
        read_only: PathBuf,
    },
}

impl Places {
    /// The place whose unmount ends the daemon.
    pub fn main(&self) -> &Path {
        match self {
            Places::Writable(path) | Places::ReadOnly(path) => path,
            Places::Both { writable, .. } => writable,
        }
    }

    fn writable(&self) -> Option<&PathBuf> {
        match self {
            Places::Writable(path) | Places::Both { writable: path, .. } => Some(path),
            Places::ReadOnly(_) => None,
        }
    }

    fn read_only(&self) -> Option<&PathBuf> {
        match self {
            Places::Writable(_) => None,
            Places::ReadOnly(path)
            | Places::Both {
                read_only: path, ..
            } => Some(path),
        }
    }

    /// The same places, each approved by [`mountpoint::prepare`].
    ///
    /// # Errors
    /// When one cannot be mounted on, or both are the same.
    pub fn prepared(&self) -> Result<Places, MountError> {
        let prepare = mountpoint::prepare;
        Ok(match self {
            Places::Writable(path) => Places::Writable(prepare(path)?),
            Places::ReadOnly(path) => Places::ReadOnly(prepare(path)?),
            Places::Both {
                writable,
                read_only,
            } => {
                let writable = prepare(writable)?;
                // A daemon whose writable mount has just been unmounted is about to unmount this one.
                let read_only = mountpoint::prepare_when_free(read_only, STOP * 2)?;
                if writable == read_only {
                    return Err(MountError::Same(read_only.display().to_string()));
                }
                Places::Both {
                    writable,
                    read_only,
                }
            }
        })
    }
}

/// Whom a mount is open to, as far as the modes of its files allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenTo {
    /// All users (`allow_other`), if root mounts; the owner only, if somebody else does.
    Everybody,
    /// The owner only (`-o private`).
    Owner,
}

/// How long stopping waits for the kernel before it goes on without it.
const STOP: Duration = Duration::from_secs(1);

/// How long stopping waits for changes that are being applied.
const APPLY: Duration = Duration::from_millis(500);

/// Numbers of a mount, for `.status`.
#[derive(Clone)]
pub struct Numbers {
    held: Arc<Held>,
    handles: Arc<Handles>,
    streams: Arc<Streams>,
    writes: Arc<Writes>,
    messages: Arc<Messages>,
    tree: Arc<Tree>,
    read_only: Option<Arc<ReadOnly>>,
}

/// Numbers of a read-only mount.
#[derive(Clone, Debug)]
pub struct ReadOnlyNumbers {
    /// How many inodes the kernel holds.
    pub inodes_held: usize,
    /// How many versions that were replaced are kept because the kernel holds them.
    pub versions_kept: usize,
    /// How many messages of each kind the kernel has sent.
    pub messages: Vec<(&'static str, u64)>,
}

impl Numbers {
    /// How many inodes the kernel holds.
    pub fn inodes_held(&self) -> usize {
        self.held.len()
    }

    /// How many readers wait for an event.
    pub fn waiting(&self) -> usize {
        self.streams.waiting()
    }

    /// How many writers wait for their change.
    pub fn writers_waiting(&self) -> usize {
        self.writes.waiting()
    }

    /// Everybody who has a stream open.
    pub fn listeners(&self) -> Vec<Listener> {
        self.handles.listeners()
    }

    /// How many messages of each kind the kernel has sent.
    pub fn messages(&self) -> Vec<(&'static str, u64)> {
        self.messages.counts().collect()
    }

    /// Those of the read-only mount, if there is one.
    pub fn read_only(&self) -> Option<ReadOnlyNumbers> {
        self.read_only.as_ref().map(|mount| ReadOnlyNumbers {
            inodes_held: mount.held().len(),
            versions_kept: mount.kept(),
            messages: mount.messages().counts().collect(),
        })
    }

    /// The number of the last event for which the kernel's caches are right.
    pub fn settled(&self) -> u64 {
        self.tree.told()
    }
}

/// A filesystem that is mounted at a place.
struct Place {
    path: PathBuf,
    device: u64,
    session: BackgroundSession,
}

impl Place {
    fn mount(
        filesystem: impl Filesystem + 'static,
        path: &Path,
        config: &Config,
    ) -> Result<Place, MountError> {
        let refused = |error| MountError::Refused {
            path: path.display().to_string(),
            error,
        };
        let session = Session::new(filesystem, path, config).map_err(refused)?;
        let session = session.spawn().map_err(refused)?;
        Ok(Place {
            path: path.to_owned(),
            device: mountpoint::device(path).map_err(refused)?,
            session,
        })
    }

    fn kernel(&self, held: &Arc<Held>) -> Kernel {
        Kernel {
            held: held.clone(),
            notifier: self.session.notifier(),
        }
    }

    /// Unmounts it, lazily if somebody still uses it.
    fn unmount(&self) {
        if mountpoint::is_mounted(self.device)
            && mountpoint::device(&self.path).is_ok_and(|device| device == self.device)
            && let Err(error) = mountpoint::unmount(&self.path, Busy::Fail)
        {
            tracing::debug!(%error, "unmounting lazily");
            if let Err(error) = mountpoint::unmount(&self.path, Busy::Detach) {
                tracing::warn!(%error, "left mounted");
            }
        }
    }
}

/// A mounted tree, to be ended by [`Mount::stop`]: dropping it unmounts the paths, whatever is
/// mounted there by then, and leaves its threads.
pub struct Mount {
    writable: Option<Place>,
    read_only: Option<Place>,
    numbers: Numbers,
    cache: Arc<Cache>,
    announcing: Arc<Announcing>,
    looking: Arc<Announcing>,
    touches: Arc<Touches>,
    interrupts: Arc<Interrupts>,
    /// The threads that keep the filesystems alive by their ways into them.
    inside: Vec<JoinHandle<()>>,
    polls: Arc<Polls>,
    ended: Arc<AtomicBool>,
    barriers: Barriers,
}

impl Mount {
    /// Mounts the cache's VMs at places that [`mountpoint::prepare`] has approved. What is
    /// written there is asked of `changes`; `status` writes the status document.
    ///
    /// # Errors
    /// When there is no FUSE, or the kernel or fusermount3 refuses.
    pub fn new(
        cache: Arc<Cache>,
        places: &Places,
        options: &MountOptions,
        changes: Arc<dyn Changes>,
        status: impl Fn() -> String + Send + Sync + 'static,
    ) -> Result<Mount, MountError> {
        let user = nix::unistd::geteuid();
        let ownership = Ownership {
            uid: user.as_raw(),
            gid: options.group.unwrap_or(nix::unistd::getegid().as_raw()),
            shared: options.group.is_some(),
            unprivileged: !user.is_root(),
        };
        let tree = Arc::new(Tree::new(cache.clone(), ownership, Arc::new(status)));
        let (touches, interrupts) = (Arc::<Touches>::default(), Arc::<Interrupts>::default());
        let writes = Writes::new(
            tree.clone(),
            changes.clone(),
            touches.clone(),
            interrupts.clone(),
        );
        let read_only = places
            .read_only()
            .map(|_| Arc::new(ReadOnly::new(tree.clone(), places.writable().cloned())));
        let mut mount = Mount {
            writable: None,
            read_only: None,
            numbers: Numbers {
                held: Arc::default(),
                handles: Arc::default(),
                streams: Arc::new(Streams::new(interrupts.clone())),
                writes: Arc::new(writes),
                messages: Arc::default(),
                tree,
                read_only: read_only.clone(),
            },
            cache,
            announcing: Arc::default(),
            looking: Arc::default(),
            touches,
            interrupts,
            inside: Vec::new(),
            polls: Arc::default(),
            ended: Arc::default(),
            barriers: Barriers::default(),
        };
        let config = config(options, user.is_root());
        // The read-only one first: when the other is there, both are.
        if let Some((path, filesystem)) = places.read_only().zip(read_only) {
            let mut config = config.clone();
            config.mount_options.push(MountOption::RO);
            mount.read_only = Some(Place::mount(readonly::Adapter(filesystem), path, &config)?);
        }
        if let Some(path) = places.writable() {
            let filesystem = Writable {
                tree: mount.numbers.tree.clone(),
                held: mount.numbers.held.clone(),
                handles: mount.numbers.handles.clone(),
                streams: mount.numbers.streams.clone(),
                writes: mount.numbers.writes.clone(),
                polls: mount.polls.clone(),
                announcing: mount.announcing.clone(),
                messages: mount.numbers.messages.clone(),
            };
            mount.writable = Some(Place::mount(filesystem, path, &config)?);
        }
        let spawned = mount.spawn(changes);
        spawned.map_err(|error| MountError::Refused {
            path: places.main().display().to_string(),
            error,
        })?;
        Ok(mount)
    }

    fn spawn(&mut self, changes: Arc<dyn Changes>) -> io::Result<()> {
        if let Some(place) = &self.read_only {
            let (looking, device) = (self.looking.clone(), place.device);
            self.inside.push(announce::spawn(
                "look",
                &place.path,
                device,
                looking.clone(),
            )?);
            thread::Builder::new()
                .name("mountinfo-ro".into())
                .spawn(move || {
                    mountpoint::wait_unmounted(device, None);
                    looking.end();
                })?;
        }
        if let Some(place) = &self.writable {
            let announcing = self.announcing.clone();
            self.inside.push(announce::spawn(
                "announce",
                &place.path,
                place.device,
                announcing,
            )?);
            for number in 0..touch::THREADS {
                let touches = self.touches.clone();
                let name = format!("touch-{number}");
                let touch = door::spawn(&name, &place.path, place.device, move |door| {
                    // A file that is gone, or a mount that is, has no watchers left to tell.
                    touches.run(|touch| drop(door.truncate(&touch.path, touch.size)));
                });
                self.inside.push(touch?);
            }
        }
        let writable = self.writable.as_ref().map(|place| Caches {
            tree: self.numbers.tree.clone(),
            kernel: place.kernel(&self.numbers.held),
            announcing: self.announcing.clone(),
            streams: self.numbers.streams.clone(),
            polls: self.polls.clone(),
            touches: self.touches.clone(),
            writes: self.numbers.writes.clone(),
        });
        let mounted = self.read_only.as_ref().zip(self.numbers.read_only.clone());
        let read_only = mounted.map(|(place, mount)| readonly::Caches {
            kernel: place.kernel(mount.held()),
            mount,
            looking: self.looking.clone(),
        });
        let settler = Settler {
            tree: self.numbers.tree.clone(),
            writable,
            read_only,
            changes,
            ended: self.ended.clone(),
            barriers: self.barriers.clone(),
        };
        thread::Builder::new()
            .name("settle".into())
            .spawn(move || settler.run())?;
        let (streams, tree) = (self.numbers.streams.clone(), self.numbers.tree.clone());
        thread::Builder::new()
            .name("streams".into())
            .spawn(move || streams.run(&tree))?;
        let (streams, writes) = (self.numbers.streams.clone(), self.numbers.writes.clone());
        let interrupts = self.interrupts.clone();
        thread::Builder::new()
            .name("interrupts".into())
            .spawn(move || interrupts.run(|| streams.interrupt() | writes.interrupt()))?;
        Ok(())
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.writable.iter().chain(&self.read_only)
    }

    /// Puts a change that an earlier daemon could not end into `last_error` and `.errors`, before anybody
    /// has looked at them.
    pub fn report_cut(&self, uuid: Uuid, reason: &str) {
        self.numbers.tree.errors.record(&Failed {
            uuid: Some(uuid),
            file: "vm.json".to_owned(),
            errno: Errno::EIO,
            message: reason.to_owned(),
            applied: Vec::new(),
        });
    }

    /// Numbers for `.status`.
    pub fn numbers(&self) -> Numbers {
        self.numbers.clone()
    }

    /// The device number of the filesystem whose unmount ends the daemon.
    pub fn device(&self) -> u64 {
        self.places().next().map_or(0, |place| place.device)
    }

    /// Where tests can stop the settling of publications, to see what happens in between.
    #[doc(hidden)]
    pub fn barriers(&self) -> &Barriers {
        &self.barriers
    }

    /// Answers all writers, ends all streams, unmounts, lazily if somebody still uses a mount, and ends the threads.
    /// Returns within about two seconds, whoever still uses it: they get ENOTCONN once the process
    /// has ended.
    pub fn stop(self) {
        let writes = &self.numbers.writes;
        writes.end();
        writes.changes().end(APPLY);
        writes.answer_all();
        self.interrupts.end();
        self.numbers.streams.end();
        self.polls.wake(std::iter::empty(), true);
        self.announcing.end();
        self.looking.end();
        self.touches.end();
        let deadline = Instant::now() + STOP;
        until(deadline, || self.inside.iter().all(JoinHandle::is_finished));
        self.places().for_each(Place::unmount);
        self.ended.store(true, Ordering::Release);
        self.cache.wake();
        until(deadline, || {
            self.places().all(|place| place.session.guard.is_finished())
        });
        // Their destructors would unmount the paths again, where by now something else may be.
        for place in self.writable.into_iter().chain(self.read_only) {
            std::mem::forget(place.session);
        }
    }
}

/// Waits for something that nobody tells of.
fn until(deadline: Instant, is: impl Fn() -> bool) {
    while !is() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
}

fn config(options: &MountOptions, root: bool) -> Config {
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.source.clone()),
        // fuser forgets its own Subtype option when root mounts.
        MountOption::CUSTOM("subtype=vminfod".to_owned()),
        MountOption::DefaultPermissions,
    ];
    config.acl = match options.open_to {
        OpenTo::Everybody if root => SessionACL::All,
        OpenTo::Everybody | OpenTo::Owner => SessionACL::Owner,
    };
    let cores = thread::available_parallelism().map_or(2, usize::from);
    config.n_threads = Some(cores.clamp(2, 8));
    config
}
