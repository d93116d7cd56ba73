//! A realistic zone store of any size, invented: for the demo, the tests and the benches.
//!
//! [`write()`] makes the files that the zones source reads, with its file providers for datasets
//! and runtime state. The same options give the same bytes and the same modification times, on
//! every machine. Nothing that exists is ever overwritten. Stores of at least 20 zones hold one
//! of every odd zone: no alias, one alias twice, tags that are no file names, a missing volume.
//!
//! The functions of [`change`] then do to a store what administrators do to a host.
//!
//! No zone is run, and nothing here knows how the files are read.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use host::Host;
use kind::ROUND;
use zone::{NOW, Zone};

pub mod change;
mod config;
mod host;
mod kind;
mod random;
mod xml;
mod zone;

/// What store to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// How many zones it has, besides the global one.
    pub vms: usize,
    /// Another seed gives other zones.
    pub seed: u64,
}

/// What was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Zones, besides the global one.
    pub vms: usize,
    /// Zones that have a runtime state other than halted.
    pub running: usize,
    /// Files.
    pub files: usize,
    /// Bytes in those files.
    pub bytes: u64,
}

/// Why a sample store was not written, or not changed.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// The folder holds something, and that is not ours to overwrite.
    #[error("{}: not empty, and nothing is overwritten: name a new or an empty folder", .dir.display())]
    Occupied {
        /// The folder that was named.
        dir: PathBuf,
    },
    /// The name is taken by something that is no folder.
    #[error("{}: not a folder: name a new or an empty one", .path.display())]
    NoFolder {
        /// The path that was named.
        path: PathBuf,
    },
    /// A file could not be written; those before it were.
    #[error("{}: cannot be written ({error}): make room or rights for it, then start again with a new folder", .path.display())]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A file of an existing store could not be read.
    #[error("{}: cannot be read ({error}): name the folder of a sample store", .path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

const INDEX: &str = "etc/zones/index";

/// The index before its first zone. Zones are appended as `name:state:path:uuid`.
const INDEX_HEAD: &str = "\
# The zones of this host, one a line. zonecfg and zoneadm keep this file; other programs must not
# write it.
#
global:installed:/
";

/// The folders that a store has even without zones.
const FOLDERS: [&str; 5] = [
    "etc/zones",
    "zones",
    "tmp",
    "var/db/datasets",
    "var/run/zones",
];

/// Writes a zone store below `dir`, which must be empty or not exist yet.
///
/// # Errors
/// When `dir` is in use, or a file cannot be written; then the store is incomplete.
pub fn write(dir: &Path, options: &Options) -> Result<Summary, SampleError> {
    claim(dir)?;
    let mut store = Store::new(dir);
    for folder in FOLDERS {
        store.folder(folder)?;
    }
    let host = Host::invent(options.seed);
    let mut index = INDEX_HEAD.to_owned();
    let mut running = 0;
    for number in 0..options.vms {
        let odd = ROUND.get(number).filter(|_| options.vms >= ROUND.len());
        let zone = zone::invent(&host, options.seed, number, odd.map(|(_, odd)| *odd));
        store.zone(&zone)?;
        index.push_str(&index_line(&zone));
        running += usize::from(zone.runtime.is_some());
    }
    store.json("tmp/.sysinfo.json", &host.sysinfo(), NOW)?;
    store.file(INDEX, index.as_bytes(), NOW)?;
    Ok(Summary {
        vms: options.vms,
        running,
        files: store.files,
        bytes: store.bytes,
    })
}

/// Makes sure that `dir` is an empty folder.
fn claim(dir: &Path) -> Result<(), SampleError> {
    fs::create_dir_all(dir).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => SampleError::NoFolder {
            path: dir.to_owned(),
        },
        _ => SampleError::Write {
            path: dir.to_owned(),
            error,
        },
    })?;
    let mut entries = fs::read_dir(dir).map_err(|error| SampleError::Read {
        path: dir.to_owned(),
        error,
    })?;
    match entries.next() {
        None => Ok(()),
        Some(_) => Err(SampleError::Occupied {
            dir: dir.to_owned(),
        }),
    }
}

fn index_line(zone: &Zone) -> String {
    let Zone {
        name, installed, ..
    } = zone;
    format!("{name}:{installed}:/zones/{name}:{name}\n")
}

/// The folder being filled, and how much is in it.
struct Store<'a> {
    root: &'a Path,
    files: usize,
    bytes: u64,
}

