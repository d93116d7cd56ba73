//! A mounted store, and a tmpfs that holds the same tree.
//!
//! A VM is about 80 files, and a file in a tmpfs takes 5 KB of memory: of 100,000 VMs that would be 40 GB. So only
//! some VMs are copied whole, and only these are walked through; the others are empty directories there, which is
//! all that who lists the root can see of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use crate::Failure;
use crate::mounts::{Daemon, READ_ONLY, Store, WRITABLE};

/// The name of the tmpfs.
pub const TMPFS: &str = "tmpfs";

/// A daemon and its copy.
pub struct Tree<'a> {
    /// Serves it.
    pub daemon: Daemon<'a>,
    /// How many VMs there are.
    pub vms: usize,
    /// The VMs that were copied, by uuid.
    pub walked: Vec<String>,
    copy: PathBuf,
}

impl<'a> Tree<'a> {
    /// Mounts a store and copies so many VMs of it.
    pub fn new(store: &'a Store<'a>, walked: usize) -> Result<Tree<'a>, Failure> {
        let daemon = store.mount()?;
        let copy = store.beside("copy");
        // An earlier section may have left one.
        let _ = fs::remove_dir_all(&copy);
        fs::create_dir(&copy)?;
        let (mut uuids, mut vms) = (Vec::new(), 0);
        for entry in fs::read_dir(daemon.path(""))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.file_type()?.is_dir() && !name.starts_with('.') {
                true => {
                    fs::create_dir(copy.join(&name))?;
                    vms += 1;
                    if uuids.len() < walked {
                        uuids.push(name);
                    }
                }
                false if name.starts_with('.') => {}
                false => fs::write(copy.join(&name), "")?,
            }
        }
        let from = daemon
            .mounts()
            .pop()
            .map_or(PathBuf::new(), |(_, path)| path);
        thread::scope(|scope| {
            let halves = uuids.chunks(uuids.len().div_ceil(2).max(1));
            let copying: Vec<_> = halves
                .map(|uuids| {
                    let (from, copy) = (&from, &copy);
                    scope.spawn(move || {
                        let mut all = uuids.iter();
                        all.try_for_each(|uuid| copy_dir(&from.join(uuid), &copy.join(uuid)))
                    })
                })
                .collect();
            copying.into_iter().try_for_each(|half| match half.join() {
                Ok(copied) => copied,
                Err(_) => Err(std::io::Error::other("the copying panicked")),
            })
        })?;
        Ok(Tree {
            daemon,
            vms,
            walked: uuids,
            copy,
        })
    }

    /// Where the tree is, by name: our mounts, and the tmpfs.
    pub fn places(&self) -> Vec<(&'static str, PathBuf)> {
        let mut places = self.daemon.mounts();
        places.push((TMPFS, self.copy.clone()));
        places
    }

    /// The names of our mounts that there are.
    pub fn ours(&self) -> [&'static str; 2] {
        [WRITABLE, READ_ONLY]
    }

    /// A path in the tmpfs.
    pub fn copy(&self, name: &str) -> PathBuf {
        self.copy.join(name)
    }
}

impl Drop for Tree<'_> {
    fn drop(&mut self) {
        // It ends with the scratch at the latest; until then its memory is wanted.
        let _ = fs::remove_dir_all(&self.copy);
    }
}

/// Copies what is below a directory into one that exists.
fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_dir(&from, &to)?;
        } else {
            fs::write(to, fs::read(from)?)?;
        }
    }
    Ok(())
}
