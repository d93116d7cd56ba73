//! What is to be read when: the pure state of the zones source's loop.
//!
//! ```text
//!            want(now)                     answered, nothing wanted
//!   idle ───────────────▶ loading ─────────────────────────────────▶ idle
//!    │                     ▲   │ ▲
//!    │ want(later)         │   └─┘ answered, wanted meanwhile: once more
//!    └─────▶ waiting ──────┘
//!                    due
//! ```
//!
//! Invariants, held by the property test below:
//!
//! - There is at most one load of a key in flight, so an older load never arrives after a newer
//!   one. What is wanted during a load is remembered as one more load, however often it is wanted.
//! - The last load that is answered began after the last call of [`Schedule::want`].
//! - A scan ends when each of its keys has been answered by a load that began after the scan, has
//!   been removed, or is overdue.
//!
//! It owns no clock, no thread and no file: the time comes in, and the loads to begin go out.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::ops::BitOr;
use std::time::Instant;

/// Why something is read: a small set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Causes(u8);

impl Causes {
    /// It is not watched: look whether it changed.
    pub(super) const POLL: Causes = Causes(1);
    /// A full scan looks at everything.
    pub(super) const SCAN: Causes = Causes(2);
    /// Something announced a change.
    pub(super) const EVENT: Causes = Causes(4);
    /// The announced file was closed or renamed into place: what is there now is whole.
    pub(super) const WHOLE: Causes = Causes(8);
    /// Somebody asks, so the providers are asked too.
    pub(super) const ASKED: Causes = Causes(16);
    /// What a provider says of it is not what it was.
    pub(super) const NEWS: Causes = Causes(32);

    /// Whether nothing says that there is something new.
    pub(super) fn is_look(self) -> bool {
        self.without(Causes::POLL | Causes::SCAN).is_empty()
    }

    /// Whether all of `other` are among these.
    pub(super) fn contains(self, other: Causes) -> bool {
        self.0 & other.0 == other.0
    }

    fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn without(self, other: Causes) -> Causes {
        Causes(self.0 & !other.0)
    }
}

impl BitOr for Causes {
    type Output = Causes;

    fn bitor(self, other: Causes) -> Causes {
        Causes(self.0 | other.0)
    }
}

/// Names one load, so that its answer is not taken for that of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Ticket(u64);

/// A load to begin now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Start<K> {
    pub(super) key: K,
    pub(super) ticket: Ticket,
    pub(super) causes: Causes,
}

/// A load in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    ticket: Ticket,
    /// Why it was begun.
    pub(super) causes: Causes,
    /// Since when loads of this key have been answered [`Verdict::Again`], and no other.
    pub(super) doubted: Option<Instant>,
    overdue: bool,
}

/// What came of a load.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    /// Its answer counts.
    Done,
    /// It met a file that may be between two states: load again at this time, for the same causes.
    Again(Instant),
}

#[derive(Debug, Default)]
struct Slot {
    load: Option<Load>,
    wanted: Causes,
    due: Option<Instant>,
    doubted: Option<Instant>,
}

#[derive(Debug)]
struct Scan<K> {
    /// `None` until it is known which keys there are.
    pending: Option<HashSet<K>>,
    announced: HashSet<K>,
}

/// The keys that can be loaded, and what is to be done about each.
#[derive(Debug)]
pub(super) struct Schedule<K> {
    slots: HashMap<K, Slot>,
    /// The keys that wait for a time, in its order.
    waiting: BTreeSet<(Instant, K)>,
    scan: Option<Scan<K>>,
    in_flight: usize,
    overdue: usize,
    tickets: u64,
}

impl<K: Clone + Hash + Ord> Schedule<K> {
    pub(super) fn new() -> Schedule<K> {
        Schedule {
            slots: HashMap::new(),
            waiting: BTreeSet::new(),
            scan: None,
            in_flight: 0,
            overdue: 0,
            tickets: 0,
        }
    }

    /// Adds a key, idle. A key that is there already stays as it is.
    pub(super) fn insert(&mut self, key: K) {
        self.slots.entry(key).or_default();
    }

    /// Removes a key. The answer of a load still in flight will find no [`Load`].
    pub(super) fn remove(&mut self, key: &K) {
        let Some(slot) = self.slots.remove(key) else {
            return;
        };
        if let Some(due) = slot.due {
            self.waiting.remove(&(due, key.clone()));
        }
        if let Some(load) = slot.load {
            self.landed(load);
        }
        if let Some(scan) = &mut self.scan {
            scan.announced.remove(key);
            if let Some(pending) = &mut scan.pending {
                pending.remove(key);
            }
        }
    }

