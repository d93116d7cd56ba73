//! What the loaders read: the host, or one zone.
//!
//! Each reading sets its watches first, so that nothing that changes afterwards is missed. There
//! is no state here.

use std::sync::Arc;
use std::time::SystemTime;

use super::faults::Faults;
use super::index::{Entry, Index};
use super::load::Store;
use super::providers::Providers;
use super::schedule::Causes;
use super::watch::{Coverage, Name, Watch};
use crate::source::Loaded;
use crate::vm::Object;

/// What is read as one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    /// The index and `.sysinfo.json`.
    Host,
    /// A zone, by its name.
    Zone(Name),
}

/// What a task found.
pub(super) enum Answer {
    Host(Box<Host>, Coverage),
    /// A zone; what its files looked like, if that tells a change.
    Zone(Box<Loaded>, Option<u64>, Coverage),
    /// A look at this time found nothing changed.
    Same(SystemTime, Coverage),
    /// The task panicked.
    Broken,
}

/// The host as read.
pub(super) struct Host {
    pub(super) index: Index,
    pub(super) sysinfo: Result<Object, String>,
}

/// What the loaders read with; no state of its own.
pub(super) struct Reader {
    store: Store,
    pub(super) watch: Watch,
    pub(super) providers: Providers,
    faults: Arc<Faults>,
}

impl Reader {
    pub(super) fn new(
        store: Store,
        watch: Watch,
        providers: Providers,
        faults: Arc<Faults>,
    ) -> Reader {
        Reader {
            store,
            watch,
            providers,
            faults,
        }
    }

    pub(super) fn host(&self) -> Answer {
        let coverage = self.watch.shared();
        let index = self.store.read_index().unwrap_or_else(|reason| Index {
            broken: Some(reason),
            ..Index::default()
        });
        let sysinfo = self.store.read_sysinfo();
        Answer::Host(Box::new(Host { index, sysinfo }), coverage)
    }

    /// Reads a zone; if nothing says that it changed, only when its files do not look as they did.
    pub(super) fn zone(
        &self,
        name: &Name,
        entry: &Entry,
        sysinfo: &Result<Object, String>,
        causes: Causes,
        looked: Option<u64>,
    ) -> Answer {
        self.faults.pass(name);
        let now = SystemTime::now();
        let is_same = || looked.is_some() && self.providers.look(&self.store, entry) == looked;
        if causes == Causes::POLL && is_same() {
            return Answer::Same(now, Coverage::Polled);
        }
        let coverage = self.watch.zone(name);
        if causes.is_look() && is_same() {
            return Answer::Same(now, coverage);
        }
        if causes.contains(Causes::ASKED) {
            // What they find later is announced as usual, and then the zone is read once more.
            self.providers.refresh_zone(&self.store, entry);
        }
        let (loaded, looks) = self.providers.load(&self.store, entry, sysinfo);
        Answer::Zone(Box::new(loaded), looks, coverage)
    }
}
