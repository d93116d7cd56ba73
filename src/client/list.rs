//! `vmadm list`: VMs as lines of text, byte for byte as SmartOS prints them. Pure.
//!
//! It owns the table of columns. Of each VM only the members of [`Listing::members`] are looked at.

use std::cmp::Ordering;

use serde_json::Value;

use super::fields::{self, BadKey, Members};
use super::path::{Part, Path};
use super::{printable, raw_text};
use crate::vm::Object;

/// What is shown unless `-o` says otherwise.
pub const DEFAULT_ORDER: &str = "uuid,type,ram,state,alias";

/// What lists are sorted by unless `-s` says otherwise.
pub const DEFAULT_SORT: &str = "ram,uuid";

/// What stands in a table where a VM has nothing to show.
const NOTHING: &str = "-";

/// How wide the columns are that are no properties of their own, such as `nics.0.ip`.
const NESTED_WIDTH: usize = 20;

/// The properties that can be columns, with their header and width.
#[rustfmt::skip]
const COLUMNS: [(&str, &str, usize); 44] = [
    ("alias",                    "ALIAS",            10),
    ("autoboot",                 "AUTOBOOT",          8),
    ("billing_id",               "BILLING_ID",       36),
    ("boot_timestamp",           "BOOT_TIMESTAMP",   24),
    ("brand",                    "BRAND",            14),
    ("cpu_cap",                  "CPU_CAP",           7),
    ("cpu_shares",               "CPU_SHARE",         9),
    ("cpu_type",                 "CPU_TYPE",          8),
    ("create_timestamp",         "CREATE_TIMESTAMP", 24),
    ("dns_domain",               "DOMAIN",           32),
    ("do_not_inventory",         "DNI",               5),
    ("docker",                   "DOCKER",            6),
    ("exit_status",              "EXIT",              4),
    ("exit_timestamp",           "EXIT_TIMESTAMP",   24),
    ("firewall_enabled",         "FIREWALL_ENABLED", 16),
    ("flexible_disk_size",       "FLEX_DISK_SIZE",   14),
    ("free_space",               "FREE_SPACE",       14),
    ("hostname",                 "HOSTNAME",         32),
    ("hvm",                      "HVM",               5),
    ("image_uuid",               "IMAGE_UUID",       36),
    ("indestructible_delegated", "INDESTR_DATA",     12),
    ("indestructible_zoneroot",  "INDESTR_ROOT",     12),
    ("ram",                      "RAM",               7),
    ("max_locked_memory",        "MAX_LOCKED",       10),
    ("max_lwps",                 "MAX_LWP",           7),
    ("max_physical_memory",      "MAX_PHYS",          8),
    ("max_swap",                 "MAX_SWAP",          8),
    ("owner_uuid",               "OWNER_UUID",       36),
    ("package_name",             "PACKAGE_NAME",     32),
    ("package_version",          "PACKAGE_VER",      11),
    ("pid",                      "PID",               6),
    ("qemu_extra_opts",          "QEMU_EXTRA_OPTS",  15),
    ("quota",                    "QUOTA",             5),
    ("zone_state",               "ZONE_STATE",       10),
    ("state",                    "STATE",            16),
    ("tmpfs",                    "TMPFS",             5),
    ("type",                     "TYPE",              4),
    ("uuid",                     "UUID",             36),
    ("vcpus",                    "VCPUS",             5),
    ("zfs_io_priority",          "IO_PRIORITY",      11),
    ("zpool",                    "ZPOOL",            12),
    ("zonename",                 "ZONENAME",         12),
    ("zonepath",                 "ZONEPATH",         40),
    ("zoneid",                   "ZONEID",            6),
];

/// A list as it was asked for.
#[derive(Clone, Debug)]
pub struct Listing {
    columns: Vec<Column>,
    sort: Vec<SortField>,
    layout: Layout,
}

/// How lines are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Columns for people, below a header.
    Table,
    /// Columns without a header.
    Body,
    /// Values with a `:` between them, without a header. A `:` within a value is not escaped, as
    /// SmartOS does not escape it.
    Parsable,
}

#[derive(Clone, Debug)]
struct Column {
    path: Path,
    header: String,
    width: usize,
}

