//! Reads what `zpool events -vHf` prints.
//!
//! The kernel module posts a *history event* for every change of a dataset, after the change can
//! be read. Each event is a block: a line with its time and, behind a tab, its class; one indented
//! line `key = value` for each member, strings in quotes that are never escaped; an empty line.
//! A reader that falls behind the kernel's queue finds `dropped N events` between two blocks.
//!
//! [`Parser`] is pure: bytes in, in whatever pieces they come, [`Event`]s out. Events say only
//! where to look; nothing here is ever taken for a value. What cannot be understood is passed
//! over, and what it might have meant is found by the next full read.

/// A member of interest is far shorter than this; of a longer line the rest is thrown away.
const LINE_LIMIT: usize = 64 << 10;

/// Where something has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// In the history of this filesystem, volume or snapshot: it or what is below it has changed,
    /// come or gone.
    Dataset(String),
    /// A pool was created, destroyed, imported or exported.
    Pools,
    /// The kernel has thrown events away: anything may have changed.
    Dropped,
}

/// The block being read.
#[derive(Debug, Default)]
struct Block {
    history: bool,
    dataset: Option<String>,
    renamed: Option<String>,
}

/// Turns the output into events.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    block: Block,
}

impl Parser {
    /// Takes the next bytes and says which events they completed.
    pub fn feed(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for piece in bytes.split_inclusive(|&byte| byte == b'\n') {
            let (text, ended) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            let room = LINE_LIMIT.saturating_sub(self.line.len());
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if ended {
                let line = std::mem::take(&mut self.line);
                self.take_line(&String::from_utf8_lossy(&line), &mut events);
            }
        }
        events
    }

    fn take_line(&mut self, line: &str, events: &mut Vec<Event>) {
        if line.is_empty() {
            self.end_block(events);
        } else if line.starts_with([' ', '\t']) {
            self.take_member(line);
        } else if line.starts_with("dropped ") {
            events.push(Event::Dropped);
        } else if let Some(class) = class_of(line) {
            // A member with an empty line in it has ended its block too early, at worst.
            self.end_block(events);
            self.block.history = class == "sysevent.fs.zfs.history_event";
            if matches!(
                class,
                "sysevent.fs.zfs.pool_create"
                    | "sysevent.fs.zfs.pool_destroy"
                    | "sysevent.fs.zfs.pool_import"
                    | "sysevent.fs.zfs.pool_export"
            ) {
                events.push(Event::Pools);
            }
        }
    }

    fn take_member(&mut self, line: &str) {
        let Some((key, value)) = line.trim_start().split_once(" = ") else {
            return;
        };
        let value = value.strip_prefix('"').unwrap_or(value);
        let value = value.strip_suffix('"').unwrap_or(value);
        match key {
            "history_dsname" => self.block.dataset = Some(value.to_owned()),
            // A rename is recorded under the old name, with `-> <new name>`.
            "history_internal_str" => {
                self.block.renamed = value.strip_prefix("-> ").map(str::to_owned);
            }
            _ => {}
        }
    }

    fn end_block(&mut self, events: &mut Vec<Event>) {
        let block = std::mem::take(&mut self.block);
        if block.history {
            let names = [block.dataset, block.renamed];
            events.extend(names.into_iter().flatten().map(Event::Dataset));
        }
    }
}

/// The class, if this is the first line of a block.
fn class_of(line: &str) -> Option<&str> {
    let class = line.rsplit(['\t', ' ']).next()?;
    let known = ["sysevent.", "ereport.", "resource."];
    known
        .iter()
        .any(|kind| class.starts_with(kind))
        .then_some(class)
}

