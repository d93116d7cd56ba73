//! What `zfs get` prints: which properties a release knows, the datasets, and what is new in them.
//!
//! Pure: text in, tables out. A poll compares the text with the table it has and builds nothing
//! for what has not changed, since with thousands of datasets that is nearly everything.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::zones::datasets::{Dataset, Table};

/// The properties that a VM object is made of.
const WANTED: &[&str] = &[
    "type",
    "mountpoint",
    "quota",
    "refquota",
    "compression",
    "recordsize",
    "creation",
    "userrefs",
    "filesystem_limit",
    "snapshot_limit",
    "volsize",
    "volblocksize",
    "refreservation",
    "usedbysnapshots",
    "written",
    "used",
];

/// What ZFS counts by itself while data is written: nobody sets it and no event announces it.
const ACCOUNTING: &[&str] = &["usedbysnapshots", "written", "used"];

/// Output that cannot be what `zfs get` prints. The text goes behind the command line.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Garbage {
    /// Not text.
    #[error("prints bytes that are not UTF-8 (at byte {0})")]
    NotText(usize),
    /// A line that is not `name, property, value`.
    #[error("line {line} has {fields} fields instead of 3")]
    Fields {
        /// Its number, from 1.
        line: usize,
        /// How many there are.
        fields: usize,
    },
    /// A dataset that was not asked for.
    #[error("line {line} names {name:?}, which is not in {asked}")]
    Stranger {
        /// Its number, from 1.
        line: usize,
        /// The name it begins with.
        name: String,
        /// What was asked for.
        asked: String,
    },
    /// The dataset that was asked for is not there, though the command succeeded.
    #[error("says nothing of {0}")]
    Missing(String),
    /// The last line has no end.
    #[error("the last line is cut off")]
    Cut,
    /// The usage text lists no properties.
    #[error("its usage text does not list the properties it knows")]
    NoProperties,
}

/// The properties to ask this release for, as `zfs get` takes them.
///
/// One unknown property fails the whole command, so the usage text, which `zfs get` without
/// arguments prints in all releases, says what may be asked: lines of name, `YES` or `NO`, and
/// more. A snapshot's size is `written`; only an old release is asked for `used` instead.
pub(super) fn columns(usage: &str) -> Result<String, Garbage> {
    let known: BTreeSet<&str> = usage
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let name = words.next()?;
            matches!(words.next()?, "YES" | "NO").then_some(name)
        })
        .collect();
    if !known.contains("type") || !known.contains("mountpoint") {
        return Err(Garbage::NoProperties);
    }
    let has_written = known.contains("written");
    let columns: Vec<&str> = WANTED
        .iter()
        .copied()
        .filter(|name| known.contains(name) && !(*name == "used" && has_written))
        .collect();
    Ok(columns.join(","))
}

/// Datasets as printed: each with its properties, in the order of the columns.
pub(super) type Rows<'a> = BTreeMap<&'a str, Vec<(&'a str, &'a str)>>;

/// Reads the output of `zfs get -Hp -r -o name,property,value` for `subtree`.
pub(super) fn parse<'a>(output: &'a [u8], subtree: &str) -> Result<Rows<'a>, Garbage> {
    let rows = rows(output, &[subtree])?;
    match rows.contains_key(subtree) {
        true => Ok(rows),
        false => Err(Garbage::Missing(subtree.to_owned())),
    }
}

/// Reads the same output for several subtrees, of which some may not be there.
pub(in crate::source::zones) fn table(output: &[u8], subtrees: &[&str]) -> Result<Table, Garbage> {
    let mut table = Table::default();
    for (name, row) in rows(output, subtrees)? {
        let owned = |(property, value): (&str, &str)| (property.to_owned(), value.to_owned());
        table.replace(name, row.into_iter().map(owned).collect());
    }
    Ok(table)
}

fn rows<'a>(output: &'a [u8], subtrees: &[&str]) -> Result<Rows<'a>, Garbage> {
    let text =
        std::str::from_utf8(output).map_err(|error| Garbage::NotText(error.valid_up_to()))?;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(Garbage::Cut);
    }
    let mut rows = Rows::new();
    for (number, line) in text.lines().enumerate() {
        let mut fields = line.splitn(3, '\t');
        let (Some(name), Some(property), Some(value)) =
            (fields.next(), fields.next(), fields.next())
        else {
            return Err(Garbage::Fields {
                line: number + 1,
                fields: line.split('\t').count(),
            });
        };
        if !subtrees.iter().any(|subtree| is_in(name, subtree)) {
            return Err(Garbage::Stranger {
                line: number + 1,
                name: name.to_owned(),
                asked: subtrees.join(" "),
            });
        }
        if name.contains('#') {
            // A bookmark holds no data and is part of no VM.
            continue;
        }
        let row = rows.entry(name).or_default();
        row.extend(worth_keeping(name, property, value).map(|value| (property, value)));
    }
    Ok(rows)
}

