//! fanotify on single folders: what inotify does, without its limit, for who has CAP_SYS_ADMIN.
//!
//! inotify numbers its watches; an event of fanotify names its folder by the *handle* that the
//! filesystem has for it, which is never given to another folder, also not when its inode number is. So a folder
//! is known by a hash of filesystem and handle, and nothing has to be kept for a mark.
//!
//! - A mark stays until its folder is deleted; the events of one that nobody has on record are strangers'.
//! - Events of one name that wait are merged: what happened is known, but not in which order. Whoever needs the
//!   order (the index is written, is it closed?) watches by inotify.
//! - Not every filesystem has handles: [`Fanotify::mark`] then fails.
//!
//! Folders and not whole filesystems are marked, although one mark would do for all: with that, whatever
//! anybody writes anywhere in it would come here as an event.

use std::hash::Hasher;
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::fanotify::{EventFFlags, InitFlags, MarkFlags, MaskFlags};
use nix::sys::inotify::AddWatchFlags;
use nix::sys::stat::Mode;
use xxhash_rust::xxh3::Xxh3;

/// A group of marks, and their events.
pub(super) struct Fanotify(nix::sys::fanotify::Fanotify);

/// What stands for a folder: a hash of its filesystem and handle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct FolderHash(u64);

/// Something that happened. The bits mean what they mean in inotify; several may be set.
#[derive(Debug)]
pub(super) struct Event<'a> {
    /// In which folder; none when events were lost.
    pub(super) folder: Option<FolderHash>,
    pub(super) mask: AddWatchFlags,
    /// The name in that folder; none where the folder itself is meant.
    pub(super) name: Option<&'a str>,
}

/// The filesystem of a file, as fanotify names it.
type Fsid = [u8; 8];

impl Fanotify {
    /// A group without marks.
    pub(super) fn new() -> Result<Fanotify, Errno> {
        let flags = InitFlags::FAN_CLASS_NOTIF
            | InitFlags::FAN_CLOEXEC
            | InitFlags::FAN_NONBLOCK
            | InitFlags::FAN_UNLIMITED_MARKS
            | InitFlags::from_bits_retain(libc::FAN_REPORT_DFID_NAME);
        let group = nix::sys::fanotify::Fanotify::init(flags, EventFFlags::O_RDONLY)?;
        Ok(Fanotify(group))
    }

