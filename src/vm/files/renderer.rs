//! Renders an object: its text and its files in one pass, then the files' numbers.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashSet};
use std::fmt::Write;

use serde_json::Value;

use super::{Body, File, FileId, Name, Packed, ROOT_HASH, Rendered, path_hash, scalar_text};
use crate::vm::Object;
use crate::vm::drift::DRIFT;
use crate::vm::property::{self, Kind as PropertyKind, Part, Property};
use crate::vm::{name, render};

/// A directory while it is being filled.
#[derive(Clone, Copy)]
struct Dir {
    index: Option<usize>,
    path: u64,
}

/// A file before its number is final.
struct Draft {
    file: File,
    parent: Option<usize>,
    path: u64,
}

struct Renderer {
    json: String,
    drafts: Vec<Draft>,
}

/// What a member's files have in common.
#[derive(Clone, Copy)]
struct Traits {
    part: Option<Part>,
    settable: bool,
    secret: bool,
}

pub(super) fn render(object: &Object, brand: &str) -> Rendered {
    let mut renderer = Renderer {
        json: String::with_capacity(4096),
        drafts: Vec::with_capacity(96),
    };
    let root = Dir {
        index: None,
        path: ROOT_HASH,
    };
    let document = Traits {
        part: None,
        settable: true,
        secret: true,
    };
    renderer.add(root, Name::Document, Body::Document, 0, document);
    renderer.json.push('{');
    let mut separate = "";
    for (key, value) in object {
        renderer.json.push_str(separate);
        separate = ",";
        let name = renderer.key(key);
        renderer.member(root, key, name, value, brand);
    }
    renderer.json.push('}');
    let document_size = narrow(render::pretty_len(&renderer.json) + 1);
    if let Some(draft) = renderer.drafts.first_mut() {
        draft.file.size = document_size;
    }
    let files = number(renderer.drafts, &renderer.json);
    let files = files.iter().map(Packed::new).collect();
    Rendered {
        files,
        json: renderer.json.into(),
    }
}

impl Renderer {
    /// Writes `"key":` and returns the name it gives.
    fn key(&mut self, key: &str) -> Option<Name> {
        let name = self.string(key);
        self.json.push(':');
        name::encode(key).map(|_| name)
    }

    /// Writes a JSON string and returns its inside as a name.
    fn string(&mut self, text: &str) -> Name {
        let at = self.json.len() + 1;
        if text
            .bytes()
            .any(|byte| matches!(byte, ..0x20 | b'"' | b'\\'))
        {
            self.raw(&Value::from(text));
        } else {
            // Nearly all of them; this is what a start with 100,000 VMs does most.
            self.json.push('"');
            self.json.push_str(text);
            self.json.push('"');
        }
        name_at(at, self.json.len() - 1 - at, text)
    }

    /// Writes any value and returns its length.
    fn raw(&mut self, value: &Value) -> usize {
        let at = self.json.len();
        // Writing to a string cannot fail.
        let _ = write!(self.json, "{value}");
        self.json.len() - at
    }

    fn add(&mut self, dir: Dir, name: Name, body: Body, size: usize, traits: Traits) -> Dir {
        let file = File {
            id: FileId::DIR,
            parent: FileId::DIR,
            size: narrow(size),
            part: traits.part,
            settable: traits.settable,
            secret: traits.secret,
            name,
            body,
        };
        let path = path_hash(dir.path, &file.name(&self.json));
        self.drafts.push(Draft {
            file,
            parent: dir.index,
            path,
        });
        Dir {
            index: Some(self.drafts.len() - 1),
            path,
        }
    }

