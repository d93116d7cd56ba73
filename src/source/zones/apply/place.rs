//! How a file of the store gets another content: written beside it, synced, and renamed over it.
//!
//! Whoever reads sees the old file or the new one, also after a crash. What is not written wholly
//! changes nothing: all that can fail for want of room is done before the rename. A file's mode and
//! owner stay. A symbolic link, or anything else that is no file, is refused. The temporary name
//! begins with a dot and has an ending of its own, so that nobody takes it for a file of the store;
//! it is always the same, so what a killed process left is used again. Only who has the file's lock
//! may write it.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;

/// Why a file was not written. The text names the file and says what to do.
#[derive(Debug, thiserror::Error)]
pub(super) enum PlaceError {
    /// It is a symbolic link, a folder, or the like.
    #[error("{}: not a plain file, so it is not replaced; remove it or put the file itself there", .0.display())]
    NotAFile(PathBuf),
    /// The system refused.
    #[error("{}: {error}{}", .path.display(), advice(error))]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

impl PlaceError {
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> PlaceError + '_ {
        |error| PlaceError::Io {
            path: path.to_owned(),
            error,
        }
    }
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; make room there, then try again"
        }
        io::ErrorKind::ReadOnlyFilesystem => "; mount it writable, then try again",
        io::ErrorKind::PermissionDenied => "; run the daemon as a user who may write there",
        _ => "",
    }
}

/// The next content of a file, on disk beside it. Dropped without being placed, it is removed.
#[derive(Debug)]
pub(super) struct Draft {
    target: PathBuf,
    temporary: PathBuf,
    len: u64,
    is_placed: bool,
}

impl Draft {
    /// Writes the next content of a file. `mode` is for a file that does not exist yet.
    pub(super) fn write(target: &Path, bytes: &[u8], mode: u32) -> Result<Draft, PlaceError> {
        let old = plain(target)?;
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder).map_err(PlaceError::io(folder))?;
        }
        let draft = Draft {
            target: target.to_owned(),
            temporary: beside(target),
            len: bytes.len() as u64,
            is_placed: false,
        };
        draft
            .fill(bytes, old.as_ref(), mode)
            .map_err(PlaceError::io(target))?;
        Ok(draft)
    }

    fn fill(&self, bytes: &[u8], old: Option<&Metadata>, mode: u32) -> io::Result<()> {
        absent(fs::remove_file(&self.temporary))?;
        // Secrets are in some of these files, so nobody else may read one before it has its mode.
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.temporary)?;
        file.write_all(bytes)?;
        if let Some(old) = old {
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (old.uid(), old.gid()) {
                fchown(&file, Some(old.uid()), Some(old.gid()))?;
            }
        }
        // After the owner, since a change of that takes some bits away.
        let mode = old.map_or(mode, |old| old.mode() & 0o7777);
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()
    }

    /// How many bytes it has.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    /// Puts it in the place of the file, and makes sure that it stays there.
    pub(super) fn place(self) -> Result<(), PlaceError> {
        sync_folder(&self.rename()?)
    }

    /// Puts it in the place of the file, which it names. Until [`sync_folder`] a crash of the host
    /// may undo that.
    pub(super) fn rename(mut self) -> Result<PathBuf, PlaceError> {
        plain(&self.target)?;
        fs::rename(&self.temporary, &self.target).map_err(PlaceError::io(&self.target))?;
        self.is_placed = true;
        Ok(self.target.clone())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_placed {
            // If it stays, the next change uses it again.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Replaces a file at once.
pub(super) fn replace(target: &Path, bytes: &[u8], mode: u32) -> Result<(), PlaceError> {
    Draft::write(target, bytes, mode)?.place()
}

/// Removes what a killed process left beside a file. Only who has the file's lock may do that.
pub(super) fn forget_draft(path: &Path) -> Result<(), PlaceError> {
    absent(fs::remove_file(beside(path))).map_err(PlaceError::io(path))
}

/// Removes a file, if it is there, and what is beside it.
pub(super) fn remove(path: &Path) -> Result<(), PlaceError> {
    forget_draft(path)?;
    if plain(path)?.is_none() {
        return Ok(());
    }
    absent(fs::remove_file(path)).map_err(PlaceError::io(path))?;
    sync_folder(path)
}

/// Removes a folder, if it is there and empty.
pub(super) fn remove_empty(path: &Path) -> Result<(), PlaceError> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        result => absent(result).map_err(PlaceError::io(path)),
    }
}

/// Gives a file the present time.
pub(super) fn touch(path: &Path) -> Result<(), PlaceError> {
    let (now, flags) = (TimeSpec::UTIME_NOW, UtimensatFlags::NoFollowSymlink);
    utimensat(nix::fcntl::AT_FDCWD, path, &now, &now, flags)
        .map_err(|errno| PlaceError::io(path)(errno.into()))
}

/// What is known of a plain file; `None` if there is nothing.
fn plain(path: &Path) -> Result<Option<Metadata>, PlaceError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_file() => Ok(Some(metadata)),
        Ok(_) => Err(PlaceError::NotAFile(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(PlaceError::io(path)(error)),
    }
}

fn beside(target: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(target.file_name().unwrap_or_default());
    name.push(".vminfod");
    target.with_file_name(name)
}

/// Makes sure that a name that came, went or changed stays so.
pub(super) fn sync_folder(path: &Path) -> Result<(), PlaceError> {
    let Some(folder) = path.parent() else {
        return Ok(());
    };
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(PlaceError::io(folder))
}

/// What is not there has been removed.
fn absent(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_keeps_its_mode_and_leaves_nothing_beside_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tags.json");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, b"new", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_new_file_has_the_mode_that_is_asked_for_and_its_folder_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config/metadata.json");
        replace(&path, b"{}", 0o600).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o7777, 0o600);
    }

    #[test]
    fn what_is_no_file_is_refused_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("elsewhere", &link).unwrap();
        for path in [link.as_path(), dir.path()] {
            assert!(matches!(
                replace(path, b"", 0o600),
                Err(PlaceError::NotAFile(_))
            ));
            assert!(matches!(remove(path), Err(PlaceError::NotAFile(_))));
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_draft_that_is_not_placed_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.xml");
        fs::write(&path, "old").unwrap();
        drop(Draft::write(&path, b"new", 0o644).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_full_disk_changes_nothing_and_is_named() {
        // Whatever is written to this device fails for want of room.
        let error = PlaceError::io(Path::new("/x/a.xml"))(
            File::options()
                .write(true)
                .open("/dev/full")
                .unwrap()
                .write_all(b"x")
                .unwrap_err(),
        );
        let text = error.to_string();
        assert!(text.starts_with("/x/a.xml: "), "{text}");
        assert!(text.ends_with("make room there, then try again"), "{text}");
    }

    #[test]
    fn what_a_killed_process_left_is_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.xml");
        fs::write(beside(&path), "half of it").unwrap();
        replace(&path, b"new", 0o644).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