/// The dataset to read again, with all below it, for a change of `name`: the filesystem or volume
/// of a snapshot or bookmark, and the visible parent of what only the kernel sees (`%recv`).
pub fn subtree_of(name: &str) -> &str {
    let base = name.split(['@', '#']).next().unwrap_or(name);
    match base.find(['%', '$']) {
        Some(at) => base[..at].trim_end_matches('/'),
        None => base,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Written by hand after what OpenZFS 2.2 prints, so that every kind of block is in it.
    const RECORDING: &[u8] = include_bytes!("../../../tests/data/zpool-events.txt");

    fn dataset(name: &str) -> Event {
        Event::Dataset(name.to_owned())
    }

    #[test]
    fn a_recording_names_every_changed_dataset_in_order() {
        let root = "zones/c4103a37-1b1f-4ac2-9f0c-2c5f3f4d8a11";
        let expected = [
            Event::Pools,
            dataset(root),
            dataset(root),
            dataset(&format!("{root}@vmsnap-before")),
            dataset(&format!("{root}@vmsnap-before")),
            dataset(&format!("{root}/data")),
            Event::Dropped,
            dataset("zones/old"),
            dataset("zones/new"),
            dataset("zones/new/%recv"),
            dataset(&format!("{root}@vmsnap-before")),
        ];
        assert_eq!(Parser::default().feed(RECORDING), expected);
    }

    #[test]
    fn an_event_is_complete_with_its_empty_line_and_waits_for_no_other() {
        let mut parser = Parser::default();
        let head = b"Sep  7 2022 15:32:54.363567297\tsysevent.fs.zfs.history_event\n";
        assert!(parser.feed(head).is_empty());
        assert!(
            parser
                .feed(b"        history_dsname = \"zones/a\"\n")
                .is_empty()
        );
        assert_eq!(parser.feed(b"\n"), [dataset("zones/a")]);
    }

    #[test]
    fn members_of_other_classes_name_no_dataset() {
        let text = b"Sep  7 2022 15:32:54.363567297\tereport.fs.zfs.checksum\n\
            \x20       history_dsname = \"zones/a\"\n\n";
        assert!(Parser::default().feed(text).is_empty());
    }

    #[test]
    fn a_line_without_end_takes_bounded_memory() {
        let mut parser = Parser::default();
        for _ in 0..100 {
            parser.feed(&[b'x'; 10_000]);
        }
        assert_eq!(parser.line.len(), LINE_LIMIT);
    }

    #[test]
    fn snapshots_and_hidden_datasets_are_read_with_what_holds_them() {
        for (name, subtree) in [
            ("zones/a", "zones/a"),
            ("zones/a@s", "zones/a"),
            ("zones/a#mark", "zones/a"),
            ("zones/a/%recv", "zones/a"),
            ("zones/%recv@s", "zones"),
            ("zones/$ORIGIN", "zones"),
        ] {
            assert_eq!(subtree_of(name), subtree);
        }
    }

    proptest! {
        #[test]
        fn the_pieces_in_which_output_comes_do_not_matter(
            cuts in proptest::collection::vec(0..RECORDING.len(), 0..40),
        ) {
            let mut cuts = cuts;
            cuts.extend([0, RECORDING.len()]);
            cuts.sort_unstable();
            let mut parser = Parser::default();
            let events: Vec<Event> = cuts
                .windows(2)
                .flat_map(|pair| parser.feed(&RECORDING[pair[0]..pair[1]]))
                .collect();
            prop_assert_eq!(events, Parser::default().feed(RECORDING));
        }

        #[test]
        fn garbage_between_two_blocks_loses_at_most_itself(garbage in any::<Vec<u8>>()) {
            let mut parser = Parser::default();
            parser.feed(&garbage);
            parser.feed(b"\n");
            let events = parser.feed(RECORDING);
            prop_assert!(events.ends_with(&Parser::default().feed(RECORDING)));
        }

        #[test]
        fn garbage_made_of_familiar_words_does_no_harm(
            words in proptest::collection::vec(
                proptest::sample::select(vec![
                    "history_dsname = \"", "\"", "\n", "\n\n", "        ", "\t",
                    "sysevent.fs.zfs.history_event", "dropped ", " = ", "-> ", "zones/a", "é",
                ]),
                0..60,
            ),
        ) {
            Parser::default().feed(words.concat().as_bytes());
        }
    }
}
