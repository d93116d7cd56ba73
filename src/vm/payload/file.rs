//! Single files of a VM's directory: which property, key or member one stands for, and what its
//! text means. Element directories are named as the file tree names them.

use std::collections::HashSet;

use serde_json::Value;

use super::draft::{Draft, Purpose};
use super::elements::{ident_of, members};
use super::{Invalid, InvalidKind, Object};
use crate::vm::files::element_name;
use crate::vm::name;
use crate::vm::property::{self, Kind, Property};

/// What a VM is to be after `text` was written to a file of the directory of `shown`, which is this VM or the
/// configuration of it that is shown ([`views::of_file`](super::views::of_file)).
pub(super) fn of_file(
    vm: &Object,
    shown: &Object,
    path: &[String],
    text: &str,
) -> Result<Object, Invalid> {
    let mut draft = Draft::of(vm);
    match place(&draft, shown, path)? {
        Place::Property(row) => draft.set(row.name, &given(row, text))?,
        Place::Entry(map, key) => {
            let now = entry(vm, map, key);
            match text.is_empty() {
                true if now.is_some_and(|now| *now == "") => {}
                true => draft.remove_entry(map, key),
                false => draft.set_entry(map, key, &typed(now, text))?,
            }
        }
        Place::Member(list, ident, row) => {
            let mut changes = Object::new();
            changes.insert(row.name.to_owned(), given(row, text));
            draft.update_element(list, &ident, &changes)?;
        }
    }
    draft.finish()
}

/// Whether a file that does not exist may be created: a settable property that the VM does not have.
///
/// # Errors
/// When there is no such property, or this VM cannot have it.
pub fn can_create(vm: &Object, path: &[String]) -> Result<(), Invalid> {
    place(&Draft::of(vm), vm, path).map(|_| ())
}

/// What a file stands for.
enum Place<'a> {
    Property(&'static Property),
    Entry(&'static str, &'a str),
    Member(&'static str, String, &'static Property),
}

fn place<'a>(draft: &Draft, shown: &Object, path: &'a [String]) -> Result<Place<'a>, Invalid> {
    let whole = path.join("/");
    let unknown = || InvalidKind::Unknown.refuse(&whole, "no such property");
    let (first, rest) = path.split_first().ok_or_else(unknown)?;
    let row = property::property(first).ok_or_else(unknown)?;
    let fixed = |row| Err(draft.fixed(row, &whole, Purpose::Update));
    if !draft.allows(row, Purpose::Update) {
        return fixed(row);
    }
    match (row.kind, rest) {
        (Kind::Map, [key]) if !key.is_empty() => Ok(Place::Entry(row.name, key)),
        (Kind::Objects(_), [element, member]) => {
            let ident = ident(shown, row.name, element);
            let ident = ident.ok_or_else(unknown)?;
            let member = members(row.name).iter().find(|row| row.name == member);
            let member = member.ok_or_else(unknown)?;
            match draft.allows(member, Purpose::Update) {
                true => Ok(Place::Member(row.name, ident, member)),
                false => fixed(member),
            }
        }
        (Kind::Map | Kind::Objects(_), []) => {
            Err(InvalidKind::Value.refuse(&whole, "a directory, not a file"))
        }
        (Kind::Map | Kind::Objects(_), _) => Err(unknown()),
        (_, []) => Ok(Place::Property(row)),
        _ => Err(unknown()),
    }
}

/// The key of the element whose directory has this name.
fn ident(vm: &Object, list: &str, directory: &str) -> Option<String> {
    let elements = vm.get(list).and_then(Value::as_array)?;
    let mut taken: HashSet<String> = HashSet::new();
    for (position, element) in elements.iter().enumerate() {
        let Some(element) = element.as_object() else {
            continue;
        };
        // The last member that gives a name gives it; a name that is taken gives way to a number.
        let own = element
            .iter()
            .filter_map(|(member, value)| element_name(member, value.as_str()?))
            .next_back()
            .filter(|own| name::encode(own).is_some() && taken.insert((*own).to_owned()));
        let own = match own {
            Some(own) => own.to_owned(),
            None => {
                let mut numbers = (position..).map(|number| number.to_string());
                numbers.find(|number| taken.insert(number.clone()))?
            }
        };
        if own == directory {
            return ident_of(list, element).map(str::to_owned);
        }
    }
    None
}

/// A text as a payload gives it.
fn given(row: &Property, text: &str) -> Value {
    let listed = matches!(row.kind, Kind::List) || matches!(row.name, "limit_priv" | "fs_allowed");
    if !listed {
        return Value::from(text);
    }
    let items = text.split(['\n', ',']).map(str::trim);
    items.filter(|item| !item.is_empty()).collect()
}

fn entry<'a>(vm: &'a Object, map: &str, key: &str) -> Option<&'a Value> {
    vm.get(map)?.as_object()?.get(key)
}

/// The value that a text gives a key: a text, unless the key holds a number or boolean now and the
/// text is one.
fn typed(now: Option<&Value>, text: &str) -> Value {
    let parsed = serde_json::from_str::<Value>(text.trim());
    match (now, parsed) {
        (Some(Value::Number(_)), Ok(number @ Value::Number(_))) => number,
        (Some(Value::Bool(_)), Ok(flag @ Value::Bool(_))) => flag,
        _ => Value::from(text),
    }
}
