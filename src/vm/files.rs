//! The files of a VM: which there are, what each is called, and where its text stands in the
//! VM's compact JSON.
//!
//! A file is a place in the JSON text and sixteen bytes beside it, so that the object, its rendering
//! and its attributes are one piece of memory; where a name or a value ends, the text itself says. A
//! file's number is a hash of its path within the VM,
//! which is what inode numbers are made of; where two paths collide, the later in the order of
//! paths takes the next free number, so that the numbers depend on the paths alone.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::property::{self, Part};
use super::{Object, name};

mod renderer;

pub(crate) use renderer::element_name;

/// How many bits a file's number has.
pub const FILE_BITS: u32 = 24;

/// A file's number within its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileId(pub u32);

impl FileId {
    /// The VM's directory.
    pub const DIR: FileId = FileId(0);
    /// The first number that a path can have; those below are for what is not in the directory.
    const FIRST: u32 = 16;
    /// Homes end before the numbers do, so that probing never wraps around.
    const HOMES: u64 = (1 << FILE_BITS) - (1 << 16);

    fn home(path: u64) -> FileId {
        FileId(Self::FIRST + (path % Self::HOMES) as u32)
    }
}

/// The name of the document in each VM's directory.
pub const DOCUMENT: &str = "vm.json";

/// The name of the file that says in what a VM's two configurations differ ([`drift`](super::drift)): an entry a line.
pub const DRIFT_FILE: &str = ".drift";

/// Where a file's name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    /// `vm.json`.
    Document,
    /// The rest of the JSON string from here on, to be encoded as [`name::encode`] does.
    Text(u32),
    /// The same with JSON escapes in it.
    Escaped(u32),
    /// A position in an array.
    Number(u32),
}

impl Name {
    /// The file name; `None` if it cannot be one.
    fn file_name(self, json: &str) -> Option<Cow<'_, str>> {
        match self {
            Name::Document => Some(Cow::Borrowed(DOCUMENT)),
            Name::Number(number) => Some(Cow::Owned(number.to_string())),
            Name::Text(at) => name::encode(plain_string(json, at as usize)),
            Name::Escaped(at) => {
                let key = unescape(escaped_string(json, at as usize));
                name::encode(&key).map(|name| Cow::Owned(name.into_owned()))
            }
        }
    }

    /// Where the value begins of which this is the key.
    fn value(self, json: &str) -> usize {
        let key_end = match self {
            Name::Document | Name::Number(_) => return 0,
            Name::Text(at) => at as usize + plain_string(json, at as usize).len(),
            Name::Escaped(at) => at as usize + escaped_string(json, at as usize).len(),
        };
        key_end + "\":".len()
    }
}

/// What a file holds. All but the first two are the value of the member that gives the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// A directory.
    Dir,
    /// The whole object, indented.
    Document,
    /// The inside of a JSON string.
    Text,
    /// The inside of a JSON string with escapes.
    Escaped,
    /// A number or whatever else, as it stands.
    Plain,
    /// An array of scalars, one a line.
    Lines,
    /// The array of flat objects that is `.drift`, one a line.
    Drift,
}

/// A file or directory of a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct File {
    /// Its number.
    pub id: FileId,
    /// The number of the directory it is in.
    pub parent: FileId,
    /// Its exact size in bytes.
    pub size: u32,
    /// Where its value comes from; `None` for what has several origins.
    pub part: Option<Part>,
    /// Whether it can be changed (a directory: whether files can be created in it).
    pub settable: bool,
    /// Whether it holds what not everybody may read.
    pub secret: bool,
    name: Name,
    body: Body,
}

