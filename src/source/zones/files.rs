//! The one way a file of the zone store is read.
//!
//! Whatever stands where a file should, reading it ends: a FIFO or a device is refused rather
//! than waited for, and no more than a limit is taken into memory. Owns nothing and knows no
//! layout; [`super::load::Store`] does.

use std::fs::{File, FileType, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A file's bytes, and when they were last changed.
#[derive(Debug)]
pub struct Contents {
    /// All of the file.
    pub bytes: Vec<u8>,
    /// Its modification time, of the same open file as the bytes.
    pub modified: SystemTime,
    /// What it looked like before it was read.
    looks: FileLooks,
}

/// What some files look like from outside: a hash of their identities, sizes and times, in a certain order.
/// Whoever finds the same again need not read them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Looks {
    hash: u64,
    /// The time of the newest change, in nanoseconds since 1970.
    newest: i64,
}

/// Device, inode, size, and the times of the last changes of content and of anything.
type FileLooks = [i64; 5];

/// Two changes within this time may have the same time.
const GRAIN: Duration = Duration::from_secs(1);

impl Looks {
    /// Adds a file, or that there is none.
    pub fn add(&mut self, file: Result<&Contents, &FileError>) {
        match file {
            Ok(contents) => self.add_looks(contents.looks),
            Err(FileError::Missing) => self.add_looks(FileLooks::default()),
            // What cannot be read says by no look when it can be.
            Err(_) => self.newest = i64::MAX,
        }
    }

    /// Adds what stands at a path now.
    pub fn add_path(&mut self, path: &Path) {
        match std::fs::metadata(path) {
            Ok(metadata) => self.add_looks(looks(&metadata)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.add_looks(FileLooks::default());
            }
            Err(_) => self.newest = i64::MAX,
        }
    }

    fn add_looks(&mut self, looks: FileLooks) {
        self.newest = self.newest.max(looks[4]);
        self.hash = looks.iter().fold(self.hash, |hash, part| {
            xxh3_64_with_seed(&part.to_ne_bytes(), hash)
        });
    }

    /// The hash, if a change after `read` would give another one.
    pub fn settled(self, read: SystemTime) -> Option<u64> {
        let settled = read.checked_sub(GRAIN)?;
        let settled = settled.duration_since(SystemTime::UNIX_EPOCH).ok()?;
        (i128::from(self.newest) < settled.as_nanos() as i128).then_some(self.hash)
    }
}

fn looks(file: &Metadata) -> FileLooks {
    let nanos =
        |seconds: i64, nanos: i64| seconds.saturating_mul(1_000_000_000).saturating_add(nanos);
    [
        file.dev() as i64,
        file.ino() as i64,
        file.size() as i64,
        nanos(file.mtime(), file.mtime_nsec()),
        nanos(file.ctime(), file.ctime_nsec()),
    ]
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
    let looks = looks(&metadata);
    // Nearly always one read gets all of it, and the byte to spare says so: less than was asked for
    // is the end of a regular file.
    let expected = usize::try_from(metadata.len()).unwrap_or(0);
    let mut bytes = vec![0; expected + 1];
    let len = file.read(&mut bytes)?;
    let is_whole = len == expected && len > 0;
    bytes.truncate(len);
    if !is_whole {
        // It changes while it is read, so the limit is held again; or it does not tell its size.
        let rest = (limit + 1).saturating_sub(len as u64);
        file.by_ref().take(rest).read_to_end(&mut bytes)?;
    }
    if bytes.len() as u64 > limit {
        return Err(FileError::TooLarge(limit));
    }
    Ok(Contents {
        bytes,
        modified,
        looks,
    })
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
