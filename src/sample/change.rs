//! Changes to a sample store, done as the tools of a real host do them: a new version of a file
//! replaces the old one by rename, and the index is what makes a zone come and go.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::host::Host;
use super::{INDEX, SampleError, Store, index_line, zone};

/// The names of the zones in the index, in its order, without the global one.
///
/// # Errors
/// When the index cannot be read.
pub fn zonenames(dir: &Path) -> Result<Vec<String>, SampleError> {
    Ok(read(&dir.join(INDEX))?
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(':').next())
        .filter(|name| *name != "global")
        .map(str::to_owned)
        .collect())
}

/// Replaces a file: written beside it, then renamed, so that a reader sees the old or the new.
///
/// # Errors
/// When its folder cannot be written.
pub fn replace(path: &Path, content: impl AsRef<[u8]>) -> Result<(), SampleError> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    fs::write(&beside, content)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|error| failed_write(path, error))
}

/// Sets one tag of a zone and leaves the others as they are.
///
/// # Errors
/// When its tags cannot be read or written.
pub fn set_tag(dir: &Path, zonename: &str, key: &str, value: &Value) -> Result<(), SampleError> {
    let path = dir.join(format!("zones/{zonename}/config/tags.json"));
    let text = read(&path)?;
    let mut tags: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| SampleError::Read {
            path: path.clone(),
            error: error.into(),
        })?;
    tags.insert(key.to_owned(), value.clone());
    replace(&path, format!("{:#}\n", Value::Object(tags)))
}

/// Adds the zone that a store of this seed has at `number`, one of the ordinary ones, and
/// returns its name. A zone that was removed comes back with the same name.
///
/// # Errors
/// When one of its files is there already or cannot be written.
pub fn add(dir: &Path, seed: u64, number: usize) -> Result<String, SampleError> {
    let zone = zone::invent(&Host::invent(seed), seed, number, None);
    Store::new(dir).zone(&zone)?;
    // The index is written last: a zone that it names is complete.
    let path = dir.join(INDEX);
    replace(&path, read(&path)? + &index_line(&zone))?;
    Ok(zone.name)
}

/// Removes a zone: its line in the index first, then its files.
///
/// # Errors
/// When a file is there and cannot be removed.
pub fn remove(dir: &Path, zonename: &str) -> Result<(), SampleError> {
    let path = dir.join(INDEX);
    let own = format!("{zonename}:");
    let others: String = read(&path)?
        .split_inclusive('\n')
        .filter(|line| !line.starts_with(&own))
        .collect();
    replace(&path, others)?;
    for file in [
        format!("etc/zones/{zonename}.xml"),
        format!("var/run/zones/{zonename}.json"),
        format!("var/db/datasets/{zonename}.json"),
    ] {
        let path = dir.join(file);
        gone(fs::remove_file(&path)).map_err(|error| failed_write(&path, error))?;
    }
    let path = dir.join(format!("zones/{zonename}"));
    gone(fs::remove_dir_all(&path)).map_err(|error| failed_write(&path, error))
}

/// What is not there has been removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn read(path: &Path) -> Result<String, SampleError> {
    fs::read_to_string(path).map_err(|error| SampleError::Read {
        path: path.to_owned(),
        error,
    })
}

fn failed_write(path: &Path, error: io::Error) -> SampleError {
    SampleError::Write {
        path: path.to_owned(),
        error,
    }
}