#[derive(Clone, Debug)]
struct SortField {
    path: Path,
    direction: Direction,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// A value to sort by. What is there comes before what is not.
#[derive(Clone, Debug, PartialEq)]
enum SortKey {
    Number(f64),
    True,
    Text(String),
    /// False, 0 or empty.
    Falsy,
    Missing,
}

impl Listing {
    /// A list with these columns, sorted by these fields, both separated by commas. A `-` before a
    /// field sorts the other way round, what is missing included.
    ///
    /// # Errors
    /// When one of them is no column.
    pub fn new(order: &str, sort: &str, layout: Layout) -> Result<Listing, BadKey> {
        let columns = order.split(',').map(|field| {
            let column = Column::named(field);
            column.ok_or_else(|| BadKey::Order(field.to_owned()))
        });
        let sort = sort.split(',').map(|field| {
            let (direction, name) = match field.strip_prefix('-') {
                Some(name) => (Direction::Down, name),
                None => (Direction::Up, field.strip_prefix('+').unwrap_or(field)),
            };
            let column = Column::named(name).ok_or_else(|| BadKey::Sort(field.to_owned()))?;
            Ok(SortField {
                path: column.path,
                direction,
            })
        });
        Ok(Listing {
            columns: columns.collect::<Result<_, _>>()?,
            sort: sort.collect::<Result<_, _>>()?,
            layout,
        })
    }

    /// The members of VMs that this list and these other paths look at.
    pub fn members<'a>(&'a self, others: impl IntoIterator<Item = &'a Path>) -> Members {
        let columns = self.columns.iter().map(|column| &column.path);
        let sort = self.sort.iter().map(|field| &field.path);
        fields::needed(columns.chain(sort).chain(others))
    }

    /// The lines of VMs that are [complete](fields::complete). Those that are equal in all that is
    /// sorted by stay in their order.
    pub fn text(&self, vms: &[Object]) -> String {
        let mut keyed: Vec<(Vec<SortKey>, &Object)> = vms
            .iter()
            .map(|vm| {
                let keys = self.sort.iter().map(|field| SortKey::of(vm, &field.path));
                (keys.collect(), vm)
            })
            .collect();
        keyed.sort_by(|(a, _), (b, _)| self.compare(a, b));
        let mut text = String::new();
        if self.layout == Layout::Table {
            self.line(|column| column.header.clone(), &mut text);
        }
        for (_, vm) in keyed {
            self.line(|column| self.cell(vm, column), &mut text);
        }
        text
    }

    fn compare(&self, a: &[SortKey], b: &[SortKey]) -> Ordering {
        let pairs = self.sort.iter().zip(a.iter().zip(b));
        pairs.fold(Ordering::Equal, |so_far, (field, (a, b))| {
            so_far.then_with(|| match field.direction {
                Direction::Up => a.compare(b),
                Direction::Down => b.compare(a),
            })
        })
    }

    fn line(&self, cell: impl Fn(&Column) -> String, text: &mut String) {
        let mut line = String::new();
        for (number, column) in self.columns.iter().enumerate() {
            let (between, width) = match self.layout {
                Layout::Parsable => (":", 0),
                Layout::Table | Layout::Body => ("  ", column.width),
            };
            if number > 0 {
                line.push_str(between);
            }
            let cell = cell(column);
            line.push_str(&format!("{cell:<width$}"));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }

    fn cell(&self, vm: &Object, column: &Column) -> String {
        let value = column.path.values(vm).first().copied();
        let text = value.map(cell_text).unwrap_or_default();
        if text.is_empty() && self.layout != Layout::Parsable {
            return NOTHING.to_owned();
        }
        printable(&text)
    }
}

impl Column {
    fn named(field: &str) -> Option<Column> {
        let path: Path = field.parse().ok()?;
        let row = COLUMNS.iter().find(|(name, _, _)| *name == field);
        if let Some((_, header, width)) = row {
            return Some(Column {
                path,
                header: (*header).to_owned(),
                width: *width,
            });
        }
        // One value has to be meant, and it is not the property as a whole.
        let several = path.parts().contains(&Part::Any);
        let whole = path.parts().len() < 2;
        (!several && !whole && fields::is_known(&path)).then(|| Column {
            path,
            header: field.to_uppercase(),
            width: NESTED_WIDTH,
        })
    }
}

impl SortKey {
    fn of(vm: &Object, path: &Path) -> SortKey {
        let Some(value) = path.values(vm).first().copied() else {
            return SortKey::Missing;
        };
        match value {
            Value::Null | Value::Bool(false) => SortKey::Falsy,
            Value::Bool(true) => SortKey::True,
            Value::Number(number) => match number.as_f64() {
                Some(0.0) | None => SortKey::Falsy,
                Some(number) => SortKey::Number(number),
            },
            other => match cell_text(other) {
                text if text.is_empty() => SortKey::Falsy,
                text => SortKey::Text(text),
            },
        }
    }

