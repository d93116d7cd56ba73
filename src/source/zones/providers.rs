//! Who provides what lies outside a zone's files: its datasets and its runtime state.
//!
//! Chooses between the host's commands and the files of the store by the rule of the zones
//! source, owns the commands' watchers, and passes what they announce on to the engine.

use std::collections::BTreeSet;
use std::sync::mpsc::Sender;

use serde_json::{Value, json};

use super::engine::Message;
use super::index::Entry;
use super::load::{self, DatasetsOf, RuntimeOf, Store};
use super::zfs::{self, Zfs, ZfsOptions};
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

/// The providers in use; `None` stands for the files, which are watched like all others.
pub(super) struct Providers {
    zfs: Option<Zfs>,
    zoneadm: Option<Zoneadm>,
}

impl Providers {
    /// Chooses the providers and starts them.
    pub(super) fn start(
        options: &ZonesOptions,
        inbox: &Sender<Message>,
    ) -> Result<Providers, SourceError> {
        let zfs_options = ZfsOptions {
            poll: options.zfs_poll,
            ..ZfsOptions::default()
        };
        let is_folder = |path: &str| options.root.join(path).is_dir();
        let zfs = match options.datasets {
            Provider::Files => false,
            Provider::Commands => true,
            Provider::Auto => !is_folder("var/db/datasets") && zfs::available(&zfs_options),
        };
        let zoneadm_options = ZoneadmOptions::default();
        let zoneadm = match options.runtime {
            Provider::Files => false,
            Provider::Commands => true,
            Provider::Auto => !is_folder("var/run/zones") && zoneadm::available(&zoneadm_options),
        };
        Ok(Providers {
            zfs: match zfs {
                true => Some(start_zfs(zfs_options, inbox)?),
                false => None,
            },
            zoneadm: match zoneadm {
                true => Some(start_zoneadm(&zoneadm_options, inbox)?),
                false => None,
            },
        })
    }

    /// Reads one zone with what the providers know of it.
    pub(super) fn load(
        &self,
        store: &Store,
        entry: &Entry,
        sysinfo: &Result<Object, String>,
    ) -> Loaded {
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
        load::load(store, entry, datasets, runtime, sysinfo)
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

    /// For `.status`.
    pub(super) fn status(&self) -> Value {
        let files = || json!({"provider": "files"});
        json!({
            "datasets": self.zfs.as_ref().map_or_else(files, Zfs::status),
            "runtime": self.zoneadm.as_ref().map_or_else(files, Zoneadm::status),
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