    /// Whether this key is known.
    pub(super) fn contains(&self, key: &K) -> bool {
        self.slots.contains_key(key)
    }

    /// Asks for a load at `due`, or now if that has passed. Returns it if it begins now.
    pub(super) fn want(
        &mut self,
        key: &K,
        causes: Causes,
        due: Instant,
        now: Instant,
    ) -> Option<Start<K>> {
        let slot = self.slots.get_mut(key)?;
        if causes.contains(Causes::EVENT)
            && let Some(scan) = &mut self.scan
        {
            scan.announced.insert(key.clone());
        }
        // A load in flight is as good as a look whether something changed.
        if causes == Causes::POLL && slot.load.is_some() {
            return None;
        }
        slot.wanted = slot.wanted | causes;
        self.hasten(key, due);
        self.begin(key, now)
    }

    /// The load that this ticket names, if it is still in flight.
    pub(super) fn load(&self, key: &K, ticket: Ticket) -> Option<Load> {
        let load = self.slots.get(key)?.load?;
        (load.ticket == ticket).then_some(load)
    }

    /// Takes the answer of a load. Returns the next one if that begins at once.
    pub(super) fn answered(
        &mut self,
        key: &K,
        ticket: Ticket,
        verdict: Verdict,
        now: Instant,
    ) -> Option<Start<K>> {
        let load = self.load(key, ticket)?;
        self.landed(load);
        let slot = self.slots.get_mut(key)?;
        slot.load = None;
        match verdict {
            Verdict::Done => {
                slot.doubted = None;
                if load.causes.contains(Causes::SCAN) {
                    self.scanned(key);
                }
            }
            Verdict::Again(at) => {
                slot.doubted.get_or_insert(now);
                // Whether the file was whole is known only of the reading that was announced so.
                slot.wanted = slot.wanted | load.causes.without(Causes::WHOLE);
                self.hasten(key, at);
            }
        }
        let slot = self.slots.get(key)?;
        if let Some(due) = slot.due {
            self.waiting.insert((due, key.clone()));
        }
        self.begin(key, now)
    }

    /// Gives up waiting for a load; its answer is still taken when it comes. `None` when that is
    /// known already, or the load is no longer in flight.
    pub(super) fn give_up(&mut self, key: &K, ticket: Ticket) -> Option<Causes> {
        let slot = self.slots.get_mut(key)?;
        let load = slot.load.as_mut()?;
        if load.ticket != ticket || load.overdue {
            return None;
        }
        load.overdue = true;
        let causes = load.causes;
        self.overdue += 1;
        slot.wanted = slot.wanted.without(Causes::SCAN);
        if slot.wanted.is_empty() {
            slot.due = None;
        }
        self.scanned(key);
        Some(causes)
    }