impl File {
    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.body == Body::Dir
    }

    /// Whether this is `vm.json`.
    pub fn is_document(&self) -> bool {
        self.body == Body::Document
    }

    /// Its name, given the VM's compact JSON.
    pub fn name<'a>(&self, json: &'a str) -> Cow<'a, str> {
        if self.body == Body::Drift {
            return Cow::Borrowed(DRIFT_FILE);
        }
        // Names that cannot be encoded never become files, so the fallback is not reached.
        self.name.file_name(json).unwrap_or(Cow::Borrowed("?"))
    }

    /// Whether it is the member of this name, which has nothing that JSON escapes.
    fn is_member(&self, json: &str, name: &str) -> bool {
        match self.name {
            Name::Text(at) => json[at as usize..]
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('"')),
            Name::Document | Name::Escaped(_) | Name::Number(_) => false,
        }
    }

    /// Appends its text to `out`; nothing for a directory.
    pub fn text(&self, json: &str, out: &mut Vec<u8>) {
        let value = self.value(json);
        match self.body {
            Body::Dir => return,
            Body::Document => super::render::pretty(json, out),
            Body::Text | Body::Plain => out.extend_from_slice(value.as_bytes()),
            Body::Escaped => out.extend_from_slice(unescape(value).as_bytes()),
            Body::Lines | Body::Drift => {
                let items: Vec<Value> = serde_json::from_str(value).unwrap_or_default();
                for item in items {
                    out.extend_from_slice(scalar_text(&item).as_bytes());
                    out.push(b'\n');
                }
                return;
            }
        }
        out.push(b'\n');
    }

    /// Its value as it stands in the JSON, without quotes.
    fn value<'a>(&self, json: &'a str) -> &'a str {
        let at = self.name.value(json);
        match self.body {
            Body::Dir | Body::Document => "",
            // Of these the size is that of the text, and a newline.
            Body::Plain => json
                .get(at..at + self.size as usize - 1)
                .unwrap_or_default(),
            Body::Text => json
                .get(at + 1..at + self.size as usize)
                .unwrap_or_default(),
            Body::Escaped => escaped_string(json, at + 1),
            Body::Lines | Body::Drift => scalars(json, at),
        }
    }

    /// Whether it looks and reads the same in another version of the VM.
    pub fn same(&self, json: &str, other: &File, other_json: &str) -> bool {
        self.body == other.body
            && self.size == other.size
            && self.settable == other.settable
            && self.secret == other.secret
            && match self.body {
                Body::Document => json == other_json,
                _ => self.value(json) == other.value(other_json),
            }
    }
}

/// A file as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packed {
    /// The number; above it how the file is named, what it holds, and its two flags.
    id: u32,
    /// The number of the directory; above it the part.
    parent: u32,
    size: u32,
    /// Where the name is, or the number that it is.
    name: u32,
}

const ID: u32 = (1 << FILE_BITS) - 1;
const BODIES: [Body; 7] = [
    Body::Dir,
    Body::Document,
    Body::Text,
    Body::Escaped,
    Body::Plain,
    Body::Lines,
    Body::Drift,
];

impl Packed {
    fn new(file: &File) -> Packed {
        let (kind, name) = match file.name {
            Name::Document => (0, 0),
            Name::Text(at) => (1, at),
            Name::Escaped(at) => (2, at),
            Name::Number(number) => (3, number),
        };
        let flags = u32::from(file.settable) << 5 | u32::from(file.secret) << 6;
        let part = file.part.map_or(0, |part| part as u32 + 1);
        Packed {
            id: file.id.0 | (kind | (file.body as u32) << 2 | flags) << FILE_BITS,
            parent: file.parent.0 | part << FILE_BITS,
            size: file.size,
            name,
        }
    }

    fn id(self) -> FileId {
        FileId(self.id & ID)
    }

    fn file(self) -> File {
        let traits = self.id >> FILE_BITS;
        let part = (self.parent >> FILE_BITS) as usize;
        File {
            id: self.id(),
            parent: FileId(self.parent & ID),
            size: self.size,
            part: part.checked_sub(1).map(|part| Part::ALL[part]),
            settable: traits & 1 << 5 != 0,
            secret: traits & 1 << 6 != 0,
            name: match traits & 3 {
                0 => Name::Document,
                1 => Name::Text(self.name),
                2 => Name::Escaped(self.name),
                _ => Name::Number(self.name),
            },
            body: BODIES[(traits >> 2 & 7) as usize],
        }
    }
}

/// The files of a VM, in the order of their numbers.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a>(&'a [Packed]);

impl<'a> Files<'a> {
    /// One after the other.
    pub fn iter(self) -> impl ExactSizeIterator<Item = File> + use<'a> {
        self.0.iter().map(|packed| packed.file())
    }

    /// How many there are.
    pub fn len(self) -> usize {
        self.0.len()
    }

    /// Never: there is always `vm.json`.
    pub fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// The inside of a JSON string from a place in it on, where it has no escapes.
fn plain_string(json: &str, at: usize) -> &str {
    let rest = &json[at..];
    &rest[..rest.find('"').unwrap_or(rest.len())]
}

/// The same where it may have escapes.
fn escaped_string(json: &str, at: usize) -> &str {
    let rest = &json[at..];
    let mut end = 0;
    while let Some(step) = rest[end..].find(['"', '\\']) {
        end += step;
        if rest.as_bytes()[end] == b'"' {
            return &rest[..end];
        }
        end += 2;
    }
    rest
}

/// The array of scalars, or of flat objects, that begins at a place.
fn scalars(json: &str, at: usize) -> &str {
    let mut end = at + 1;
    while let Some(step) = json[end..].find(['"', ']']) {
        end += step + 1;
        if json.as_bytes()[end - 1] == b']' {
            return &json[at..end];
        }
        end += escaped_string(json, end).len() + 1;
    }
    &json[at..]
}

/// The inside of a JSON string, decoded.
fn unescape(inside: &str) -> String {
    serde_json::from_str(&format!("\"{inside}\"")).unwrap_or_else(|_| inside.to_owned())
}