    /// Marks a folder; `None` if there is none. Marking it again has no effect.
    pub(super) fn mark(
        &self,
        path: &Path,
        mask: AddWatchFlags,
    ) -> Result<Option<FolderHash>, Errno> {
        // Marked and named by one descriptor, so that both are the same folder.
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let folder = match open(path, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(None),
            Err(errno) => return Err(errno),
        };
        let mask = MaskFlags::from_bits_retain(mask.bits().into())
            | MaskFlags::FAN_EVENT_ON_CHILD
            | MaskFlags::FAN_ONDIR;
        let flags = MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_ONLYDIR;
        match self.0.mark(flags, mask, &folder, Some(".")) {
            Ok(()) => name(&folder).map(Some),
            // Deleted since it was opened.
            Err(Errno::ENOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Reads what waits and fits into `buffer`, and shows it. EAGAIN when nothing waits.
    pub(super) fn read(
        &self,
        buffer: &mut [u8],
        mut see: impl FnMut(&Event<'_>),
    ) -> Result<(), Errno> {
        let len = nix::unistd::read(&self.0, buffer)?;
        let mut rest = &buffer[..len];
        while let Some((event, behind)) = next(rest) {
            see(&event);
            rest = behind;
        }
        Ok(())
    }
}

impl AsFd for Fanotify {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The name of an opened folder.
fn name(folder: &OwnedFd) -> Result<FolderHash, Errno> {
    /// `struct file_handle`, with room for the longest handle.
    #[repr(C)]
    struct Handle {
        bytes: u32,
        kind: i32,
        handle: [u8; libc::MAX_HANDLE_SZ as usize],
    }
    // The kind of handle that fanotify reports; before Linux 6.5 it is the only one.
    for flags in [
        libc::AT_EMPTY_PATH | libc::AT_HANDLE_FID,
        libc::AT_EMPTY_PATH,
    ] {
        let mut handle = Handle {
            bytes: libc::MAX_HANDLE_SZ as u32,
            kind: 0,
            handle: [0; libc::MAX_HANDLE_SZ as usize],
        };
        let mut mount = 0;
        // SAFETY: the path is empty and ends with NUL; `handle` has the layout of the kernel's
        // `struct file_handle` and says how long it is; both pointers live through the call.
        let done = unsafe {
            libc::name_to_handle_at(
                folder.as_raw_fd(),
                c"".as_ptr(),
                (&raw mut handle).cast(),
                &mut mount,
                flags,
            )
        };
        match Errno::result(done) {
            Ok(_) => {
                let len = (handle.bytes as usize).min(handle.handle.len());
                return Ok(hash(fsid(folder)?, handle.kind, &handle.handle[..len]));
            }
            Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno),
        }
    }
    Err(Errno::EOPNOTSUPP)
}

fn fsid(folder: &OwnedFd) -> Result<Fsid, Errno> {
    let mut statfs = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the pointer is to a whole `struct statfs`, which the kernel fills.
    let done = unsafe { libc::fstatfs(folder.as_raw_fd(), statfs.as_mut_ptr()) };
    Errno::result(done)?;
    // SAFETY: all its members are integers, for which zeroes would do too.
    let statfs = unsafe { statfs.assume_init() };
    // SAFETY: the kernel's `__kernel_fsid_t` is two 32-bit numbers, in whatever way libc hides them.
    Ok(unsafe { std::mem::transmute::<libc::fsid_t, Fsid>(statfs.f_fsid) })
}

fn hash(fsid: Fsid, kind: i32, handle: &[u8]) -> FolderHash {
    let mut hash = Xxh3::new();
    hash.write(&fsid);
    hash.write_i32(kind);
    hash.write(handle);
    FolderHash(hash.finish())
}

/// The event at the beginning of what was read, and what is behind it.
fn next(bytes: &[u8]) -> Option<(Event<'_>, &[u8])> {
    type Metadata = libc::fanotify_event_metadata;
    let len = number(bytes, offset_of!(Metadata, event_len))?;
    let fixed: [u8; 2] = piece(bytes, offset_of!(Metadata, metadata_len))?;
    let mask: [u8; 8] = piece(bytes, offset_of!(Metadata, mask))?;
    let (event, behind) = bytes.split_at_checked(len).filter(|_| len > 0)?;
    let mut shown = Event {
        folder: None,
        mask: AddWatchFlags::from_bits_truncate(u64::from_ne_bytes(mask) as u32),
        name: None,
    };
    let mut records = event.get(usize::from(u16::from_ne_bytes(fixed))..)?;
    while let Some((named, rest)) = record(records) {
        if let Some((folder, name)) = named {
            (shown.folder, shown.name) = (Some(folder), name);
        }
        records = rest;
    }
    Some((shown, behind))
}

/// A folder, and a name in it.
type Named<'a> = (FolderHash, Option<&'a str>);

/// What an information record names, and what is behind it.
fn record(bytes: &[u8]) -> Option<(Option<Named<'_>>, &[u8])> {
    // Type, padding and length; then the filesystem, and the handle with its own length and kind.
    const HANDLE: usize = size_of::<libc::fanotify_event_info_fid>();
    let [kind, _] = piece(bytes, 0)?;
    let len: [u8; 2] = piece(bytes, 2)?;
    let (record, behind) = bytes.split_at_checked(u16::from_ne_bytes(len).into())?;
    if record.is_empty() {
        return None;
    }
    if !matches!(
        kind,
        libc::FAN_EVENT_INFO_TYPE_DFID_NAME | libc::FAN_EVENT_INFO_TYPE_DFID
    ) {
        return Some((None, behind));
    }
    let fsid = piece(record, size_of::<libc::fanotify_event_info_header>())?;
    let len = number(record, HANDLE)?;
    let kind = i32::from_ne_bytes(piece(record, HANDLE + 4)?);
    let (handle, name) = record.get(HANDLE + 8..)?.split_at_checked(len)?;
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    let name = match name {
        b"." | b"" => None,
        // Nobody reads a file with another name; it must not be taken for the folder itself.
        name => Some(std::str::from_utf8(name).unwrap_or("\u{fffd}")),
    };
    Some((Some((hash(fsid, kind, handle), name)), behind))
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_ne_bytes(piece(bytes, at)?)).ok()
}

fn piece<const LEN: usize>(bytes: &[u8], at: usize) -> Option<[u8; LEN]> {
    bytes.get(at..at + LEN)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::fs;
    use std::os::unix::ffi::OsStrExt;

    use proptest::prelude::*;

    use super::*;

    const ALL: AddWatchFlags = AddWatchFlags::IN_CREATE.union(AddWatchFlags::IN_DELETE_SELF);

    type Heard = (FolderHash, AddWatchFlags, Option<String>);

    fn heard(group: &Fanotify) -> Vec<Heard> {
        let mut all = Vec::new();
        let mut buffer = [0; 4096];
        let read = group.read(&mut buffer, |event| {
            all.push((
                event.folder.unwrap(),
                event.mask,
                event.name.map(str::to_owned),
            ));
        });
        assert!(matches!(read, Ok(()) | Err(Errno::EAGAIN)));
        all
    }

    #[test]
    fn an_event_names_the_folder_that_was_marked_and_the_name_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let group = Fanotify::new().unwrap();
        let [one, two] = ["one", "two"].map(|name| {
            let path = dir.path().join(name);
            fs::create_dir(&path).unwrap();
            (group.mark(&path, ALL).unwrap().unwrap(), path)
        });
        assert_ne!(one.0, two.0);
        assert_eq!(group.mark(&one.1, ALL), Ok(Some(one.0)));
        fs::write(two.1.join("a"), "").unwrap();
        fs::write(one.1.join(OsStr::from_bytes(b"\xff")), "").unwrap();
        fs::remove_dir_all(&two.1).unwrap();
        let create = AddWatchFlags::IN_CREATE;
        let gone = AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_ISDIR;
        assert_eq!(
            heard(&group),
            [
                (two.0, create, Some("a".to_owned())),
                (one.0, create, Some("\u{fffd}".to_owned())),
                (two.0, gone, None),
            ]
        );
    }

    #[test]
    fn what_is_no_folder_has_no_mark() {
        let dir = tempfile::tempdir().unwrap();
        let group = Fanotify::new().unwrap();
        let file = dir.path().join("file");
        assert_eq!(group.mark(&file, ALL), Ok(None));
        fs::write(&file, "").unwrap();
        assert_eq!(group.mark(&file, ALL), Ok(None));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic_or_go_on_for_ever(
            bytes in prop::collection::vec(prop_oneof![Just(0), 0..80u8, any::<u8>()], 0..200),
        ) {
            let mut rest = &bytes[..];
            while let Some((_, behind)) = next(rest) {
                prop_assert!(behind.len() < rest.len());
                rest = behind;
            }
        }
    }
}
