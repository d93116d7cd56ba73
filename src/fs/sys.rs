//! The system calls of the mount that no crate wraps.

use std::ffi::CString;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A private copy of the mount at a path, attached nowhere (open_tree(2), Linux 5.2; needs
/// CAP_SYS_ADMIN). It leads to the same files whatever happens to the path, and does not make the
/// original busy, but keeps the filesystem alive until it is closed.
///
/// # Errors
/// EPERM for an ordinary user; ENOSYS before Linux 5.2.
pub fn clone_mount(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    // SAFETY: `path` is a C string that outlives the call, and the call writes no memory of ours.
    let result =
        unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so this is a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// Gives the calling thread an empty table of descriptors of its own (close_range(2), Linux 5.9).
/// The rest of the process keeps all of its descriptors; this thread can use none of them
/// any more, and what it opens is closed when it ends.
///
/// # Errors
/// ENOSYS before Linux 5.9.
pub fn leave_descriptors() -> io::Result<()> {
    // SAFETY: the call touches no memory. It closes descriptors in a copy of the table that only
    // this thread has; no value of this thread owns one, which is for the caller to see to: one
    // that did would find EBADF, or close what the thread opens later, but nothing of others.
    let result = unsafe {
        libc::syscall(
            libc::SYS_close_range,
            0,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_UNSHARE,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
