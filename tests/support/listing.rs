//! getdents64(2) with a buffer of any size: libc always takes a large one.

use std::fs::File;
use std::os::fd::AsRawFd;

/// Reads the next names of a directory, as many as fit into `size` bytes; none at its end.
pub fn next_names(dir: &File, size: usize) -> Vec<String> {
    let mut buffer = vec![0u8; size];
    // SAFETY: the kernel writes at most `size` bytes into the buffer, which is that large and lives
    // until the call has returned.
    let read = unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            dir.as_raw_fd(),
            buffer.as_mut_ptr(),
            size,
        )
    };
    let read = usize::try_from(read).expect("a directory can be read");
    let mut entries = &buffer[..read];
    let mut names = Vec::new();
    // Inode number and position, 8 bytes each, the length of the entry in 2 bytes, the kind in one,
    // and the name up to a NUL.
    while entries.len() > 19 {
        let length = usize::from(u16::from_ne_bytes([entries[16], entries[17]]));
        let name = entries[19..length].split(|byte| *byte == 0).next();
        names.push(String::from_utf8_lossy(name.unwrap_or_default()).into_owned());
        entries = &entries[length..];
    }
    names
}