impl<'a> Store<'a> {
    fn new(root: &'a Path) -> Self {
        Store {
            root,
            files: 0,
            bytes: 0,
        }
    }

    /// Writes all files of a zone, but not its line in the index.
    fn zone(&mut self, zone: &Zone) -> Result<(), SampleError> {
        let Zone { name, modified, .. } = zone;
        let modified = *modified;
        self.folder(&format!("zones/{name}/config"))?;
        self.json(
            &format!("zones/{name}/config/metadata.json"),
            &zone.metadata,
            modified,
        )?;
        self.json(
            &format!("zones/{name}/config/tags.json"),
            &zone.tags,
            modified,
        )?;
        if let Some(routes) = &zone.routes {
            self.json(
                &format!("zones/{name}/config/routes.json"),
                routes,
                modified,
            )?;
        }
        if let Some(last) = &zone.last_exited {
            let text = format!("{} {}\n", last.at, last.status);
            self.file(
                &format!("zones/{name}/lastexited"),
                text.as_bytes(),
                last.at,
            )?;
        }
        self.json(
            &format!("var/db/datasets/{name}.json"),
            &zone.datasets,
            modified,
        )?;
        if let Some(runtime) = &zone.runtime {
            self.json(&format!("var/run/zones/{name}.json"), runtime, modified)?;
        }
        self.file(
            &format!("etc/zones/{name}.xml"),
            zone.xml.as_bytes(),
            modified,
        )
    }

    fn folder(&self, relative: &str) -> Result<(), SampleError> {
        let path = self.root.join(relative);
        fs::create_dir_all(&path).map_err(|error| SampleError::Write { path, error })
    }

    fn json(&mut self, relative: &str, value: &Value, modified: u64) -> Result<(), SampleError> {
        self.file(relative, format!("{value:#}\n").as_bytes(), modified)
    }

    fn file(&mut self, relative: &str, content: &[u8], modified: u64) -> Result<(), SampleError> {
        let path = self.root.join(relative);
        let modified = UNIX_EPOCH + Duration::from_secs(modified);
        create(&path, content, modified).map_err(|error| SampleError::Write { path, error })?;
        self.files += 1;
        self.bytes += content.len() as u64;
        Ok(())
    }
}