    /// The loads whose time has come.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Start<K>> {
        let mut starts = Vec::new();
        while let Some((due, key)) = self.waiting.first().cloned()
            && due <= now
        {
            self.waiting.pop_first();
            starts.extend(self.begin(&key, now));
        }
        starts
    }

    /// When [`Schedule::due`] has something to return next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.first().map(|(due, _)| *due)
    }

    /// Whether somebody waits for a load that is not overdue.
    pub(super) fn is_loading(&self) -> bool {
        self.in_flight > self.overdue
    }

    /// Begins a scan. From now on it is remembered which keys announce a change themselves.
    pub(super) fn begin_scan(&mut self) {
        self.scan = Some(Scan {
            pending: None,
            announced: HashSet::new(),
        });
    }

    /// Loads these keys for the scan, less those that have long been waited for in vain.
    pub(super) fn scan(&mut self, keys: Vec<K>, now: Instant) -> Vec<Start<K>> {
        let mut starts = Vec::new();
        let mut pending = HashSet::with_capacity(keys.len());
        for key in keys {
            let hung = |slot: &Slot| slot.load.is_some_and(|load| load.overdue);
            if self.slots.get(&key).is_none_or(hung) {
                continue;
            }
            starts.extend(self.want(&key, Causes::SCAN, now, now));
            pending.insert(key);
        }
        if let Some(scan) = &mut self.scan {
            scan.pending = Some(pending);
        }
        starts
    }

    /// Whether the scan has all the answers it waits for.
    pub(super) fn scan_is_answered(&self) -> bool {
        let pending = self.scan.as_ref().and_then(|scan| scan.pending.as_ref());
        pending.is_some_and(HashSet::is_empty)
    }

    /// Ends the scan. Returns the keys that announced a change while it ran: what the scan found
    /// in them was not missed.
    pub(super) fn end_scan(&mut self) -> HashSet<K> {
        self.scan
            .take()
            .map(|scan| scan.announced)
            .unwrap_or_default()
    }

    fn scanned(&mut self, key: &K) {
        if let Some(pending) = self.scan.as_mut().and_then(|scan| scan.pending.as_mut()) {
            pending.remove(key);
        }
    }

    fn landed(&mut self, load: Load) {
        self.in_flight -= 1;
        self.overdue -= usize::from(load.overdue);
    }

    /// Moves the time of a key's next load to `due` if that is earlier.
    fn hasten(&mut self, key: &K, due: Instant) {
        let Some(slot) = self.slots.get_mut(key) else {
            return;
        };
        if slot.due.is_some_and(|earlier| earlier <= due) {
            return;
        }
        let before = slot.due.replace(due);
        if slot.load.is_none() {
            if let Some(before) = before {
                self.waiting.remove(&(before, key.clone()));
            }
            self.waiting.insert((due, key.clone()));
        }
    }

    fn begin(&mut self, key: &K, now: Instant) -> Option<Start<K>> {
        let slot = self.slots.get_mut(key)?;
        let due = slot.due?;
        if slot.load.is_some() || slot.wanted.is_empty() || due > now {
            return None;
        }
        self.waiting.remove(&(due, key.clone()));
        self.tickets += 1;
        self.in_flight += 1;
        let ticket = Ticket(self.tickets);
        let causes = std::mem::take(&mut slot.wanted);
        slot.due = None;
        slot.load = Some(Load {
            ticket,
            causes,
            doubted: slot.doubted,
            overdue: false,
        });
        Some(Start {
            key: key.clone(),
            ticket,
            causes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn zones(names: &[u8], now: Instant) -> (Schedule<u8>, Instant) {
        let mut schedule = Schedule::new();
        for name in names {
            schedule.insert(*name);
        }
        (schedule, now)
    }

    #[test]
    fn a_burst_during_a_load_becomes_one_more_load() {
        let (mut schedule, now) = zones(&[1], Instant::now());
        let first = schedule.want(&1, Causes::EVENT, now, now).unwrap();
        for _ in 0..100 {
            assert_eq!(schedule.want(&1, Causes::EVENT, now, now), None);
        }
        let second = schedule
            .answered(&1, first.ticket, Verdict::Done, now)
            .unwrap();
        assert_eq!(
            schedule.answered(&1, second.ticket, Verdict::Done, now),
            None
        );
        assert!(!schedule.is_loading());
    }

    #[test]
    fn a_closed_file_does_not_wait_for_the_time_of_a_half_written_one() {
        let (mut schedule, now) = zones(&[1], Instant::now());
        let later = now + Duration::from_millis(20);
        assert_eq!(schedule.want(&1, Causes::EVENT, later, now), None);
        assert_eq!(schedule.next_due(), Some(later));
        assert!(schedule.want(&1, Causes::EVENT, now, now).is_some());
        assert_eq!(schedule.next_due(), None);
    }

    #[test]
    fn a_scan_does_not_wait_for_what_is_overdue() {
        let (mut schedule, now) = zones(&[1, 2], Instant::now());
        let hung = schedule.want(&1, Causes::EVENT, now, now).unwrap();
        assert!(schedule.give_up(&1, hung.ticket).is_some());
        assert_eq!(schedule.give_up(&1, hung.ticket), None);
        schedule.begin_scan();
        let starts = schedule.scan(vec![1, 2], now);
        assert_eq!(starts.len(), 1);
        schedule.answered(&2, starts[0].ticket, Verdict::Done, now);
        assert!(schedule.scan_is_answered());
    }

    #[test]
    fn a_load_that_began_before_the_scan_does_not_answer_it() {
        let (mut schedule, now) = zones(&[1], Instant::now());
        let before = schedule.want(&1, Causes::EVENT, now, now).unwrap();
        schedule.begin_scan();
        assert!(schedule.scan(vec![1], now).is_empty());
        let during = schedule
            .answered(&1, before.ticket, Verdict::Done, now)
            .unwrap();
        assert!(!schedule.scan_is_answered());
        schedule.answered(&1, during.ticket, Verdict::Done, now);
        assert!(schedule.scan_is_answered());
        assert!(schedule.end_scan().is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Want(u8, u64),
        Answer(usize),
        Again(usize, u64),
        GiveUp(usize),
        Sleep(u64),
        Remove(u8),
        Insert(u8),
        Scan,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..4u8, 0..30u64).prop_map(|(key, delay)| Step::Want(key, delay)),
            4 => any::<usize>().prop_map(Step::Answer),
            1 => (any::<usize>(), 0..60u64).prop_map(|(load, delay)| Step::Again(load, delay)),
            1 => any::<usize>().prop_map(Step::GiveUp),
            2 => (0..50u64).prop_map(Step::Sleep),
            1 => (0..4u8).prop_map(Step::Remove),
            1 => (0..4u8).prop_map(Step::Insert),
            1 => Just(Step::Scan),
        ]
    }

    /// What the world looks like from outside: a counter of all that happened, and for each key
    /// when it was last wanted and when its last answered load began.
    #[derive(Default)]
    struct Model {
        moment: u64,
        wanted: HashMap<u8, u64>,
        answered: HashMap<u8, u64>,
        flights: Vec<(Start<u8>, u64)>,
    }

    impl Model {
        fn began(&mut self, starts: impl IntoIterator<Item = Start<u8>>) {
            for start in starts {
                self.moment += 1;
                self.flights.push((start, self.moment));
            }
        }
    }

    proptest! {
        #[test]
        fn the_last_answer_began_after_the_last_signal(steps in proptest::collection::vec(step(), 0..200)) {
            let mut now = Instant::now();
            let mut schedule = Schedule::new();
            let mut model = Model::default();
            (0..4u8).for_each(|key| schedule.insert(key));
            for step in steps {
                model.moment += 1;
                match step {
                    Step::Want(key, delay) => {
                        if schedule.contains(&key) {
                            model.wanted.insert(key, model.moment);
                        }
                        let due = now + Duration::from_millis(delay);
                        let start = schedule.want(&key, Causes::EVENT, due, now);
                        model.began(start);
                    }
                    Step::Answer(pick) | Step::Again(pick, _) if !model.flights.is_empty() => {
                        let (start, began) = model.flights.remove(pick % model.flights.len());
                        let known = schedule.load(&start.key, start.ticket).is_some();
                        let verdict = match step {
                            Step::Again(_, delay) => Verdict::Again(now + Duration::from_millis(delay)),
                            _ => Verdict::Done,
                        };
                        if known && matches!(verdict, Verdict::Done) {
                            let before = model.answered.insert(start.key, began);
                            prop_assert!(before.is_none_or(|before| before < began));
                        }
                        let next = schedule.answered(&start.key, start.ticket, verdict, now);
                        model.began(next);
                    }
                    Step::GiveUp(pick) if !model.flights.is_empty() => {
                        let (start, _) = &model.flights[pick % model.flights.len()];
                        schedule.give_up(&start.key, start.ticket);
                    }
                    Step::Sleep(delay) => {
                        now += Duration::from_millis(delay);
                        let starts = schedule.due(now);
                        model.began(starts);
                    }
                    Step::Remove(key) => {
                        schedule.remove(&key);
                        model.wanted.remove(&key);
                        model.answered.remove(&key);
                    }
                    Step::Insert(key) => schedule.insert(key),
                    Step::Scan => {
                        schedule.begin_scan();
                        let starts = schedule.scan(vec![0, 1, 2, 3], now);
                        model.began(starts);
                    }
                    _ => {}
                }
                let mut live = HashSet::new();
                for (start, _) in &model.flights {
                    if schedule.load(&start.key, start.ticket).is_some() {
                        prop_assert!(live.insert(start.key), "two loads of one key in flight");
                    }
                }
            }
            // Everything comes to rest: all answers arrive, all times pass.
            let mut rounds = 0;
            while !model.flights.is_empty() || schedule.next_due().is_some() {
                rounds += 1;
                prop_assert!(rounds < 100, "never comes to rest");
                for (start, began) in std::mem::take(&mut model.flights) {
                    if schedule.load(&start.key, start.ticket).is_some() {
                        model.answered.insert(start.key, began);
                    }
                    let next = schedule.answered(&start.key, start.ticket, Verdict::Done, now);
                    model.began(next);
                }
                now += Duration::from_millis(100);
                let starts = schedule.due(now);
                model.began(starts);
            }
            for (key, wanted) in &model.wanted {
                prop_assert!(model.answered.get(key).is_some_and(|began| began > wanted));
            }
            prop_assert!(!schedule.is_loading());
            prop_assert!(schedule.scan.is_none() || schedule.scan_is_answered());
        }
    }
}