/// A scalar as its file shows it: strings raw, all else as in JSON.
pub fn scalar_text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
    }
}

/// A VM object as text: its compact JSON, and the files in it. A clone shares both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    json: Arc<str>,
    files: Arc<[Packed]>,
}

impl Rendered {
    /// Renders an object; what can be set depends on its `brand`.
    pub fn new(object: &Object) -> Rendered {
        let brand = property::brand(object).unwrap_or_default();
        renderer::render(object, brand)
    }

    /// The object as compact JSON.
    pub fn json(&self) -> &Arc<str> {
        &self.json
    }

    /// Its files and directories, in the order of their numbers.
    pub fn files(&self) -> Files<'_> {
        Files(&self.files)
    }

    /// Bytes of memory it holds.
    pub fn memory(&self) -> usize {
        self.json.len() + size_of_val::<[Packed]>(&self.files)
    }

    /// The object, parsed again.
    pub fn object(&self) -> Object {
        serde_json::from_str(&self.json).unwrap_or_default()
    }

    /// The file with this number.
    pub fn file(&self, id: FileId) -> Option<File> {
        let index = self
            .files
            .binary_search_by_key(&id, |file| file.id())
            .ok()?;
        Some(self.files[index].file())
    }

    /// The file of this name in a directory.
    pub fn lookup(&self, dir: FileId, name: &str) -> Option<File> {
        let home = FileId::home(path_hash(self.path_hash(dir)?, name));
        let from = self.files.partition_point(|file| file.id() < home);
        // One that is not at home is behind others that took all numbers from there on.
        self.files[from..]
            .iter()
            .zip(home.0..)
            .take_while(|(file, id)| file.id().0 == *id)
            .map(|(file, _)| file.file())
            .find(|file| file.parent == dir && file.name(&self.json) == name)
    }

    /// The number that a file will have which is not there yet, unless it collides with another.
    pub fn future(&self, dir: FileId, name: &str) -> Option<FileId> {
        let home = FileId::home(path_hash(self.path_hash(dir)?, name));
        (home.0..).map(FileId).find(|id| self.file(*id).is_none())
    }

    /// The names of a file's path within the VM's directory, decoded.
    pub fn keys(&self, file: FileId) -> Vec<String> {
        let mut keys = Vec::new();
        let mut at = file;
        while let Some(file) = self.file(at) {
            keys.push(name::decode(&file.name(&self.json)).into_owned());
            at = file.parent;
        }
        keys.reverse();
        keys
    }

    fn path_hash(&self, dir: FileId) -> Option<u64> {
        if dir == FileId::DIR {
            return Some(ROOT_HASH);
        }
        let file = self.file(dir)?;
        let parent = self.path_hash(file.parent)?;
        Some(path_hash(parent, &file.name(&self.json)))
    }

    /// The texts of all scalars of this property, at whatever depth, without their newlines.
    pub fn texts(&self, name: &str) -> impl Iterator<Item = String> {
        let named = (self.files().iter()).filter(move |file| file.is_member(&self.json, name));
        named.filter_map(|file| self.text_of(&file))
    }

    /// The text of a top-level scalar, without its newline.
    pub fn text(&self, property: &str) -> Option<String> {
        self.text_of(&self.lookup(FileId::DIR, property)?)
    }

    fn text_of(&self, file: &File) -> Option<String> {
        let mut text = Vec::with_capacity(file.size as usize);
        file.text(&self.json, &mut text);
        text.pop();
        String::from_utf8(text).ok()
    }
}

/// The hash of the path of the VM's own directory.
const ROOT_HASH: u64 = 0;

