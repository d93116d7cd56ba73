//! The list of a host's zones: `etc/zones/index`.
//!
//! Each line is `zonename:state:zonepath:uuid`. This module decides which zones become VMs and
//! under which uuid, and whether the list can be trusted to say that a zone is *not* there: a
//! file caught while it is being rewritten is short, and must not delete anything. It reads no
//! file itself.

use std::collections::HashSet;

use uuid::Uuid;

use crate::source::Unplaced;

/// A zone that is shown as a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, which is safe as one component of a path.
    pub zonename: String,
    /// `configured`, `incomplete` or `installed`.
    pub state: String,
    /// Where its root dataset is mounted.
    pub zonepath: String,
    /// What its directory is called: the uuid of the line, else the zonename if that is a uuid.
    pub uuid: Uuid,
}

/// What the index says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// The zones that are VMs, in the order of the file; zonenames and uuids are unique.
    pub entries: Vec<Entry>,
    /// The zones, or broken lines, that are not.
    pub unplaced: Vec<Unplaced>,
    /// Why the absence of a zone proves nothing; `None` when the file is whole.
    pub broken: Option<String>,
}

/// Reads the index. Whatever the bytes are, the good lines among them are used.
pub fn parse(bytes: &[u8]) -> Index {
    let mut index = Index::default();
    let mut names = HashSet::new();
    let mut uuids = HashSet::new();
    let mut lines = 0;
    for (number, line) in (1..).zip(bytes.split_inclusive(|&byte| byte == b'\n')) {
        let (line, whole) = match line.strip_suffix(b"\n") {
            Some(line) => (line, true),
            None => (line, false),
        };
        if line.trim_ascii().is_empty() || line.starts_with(b"#") {
            continue;
        }
        lines += 1;
        let fields = match fields(line) {
            Ok(fields) => fields,
            Err(problem) => {
                index.unplaced.push(Unplaced {
                    zonename: shorten(&String::from_utf8_lossy(line)),
                    reason: format!("line {number} of the index {problem}"),
                });
                index.distrust(format!("line {number} {problem}"));
                continue;
            }
        };
        if !whole {
            index.distrust("its last line has no end".to_owned());
        }
        if fields.zonename == "global" {
            continue;
        }
        match place(&fields, whole) {
            Err(reason) => index.refuse(fields.zonename, reason),
            Ok(_) if names.contains(fields.zonename) => {
                index.refuse(fields.zonename, "an earlier line has this name");
            }
            Ok(uuid) if uuids.contains(&uuid) => {
                index.refuse(
                    fields.zonename,
                    &format!("an earlier zone has its uuid, {uuid}"),
                );
            }
            Ok(uuid) => {
                names.insert(fields.zonename);
                uuids.insert(uuid);
                index.entries.push(Entry {
                    zonename: fields.zonename.to_owned(),
                    state: fields.state.to_owned(),
                    zonepath: fields.zonepath.to_owned(),
                    uuid,
                });
            }
        }
    }
    // A host without zones still lists `global`. No line at all is a file that was just
    // truncated, or lost.
    if lines == 0 {
        index.distrust("it is empty; a host without zones lists at least global".to_owned());
    }
    index
}

impl Index {
    /// Keeps the first reason: what follows in a damaged file is often its consequence.
    fn distrust(&mut self, reason: String) {
        self.broken.get_or_insert(reason);
    }

    fn refuse(&mut self, zonename: &str, reason: &str) {
        self.unplaced.push(Unplaced {
            zonename: shorten(zonename),
            reason: reason.to_owned(),
        });
    }
}

struct Fields<'a> {
    zonename: &'a str,
    state: &'a str,
    zonepath: &'a str,
    uuid: &'a str,
}

fn fields(line: &[u8]) -> Result<Fields<'_>, &'static str> {
    let line = std::str::from_utf8(line).map_err(|_| "is not UTF-8")?;
    if line.chars().any(char::is_control) {
        return Err("holds control characters");
    }
    let mut fields = line.split(':');
    match (fields.next(), fields.next(), fields.next(), fields.next()) {
        (Some(zonename), Some(state), Some(zonepath), uuid) if !zonename.is_empty() => Ok(Fields {
            zonename,
            state,
            zonepath,
            uuid: uuid.unwrap_or(""),
        }),
        _ => Err("has too few fields (zonename:state:zonepath:uuid)"),
    }
}