    /// A top-level member: a file, or a directory with what is in it.
    fn member(&mut self, root: Dir, key: &str, name: Option<Name>, value: &Value, brand: &str) {
        let known = property::property(key);
        let traits = Traits {
            part: known.map(|property| property.part),
            settable: known.is_some_and(|property| property.settable(brand)),
            secret: known.is_some_and(|property| property.secret),
        };
        let Some(name) = name else {
            self.raw(value);
            return;
        };
        match value {
            Value::Object(members) => {
                let dir = self.add(root, name, Body::Dir, 0, traits);
                self.map(dir, key, members, traits);
            }
            Value::Array(entries) if key == DRIFT => {
                self.raw(value);
                self.add(root, name, Body::Drift, lines(entries), traits);
            }
            Value::Array(elements) if is_list_of_objects(known, elements) => {
                let dir = self.add(
                    root,
                    name,
                    Body::Dir,
                    0,
                    Traits {
                        settable: false,
                        ..traits
                    },
                );
                self.objects(dir, known, elements, traits, brand);
            }
            _ => self.leaf(root, name, value, traits),
        }
    }

    /// A flat object: a directory with a file for each key.
    fn map(&mut self, dir: Dir, map: &str, members: &Object, traits: Traits) {
        self.json.push('{');
        let mut separate = "";
        for (key, value) in members {
            self.json.push_str(separate);
            separate = ",";
            let name = self.key(key);
            let secret = traits.secret || property::is_secret_entry(map, key);
            match name {
                Some(name) => self.leaf(dir, name, value, Traits { secret, ..traits }),
                None => {
                    self.raw(value);
                }
            }
        }
        self.json.push('}');
    }

    /// An array of objects: a directory for each, with a file for each member.
    fn objects(
        &mut self,
        dir: Dir,
        known: Option<&Property>,
        elements: &[Value],
        traits: Traits,
        brand: &str,
    ) {
        let columns = known.map_or(&[][..], |property| match property.kind {
            PropertyKind::Objects(columns) => columns,
            _ => &[],
        });
        let creatable = traits.settable && columns.iter().any(|column| column.settable(brand));
        let mut taken = HashSet::new();
        self.json.push('[');
        for (position, element) in elements.iter().enumerate() {
            if position > 0 {
                self.json.push(',');
            }
            let Value::Object(members) = element else {
                self.raw(element);
                continue;
            };
            // The directory comes before its files, but its name is the text of one of them: it
            // gets a number for now, and its real name when that member has been written.
            let here = self.drafts.len();
            let sub = self.add(
                dir,
                Name::Number(position as u32),
                Body::Dir,
                0,
                Traits {
                    settable: creatable,
                    ..traits
                },
            );
            let mut name = None;
            self.json.push('{');
            let mut separate = "";
            for (key, value) in members {
                self.json.push_str(separate);
                separate = ",";
                let key_name = self.key(key);
                let column = columns.iter().find(|column| column.name == key);
                let settable =
                    traits.settable && column.is_some_and(|column| column.settable(brand));
                let secret = traits.secret || column.is_some_and(|column| column.secret);
                match key_name {
                    Some(key_name) => self.leaf(
                        sub,
                        key_name,
                        value,
                        Traits {
                            settable,
                            secret,
                            ..traits
                        },
                    ),
                    None => {
                        self.raw(value);
                    }
                }
                if let Value::String(text) = value
                    && let Some(short) = element_name(key, text)
                {
                    // The text ends before its closing quote, and the name ends as the text does.
                    let len = Value::from(short).to_string().len() - 2;
                    name = Some(name_at(self.json.len() - 1 - len, len, short));
                }
            }
            self.json.push('}');
            let name = name
                .filter(|name| self.take(&mut taken, *name))
                .or_else(|| {
                    // The first number from its position on that no element before it is called.
                    let mut numbers = (position as u32..).map(Name::Number);
                    numbers.find(|number| self.take(&mut taken, *number))
                });
            if let Some(name) = name {
                self.rename(here, dir, name);
            }
        }
        self.json.push(']');
    }

    /// Adds a name to those that are taken; whether it can be a file's and was free.
    fn take(&self, taken: &mut HashSet<String>, name: Name) -> bool {
        name.file_name(&self.json)
            .is_some_and(|name| taken.insert(name.into_owned()))
    }

