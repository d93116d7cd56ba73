//! Which zone a dataset belongs to, so that a change of the dataset reads that zone again.
//!
//! Nearly always its name says it: `zones/<zone>`, `zones/<zone>/data`, `zones/<zone>-disk0`. Only
//! the datasets that are called otherwise are remembered, when their zone is read. Pure.

use std::collections::HashMap;

use super::watch::Name;
use crate::vm::files::Rendered;

/// The datasets whose names do not say whose they are.
#[derive(Debug, Default)]
pub(super) struct Owners {
    elsewhere: HashMap<String, Name>,
}

impl Owners {
    /// Takes note of the datasets that a zone was just read to have.
    pub(super) fn learn(&mut self, zone: &Name, vm: &Rendered) {
        for dataset in vm.texts("zfs_filesystem") {
            if !candidates(&dataset).any(|name| *name == **zone) {
                self.elsewhere.insert(dataset, zone.clone());
            }
        }
    }

    /// Takes note that a zone has gone.
    pub(super) fn forget(&mut self, zone: &Name) {
        self.elsewhere.retain(|_, owner| owner != zone);
    }

    /// The zone that a dataset or snapshot belongs to, where `zone` gives the zone of a name.
    pub(super) fn of(&self, dataset: &str, zone: impl Fn(&str) -> Option<Name>) -> Option<Name> {
        candidates(filesystem(dataset)).find_map(zone).or_else(|| {
            with_parents(dataset).find_map(|dataset| self.elsewhere.get(dataset).cloned())
        })
    }
}

/// A dataset, or that of a snapshot, and all above it.
pub(super) fn with_parents(dataset: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(filesystem(dataset)), |dataset| {
        dataset.rsplit_once('/').map(|(parent, _)| parent)
    })
}

fn filesystem(dataset: &str) -> &str {
    dataset.split_once('@').map_or(dataset, |(name, _)| name)
}

/// The zones that a dataset's name may speak of.
fn candidates(dataset: &str) -> impl Iterator<Item = &str> {
    dataset.split('/').flat_map(|part| {
        let volume = part.rsplit_once('-').map(|(zone, _)| zone);
        std::iter::once(part).chain(volume)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const ZONE: &str = "aaaaaaaa-0000-4000-8000-000000000001";

    fn owner(owners: &Owners, dataset: &str) -> Option<Name> {
        owners.of(dataset, |name| (name == ZONE).then(|| Name::from(name)))
    }

    #[test]
    fn a_name_says_whose_dataset_it_is() {
        let owners = Owners::default();
        for dataset in [
            "zones/Z",
            "zones/Z/data",
            "zones/Z-disk0",
            "zones/Z@vmsnap-a",
            "a/b/Z/c",
        ] {
            let dataset = dataset.replace('Z', ZONE);
            assert_eq!(owner(&owners, &dataset).as_deref(), Some(ZONE), "{dataset}");
        }
        assert_eq!(owner(&owners, "zones/elsewhere@aaaaaaaa"), None);
    }

    #[test]
    fn a_dataset_of_another_name_is_remembered_until_its_zone_goes() {
        let mut owners = Owners::default();
        let vm = json!({"zfs_filesystem": "tank/web", "disks": [{"zfs_filesystem": "fast/disk"}]});
        let zone = Name::from(ZONE);
        owners.learn(&zone, &Rendered::new(vm.as_object().unwrap()));
        for dataset in ["tank/web", "tank/web/data@now", "fast/disk"] {
            assert_eq!(owner(&owners, dataset).as_deref(), Some(ZONE), "{dataset}");
        }
        assert_eq!(owner(&owners, "tank"), None);
        owners.forget(&zone);
        assert_eq!(owner(&owners, "tank/web"), None);
    }
}
