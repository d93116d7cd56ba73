//! Mount points: whether one can be used, what is mounted there, and how it is unmounted.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout};

/// The filesystem type of our mounts.
pub const TYPE: &str = "fuse.vminfod";

/// Why something cannot be mounted or unmounted there.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// There is nothing at the path.
    #[error("mount point {0}: does not exist; create it first: mkdir {0}")]
    Missing(String),
    /// It is a file.
    #[error("mount point {0}: not a directory")]
    NotADirectory(String),
    /// It has entries, which a mount would hide.
    #[error("mount point {0}: not empty; choose an empty directory")]
    NotEmpty(String),
    /// Something is mounted there.
    #[error("mount point {path}: already mounted ({kind}); unmount it first: umount {path}")]
    Mounted {
        /// The mount point.
        path: String,
        /// The type of what is mounted.
        kind: String,
    },
    /// The read-only mount would lie on the writable one.
    #[error("ro_mount {0}: is the mount point itself; choose another directory")]
    Same(String),
    /// Nothing of ours is mounted there.
    #[error("{0}: no vminfod is mounted here")]
    NotMounted(String),
    /// It cannot be looked at.
    #[error("mount point {path}: {error}")]
    Unreadable {
        /// The mount point.
        path: String,
        /// The system's error.
        error: io::Error,
    },
    /// There is no FUSE on this host.
    #[error(
        "/dev/fuse: {0}; load the fuse module (modprobe fuse), or give the container the device"
    )]
    NoFuse(io::Error),
    /// mount(2), or fusermount3 for an ordinary user, refused.
    #[error("mount point {path}: cannot mount: {error}")]
    Refused {
        /// The mount point.
        path: String,
        /// What it said.
        error: io::Error,
    },
    /// umount(2), or fusermount3 for an ordinary user, refused.
    #[error("{path}: cannot unmount: {error}")]
    NotUnmounted {
        /// The mount point.
        path: String,
        /// What it said.
        error: io::Error,
    },
}

/// A line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// The device number of the filesystem, as in `st_dev`.
    pub device: u64,
    /// Where it is mounted.
    pub path: PathBuf,
    /// Its type: `fuse.vminfod`.
    pub kind: String,
}

/// All mounts of this mount namespace, in the order in which they were made.
///
/// # Errors
/// When /proc is not mounted.
pub fn mounts() -> io::Result<Vec<Mounted>> {
    Ok(fs::read("/proc/self/mountinfo")?
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// `36 35 98:0 /root /mount/point options - type source options`; blanks in paths are `\040`.
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(fields.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let device = nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?);
    let path = unescape(fields.nth(1)?);
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let path = PathBuf::from(std::ffi::OsString::from_vec(path));
    Some(Mounted {
        device,
        path,
        kind: String::from_utf8_lossy(kind).into_owned(),
    })
}

fn unescape(field: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let octal = field
            .get(at + 1..at + 4)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match (
            field[at],
            octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()),
        ) {
            (b'\\', Some(byte)) => {
                path.push(byte);
                at += 4;
            }
            (byte, _) => {
                path.push(byte);
                at += 1;
            }
        }
    }
    path
}

/// The mount on top at a path.
fn mounted_at(path: &Path) -> io::Result<Option<Mounted>> {
    Ok(mounts()?.into_iter().rfind(|mounted| mounted.path == path))
}

/// Makes sure that something can be mounted here, and returns the path without links. A mount of
/// ours whose daemon has died is cleared away.
///
/// # Errors
/// When the directory is missing, no directory, not empty, or already a mount point.
pub fn prepare(path: &Path) -> Result<PathBuf, MountError> {
    let shown = path.display().to_string();
    let unreadable = |error: io::Error| MountError::Unreadable {
        path: shown.clone(),
        error,
    };
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::Missing(shown));
        }
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            let dead = absolute(path).map_err(unreadable)?;
            // The dead one may be somebody else's.
            return match mounted_at(&dead).map_err(unreadable)? {
                Some(mounted) if mounted.kind == TYPE => {
                    unmount(&dead, Busy::Detach)?;
                    prepare(path)
                }
                _ => Err(unreadable(error)),
            };
        }
        Err(error) => return Err(unreadable(error)),
        Ok(_) => {}
    }
    let path = match path.canonicalize() {
        Ok(path) => path,
        // A link to a mount whose daemon has died.
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            let target = fs::read_link(path).map_err(unreadable)?;
            return prepare(&path.parent().unwrap_or(Path::new("/")).join(target));
        }
        Err(error) => return Err(unreadable(error)),
    };
    if let Some(mounted) = mounted_at(&path).map_err(unreadable)?
        && path != Path::new("/")
    {
        if mounted.kind == TYPE && is_dead(&path) {
            unmount(&path, Busy::Detach)?;
            return prepare(&path);
        }
        return Err(MountError::Mounted {
            path: shown,
            kind: mounted.kind,
        });
    }
    if !fs::metadata(&path).map_err(unreadable)?.is_dir() {
        return Err(MountError::NotADirectory(shown));
    }
    if fs::read_dir(&path).map_err(unreadable)?.next().is_some() {
        return Err(MountError::NotEmpty(shown));
    }
    if let Err(error) = fs::metadata("/dev/fuse") {
        return Err(MountError::NoFuse(error));
    }
    Ok(path)
}

