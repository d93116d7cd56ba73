//! Locks on files that other tools take too, by flock(2).
//!
//! A lock is held while its file is open, so it goes with the process. The files are never removed:
//! whoever waits for one has it open already.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::failed;
use super::place::PlaceError;
use crate::source::{Failed, FailedKind};

/// How often a lock that somebody else has is tried.
const RETRY: Duration = Duration::from_millis(5);

/// How long a lock may outlive who had it: a child that was just forked has it until it is another
/// program.
pub(super) const GRACE: Duration = Duration::from_millis(250);

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "it is held while this is open")] File);

/// Takes a lock.
///
/// # Errors
/// [`FailedKind::Busy`] if it is not free until the deadline; [`FailedKind::Source`] if its file
/// cannot be made.
pub(super) fn take(path: &Path, deadline: Instant) -> Result<Lock, Failed> {
    let file = open(path).map_err(|error| failed(FailedKind::Source, &error))?;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Lock(file)),
            Err(TryLockError::Error(error)) => {
                return Err(failed(FailedKind::Source, &PlaceError::io(path)(error)));
            }
            Err(TryLockError::WouldBlock) => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let reason = format!(
                "{}: locked by another operation; wait for its end, then try again",
                path.display()
            );
            return Err(failed(FailedKind::Busy, &reason));
        }
        thread::sleep(left.min(RETRY));
    }
}

fn open(path: &Path) -> Result<File, PlaceError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(PlaceError::io(folder))?;
    }
    File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)
        .map_err(PlaceError::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_somebody_has_is_busy_and_named_and_free_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("var/run/vm.lockfile");
        let lock = take(&path, Instant::now()).unwrap();
        let error = take(&path, Instant::now()).unwrap_err();
        assert_eq!(error.kind, FailedKind::Busy);
        assert!(error.reason.contains("vm.lockfile: locked"), "{error}");
        drop(lock);
        // Other tests start programs, which have it for a moment.
        take(&path, Instant::now() + Duration::from_secs(30)).unwrap();
        assert!(path.exists());
    }
}
