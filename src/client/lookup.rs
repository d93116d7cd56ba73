//! `vmadm lookup`: VMs as uuids or as JSON. Pure.

use serde_json::Value;

use super::expression::Expression;
use super::fields::{self, BadKey, Members};
use super::path::{Part, Path};
use crate::vm::Object;

/// What of the VMs is printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shown {
    /// A line with the uuid.
    Uuids,
    /// The whole object.
    Objects,
    /// An object with these members, as far as the VM has them.
    Fields(Vec<Path>),
}

/// How many VMs may be found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Any number, none included.
    Any,
    /// Exactly one.
    One,
}

/// Why a lookup has no result. The words are those of SmartOS's tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    /// Not exactly one VM was found.
    #[error("Requested unique lookup but found {0} results.")]
    NotUnique(usize),
    /// Only JSON has fields.
    #[error("Cannot specify -o without -j")]
    FieldsWithoutJson,
}

impl Count {
    /// Refuses another number of VMs than is allowed.
    ///
    /// # Errors
    /// When it is not allowed.
    pub fn check(self, found: usize) -> Result<(), LookupError> {
        match self {
            Count::One if found != 1 => Err(LookupError::NotUnique(found)),
            Count::One | Count::Any => Ok(()),
        }
    }
}

impl Shown {
    /// The fields of an `-o`, separated by commas.
    ///
    /// # Errors
    /// When one of them is no path.
    pub fn fields(list: &str) -> Result<Shown, BadKey> {
        let paths = list.split(',').map(|field| {
            let path = field.parse();
            path.map_err(|_| BadKey::Lookup(field.to_owned()))
        });
        paths.collect::<Result<_, _>>().map(Shown::Fields)
    }

    /// The members of VMs that are shown or that these filters look at.
    pub fn members(&self, filters: &[Expression]) -> Members {
        let filters = filters.iter().map(Expression::path);
        match self {
            Shown::Objects => Members::All,
            Shown::Fields(paths) => fields::needed(paths.iter().chain(filters)),
            Shown::Uuids => match fields::needed(filters) {
                Members::All => Members::All,
                Members::Only(mut names) => {
                    names.insert("uuid".to_owned());
                    Members::Only(names)
                }
            },
        }
    }

    /// The text for VMs that are [complete](fields::complete).
    pub fn text(&self, vms: Vec<Object>) -> String {
        let objects: Vec<Value> = match self {
            Shown::Uuids => {
                let uuids = vms.iter().filter_map(|vm| vm.get("uuid")?.as_str());
                return uuids.flat_map(|uuid| [uuid, "\n"]).collect();
            }
            Shown::Objects => vms.into_iter().map(Value::Object).collect(),
            Shown::Fields(paths) => vms.iter().map(|vm| part(vm, paths)).collect(),
        };
        format!("{:#}\n", Value::Array(objects))
    }
}

/// The values at these paths, each under its path. One with a `*` may have several: a list.
fn part(vm: &Object, paths: &[Path]) -> Value {
    let members = paths.iter().filter_map(|path| {
        let values = path.values(vm);
        let value = if path.parts().contains(&Part::Any) {
            Value::Array(values.into_iter().cloned().collect())
        } else {
            values.first().copied()?.clone()
        };
        Some((path.to_string(), value))
    });
    Value::Object(members.collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn vms() -> Vec<Object> {
        let vms = json!([
            {"uuid": "a", "alias": "web", "nics": [{"ip": "x"}, {"ip": "y"}], "type": "OS", "ram": 4},
            {"uuid": "b", "nics": [], "type": "KVM"},
        ]);
        let vms = vms.as_array().unwrap();
        vms.iter()
            .map(|vm| vm.as_object().unwrap().clone())
            .collect()
    }

    #[test]
    fn uuids_are_one_a_line() {
        assert_eq!(Shown::Uuids.text(vms()), "a\nb\n");
        assert_eq!(Shown::Uuids.text(Vec::new()), "");
    }

    #[test]
    fn json_has_two_spaces_a_level() {
        assert_eq!(
            Shown::Objects.text(vms().split_off(1)),
            "[\n  {\n    \"uuid\": \"b\",\n    \"nics\": [],\n    \"type\": \"KVM\"\n  }\n]\n"
        );
        assert_eq!(Shown::Objects.text(Vec::new()), "[]\n");
    }

    #[test]
    fn fields_come_in_the_order_asked_for_and_what_a_vm_lacks_is_left_out() {
        let shown = Shown::fields("ram,alias,nics.*.ip,nics.0.ip").unwrap();
        let found: Value = serde_json::from_str(&shown.text(vms())).unwrap();
        assert_eq!(
            found.to_string(),
            json!([
                {"ram": 4, "alias": "web", "nics.*.ip": ["x", "y"], "nics.0.ip": "x"},
                {"nics.*.ip": []},
            ])
            .to_string()
        );
    }

    #[test]
    fn one_means_exactly_one() {
        assert!(Count::One.check(1).is_ok() && Count::Any.check(0).is_ok());
        for found in [0, 2] {
            assert_eq!(
                Count::One.check(found).unwrap_err().to_string(),
                format!("Requested unique lookup but found {found} results.")
            );
        }
    }
}
