//! The one way a file of the zone store is read.
//!
//! Whatever stands where a file should, reading it ends: a FIFO or a device is refused rather
//! than waited for, and no more than a limit is taken into memory. Owns nothing and knows no
//! layout; [`super::load::Store`] does.

use std::fs::{File, FileType};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::SystemTime;

/// A file's bytes, and when they were last changed.
#[derive(Debug)]
pub struct Contents {
    /// All of the file.
    pub bytes: Vec<u8>,
    /// Its modification time, of the same open file as the bytes.
    pub modified: SystemTime,
}

/// Why a file gave no bytes. The text goes after the file's name.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file.
    #[error("missing")]
    Missing,
    /// It is larger than such a file can sensibly be.
    #[error("larger than {} MiB; not read", .0 >> 20)]
    TooLarge(u64),
    /// It is something else than a file.
    #[error("a {0} stands where a file belongs; remove it")]
    NotAFile(&'static str),
    /// The system refused.
    #[error("cannot be read: {0}")]
    Unreadable(#[source] io::Error),
}

impl From<io::Error> for FileError {
    fn from(error: io::Error) -> FileError {
        match error.kind() {
            io::ErrorKind::NotFound => FileError::Missing,
            _ => FileError::Unreadable(error),
        }
    }
}

/// Reads a whole file of at most `limit` bytes.
///
/// # Errors
/// When the file is missing, too large, no regular file, or unreadable.
pub fn read(path: &Path, limit: u64) -> Result<Contents, FileError> {
    // Without O_NONBLOCK the open of a FIFO waits for a writer. On a regular file it means nothing.
    let mut file = File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(FileError::NotAFile(kind(metadata.file_type())));
    }
    if metadata.len() > limit {
        return Err(FileError::TooLarge(limit));
    }
    let modified = metadata.modified()?;
    // The file may grow while it is read, so the limit is held again. The spare byte lets the
    // read that finds the end do so without growing the buffer.
    let expected = usize::try_from(metadata.len()).unwrap_or(0);
    let mut bytes = Vec::with_capacity(expected + 1);
    file.by_ref().take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLarge(limit));
    }
    Ok(Contents { bytes, modified })
}

fn kind(file_type: FileType) -> &'static str {
    if file_type.is_dir() {
        "directory"
    } else if file_type.is_fifo() {
        "FIFO"
    } else if file_type.is_socket() {
        "socket"
    } else {
        "device"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_gives_its_bytes_and_its_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "abc").unwrap();
        let contents = read(&path, 3).unwrap();
        assert_eq!(contents.bytes, b"abc");
        assert_eq!(
            contents.modified,
            path.metadata().unwrap().modified().unwrap()
        );
    }

    #[test]
    fn a_missing_file_is_told_from_an_unreadable_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        assert!(matches!(read(&file, 1), Err(FileError::Missing)));
        std::fs::write(&file, "").unwrap();
        let below = file.join("g");
        assert!(matches!(read(&below, 1), Err(FileError::Unreadable(_))));
    }

    #[test]
    fn a_fifo_a_directory_and_a_device_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (path, kind) in [
            (fifo.as_path(), "FIFO"),
            (dir.path(), "directory"),
            (Path::new("/dev/zero"), "device"),
        ] {
            let message = read(path, 10).unwrap_err().to_string();
            assert_eq!(
                message,
                format!("a {kind} stands where a file belongs; remove it")
            );
        }
    }

    #[test]
    fn a_file_over_the_limit_is_not_taken_into_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        File::create(&path).unwrap().set_len(100 << 20).unwrap();
        let error = read(&path, 4 << 20).unwrap_err();
        assert_eq!(error.to_string(), "larger than 4 MiB; not read");
    }

    #[test]
    fn a_file_without_a_size_is_read_to_its_end() {
        let contents = read(Path::new("/proc/self/stat"), 1 << 20).unwrap();
        assert!(!contents.bytes.is_empty());
    }
}
