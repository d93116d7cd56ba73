//! Listings: all domains that there are, and each of them read.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::time::Instant;

use uuid::Uuid;
use virt::error::Error;
use vminfod::source::libvirt::wire::Line;

use super::Engine;
use crate::known::SCAN;

impl<W: Write> Engine<W> {
    /// Begins a listing.
    pub(super) fn list(&mut self) -> std::io::Result<()> {
        let Some(link) = &self.link else {
            return Ok(());
        };
        if self.scan.is_some() {
            self.scan_again = true;
            return Ok(());
        }
        self.next_scan = Instant::now() + self.options.rescan;
        if let Some(watch) = &self.watch {
            watch.refresh();
        }
        let domains = link.connect.list_all_domains(0).and_then(|domains| {
            let named = domains
                .iter()
                .map(|domain| Ok((domain.uuid()?, domain.name()?)));
            named.collect::<Result<HashMap<Uuid, String>, Error>>()
        });
        let domains = match domains {
            Ok(domains) => domains,
            Err(error) => return self.unreachable(error.message().to_owned()),
        };
        self.say(&Line::Begin)?;
        self.count("listings");
        self.known
            .retain(|uuid, known| known.busy || domains.contains_key(uuid));
        self.unplaced.retain(|uuid, _| domains.contains_key(uuid));
        // One that was given up may not answer for long; the end of the listing names it.
        let answers = |uuid: &&Uuid| self.known.get(uuid).is_none_or(|known| !known.given_up);
        self.scan = Some(domains.keys().filter(answers).copied().collect());
        for (uuid, name) in domains {
            self.known.entry(uuid).or_default().name = name;
            self.want(uuid, SCAN);
        }
        self.end_listing()
    }

    /// Notes that a domain of the listing in progress has been read, or given up.
    pub(super) fn listed(&mut self, uuid: Uuid) -> std::io::Result<()> {
        if let Some(scan) = &mut self.scan
            && scan.remove(&uuid)
        {
            return self.end_listing();
        }
        Ok(())
    }

    /// Ends the listing when all its domains have been read.
    fn end_listing(&mut self) -> std::io::Result<()> {
        if !self.scan.as_ref().is_some_and(HashSet::is_empty) {
            return Ok(());
        }
        self.scan = None;
        if let Some(link) = &mut self.link {
            link.listed = true;
        }
        let silent = (self.known.iter())
            .filter_map(|(uuid, known)| Some((*uuid, known.silent.clone()?)))
            .collect();
        let unplaced = self.unplaced.values().cloned().collect();
        self.say(&Line::Listing { silent, unplaced })?;
        self.health()?;
        match std::mem::take(&mut self.scan_again) {
            true => self.list(),
            false => Ok(()),
        }
    }
}
