//! The daemon's own way into its mount, through which it makes inotify speak.
//!
//! inotify reports what goes through the VFS, so a change made by the server is reported only if the server goes
//! through the VFS itself: it truncates a file to the size it has (IN_MODIFY on the file and in its directory), and
//! makes and removes the VMs' directories (IN_CREATE, IN_DELETE). It also looks at changed files before it tells of
//! them. Each of these is a request that the server then has to answer, so nobody who answers requests may go through
//! the door.
//!
//! **Whoever goes through it keeps nothing else open.** If the daemon is killed between taking such
//! a request and answering it, the thread that sent it waits, and no signal ends the wait; what
//! does is the end of the connection, which comes when nobody has `/dev/fuse` open any more. With
//! the process's table of descriptors the thread would keep it open itself, for ever. So such a
//! thread leaves the table first ([`spawn`]): it has its door and nothing else, cannot log, and is
//! told what to do, and tells what came of it, through memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::Mode;
use nix::unistd::UnlinkatFlags;

use super::sys;

/// A way into the mount. It belongs to one thread, and is closed when that ends.
#[derive(Debug)]
pub enum Door {
    /// A private copy of the mount: it cannot lead anywhere else, and keeps nobody from
    /// unmounting the original.
    Clone(OwnedFd),
    /// The path, for ordinary users. It is opened for each use, and used only while it leads to our
    /// filesystem; an open descriptor would make the mount busy.
    Path {
        /// The mount point.
        path: PathBuf,
        /// The device number of our filesystem.
        device: u64,
    },
}

/// Starts a thread that has a door of the filesystem mounted at `path`, whose device number is
/// `device`, and no other descriptor. Returns when the door is open. What the thread is given must
/// own no descriptor.
///
/// The private copy of the mount keeps the filesystem alive, so the thread must be made to end when
/// the mount has gone.
///
/// # Errors
/// When the thread cannot be started or cannot leave the table of descriptors.
pub fn spawn(
    name: &str,
    path: &Path,
    device: u64,
    work: impl FnOnce(&Door) + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    let path = path.to_owned();
    let (tell, opened) = mpsc::sync_channel(1);
    let thread = thread::Builder::new().name(name.into()).spawn(move || {
        let door = sys::leave_descriptors().map(|()| Door::open(path, device));
        match door {
            Ok(door) => {
                // The one who started the thread waits for this.
                let _ = tell.send(Ok(()));
                work(&door);
            }
            Err(error) => drop(tell.send(Err(error))),
        }
    })?;
    opened.recv().map_err(io::Error::other)??;
    Ok(thread)
}

impl Door {
    fn open(path: PathBuf, device: u64) -> Door {
        match sys::clone_mount(&path) {
            Ok(clone) => Door::Clone(clone),
            Err(_) => Door::Path { path, device },
        }
    }

    /// Makes a directory in the root of the mount.
    pub fn mkdir(&self, name: &str) -> io::Result<()> {
        self.with(|root| {
            Ok(nix::sys::stat::mkdirat(
                root,
                name,
                Mode::from_bits_truncate(0o755),
            )?)
        })
    }

    /// Removes a directory from the root of the mount.
    pub fn rmdir(&self, name: &str) -> io::Result<()> {
        self.with(|root| Ok(nix::unistd::unlinkat(root, name, UnlinkatFlags::RemoveDir)?))
    }

    /// Asks for a file's attributes.
    pub fn stat(&self, path: &str) -> io::Result<()> {
        self.with(|root| {
            nix::sys::stat::fstatat(root, path, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            Ok(())
        })
    }

    /// Truncates a file to a size. There is no truncateat(2): the path leads over the descriptor.
    pub fn truncate(&self, path: &str, size: u64) -> io::Result<()> {
        self.with(|root| {
            // `/proc/self` is the process, which does not know this thread's descriptors.
            let path = format!("/proc/thread-self/fd/{}/{path}", root.as_fd().as_raw_fd());
            Ok(nix::unistd::truncate(path.as_str(), size as i64)?)
        })
    }

    fn with<T>(&self, act: impl FnOnce(&dyn AsFd) -> io::Result<T>) -> io::Result<T> {
        match self {
            Door::Clone(root) => act(root),
            Door::Path { path, device } => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                let root = File::from(nix::fcntl::open(path, flags, Mode::empty())?);
                let found = nix::sys::stat::fstatat(&root, "", AtFlags::AT_EMPTY_PATH)?;
                if found.st_dev != *device {
                    return Err(io::ErrorKind::NotFound.into());
                }
                act(&root)
            }
        }
    }
}