/// The value as the table holds it, `None` if the table does not.
fn worth_keeping<'a>(name: &str, property: &str, value: &'a str) -> Option<&'a str> {
    match property {
        _ if value == "-" => None,
        // Of a filesystem in use these change with every write, and no property is made of them.
        "used" | "written" if !name.contains('@') => None,
        // Without a limit the raw number is the largest there is; the word is clearer.
        "filesystem_limit" | "snapshot_limit" if value == "18446744073709551615" => Some("none"),
        _ => Some(value),
    }
}

/// Whether a dataset is `subtree`, below it, or a snapshot of either.
pub(super) fn is_in(name: &str, subtree: &str) -> bool {
    name.strip_prefix(subtree)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '@', '#']))
}

/// The names of datasets that came, went or changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// Where something was set, created or destroyed.
    pub(super) settings: BTreeSet<String>,
    /// Where only the accounting has moved on.
    pub(super) accounting: BTreeSet<String>,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.settings.is_empty() && self.accounting.is_empty()
    }

    /// Says nothing of these subtrees.
    pub(super) fn leave_out(&mut self, subtrees: &BTreeSet<String>) {
        let is_kept = |name: &String| !subtrees.iter().any(|subtree| is_in(name, subtree));
        if !subtrees.is_empty() {
            self.settings.retain(is_kept);
            self.accounting.retain(is_kept);
        }
    }
}

/// Compares what was printed for `subtree` with the table.
pub(super) fn difference(table: &Table, rows: &Rows<'_>, subtree: &str) -> Difference {
    let mut difference = Difference::default();
    for (name, row) in rows {
        match table.get(name).map(|dataset| compare(dataset, row)) {
            Some(Comparison::Same) => {}
            Some(Comparison::Accounting) => {
                difference.accounting.insert((*name).to_owned());
            }
            Some(Comparison::Settings) | None => {
                difference.settings.insert((*name).to_owned());
            }
        }
    }
    let gone = table
        .starting_with(subtree)
        .filter(|name| is_in(name, subtree) && !rows.contains_key(name));
    difference.settings.extend(gone.map(str::to_owned));
    difference
}

enum Comparison {
    Same,
    Accounting,
    Settings,
}

fn compare(dataset: &Dataset, row: &[(&str, &str)]) -> Comparison {
    let differs = |(property, value): &&(&str, &str)| {
        dataset.get(*property).map(String::as_str) != Some(*value)
    };
    let mut found = Comparison::Same;
    for (property, _) in row.iter().filter(differs) {
        if !ACCOUNTING.contains(property) {
            return Comparison::Settings;
        }
        found = Comparison::Accounting;
    }
    // Equal in number and each in the table: equal. More in the table: some are gone.
    if row.len() == dataset.len() {
        found
    } else {
        Comparison::Settings
    }
}

