//! Reading many VMs, and of each no more than is wanted.
//!
//! `vms.json` has one VM a line, so it is read line by line, and a VM that the filters do not hold
//! for, or a member that nobody asked for, never takes room. All lines are of one snapshot: the
//! daemon keeps it for the open file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};

use serde_json::value::RawValue;

use super::expression::Expression;
use super::fields::{self, Members};
use super::{Error, Mount, garbled};
use crate::vm::Object;

/// Large, as a read through the mount has a price, whatever it brings.
const BUFFER: usize = 1 << 20;

impl Mount {
    /// The VMs for which all filters hold, [complete](fields::complete), with these members.
    /// `members` has to name those that the filters look at.
    ///
    /// # Errors
    /// When `vms.json` cannot be read.
    pub fn select(&self, members: &Members, filters: &[Expression]) -> Result<Vec<Object>, Error> {
        let file = self.root.join("vms.json");
        let open = File::open(&file).map_err(|error| self.explain(&file, error))?;
        let mut reader = BufReader::with_capacity(BUFFER, open);
        let mut line = Vec::new();
        let mut selected = Vec::new();
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line);
            if read.map_err(|error| self.explain(&file, error))? == 0 {
                return Ok(selected);
            }
            let Some(text) = object_of(&line) else {
                continue;
            };
            let mut vm = parse(text, members).map_err(|error| garbled(&file, error))?;
            fields::complete(&mut vm);
            if filters.iter().all(|filter| filter.holds(&vm)) {
                selected.push(vm);
            }
        }
    }
}

/// The VM in a line; `None` for the lines that open and close the list.
fn object_of(line: &[u8]) -> Option<&[u8]> {
    let line = line.trim_ascii();
    match line.strip_suffix(b",").unwrap_or(line) {
        b"" | b"[" | b"]" | b"[]" => None,
        object => Some(object),
    }
}

/// A VM with the wanted members. What is not wanted is passed over without making values of it.
fn parse(text: &[u8], members: &Members) -> Result<Object, serde_json::Error> {
    let wanted = match members {
        Members::All => return serde_json::from_slice(text),
        Members::Only(wanted) => wanted,
    };
    // The names of properties are plain, so they can be taken as they stand in the text.
    let raw: BTreeMap<&str, &RawValue> = serde_json::from_slice(text)?;
    wanted
        .iter()
        .filter_map(|name| Some((name, raw.get(name.as_str())?)))
        .map(|(name, value)| Ok((name.clone(), serde_json::from_str(value.get())?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    fn select(document: &str, members: &[&str], filters: &[&str]) -> Result<Vec<Object>, Error> {
        let mount = TempDir::new().unwrap();
        fs::write(mount.path().join("vms.json"), document).unwrap();
        let filters: Vec<Expression> = filters.iter().map(|text| text.parse().unwrap()).collect();
        let members = match members {
            [] => Members::All,
            names => Members::Only(names.iter().map(|name| (*name).to_owned()).collect()),
        };
        Mount::new(mount.path()).select(&members, &filters)
    }

    const TWO: &str = "[\n\
        {\"uuid\":\"a\",\"nics\":[{\"ip\":\"10.0.0.1\"}],\"brand\":\"lx\"},\n\
        {\"uuid\":\"b\",\"nics\":[],\"brand\":\"kvm\"}\n]\n";

    #[test]
    fn of_each_vm_only_what_is_wanted_is_kept() {
        let found = select(TWO, &["uuid", "alias"], &[]).unwrap();
        assert_eq!(json!(found), json!([{"uuid": "a"}, {"uuid": "b"}]));
    }

    #[test]
    fn filters_hold_for_computed_properties_too() {
        let found = select(TWO, &[], &["type=KVM"]).unwrap();
        assert_eq!(
            json!(found),
            json!([{"uuid": "b", "nics": [], "brand": "kvm", "type": "KVM"}])
        );
        let found = select(TWO, &["nics", "uuid"], &["nics.*.ip=~^10"]).unwrap();
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_host_without_vms_has_none() {
        for document in ["[\n]\n", "[]\n", ""] {
            assert_eq!(select(document, &[], &[]).unwrap(), Vec::<Object>::new());
        }
    }

    #[test]
    fn a_line_that_is_no_vm_is_an_error() {
        for members in [&[][..], &["uuid"]] {
            let error = select("[\n{\"uuid\":\n]\n", members, &[]).unwrap_err();
            assert!(error.to_string().contains("vms.json: not what vminfod"));
        }
    }
}
