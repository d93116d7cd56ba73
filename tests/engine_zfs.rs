//! The zones source with its datasets on real ZFS.

use std::fs;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use vminfod::source::zones::{Provider, Zones, ZonesOptions};
use vminfod::source::{Loaded, Report, Source, Via};

#[path = "support/zfs_pool.rs"]
mod zfs_pool;
use zfs_pool::Pool;

const ZONE: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const OTHER: &str = "bbbbbbbb-0000-4000-8000-000000000002";

/// Longer than anything here takes; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn changed(reports: &Receiver<Report>, zone: &str, wanted: impl Fn(&Loaded) -> bool) -> Loaded {
    loop {
        let report = reports.recv_timeout(PATIENCE).unwrap();
        let vms = match report {
            Report::Changed(vms) => vms,
            Report::Listing(listing) => listing.vms,
            _ => continue,
        };
        if let Some(vm) = (vms.into_iter()).find(|vm| vm.zonename == zone && wanted(vm)) {
            return vm;
        }
    }
}

#[test]
fn a_zfs_set_is_reported_for_the_zone_whose_dataset_it_is() {
    let pool = Pool::create("128M");
    let dir = TempDir::new().unwrap();
    fs::create_dir_all(dir.path().join("etc/zones")).unwrap();
    let mut index = "global:installed:/:\n".to_owned();
    // One dataset is called like its zone. The other one is only known by where it is mounted.
    for (zone, name) in [(ZONE, ZONE), (OTHER, "web")] {
        let zonepath = dir.path().join("zones").join(zone);
        let zonepath = zonepath.to_str().unwrap();
        let mountpoint = format!("mountpoint={zonepath}");
        let dataset = pool.dataset(name);
        pool.zfs(&["create", "-o", "canmount=off", "-o", &mountpoint, &dataset]);
        let xml = format!(r#"<zone name="{zone}" zonepath="{zonepath}" brand="joyent"></zone>"#);
        fs::write(dir.path().join(format!("etc/zones/{zone}.xml")), xml).unwrap();
        index += &format!("{zone}:installed:{zonepath}:{zone}\n");
    }
    fs::write(dir.path().join("etc/zones/index"), index).unwrap();

    let (sender, reports) = channel();
    let zones = Zones::new(ZonesOptions {
        datasets: Provider::Commands,
        runtime: Provider::Files,
        zfs_poll: Duration::from_millis(50),
        ..ZonesOptions::new(dir.path())
    });
    zones.start(sender).unwrap();
    let vm = changed(&reports, ZONE, |_| true);
    assert_eq!(vm.vm.object()["zfs_filesystem"], json!(pool.dataset(ZONE)));

    for (zone, name) in [(ZONE, ZONE), (OTHER, "web")] {
        pool.zfs(&["set", "quota=1G", &pool.dataset(name)]);
        let vm = changed(&reports, zone, |vm| {
            vm.vm.object().get("quota") == Some(&json!(1))
        });
        assert_eq!(vm.via, Via::Event);
        pool.zfs(&["snapshot", &pool.dataset(&format!("{name}@vmsnap-a"))]);
        changed(&reports, zone, |vm| {
            vm.vm.object()["snapshots"][0]["name"] == "a"
        });
    }
    assert_eq!(zones.status()["providers"]["datasets"]["provider"], "zfs");
}