/// Makes the table what was printed, where the two differ.
pub(super) fn apply(table: &mut Table, rows: &Rows<'_>, difference: &Difference) {
    for name in difference.settings.iter().chain(&difference.accounting) {
        match rows.get(name.as_str()) {
            None => table.remove(name),
            Some(row) => {
                let owned = |(property, value): &(&str, &str)| {
                    ((*property).to_owned(), (*value).to_owned())
                };
                table.replace(name, row.iter().map(owned).collect());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OLD_USAGE: &str = include_str!("../../../../tests/data/zfs-get-usage-zfs-fuse.txt");
    const NEW_USAGE: &str = include_str!("../../../../tests/data/zfs-get-usage-openzfs.txt");

    fn table_of(output: &str, subtree: &str) -> Table {
        let mut table = Table::default();
        let rows = parse(output.as_bytes(), subtree).unwrap();
        let difference = difference(&table, &rows, subtree);
        apply(&mut table, &rows, &difference);
        table
    }

    fn names(list: &[&str]) -> BTreeSet<String> {
        list.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn each_release_is_asked_only_for_what_it_knows() {
        let old = columns(OLD_USAGE).unwrap();
        assert!(old.ends_with("usedbysnapshots,used"), "{old}");
        assert!(!old.contains("limit") && !old.contains("written"), "{old}");
        let new = columns(NEW_USAGE).unwrap();
        assert!(new.ends_with("usedbysnapshots,written"), "{new}");
        assert!(new.contains("filesystem_limit,snapshot_limit"), "{new}");
        assert_eq!(columns("zfs: what?\n"), Err(Garbage::NoProperties));
    }

    #[test]
    fn values_are_kept_raw_and_what_does_not_apply_is_left_out() {
        let table = table_of(
            "z\ttype\tfilesystem\nz\tquota\t0\nz\tvolsize\t-\nz\tused\t77\n\
             z\tsnapshot_limit\t18446744073709551615\nz#mark\tcreation\t1\n\
             z@s\ttype\tsnapshot\nz@s\tused\t88\n",
            "z",
        );
        let root = table.get("z").unwrap();
        let expected = [
            ("quota", "0"),
            ("snapshot_limit", "none"),
            ("type", "filesystem"),
        ];
        assert!(
            root.iter()
                .map(|(k, v)| (k.as_str(), v.as_str()))
                .eq(expected)
        );
        assert_eq!(table.get("z@s").unwrap()["used"], "88");
        assert_eq!(table.len(), 2);
    }

    #[test]
    fn garbage_is_refused_by_name() {
        let refuse = |output: &[u8]| parse(output, "z").unwrap_err();
        assert_eq!(refuse(b"z\ttype\t\xff\n"), Garbage::NotText(7));
        assert_eq!(refuse(b"z\ttype\n"), Garbage::Fields { line: 1, fields: 2 });
        assert_eq!(refuse(b"z\ttype\tfilesy"), Garbage::Cut);
        assert_eq!(refuse(b""), Garbage::Missing("z".to_owned()));
        let stranger = refuse(b"z\ttype\tfilesystem\nzz\ttype\tfilesystem\n");
        assert!(
            matches!(stranger, Garbage::Stranger { line: 2, .. }),
            "{stranger}"
        );
    }

    #[test]
    fn a_subtree_read_again_leaves_its_neighbours_alone() {
        let mut table = table_of(
            "z\tquota\t0\nz/a\tquota\t1\nz/a/data\tquota\t0\nz/a@s\tcreation\t5\nz/ab\tquota\t3\n",
            "z",
        );
        let rows = parse(b"z/a\tquota\t2\nz/a/data\tquota\t0\n", "z/a").unwrap();
        let changed = difference(&table, &rows, "z/a");
        assert_eq!(changed.settings, names(&["z/a", "z/a@s"]));
        apply(&mut table, &rows, &changed);
        assert_eq!(table.get("z/a").unwrap()["quota"], "2");
        assert!(table.get("z/a@s").is_none());
        assert!(table.get("z/ab").is_some());
    }

    #[test]
    fn accounting_is_told_from_settings() {
        let table = table_of("z\tquota\t0\nz\tusedbysnapshots\t1\nz@s\twritten\t1\n", "z");
        let rows = parse(
            b"z\tquota\t1\nz\tusedbysnapshots\t2\nz@s\twritten\t2\n",
            "z",
        )
        .unwrap();
        let changed = difference(&table, &rows, "z");
        assert_eq!(changed.settings, names(&["z"]));
        assert_eq!(changed.accounting, names(&["z@s"]));
    }

    fn output() -> impl Strategy<Value = String> {
        let name = proptest::sample::select(vec!["z/a", "z/b", "z/b/c", "z/a@s", "z/b@s"]);
        let row = (name, proptest::option::of(0..3u8), 0..3u8);
        proptest::collection::btree_map(
            row.clone().prop_map(|(name, _, _)| name),
            row.prop_map(|(_, quota, used)| (quota, used)),
            0..5,
        )
        .prop_map(|rows| {
            let mut text = "z\ttype\tfilesystem\n".to_owned();
            for (name, (quota, used)) in rows {
                let quota = quota.map_or("-".to_owned(), |quota| quota.to_string());
                text += &format!("{name}\tquota\t{quota}\n{name}\tusedbysnapshots\t{used}\n");
            }
            text
        })
    }

    proptest! {
        #[test]
        fn applying_a_difference_gives_the_table_read_from_nothing(
            before in output(),
            after in output(),
        ) {
            let mut table = table_of(&before, "z");
            let rows = parse(after.as_bytes(), "z").unwrap();
            let changed = difference(&table, &rows, "z");
            apply(&mut table, &rows, &changed);
            prop_assert_eq!(&table, &table_of(&after, "z"));
            prop_assert_eq!(difference(&table, &rows, "z"), Difference::default());
        }

        #[test]
        fn no_output_makes_the_parser_panic(output in any::<Vec<u8>>()) {
            let _ = parse(&output, "z");
            let _ = columns(&String::from_utf8_lossy(&output));
        }
    }
}