/// Whether the daemon of a mount has died. The kernel may go on answering from its caches, so
/// this asks what it never caches. A daemon that does not answer is not dead.
fn is_dead(path: &Path) -> bool {
    let path = path.to_owned();
    let (answer, answered) = mpsc::channel();
    let asking = thread::Builder::new().spawn(move || {
        // Nobody hears an answer that comes too late.
        let _ = answer.send(nix::sys::statfs::statfs(&path).err());
    });
    let dead = Ok(Some(nix::errno::Errno::ENOTCONN));
    asking.is_ok() && answered.recv_timeout(Duration::from_secs(1)) == dead
}

/// The same of a place where one of our mounts may be about to go, which is waited for.
///
/// # Errors
/// Those of [`prepare`].
pub fn prepare_when_free(path: &Path, patience: Duration) -> Result<PathBuf, MountError> {
    let deadline = Instant::now() + patience;
    loop {
        match prepare(path) {
            Err(MountError::Mounted { kind, .. }) if kind == TYPE && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(10));
            }
            prepared => return prepared,
        }
    }
}

/// A path without links, where its last part cannot be looked at.
fn absolute(path: &Path) -> io::Result<PathBuf> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let parent = parent.canonicalize()?;
    Ok(path
        .file_name()
        .map_or_else(|| parent.clone(), |name| parent.join(name)))
}

/// The vminfod mount at a path; its daemon may be dead.
///
/// # Errors
/// When nothing of ours is mounted there.
pub fn find(path: &Path) -> Result<Mounted, MountError> {
    let shown = path.display().to_string();
    let unreadable = |error| MountError::Unreadable {
        path: shown.clone(),
        error,
    };
    let path = absolute(path).map_err(unreadable)?;
    let canonical = path.canonicalize().unwrap_or_else(|_| path.clone());
    let found = match mounted_at(&canonical).map_err(unreadable)? {
        Some(mounted) => Some(mounted),
        None => mounted_at(&path).map_err(unreadable)?,
    };
    found
        .filter(|mounted| mounted.kind == TYPE)
        .ok_or(MountError::NotMounted(shown))
}

/// The device number of the filesystem at a path.
///
/// # Errors
/// When it cannot be looked at.
pub fn device(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.dev())
}

/// Whether a filesystem is still mounted anywhere in this namespace.
pub fn is_mounted(device: u64) -> bool {
    mounts().map_or(true, |mounts| {
        mounts.iter().any(|mounted| mounted.device == device)
    })
}

/// Waits until a filesystem is mounted nowhere any more: returns true. False: the time is up.
pub fn wait_unmounted(device: u64, deadline: Option<Instant>) -> bool {
    let Ok(file) = fs::File::open("/proc/self/mountinfo") else {
        return false;
    };
    while is_mounted(device) {
        let timeout = match deadline {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return false;
                }
                PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        // The file has an exceptional condition whenever the mounts change.
        let mut polled = [PollFd::new(file.as_fd(), PollFlags::POLLPRI)];
        let _ = nix::poll::poll(&mut polled, timeout);
    }
    true
}

/// What to do with a mount that somebody uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Leave it: the unmount fails.
    Fail,
    /// Take it out of sight; it ends when its last user has gone.
    Detach,
}

/// Unmounts a path: by umount(2), or, for an ordinary user, by fusermount3.
///
/// # Errors
/// What umount(2) or fusermount3 said.
pub fn unmount(path: &Path, busy: Busy) -> Result<(), MountError> {
    let shown = path.display().to_string();
    let flags = match busy {
        Busy::Fail => MntFlags::empty(),
        Busy::Detach => MntFlags::MNT_DETACH,
    } | MntFlags::UMOUNT_NOFOLLOW;
    match umount2(path, flags) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EPERM) => {
            let option = if busy == Busy::Detach { "-uz" } else { "-u" };
            let refused = |error| MountError::NotUnmounted {
                path: shown.clone(),
                error,
            };
            let mut fusermount = Command::new("fusermount3");
            fusermount
                .arg(option)
                .arg("--")
                .arg(path)
                .stdin(Stdio::null());
            let output = fusermount.output().map_err(refused)?;
            if output.status.success() {
                return Ok(());
            }
            let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(refused(io::Error::other(text)))
        }
        Err(error) => Err(MountError::NotUnmounted {
            path: shown,
            error: error.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_from_its_line() {
        let line =
            br"57 29 0:44 / /tmp/a\040b rw,nosuid shared:1 - fuse.vminfod zones rw,user_id=0";
        let mounted = parse(line).unwrap();
        assert_eq!(mounted.path, Path::new("/tmp/a b"));
        assert_eq!(mounted.kind, TYPE);
        assert_eq!(mounted.device, nix::sys::stat::makedev(0, 44));
    }

    #[test]
    fn the_path_of_a_mount_point_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(
            prepare(&dir.path().join("none")),
            Err(MountError::Missing(_))
        ));
        assert!(matches!(prepare(&file), Err(MountError::NotADirectory(_))));
        assert!(matches!(prepare(dir.path()), Err(MountError::NotEmpty(_))));
        assert!(matches!(
            prepare(Path::new("/proc")),
            Err(MountError::Mounted { .. })
        ));
        assert!(matches!(find(dir.path()), Err(MountError::NotMounted(_))));
    }
}
