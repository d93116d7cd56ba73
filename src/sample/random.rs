//! The numbers that a sample store is drawn from: SplitMix64, so that one seed gives the same
//! store on every machine and with every version of every dependency.

use uuid::Uuid;

/// A seeded sequence. Not for secrets.
pub(super) struct Random(u64);

impl Random {
    /// The sequence of this seed and stream. Every zone has a stream of its own, so that what it
    /// is does not depend on how many others there are.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let mixed = Random(seed).number() ^ stream;
        Random(Random(mixed).number())
    }

    /// Any number.
    pub(super) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        // The high half of the product is below `bound` and, unlike a remainder, needs no division.
        ((u128::from(self.number()) * u128::from(bound)) >> 64) as u64
    }

    /// True this many times in a hundred.
    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of `choices`, each as likely as the others.
    pub(super) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }

    /// One of `choices`, the first ones far more often than the last.
    pub(super) fn pick_skewed<T: Copy>(&mut self, choices: &[T]) -> T {
        let reach = self.below(choices.len() as u64) + 1;
        let reach = self.below(reach) + 1;
        choices[self.below(reach) as usize]
    }

    /// A uuid of version 4.
    pub(super) fn uuid(&mut self) -> Uuid {
        let bits = (u128::from(self.number()) << 64) | u128::from(self.number());
        uuid::Builder::from_random_bytes(bits.to_be_bytes()).into_uuid()
    }

    /// This many bytes.
    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.number() as u8).collect()
    }
}
