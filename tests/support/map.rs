//! mmap(2) of a file, private and for reading.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::ptr;

/// What the first `len` bytes of a file's private map hold.
pub fn mapped(file: &File, len: usize) -> std::io::Result<Vec<u8>> {
    // SAFETY: a new map, of which the kernel chooses the address, overlaps nothing. It is read
    // within its length, before it is unmapped, and no reference to it is kept.
    unsafe {
        let flags = (libc::PROT_READ, libc::MAP_PRIVATE);
        let at = libc::mmap(ptr::null_mut(), len, flags.0, flags.1, file.as_raw_fd(), 0);
        if at == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        let bytes = std::slice::from_raw_parts(at.cast::<u8>(), len).to_vec();
        libc::munmap(at, len);
        Ok(bytes)
    }
}
