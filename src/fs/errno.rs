//! What the mount's errors are to the caller: the one place where errno is chosen.

use fuser::Errno;

use super::handle::ReadError;

impl From<ReadError> for Errno {
    fn from(error: ReadError) -> Errno {
        match error {
            // What sysfs says when the device of an open attribute has gone.
            ReadError::Gone => Errno::ENODEV,
            ReadError::Directory => Errno::EISDIR,
        }
    }
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is nothing of this name, or no longer.
    NoEntry,
    /// It is not a directory.
    NotADirectory,
    /// Nobody can do this here: names are made and removed by the daemon, modes are fixed, and
    /// values cannot be set through the mount.
    NotPermitted,
    /// It has no such extended attribute.
    NoAttribute,
    /// The buffer is too small for the value.
    TooSmall,
    /// The handle is not open.
    BadHandle,
    /// Files have no ioctls.
    NoIoctl,
}

impl From<Refused> for Errno {
    fn from(refused: Refused) -> Errno {
        match refused {
            Refused::NoEntry => Errno::ENOENT,
            Refused::NotADirectory => Errno::ENOTDIR,
            // Not EACCES: no other user could.
            Refused::NotPermitted => Errno::EPERM,
            Refused::NoAttribute => Errno::ENODATA,
            Refused::TooSmall => Errno::ERANGE,
            Refused::BadHandle => Errno::EBADF,
            Refused::NoIoctl => Errno::ENOTTY,
        }
    }
}