/// The hash of a path: of what is above, and the last name.
fn path_hash(dir: u64, name: &str) -> u64 {
    xxh3_64_with_seed(name.as_bytes(), dir)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn rendered(object: Value) -> Rendered {
        let Value::Object(object) = object else {
            panic!("not an object");
        };
        Rendered::new(&object)
    }

    /// The names in a directory, in the order in which they stand in the JSON.
    fn names(vm: &Rendered, dir: &str) -> Vec<String> {
        let dir = vm.lookup(FileId::DIR, dir).unwrap().id;
        let files = vm.files().iter().filter(|file| file.parent == dir);
        let mut names: Vec<String> = files
            .map(|file| file.name(vm.json()).into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn each_of_40_000_files_is_found_by_its_name() {
        let keys = (0..40_000).map(|number| (format!("key {number}"), Value::from(number)));
        let vm = rendered(json!({"tags": Object::from_iter(keys)}));
        let tags = vm.lookup(FileId::DIR, "tags").unwrap().id;
        let text = |name: &str| vm.text_of(&vm.lookup(tags, name)?);
        for number in 0..40_000 {
            assert_eq!(text(&format!("key {number}")), Some(number.to_string()));
        }
        let homes = vm.files().iter().filter(|file| {
            let hash = path_hash(vm.path_hash(file.parent).unwrap(), &file.name(vm.json()));
            file.id == FileId::home(hash)
        });
        assert!(homes.count() < vm.files().len(), "some are behind others");
        assert_eq!(text("key 40000"), None);
    }

    #[test]
    fn a_disk_whose_path_has_to_be_escaped_is_named_as_any_other() {
        let disks = json!([
            {"path": "/dev/zvol/rdsk/zones/one\u{1}-disk0"},
            {"path": "/dev/zvol/rdsk/zones/one-di\"sk1"},
        ]);
        let vm = rendered(json!({"disks": disks}));
        assert_eq!(names(&vm, "disks"), ["di\"sk1", "disk0"]);
    }

    #[test]
    fn elements_of_a_list_never_share_a_name() {
        let snapshots = json!([{"name": "1"}, {}, {"name": "2"}, {"name": "1"}, {"name": "x"}, {}]);
        let vm = rendered(json!({"snapshots": snapshots}));
        assert_eq!(names(&vm, "snapshots").len(), 6);
        let mut different = names(&vm, "snapshots");
        different.dedup();
        assert_eq!(different.len(), 6, "{different:?}");
    }

    #[test]
    fn what_differs_between_two_configurations_is_a_file_of_lines() {
        let entries = json!([
            {"property": "ram", "live": 512, "config": 1024},
            {"property": "tags/]\"", "live": "]}\n"},
        ]);
        let vm = rendered(json!({"tags": {".drift": "a", "drift": "b"}, "drift": entries}));
        let file = vm.lookup(FileId::DIR, DRIFT_FILE).unwrap();
        let mut text = Vec::new();
        file.text(vm.json(), &mut text);
        assert_eq!(file.size as usize, text.len());
        let text = String::from_utf8(text).unwrap();
        let lines: Vec<Value> = (text.lines())
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        assert_eq!(Value::from(lines), entries);
        assert_eq!(names(&vm, "tags"), ["%2Edrift", "drift"]);
        assert_eq!(vm.lookup(FileId::DIR, "drift"), None);
    }

    fn value() -> impl Strategy<Value = Value> {
        let scalar = prop_oneof![
            "[a-c1/.%\"\\\\-]{0,3}".prop_map(Value::from),
            (0..4).prop_map(Value::from)
        ];
        let map =
            || prop::collection::btree_map("[a-c1/.%\"]{0,2}|name|path", scalar.clone(), 0..4);
        let object = map().prop_map(|map| Value::Object(map.into_iter().collect()));
        prop_oneof![
            scalar.clone(),
            object.clone(),
            prop::collection::vec(object, 0..5).prop_map(Value::from),
        ]
    }

    /// Scalars and lists of them, with all that JSON escapes or ends by.
    fn leaf() -> impl Strategy<Value = Value> {
        let text = || "[]a\\[\"\\\\,:{}\n\u{1}é]{0,4}".prop_map(Value::from);
        prop_oneof![
            text(),
            any::<i64>().prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            prop::collection::vec(text(), 0..4).prop_map(Value::from),
        ]
    }

    proptest! {
        #[test]
        fn every_file_holds_its_member_and_nothing_beside_it(
            members in prop::collection::btree_map("[]a\\[\"\\\\:}é]{1,3}", leaf(), 0..6),
        ) {
            let members: Object = members.into_iter().collect();
            let vm = rendered(json!({"tags": members.clone()}));
            let tags = vm.lookup(FileId::DIR, "tags").unwrap().id;
            for (key, value) in &members {
                let file = vm.lookup(tags, &name::encode(key).unwrap()).unwrap();
                let mut text = Vec::new();
                file.text(vm.json(), &mut text);
                let expected = match value {
                    Value::Array(items) => items.iter().map(|item| format!("{}\n", scalar_text(item))).collect(),
                    scalar => format!("{}\n", scalar_text(scalar)),
                };
                prop_assert_eq!(file.size as usize, text.len());
                prop_assert_eq!(String::from_utf8(text).unwrap(), expected);
                prop_assert!(file.same(vm.json(), &file, vm.json()));
            }
        }

        #[test]
        fn every_file_and_no_other_is_found_by_its_name(
            members in prop::collection::btree_map("[a-d]|nics|disks|tags", value(), 0..5),
        ) {
            let object: Object = members.into_iter().collect();
            let vm = Rendered::new(&object);
            for file in vm.files().iter() {
                let name = file.name(vm.json());
                prop_assert_eq!(vm.lookup(file.parent, &name), Some(file), "{}", name);
                prop_assert_eq!(vm.lookup(file.parent, "nobody"), None);
            }
        }
    }
}
