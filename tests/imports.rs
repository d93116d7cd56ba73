//! Imports point one way, and only the mount knows of FUSE: ARCHITECTURE.md promises it.

use std::fs;
use std::path::{Path, PathBuf};

/// Each module, and what it may import.
const FLOORS: [(&str, &[&str]); 9] = [
    ("vm", &["vm"]),
    ("cache", &["cache", "vm"]),
    ("source", &["source", "vm"]),
    ("ingest", &["ingest", "cache", "source", "vm"]),
    ("mutation", &["mutation", "cache", "source", "vm"]),
    ("fs", &["fs", "mutation", "cache", "vm"]),
    (
        "daemon",
        &[
            "daemon", "fs", "mutation", "ingest", "source", "cache", "vm",
        ],
    ),
    ("client", &["client", "vm"]),
    ("sample", &["sample"]),
];

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules of this crate that a text names after `crate::`, also in braces.
fn imported(text: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap().split(',').collect(),
            None => vec![rest],
        };
        for name in names {
            let name = name.trim_start();
            let end = name
                .find(|c: char| !c.is_alphanumeric() && c != '_')
                .unwrap_or(name.len());
            modules.push(name[..end].to_owned());
        }
    }
    modules
}

#[test]
fn imports_point_only_downwards() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    let mut checked = 0;
    for path in all {
        let below = path.strip_prefix(&src).unwrap();
        let first = below
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_str()
            .unwrap();
        let module = first.trim_end_matches(".rs");
        if module == "bin" || module == "lib" {
            continue;
        }
        let (_, allowed) = FLOORS
            .iter()
            .find(|(name, _)| *name == module)
            .unwrap_or_else(|| {
                panic!(
                    "src/{}: a module without a floor: give it one in this test",
                    below.display()
                )
            });
        let text = fs::read_to_string(&path).unwrap();
        for import in imported(&text) {
            assert!(
                allowed.contains(&import.as_str()),
                "src/{} imports crate::{import}",
                below.display()
            );
        }
        if module != "fs" {
            assert!(
                !text.contains("fuser::"),
                "src/{} knows of fuser",
                below.display()
            );
        }
        checked += 1;
    }
    assert!(checked > 30, "only {checked} files were found");
}