/// The uuid of a zone, or why it has no place in the tree.
fn place(fields: &Fields<'_>, whole: bool) -> Result<Uuid, &'static str> {
    // Names of files are made from zonenames.
    if fields.zonename.contains('/') || matches!(fields.zonename, "." | "..") {
        return Err("its name cannot be the name of a file; rename it");
    }
    match hyphenated(fields.uuid) {
        Some(uuid) => Ok(uuid),
        // Half a uuid must not make the zone appear under another one.
        None if !whole => Err("the index ends in the middle of its line"),
        None => hyphenated(fields.zonename)
            .ok_or("neither the uuid in the index nor its name is a uuid; give it one there"),
    }
}

/// The crate also takes braces and bare digits, which name no VM.
fn hyphenated(text: &str) -> Option<Uuid> {
    (text.len() == uuid::fmt::Hyphenated::LENGTH)
        .then(|| Uuid::try_parse(text).ok())
        .flatten()
}

/// A line of a binary file can be long, and it goes into `.status`.
fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const A: &str = "5a02245a-422c-4e0a-c5f8-fd6fac1ac04e";
    const B: &str = "073ae53b-c444-4e23-866b-10f99f276242";

    fn parse(text: &str) -> Index {
        super::parse(text.as_bytes())
    }

    #[test]
    fn a_zone_has_the_uuid_of_its_line() {
        let index = parse(&format!(
            "# comment\nglobal:installed:/\nweb:installed:/zones/web:{A}\n"
        ));
        assert_eq!(
            index.entries,
            [Entry {
                zonename: "web".into(),
                state: "installed".into(),
                zonepath: "/zones/web".into(),
                uuid: A.parse().unwrap(),
            }]
        );
        assert_eq!((index.unplaced, index.broken), (vec![], None));
    }

    #[test]
    fn fields_after_the_uuid_are_ignored() {
        let index = parse(&format!("web:installed:/zones/web:{A}:lx:excl:5\n"));
        assert_eq!(index.entries.len(), 1);
        assert_eq!(index.broken, None);
    }

    #[test]
    fn a_zonename_that_is_a_uuid_serves_when_the_line_has_none() {
        for line in [
            format!("{A}:installed:/z\n"),
            format!("{A}:installed:/z:odd\n"),
        ] {
            assert_eq!(parse(&line).entries[0].uuid.to_string(), A);
        }
    }

    #[test]
    fn a_zone_without_any_uuid_is_unplaced() {
        let index = parse("web:installed:/zones/web:\n");
        assert_eq!(index.entries, []);
        assert_eq!(index.unplaced[0].zonename, "web");
        assert_eq!(index.broken, None);
    }

    #[test]
    fn of_two_zones_with_one_uuid_the_first_stays() {
        let index = parse(&format!("a:installed:/a:{A}\nb:installed:/b:{A}\n"));
        assert_eq!(index.entries.len(), 1);
        assert_eq!(index.entries[0].zonename, "a");
        assert_eq!(
            index.unplaced[0].reason,
            format!("an earlier zone has its uuid, {A}")
        );
    }

    #[test]
    fn of_two_lines_with_one_name_the_first_stays() {
        let index = parse(&format!("a:installed:/a:{A}\na:installed:/a:{B}\n"));
        assert_eq!(index.entries.len(), 1);
        assert_eq!(index.unplaced.len(), 1);
    }

    #[test]
    fn a_name_that_leads_out_of_its_directory_is_unplaced() {
        for name in ["..", ".", "../../etc", "a/b"] {
            let index = parse(&format!("{name}:installed:/a:{A}\n"));
            assert_eq!(index.entries, [], "{name}");
            assert_eq!(index.unplaced.len(), 1, "{name}");
        }
    }

    #[test]
    fn a_host_with_only_its_global_zone_is_believed() {
        assert_eq!(parse("global:installed:/::\n"), Index::default());
    }

    #[test]
    fn an_empty_index_confirms_no_absence() {
        for text in ["", "\n\n", "# nothing\n"] {
            assert!(parse(text).broken.is_some(), "{text:?}");
        }
    }

    #[test]
    fn an_index_cut_off_at_any_byte_is_not_trusted_and_invents_no_vm() {
        let text = format!("global:installed:/::\n{A}:installed:/a:{B}\n{B}:installed:/b:{A}\n");
        let whole = parse(&text);
        for end in 0..text.len() {
            let cut = parse(&text[..end]);
            let at_line_end = text[..end].ends_with('\n');
            assert_eq!(cut.broken.is_none(), at_line_end, "{end}");
            assert!(
                cut.entries
                    .iter()
                    .all(|entry| whole.entries.contains(entry)),
                "{end}"
            );
        }
    }

    #[test]
    fn a_broken_line_is_named_and_the_good_ones_are_used() {
        let index = parse(&format!("a:installed\nb:installed:/b:{B}\n"));
        assert_eq!(index.entries.len(), 1);
        assert_eq!(index.unplaced[0].zonename, "a:installed");
        assert!(
            index
                .broken
                .unwrap()
                .starts_with("line 1 has too few fields")
        );
    }

    #[test]
    fn binary_content_is_not_trusted() {
        for bytes in [&b"\xff\xfe\n"[..], b"a:b:c\0:d\n", b"\x7fELF\x02\x01"] {
            assert!(super::parse(bytes).broken.is_some(), "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_give_unique_safe_names_and_uuids(
            bytes in proptest::collection::vec(prop_oneof![
                any::<u8>(), Just(b':'), Just(b'\n'), Just(b'/'), Just(b'a'),
            ], 0..300)
        ) {
            let index = super::parse(&bytes);
            let names: HashSet<_> = index.entries.iter().map(|entry| &entry.zonename).collect();
            let uuids: HashSet<_> = index.entries.iter().map(|entry| entry.uuid).collect();
            prop_assert_eq!(names.len(), index.entries.len());
            prop_assert_eq!(uuids.len(), index.entries.len());
            prop_assert!(names.iter().all(|name| !name.contains('/')));
        }
    }
}