    /// Gives a directory its real name; the paths of it and of its files follow.
    fn rename(&mut self, index: usize, dir: Dir, name: Name) {
        self.drafts[index].file.name = name;
        let path = path_hash(dir.path, &self.drafts[index].file.name(&self.json));
        self.drafts[index].path = path;
        for child in &mut self.drafts[index + 1..] {
            child.path = path_hash(path, &child.file.name(&self.json));
        }
    }

    /// A value that is one file. A null has no file.
    fn leaf(&mut self, dir: Dir, name: Name, value: &Value, traits: Traits) {
        match value {
            Value::Null => {
                self.json.push_str("null");
            }
            Value::String(text) => {
                let body = match self.string(text) {
                    Name::Escaped(_) => Body::Escaped,
                    _ => Body::Text,
                };
                self.add(dir, name, body, text.len() + 1, traits);
            }
            Value::Array(items)
                if !items.iter().any(|item| item.is_object() || item.is_array()) =>
            {
                self.raw(value);
                self.add(dir, name, Body::Lines, lines(items), traits);
            }
            other => {
                let len = self.raw(other);
                self.add(dir, name, Body::Plain, len + 1, traits);
            }
        }
    }
}

/// How long these are, each on a line.
fn lines(items: &[Value]) -> usize {
    items.iter().map(|item| scalar_text(item).len() + 1).sum()
}

/// A size as files keep it. What sources let through is far smaller than 4 GiB, indented too; of
/// more, only the beginning would be shown.
fn narrow(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// A text that stands in the JSON, escaped if need be, as a name.
fn name_at(at: usize, len: usize, text: &str) -> Name {
    match len == text.len() {
        true => Name::Text(narrow(at)),
        false => Name::Escaped(narrow(at)),
    }
}

fn is_list_of_objects(known: Option<&Property>, elements: &[Value]) -> bool {
    match known.map(|property| property.kind) {
        Some(PropertyKind::Objects(_)) => true,
        Some(_) => false,
        None => elements.first().is_some_and(Value::is_object),
    }
}

/// The directory name that an element's member gives: a nic's interface, the last part of a
/// disk's path without the zone's name, a snapshot's name. `None`: this member names nothing.
pub(crate) fn element_name<'a>(key: &str, text: &'a str) -> Option<&'a str> {
    match key {
        "interface" | "name" => Some(text),
        "path" if text.starts_with("/dev/zvol/") => {
            let last = text.rsplit('/').next()?;
            Some(last.rsplit_once('-').map_or(last, |(_, disk)| disk))
        }
        _ => None,
    }
}

/// Gives each file its number: the hash of its path, or, where an earlier path has that, the next
/// free one.
fn number(mut drafts: Vec<Draft>, json: &str) -> Vec<File> {
    let mut ids: Vec<FileId> = drafts
        .iter()
        .map(|draft| FileId::home(draft.path))
        .collect();
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
        let mut order: Vec<(Vec<Cow<'_, str>>, usize)> = (0..drafts.len())
            .map(|index| (path(&drafts, index, json), index))
            .collect();
        order.sort_unstable();
        let mut taken = BTreeSet::new();
        for (_, index) in order {
            while !taken.insert(ids[index]) {
                ids[index].0 += 1;
            }
        }
    }
    for (index, draft) in drafts.iter_mut().enumerate() {
        draft.file.id = ids[index];
        draft.file.parent = draft.parent.map_or(FileId::DIR, |parent| ids[parent]);
    }
    let mut files: Vec<File> = drafts.into_iter().map(|draft| draft.file).collect();
    files.sort_unstable_by_key(|file| file.id);
    files
}

fn path<'a>(drafts: &[Draft], index: usize, json: &'a str) -> Vec<Cow<'a, str>> {
    let mut path = match drafts[index].parent {
        Some(parent) => path(drafts, parent, json),
        None => Vec::new(),
    };
    path.push(drafts[index].file.name(json));
    path
}
