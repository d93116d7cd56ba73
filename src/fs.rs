//! Names and contents of the tree, and the mount. Only here is fuser; no source is ever seen here.
//!
//! `tree` answers from memory what there is; `writable` adapts it to fuser's requests; `writing` turns
//! what is written into changes of VMs. Beside the threads of fuser, which answer requests and never wait, a mount has some of its own:
//!
//! - `settle` puts the kernel's caches right after each publication (`settle`);
//! - `streams` answers readers of events when there are some (`stream`);
//! - `interrupts` lets go of readers and writers that have a signal (`wait`);
//! - `announce` makes names come and go through the VFS, and looks at what changed (`announce`);
//! - `touch-N` raise IN_MODIFY (`touch`).
//!
//! The last two enter the mount themselves, and so have no descriptors but their own (`door`).
//!
//! A read-only mount will be a second adapter beside `writable`, over the same tree.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, Errno, MountOption, Session, SessionACL};
use parking_lot::RwLock;
use uuid::Uuid;

use crate::cache::Cache;
use crate::mutation::Changes;

mod announce;
mod door;
mod errno;
mod handle;
mod held;
mod inode;
mod messages;
pub mod mountpoint;
mod poll;
mod settle;
mod stream;
mod sys;
mod touch;
mod tree;
mod wait;
mod writable;
mod writing;

use announce::{Announcing, Change, Errand};
use handle::Handles;
pub use handle::Listener;
use held::Held;
use messages::Messages;
use mountpoint::{Busy, MountError};
use poll::Polls;
use settle::Settler;
use stream::Streams;
use touch::Touches;
use tree::{Ownership, Tree};
use wait::Interrupts;
use writable::Writable;
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

    /// The number of the last event for which the kernel's caches are right.
    pub fn settled(&self) -> u64 {
        self.tree.told()
    }
}

/// A mounted tree, to be ended by [`Mount::stop`]: dropping it unmounts the path, whatever is
/// mounted there by then, and leaves its threads.
pub struct Mount {
    path: PathBuf,
    device: u64,
    session: BackgroundSession,
    numbers: Numbers,
    cache: Arc<Cache>,
    announcing: Arc<Announcing>,
    touches: Arc<Touches>,
    interrupts: Arc<Interrupts>,
    /// The threads that keep the filesystem alive by their ways into it.
    inside: Vec<JoinHandle<()>>,
    polls: Arc<Polls>,
    ended: Arc<AtomicBool>,
    barrier: Arc<RwLock<()>>,
}

impl Mount {
    /// Mounts the cache's VMs on a directory that [`mountpoint::prepare`] has approved. What is
    /// written there is asked of `changes`; `status` writes the status document.
    ///
    /// # Errors
    /// When there is no FUSE, or the kernel or fusermount3 refuses.
    pub fn new(
        cache: Arc<Cache>,
        path: &Path,
        options: &MountOptions,
        changes: Arc<dyn Changes>,
        status: impl Fn() -> String + Send + Sync + 'static,
    ) -> Result<Mount, MountError> {
        let shown = path.display().to_string();
        let refused = |error| MountError::Refused {
            path: shown.clone(),
            error,
        };
        let user = nix::unistd::geteuid();
        let ownership = Ownership {
            uid: user.as_raw(),
            gid: options.group.unwrap_or(nix::unistd::getegid().as_raw()),
            shared: options.group.is_some(),
            unprivileged: !user.is_root(),
        };
        let tree = Arc::new(Tree::new(cache.clone(), ownership, Arc::new(status)));
        let (touches, interrupts) = (Arc::<Touches>::default(), Arc::<Interrupts>::default());
        let writes = Writes::new(tree.clone(), changes, touches.clone(), interrupts.clone());
        let numbers = Numbers {
            held: Arc::default(),
            handles: Arc::default(),
            streams: Arc::new(Streams::new(interrupts.clone())),
            writes: Arc::new(writes),
            messages: Arc::default(),
            tree,
        };
        let polls = Arc::new(Polls::default());
        let announcing = Arc::new(Announcing::default());
        let filesystem = Writable {
            tree: numbers.tree.clone(),
            held: numbers.held.clone(),
            handles: numbers.handles.clone(),
            streams: numbers.streams.clone(),
            writes: numbers.writes.clone(),
            polls: polls.clone(),
            announcing: announcing.clone(),
            messages: numbers.messages.clone(),
        };
        let session =
            Session::new(filesystem, path, &config(options, user.is_root())).map_err(refused)?;
        let session = session.spawn().map_err(refused)?;
        let device = mountpoint::device(path).map_err(refused)?;
        let mut mount = Mount {
            path: path.to_owned(),
            device,
            numbers,
            cache,
            announcing,
            touches,
            interrupts,
            inside: Vec::new(),
            polls,
            ended: Arc::default(),
            barrier: Arc::default(),
            session,
        };
        mount.spawn().map_err(refused)?;
        Ok(mount)
    }

    fn spawn(&mut self) -> io::Result<()> {
        let announcing = self.announcing.clone();
        let announce = door::spawn("announce", &self.path, self.device, move |door| {
            announcing.run(|errand| match errand {
                Errand::Name { change, uuid, .. } => match change {
                    Change::Come => door.mkdir(&uuid.to_string()),
                    Change::Go => door.rmdir(&uuid.to_string()),
                },
                // One that is gone needs no look.
                Errand::Look(paths) => {
                    paths.iter().for_each(|path| drop(door.stat(path)));
                    Ok(())
                }
            });
        });
        self.inside.push(announce?);
        for number in 0..touch::THREADS {
            let touches = self.touches.clone();
            let name = format!("touch-{number}");
            let touch = door::spawn(&name, &self.path, self.device, move |door| {
                // A file that is gone, or a mount that is, has no watchers left to tell.
                touches.run(|touch| drop(door.truncate(&touch.path, touch.size)));
            });
            self.inside.push(touch?);
        }
        let settler = Settler {
            tree: self.numbers.tree.clone(),
            held: self.numbers.held.clone(),
            notifier: self.session.notifier(),
            announcing: self.announcing.clone(),
            streams: self.numbers.streams.clone(),
            polls: self.polls.clone(),
            touches: self.touches.clone(),
            writes: self.numbers.writes.clone(),
            ended: self.ended.clone(),
            barrier: self.barrier.clone(),
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

    /// The device number of the mounted filesystem.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// Stops the settling of publications while it is held, for tests of what happens in between.
    #[doc(hidden)]
    pub fn barrier(&self) -> Arc<RwLock<()>> {
        self.barrier.clone()
    }

    /// Answers all writers, ends all streams, unmounts, lazily if somebody still uses the mount, and ends the threads.
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
        self.touches.end();
        let deadline = Instant::now() + STOP;
        until(deadline, || self.inside.iter().all(JoinHandle::is_finished));
        if mountpoint::is_mounted(self.device)
            && mountpoint::device(&self.path).is_ok_and(|device| device == self.device)
            && let Err(error) = mountpoint::unmount(&self.path, Busy::Fail)
        {
            tracing::debug!(%error, "unmounting lazily");
            if let Err(error) = mountpoint::unmount(&self.path, Busy::Detach) {
                tracing::warn!(%error, "left mounted");
            }
        }
        self.ended.store(true, Ordering::Release);
        self.cache.wake();
        until(deadline, || self.session.guard.is_finished());
        // Its destructor would unmount the path again, where by now something else may be.
        std::mem::forget(self.session);
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