fn create(path: &Path, content: &[u8], modified: SystemTime) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content)?;
    file.set_modified(modified)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap, HashSet};

    use proptest::prelude::*;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    /// A store of this many zones, and where it is.
    fn sample(vms: usize, seed: u64) -> (TempDir, Summary) {
        let dir = tempfile::tempdir().unwrap();
        let summary = write(dir.path(), &Options { vms, seed }).unwrap();
        (dir, summary)
    }

    /// Every file below `dir` by its relative path, with its content and modification time.
    fn files(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
        let mut found = BTreeMap::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                    continue;
                }
                let modified = path.metadata().unwrap().modified().unwrap();
                let relative = path.strip_prefix(dir).unwrap().to_owned();
                found.insert(relative, (fs::read(&path).unwrap(), modified));
            }
        }
        found
    }

    fn json_of(dir: &Path, relative: &str) -> Value {
        let text = fs::read_to_string(dir.join(relative)).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    /// Zone XML, which names its DTD.
    fn parsed(text: &str) -> roxmltree::Document<'_> {
        let options = roxmltree::ParsingOptions {
            allow_dtd: true,
            ..Default::default()
        };
        roxmltree::Document::parse_with_options(text, options).unwrap()
    }

    /// The values of every zone's attrs of this name.
    fn attrs(dir: &Path, attr: &str) -> Vec<String> {
        let mut values = Vec::new();
        for zone in change::zonenames(dir).unwrap() {
            let text = fs::read_to_string(dir.join(format!("etc/zones/{zone}.xml"))).unwrap();
            let xml = parsed(&text);
            let found = xml
                .root_element()
                .children()
                .find(|element| element.attribute("name") == Some(attr));
            values.extend(found.and_then(|element| Some(element.attribute("value")?.to_owned())));
        }
        values
    }

    fn tags(dir: &Path) -> Vec<Value> {
        change::zonenames(dir)
            .unwrap()
            .iter()
            .map(|zone| json_of(dir, &format!("zones/{zone}/config/tags.json")))
            .collect()
    }

    fn check_that_every_file_parses(dir: &Path) {
        for (path, (content, _)) in files(dir) {
            let text = String::from_utf8(content).unwrap();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("xml") => {
                    let xml = parsed(&text);
                    assert_eq!(xml.root_element().tag_name().name(), "zone");
                }
                Some("json") => {
                    let value: Value = serde_json::from_str(&text).unwrap();
                    assert!(value.is_object(), "{}", path.display());
                }
                _ if path.ends_with("lastexited") => {
                    let (at, status) = text.trim_end().split_once(' ').unwrap();
                    at.parse::<u64>().unwrap();
                    status.parse::<i32>().unwrap();
                }
                _ => assert_eq!(path, Path::new(INDEX)),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]

        #[test]
        fn every_file_of_every_store_parses(vms in 0_usize..60, seed: u64) {
            let (dir, summary) = sample(vms, seed);
            check_that_every_file_parses(dir.path());
            let names = change::zonenames(dir.path()).unwrap();
            prop_assert_eq!(names.len(), vms);
            prop_assert_eq!(names.iter().collect::<HashSet<_>>().len(), vms);
            let found = files(dir.path());
            let bytes: usize = found.values().map(|(content, _)| content.len()).sum();
            prop_assert_eq!((summary.vms, summary.files, summary.bytes), (vms, found.len(), bytes as u64));
        }

        #[test]
        fn the_same_options_give_the_same_files_with_the_same_times(vms in 0_usize..40, seed: u64) {
            let (one, _) = sample(vms, seed);
            let (other, _) = sample(vms, seed);
            prop_assert_eq!(files(one.path()), files(other.path()));
        }
    }

    #[test]
    fn another_seed_gives_other_zones() {
        let (one, _) = sample(30, 1);
        let (other, _) = sample(30, 2);
        let ours: HashSet<_> = change::zonenames(one.path()).unwrap().into_iter().collect();
        let theirs = change::zonenames(other.path()).unwrap();
        assert!(theirs.iter().all(|name| !ours.contains(name)));
    }

    #[test]
    fn a_larger_store_begins_with_the_zones_of_a_smaller_one() {
        let (small, _) = sample(25, 5);
        let (large, _) = sample(40, 5);
        let large_files = files(large.path());
        for (path, content) in files(small.path()) {
            if path != Path::new(INDEX) {
                assert_eq!(large_files.get(&path), Some(&content), "{}", path.display());
            }
        }
    }

    #[test]
    fn four_zones_of_five_run() {
        let (_dir, summary) = sample(400, 9);
        assert!((290..350).contains(&summary.running), "{summary:?}");
    }

    #[test]
    fn a_zones_folders_hold_nothing_but_its_own_files() {
        let (dir, _) = sample(60, 3);
        let known = [
            "config/metadata.json",
            "config/tags.json",
            "config/routes.json",
            "lastexited",
        ];
        for path in files(&dir.path().join("zones")).keys() {
            let within: PathBuf = path.iter().skip(1).collect();
            assert!(
                known.iter().any(|name| within == Path::new(name)),
                "{}",
                path.display()
            );
        }
    }

    #[test]
    fn stopped_zones_have_last_exited_and_no_runtime_file() {
        let (dir, _) = sample(60, 3);
        let found = files(dir.path());
        let exited: Vec<_> = found
            .keys()
            .filter(|path| path.ends_with("lastexited"))
            .collect();
        assert!(!exited.is_empty());
        for path in exited {
            let zone = path.iter().nth(1).unwrap().to_str().unwrap();
            let runtime = PathBuf::from(format!("var/run/zones/{zone}.json"));
            assert!(!found.contains_key(&runtime), "{zone}");
        }
    }

    #[test]
    fn twenty_zones_hold_every_brand_and_every_odd_zone() {
        use base64::Engine;
        use base64::engine::general_purpose::STANDARD;

        for seed in 0..8 {
            let (dir, _) = sample(20, seed);
            let dir = dir.path();
            let aliases: Vec<String> = attrs(dir, "alias")
                .iter()
                .map(|text| String::from_utf8(STANDARD.decode(text).unwrap()).unwrap())
                .collect();
            assert_eq!(aliases.len(), 19, "one has no alias");
            assert!(aliases.iter().any(|alias| !alias.is_ascii()));
            let twins = aliases.iter().filter(|alias| *alias == "twin").count();
            assert_eq!(twins, 2);
            for attr in [
                "do-not-inventory",
                "docker",
                "flexible-disk-size",
                "vnc-password",
                "failed",
                "provisioning",
                "transition",
            ] {
                assert!(!attrs(dir, attr).is_empty(), "{attr}");
            }

            let tags = tags(dir);
            for (key, value) in [
                ("example.com/owner", json!("ops")),
                (".hidden", json!("yes")),
                ("100%", json!("full")),
                ("note", json!("")),
                ("priority", json!(7)),
                ("legacy", json!(false)),
            ] {
                assert!(tags.iter().any(|tags| tags[key] == value), "{key}");
            }

            let all: String = files(dir)
                .into_values()
                .map(|(content, _)| String::from_utf8(content).unwrap())
                .collect();
            for brand in ["joyent", "joyent-minimal", "lx", "kvm", "bhyve", "builder"] {
                assert!(all.contains(&format!("brand=\"{brand}\"")), "{brand}");
            }
            for text in [
                "\"motd\"",
                "passthru",
                "@indestructible",
                "@vmsnap-",
                "fsoption",
            ] {
                assert!(all.contains(text), "{text}");
            }
            assert!(files(dir).keys().any(|path| path.ends_with("lastexited")));
        }
    }

    #[test]
    fn one_volume_is_missing_and_all_others_are_there() {
        let (dir, _) = sample(40, 7);
        let mut missing = 0;
        for zone in change::zonenames(dir.path()).unwrap() {
            let xml = fs::read_to_string(dir.path().join(format!("etc/zones/{zone}.xml"))).unwrap();
            let datasets = json_of(dir.path(), &format!("var/db/datasets/{zone}.json"));
            for path in xml.split("match=\"/dev/zvol/rdsk/").skip(1) {
                let volume = path.split('"').next().unwrap();
                missing += usize::from(datasets.get(volume).is_none());
            }
        }
        assert_eq!(missing, 1);
    }

    #[test]
    fn no_two_nics_share_an_address() {
        let (dir, _) = sample(300, 4);
        let mut seen = HashMap::new();
        for (path, (content, _)) in files(&dir.path().join("etc/zones")) {
            let text = String::from_utf8(content).unwrap();
            for sign in ["mac-addr=\"", "name=\"ip\" value=\""] {
                for rest in text.split(sign).skip(1) {
                    let address = rest.split('"').next().unwrap().to_owned();
                    let before = seen.insert(address.clone(), path.clone());
                    assert_eq!(before, None, "{address}");
                }
            }
        }
        assert!(seen.len() >= 600);
    }

    #[test]
    fn a_folder_in_use_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("mine"), "precious").unwrap();
        let error = write(dir.path(), &Options { vms: 3, seed: 1 }).unwrap_err();
        assert!(matches!(error, SampleError::Occupied { .. }));
        assert!(
            error
                .to_string()
                .starts_with(&format!("{}: not empty", dir.path().display()))
        );
        assert_eq!(files(dir.path()).len(), 1);
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        for path in [file.clone(), file.join("below")] {
            let error = write(&path, &Options { vms: 3, seed: 1 }).unwrap_err();
            assert!(matches!(error, SampleError::NoFolder { .. }), "{error}");
        }
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn a_folder_that_does_not_exist_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        write(&below, &Options { vms: 0, seed: 1 }).unwrap();
        assert_eq!(change::zonenames(&below).unwrap(), Vec::<String>::new());
        assert!(below.join("var/run/zones").is_dir());
    }

    #[test]
    fn a_tag_is_set_and_the_others_stay() {
        let (dir, _) = sample(3, 1);
        let zone = change::zonenames(dir.path()).unwrap().remove(1);
        let path = format!("zones/{zone}/config/tags.json");
        let mut expected = json_of(dir.path(), &path);
        expected["role"] = json!("gateway");
        change::set_tag(dir.path(), &zone, "role", &json!("gateway")).unwrap();
        assert_eq!(json_of(dir.path(), &path), expected);
    }

    #[test]
    fn a_removed_zone_leaves_nothing_and_comes_back_under_its_name() {
        let (dir, _) = sample(4, 1);
        let before = files(dir.path());
        let zone = change::zonenames(dir.path()).unwrap().remove(3);
        change::remove(dir.path(), &zone).unwrap();
        assert_eq!(change::zonenames(dir.path()).unwrap().len(), 3);
        let left = files(dir.path());
        assert!(
            left.keys()
                .all(|path| !path.to_string_lossy().contains(&zone))
        );
        assert_eq!(change::add(dir.path(), 1, 3).unwrap(), zone);
        let after = files(dir.path());
        assert!(before.keys().eq(after.keys()));
        assert_eq!(
            before[Path::new(INDEX)].0,
            after[Path::new(INDEX)].0,
            "the last line is as it was"
        );
    }
}
