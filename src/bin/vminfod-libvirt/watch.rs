//! The files in which a libvirt on this host keeps its domains, watched by inotify: some changes it announces
//! by no event, such as autostart.
//!
//! Nothing is read from these files: a change in them is a reason to ask libvirt.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::engine::Message;

/// What a file in a watched folder is called.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Folder {
    /// By the name of its domain and an ending.
    Domains(PathBuf),
    /// It is a folder with the name of its domain.
    Parents(PathBuf),
    /// Whatever it is called, it is this domain's.
    Domain(PathBuf, String),
}

/// The folders of a libvirt.
pub struct Places {
    /// Where the domains are defined; `autostart` is below it.
    pub config: PathBuf,
    /// Where the processes that run them leave their numbers.
    pub run: PathBuf,
    /// Where snapshots, checkpoints and saved states are.
    pub state: PathBuf,
}

impl Places {
    /// The folders of the libvirt that an URI leads to, if that is on this host and keeps such.
    pub fn of(uri: &str, root: &Path) -> Option<Places> {
        let (scheme, rest) = uri.split_once("://")?;
        let driver = scheme.split('+').next()?;
        let transport = scheme
            .split_once('+')
            .map_or("unix", |(_, transport)| transport);
        if !matches!(driver, "qemu" | "lxc" | "ch") || transport != "unix" {
            return None;
        }
        let path = rest.split('?').next()?;
        let below = |place: &str| root.join(place).join(driver);
        match path {
            "/system" | "/" | "" => Some(Places {
                config: below("etc/libvirt"),
                run: below("run/libvirt"),
                state: below("var/lib/libvirt"),
            }),
            "/session" => {
                let dir = |name| std::env::var_os(name).map(PathBuf::from);
                let home = dir("HOME")?;
                let config = dir("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
                Some(Places {
                    config: config.join("libvirt").join(driver),
                    run: dir("XDG_RUNTIME_DIR")?
                        .join("libvirt")
                        .join(driver)
                        .join("run"),
                    state: config.join("libvirt").join(driver).join("lib"),
                })
            }
            _ => None,
        }
    }

    fn folders(&self) -> Vec<Folder> {
        vec![
            Folder::Domains(self.config.clone()),
            Folder::Domains(self.config.join("autostart")),
            Folder::Domains(self.run.clone()),
            Folder::Domains(self.state.join("save")),
            Folder::Parents(self.state.join("snapshot")),
            Folder::Parents(self.state.join("checkpoint")),
        ]
    }
}

/// Watches the folders until the program ends.
pub struct Watch {
    watches: Arc<Watches>,
    places: Places,
}

struct Watches {
    inotify: Inotify,
    folders: Mutex<HashMap<WatchDescriptor, Folder>>,
}

impl Watch {
    /// Begins to watch.
    ///
    /// # Errors
    /// When there can be no watcher at all.
    pub fn start(places: Places, inbox: Sender<Message>) -> std::io::Result<Watch> {
        let watches = Arc::new(Watches {
            inotify: Inotify::init(InitFlags::IN_CLOEXEC)?,
            folders: Mutex::default(),
        });
        thread::Builder::new().name("inotify".into()).spawn({
            let watches = watches.clone();
            move || watches.read(&inbox)
        })?;
        let watch = Watch { watches, places };
        watch.refresh();
        Ok(watch)
    }

    /// Watches what has come since.
    pub fn refresh(&self) {
        for folder in self.places.folders() {
            self.watches.add(folder);
        }
    }

    /// Which folders are watched, for `.status`.
    pub fn status(&self) -> Value {
        let folders = self.watches.folders.lock();
        let mut paths: Vec<String> = (folders.values())
            .filter_map(|folder| match folder {
                Folder::Domains(path) | Folder::Parents(path) => Some(path.display().to_string()),
                Folder::Domain(..) => None,
            })
            .collect();
        paths.sort();
        json!(paths)
    }
}

impl Watches {
    fn add(&self, folder: Folder) {
        let (Folder::Domains(path) | Folder::Parents(path) | Folder::Domain(path, _)) = &folder;
        let flags = AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        // The reader must not see an event of a watch that is not on record yet.
        let mut folders = self.folders.lock();
        match self.inotify.add_watch(path, flags) {
            Ok(descriptor) => folders.insert(descriptor, folder.clone()),
            Err(Errno::ENOENT | Errno::ENOTDIR) => return,
            Err(error) => {
                eprintln!("{}: cannot be watched: {error}", path.display());
                return;
            }
        };
        drop(folders);
        let Folder::Parents(path) = &folder else {
            return;
        };
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            if let Ok(name) = entry.file_name().into_string() {
                self.add(Folder::Domain(entry.path(), name));
            }
        }
    }

    fn read(&self, inbox: &Sender<Message>) {
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EINTR) => continue,
                Err(error) => {
                    eprintln!("inotify: {error}; what only files announce is found by the rescan");
                    return;
                }
            };
            for event in events {
                if let Some(message) = self.message(&event)
                    && inbox.send(message).is_err()
                {
                    return;
                }
            }
        }
    }

    fn message(&self, event: &InotifyEvent) -> Option<Message> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return Some(Message::Lost);
        }
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.folders.lock().remove(&event.wd);
            return None;
        }
        let folder = self.folders.lock().get(&event.wd).cloned()?;
        let file = event.name.as_ref()?.to_str()?;
        let is_new = event
            .mask
            .contains(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_ISDIR);
        match folder {
            // autostart comes with the first domain in it.
            Folder::Domains(_) if is_new => Some(Message::Folder),
            Folder::Domains(_) => domain_of(file).map(Message::File),
            Folder::Parents(path) => {
                self.add(Folder::Domain(path.join(file), file.to_owned()));
                Some(Message::File(file.to_owned()))
            }
            Folder::Domain(_, domain) => Some(Message::File(domain)),
        }
    }
}

/// The domain that a file belongs to, by its name. libvirt writes `NAME.xml.new` first and renames it.
fn domain_of(file: &str) -> Option<String> {
    let endings = [".xml", ".pid", ".save"];
    let name = endings
        .iter()
        .find_map(|ending| file.strip_suffix(ending))?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_its_domains() {
        assert_eq!(domain_of("web.1.xml").as_deref(), Some("web.1"));
        assert_eq!(domain_of("web.pid").as_deref(), Some("web"));
        assert_eq!(domain_of("web.save").as_deref(), Some("web"));
        assert_eq!(domain_of("web.xml.new"), None);
        assert_eq!(domain_of("autostart"), None);
    }

    #[test]
    fn only_a_libvirt_of_this_host_has_folders_here() {
        let config = |uri| Places::of(uri, Path::new("/r")).map(|places| places.config);
        let system = Some(PathBuf::from("/r/etc/libvirt/qemu"));
        assert_eq!(config("qemu:///system"), system);
        assert_eq!(config("qemu+unix:///system?socket=/run/x"), system);
        assert_eq!(config("lxc:///"), Some(PathBuf::from("/r/etc/libvirt/lxc")));
        assert_eq!(config("qemu+ssh://host/system"), None);
        assert_eq!(config("test:///default"), None);
        assert_eq!(config("test+unix:///default"), None);
        assert_eq!(config("qemu"), None);
    }
}