    fn compare(&self, other: &SortKey) -> Ordering {
        match (self, other) {
            (SortKey::Number(a), SortKey::Number(b)) => a.total_cmp(b),
            (SortKey::Text(a), SortKey::Text(b)) => a.cmp(b),
            _ => self.rank().cmp(&other.rank()),
        }
    }

    fn rank(&self) -> u8 {
        match self {
            SortKey::Number(_) => 0,
            SortKey::True => 1,
            SortKey::Text(_) => 2,
            SortKey::Falsy => 3,
            SortKey::Missing => 4,
        }
    }
}

/// A value in a list: false and null are nothing, the elements of lists have commas between them.
fn cell_text(value: &Value) -> String {
    match value {
        Value::Bool(false) => String::new(),
        Value::Array(elements) => {
            let texts: Vec<String> = elements.iter().map(raw_text).collect();
            texts.join(",")
        }
        other => raw_text(other),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn vms(vms: Value) -> Vec<Object> {
        let Value::Array(vms) = vms else {
            panic!("a list of VMs")
        };
        vms.into_iter()
            .map(|vm| {
                let mut vm = vm.as_object().unwrap().clone();
                fields::complete(&mut vm);
                vm
            })
            .collect()
    }

    fn list(order: &str, sort: &str, layout: Layout, objects: Value) -> String {
        let listing = Listing::new(order, sort, layout).unwrap();
        listing.text(&vms(objects))
    }

    const WEB: &str = "0b5e2f11-8c7d-4d2a-b6a1-3e9f70c2d844";
    const DB: &str = "c4103a37-1f0b-4c5e-9d0e-6f8a2b3c4d5e";

    fn two() -> Value {
        json!([
            {"uuid": DB, "brand": "kvm", "ram": 2048, "max_physical_memory": 3072,
                "state": "running", "alias": "database-01"},
            {"uuid": WEB, "brand": "joyent", "max_physical_memory": 256, "state": "stopped"},
        ])
    }

    #[test]
    fn the_default_table_is_that_of_smartos() {
        assert_eq!(
            list(DEFAULT_ORDER, DEFAULT_SORT, Layout::Table, two()),
            "UUID                                  TYPE  RAM      STATE             ALIAS\n\
             0b5e2f11-8c7d-4d2a-b6a1-3e9f70c2d844  OS    256      stopped           -\n\
             c4103a37-1f0b-4c5e-9d0e-6f8a2b3c4d5e  KVM   2048     running           database-01\n"
        );
    }

    #[test]
    fn parsable_lines_have_colons_and_neither_header_nor_padding() {
        assert_eq!(
            list(DEFAULT_ORDER, "-ram", Layout::Parsable, two()),
            format!("{DB}:KVM:2048:running:database-01\n{WEB}:OS:256:stopped:\n")
        );
    }

    #[test]
    fn a_body_is_a_table_without_its_header() {
        assert_eq!(
            list("alias,type", "ram", Layout::Body, two()),
            "-           OS\ndatabase-01  KVM\n"
        );
    }

    #[test]
    fn false_and_empty_are_dashes_and_zero_is_zero() {
        let vm = json!([{"brand": "lx", "quota": 0, "docker": false, "alias": "",
            "zoneid": null, "autoboot": true}]);
        let order = "quota,docker,alias,zoneid,autoboot,hostname";
        assert_eq!(
            list(order, "quota", Layout::Body, vm.clone()),
            "0      -       -           -       true      -\n"
        );
        assert_eq!(list(order, "quota", Layout::Parsable, vm), "0::::true:\n");
    }

    #[test]
    fn nested_columns_are_twenty_wide_and_named_by_their_path() {
        let vm = json!([{"nics": [{"ip": "10.0.0.2", "ips": ["a", "b"]}],
            "tags": {"role": "web"}}]);
        assert_eq!(
            list(
                "nics.0.ip,nics.0.ips,nics.1.ip,tags.role",
                "uuid",
                Layout::Table,
                vm
            ),
            "NICS.0.IP             NICS.0.IPS            NICS.1.IP             TAGS.ROLE\n\
             10.0.0.2              a,b                   -                     web\n"
        );
    }

    #[test]
    fn what_is_missing_or_zero_sorts_last() {
        let vms = json!([
            {"alias": "none"},
            {"alias": "zero", "quota": 0},
            {"alias": "ten", "quota": 10},
            {"alias": "two", "quota": 2.5},
        ]);
        let sorted = |sort: &str| list("alias", sort, Layout::Parsable, vms.clone());
        assert_eq!(sorted("quota"), "two\nten\nzero\nnone\n");
        assert_eq!(sorted("+quota"), "two\nten\nzero\nnone\n");
        assert_eq!(sorted("-quota"), "none\nzero\nten\ntwo\n");
        assert_eq!(sorted("zpool,-alias"), "zero\ntwo\nten\nnone\n");
    }

    #[test]
    fn every_column_of_smartos_is_there_once() {
        for (name, header, width) in &COLUMNS {
            assert!(*width > 0 && *header == header.to_uppercase(), "{name}");
            let path: Path = name.parse().unwrap();
            assert!(fields::is_known(&path), "{name}");
            assert_eq!(COLUMNS.iter().filter(|row| row.0 == *name).count(), 1);
        }
    }

    #[test]
    fn what_is_no_column_is_refused_by_name() {
        let message = |order, sort| {
            let refused = Listing::new(order, sort, Layout::Table).unwrap_err();
            refused.to_string()
        };
        assert_eq!(message("uuid,k", "ram"), r#"Invalid order key: "k""#);
        assert_eq!(
            message("nics.*.ip", "ram"),
            r#"Invalid order key: "nics.*.ip""#
        );
        assert_eq!(message("nics", "ram"), r#"Invalid order key: "nics""#);
        assert_eq!(message("", "ram"), r#"Invalid order key: """#);
        assert_eq!(message("uuid", "-f"), "invalid sort field: -f");
        assert_eq!(message("uuid", "f"), "invalid sort field: f");
    }

    #[test]
    fn a_value_cannot_break_its_line() {
        let vm = json!([{"alias": "a\nb\u{1b}c"}]);
        assert_eq!(
            list("alias", "alias", Layout::Parsable, vm),
            "a\\nb\\u{1b}c\n"
        );
    }

    proptest! {
        #[test]
        fn parsable_lines_split_back(
            vms in prop::collection::vec(("[^:\\s\\pC]{1,12}", "[^:\\s\\pC]{0,12}", 1..9000_u32), 0..9),
        ) {
            let objects: Vec<Value> = vms
                .iter()
                .map(|(zonename, alias, quota)| {
                    json!({"zonename": zonename, "alias": alias, "quota": quota})
                })
                .collect();
            let text = list("alias,quota,zonename", "zpool", Layout::Parsable, objects.into());
            let split: Vec<_> = text
                .lines()
                .map(|line| {
                    let fields: Vec<&str> = line.split(':').collect();
                    assert_eq!(fields.len(), 3);
                    (fields[2].to_owned(), fields[0].to_owned(), fields[1].parse().unwrap())
                })
                .collect();
            prop_assert_eq!(split, vms);
        }

        #[test]
        fn sorting_is_an_order_whatever_the_values(
            values in prop::collection::vec(prop_oneof![
                Just(json!({})),
                Just(json!({"tags": {"a": null}})),
                any::<bool>().prop_map(|a| json!({"tags": {"a": a}})),
                any::<f64>().prop_map(|a| json!({"tags": {"a": a}})),
                "[a-c0]{0,2}".prop_map(|a| json!({"tags": {"a": a}})),
            ], 0..30),
        ) {
            let path: Path = "tags.a".parse().unwrap();
            let keys: Vec<SortKey> = vms(values.into())
                .iter()
                .map(|vm| SortKey::of(vm, &path))
                .collect();
            for a in &keys {
                for b in &keys {
                    prop_assert_eq!(a.compare(b), b.compare(a).reverse());
                    for c in &keys {
                        let (ab, bc) = (a.compare(b), b.compare(c));
                        if ab.is_le() && bc.is_le() {
                            prop_assert!(a.compare(c).is_le());
                        }
                    }
                }
            }
        }
    }
}
