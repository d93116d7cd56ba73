//! Who provides what lies outside a zone's files: its datasets and its runtime state.
//!
//! Chooses between the host's commands and the files of the store by the rule of the zones
//! source, owns the commands' watchers, and passes what they announce on to the engine.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::mpsc::Sender;
use std::time::SystemTime;

use serde_json::{Value, json};

use super::engine::Message;
use super::index::Entry;
use super::load::{self, DatasetsOf, RuntimeOf, Store};
use super::zfs::{self, Watched, Zfs, ZfsOptions};
use super::zoneadm::{self, Zoneadm, ZoneadmOptions};
use super::{Provider, ZonesOptions};
use crate::source::{Loaded, SourceError, Via};
use crate::vm::Object;

/// What a provider announces.
pub(super) enum News {
    /// These datasets and snapshots are not what they were.
    Datasets(BTreeSet<String>, Via),
    /// These zones do something else.
    Runtime(BTreeSet<String>),
    /// A provider, or a pool of it, failed or healed: this may concern any zone.
    Health,
}

/// Which parts the host's commands provide; the files do the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub(super) zfs: bool,
    pub(super) zoneadm: bool,
}

impl Choice {
    /// Chooses by the rule of the zones source.
    pub(super) fn make(options: &ZonesOptions) -> Choice {
        let is_folder = |path: &str| options.root.join(path).is_dir();
        Choice {
            zfs: match options.datasets {
                Provider::Files => false,
                Provider::Commands => true,
                Provider::Auto => {
                    !is_folder("var/db/datasets") && zfs::available(&ZfsOptions::default())
                }
            },
            zoneadm: match options.runtime {
                Provider::Files => false,
                Provider::Commands => true,
                Provider::Auto => {
                    !is_folder("var/run/zones") && zoneadm::available(&ZoneadmOptions::default())
                }
            },
        }
    }
}

/// The providers in use; `None` stands for the files, which are watched like all others.
pub(super) struct Providers {
    zfs: Option<Zfs>,
    zoneadm: Option<Zoneadm>,
    /// What starts and stops zones where their state is in files.
    runtime_exec: Option<PathBuf>,
}

impl Providers {
    /// Starts the providers that were chosen; the tables of ZFS are those that are `watched`.
    pub(super) fn start(
        options: &ZonesOptions,
        choice: Choice,
        watched: &Watched,
        inbox: &Sender<Message>,
    ) -> Result<Providers, SourceError> {
        let zfs_options = ZfsOptions {
            poll: options.zfs_poll,
            ..ZfsOptions::default()
        };
        let zfs = match choice.zfs {
            true => Some(start_zfs(zfs_options, inbox)?),
            false => None,
        };
        if let Some(zfs) = &zfs {
            watched.by(zfs);
        }
        Ok(Providers {
            zfs,
            zoneadm: match choice.zoneadm {
                true => Some(start_zoneadm(&ZoneadmOptions::default(), inbox)?),
                false => None,
            },
            runtime_exec: options.runtime_exec.clone(),
        })
    }

    /// Reads one zone with what the providers know of it.
    pub(super) fn load(
        &self,
        store: &Store,
        entry: &Entry,
        sysinfo: &Result<Object, String>,
    ) -> (Loaded, Option<u64>) {
        let table = self.zfs.as_ref().map(|zfs| zfs.table(&entry.zonepath));
        let datasets = match &table {
            None => DatasetsOf::Files,
            Some(Ok(table)) => DatasetsOf::Zfs(Ok(table)),
            Some(Err(reason)) => DatasetsOf::Zfs(Err(reason.clone())),
        };
        let runtime = match &self.zoneadm {
            None => RuntimeOf::Files,
            Some(zoneadm) => {
                let table = zoneadm.table();
                RuntimeOf::Zoneadm(table.map(|table| table.get(&entry.zonename).cloned()))
            }
        };
        load::load_looking(store, entry, datasets, runtime, sysinfo)
    }

    /// What the files look like that [`Providers::load`] reads; `None` if it is known that this says nothing.
    pub(super) fn look(&self, store: &Store, entry: &Entry) -> Option<u64> {
        let looks = load::look(
            store,
            &entry.zonename,
            self.zfs.is_none(),
            self.zoneadm.is_none(),
        );
        looks.settled(SystemTime::now())
    }

    /// Where a dataset is mounted, as far as ZFS says so now.
    pub(super) fn mountpoint(&self, dataset: &str) -> Option<String> {
        let table = self.zfs.as_ref()?.table(dataset).ok()?;
        table.get(dataset)?.get("mountpoint").cloned()
    }

    /// Asks the commands for everything, since a scan begins.
    pub(super) fn refresh(&self) {
        if let Some(zfs) = &self.zfs {
            zfs.refresh();
        }
        if let Some(zoneadm) = &self.zoneadm {
            zoneadm.refresh();
        }
    }

    /// Asks the commands for one zone, at once, and waits a moment for ZFS. That costs as much as the
    /// VM has datasets, not as the pools have.
    pub(super) fn refresh_zone(&self, store: &Store, entry: &Entry) {
        if let Some(zfs) = &self.zfs {
            // Without its XML its disks are not known, but neither does the VM have any.
            zfs.refresh_zone(entry, &store.volumes(&entry.zonename).unwrap_or_default());
        }
        if let Some(zoneadm) = &self.zoneadm {
            // It lists all zones as fast as one.
            zoneadm.refresh();
        }
    }

    /// For `.status`.
    pub(super) fn status(&self) -> Value {
        let files = || json!({"provider": "files"});
        let runtime = match (&self.zoneadm, &self.runtime_exec) {
            (Some(zoneadm), _) => zoneadm.status(),
            (None, Some(program)) => json!({"provider": "files", "exec": program}),
            (None, None) => json!({
                "provider": "files",
                "boots": "nothing: start, stop, reboot and kill only record a change",
            }),
        };
        json!({
            "datasets": self.zfs.as_ref().map_or_else(files, Zfs::status),
            "runtime": runtime,
        })
    }
}

fn start_zfs(options: ZfsOptions, inbox: &Sender<Message>) -> Result<Zfs, SourceError> {
    let inbox = inbox.clone();
    let tell = move |changed| {
        let news = match changed {
            zfs::Changed::Datasets { names, via } => News::Datasets(names, via),
            zfs::Changed::PoolFailed { .. } | zfs::Changed::PoolHealed { .. } => News::Health,
        };
        // Nobody hears it when the source is being dropped.
        let _ = inbox.send(Message::Provider(news));
    };
    Zfs::start(options, tell).map_err(|error| refused("zfs", &error))
}

fn start_zoneadm(
    options: &ZoneadmOptions,
    inbox: &Sender<Message>,
) -> Result<Zoneadm, SourceError> {
    let inbox = inbox.clone();
    let tell = move |changed| {
        let news = match changed {
            zoneadm::Changed::Zones(names) => News::Runtime(names),
            zoneadm::Changed::Failed { .. } | zoneadm::Changed::Healed => News::Health,
        };
        // As above.
        let _ = inbox.send(Message::Provider(news));
    };
    Zoneadm::start(options, tell).map_err(|error| refused("zoneadm", &error))
}

fn refused(provider: &str, error: &dyn std::fmt::Display) -> SourceError {
    SourceError::Provider {
        provider: provider.to_owned(),
        problem: format!("{error}; use the files of the store instead, or repair it"),
    }
}
