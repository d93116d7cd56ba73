//! What the mount's errors are to the caller: the one place where errno is chosen.

use fuser::Errno;

use super::handle::ReadError;
use crate::mutation::Failure;
use crate::vm::payload::InvalidKind;

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
    /// this is no file that can be set.
    NotPermitted,
    /// It has no such extended attribute.
    NoAttribute,
    /// The buffer is too small for the value.
    TooSmall,
    /// The handle is not open.
    BadHandle,
    /// Files have no ioctls.
    NoIoctl,
    /// It is there already, and was not to be.
    Exists,
    /// More is written than any value is long.
    TooLong,
    /// No file can have a name as long as this.
    NameTooLong,
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
            Refused::Exists => Errno::EEXIST,
            Refused::TooLong => Errno::EFBIG,
            Refused::NameTooLong => Errno::ENAMETOOLONG,
        }
    }
}

impl From<InvalidKind> for Errno {
    fn from(kind: InvalidKind) -> Errno {
        match kind {
            InvalidKind::Value => Errno::EINVAL,
            InvalidKind::Unknown => Errno::ENOENT,
            InvalidKind::Fixed => Errno::EPERM,
            InvalidKind::State => Errno::EBUSY,
        }
    }
}

impl From<&Failure> for Errno {
    fn from(failure: &Failure) -> Errno {
        match failure {
            Failure::Refused(invalid) => invalid.kind.into(),
            Failure::Moved(_) => Errno::ESTALE,
            Failure::Exists(_) => Errno::EEXIST,
            Failure::Busy(_) => Errno::EBUSY,
            Failure::WouldBlock(_) => Errno::EAGAIN,
            Failure::Gone(_) => Errno::ENOENT,
            Failure::Source { .. } => Errno::EIO,
            // Whether it took effect cannot be said, and to repeat it is for the caller to decide.
            Failure::Unconfirmed(_) | Failure::Ended(_) => Errno::ETIMEDOUT,
            // What was written is not what is there, as with `if_generation`.
            Failure::Overtaken(_) => Errno::ESTALE,
        }
    }
}

/// What an error is called: `EINVAL`.
pub fn name(errno: Errno) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(errno.code()))
}
