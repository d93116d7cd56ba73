//! Which inodes the kernel holds: its lookup counts.
//!
//! Only what the kernel holds can be cached by it, so only that needs an invalidation, and a
//! change to one of 100,000 VMs that nobody looked at costs none. Whoever answers a lookup counts
//! it *before* reading the attributes that the answer carries, and whoever publishes checks the
//! count *after* publishing: so either the publisher sees the count, or the answer is fresh.

use std::collections::HashMap;

use fuser::INodeNo;
use parking_lot::Mutex;

const SHARDS: usize = 16;

/// Lookup counts by inode number. The root is always held.
#[derive(Debug, Default)]
pub struct Held {
    shards: [Mutex<HashMap<u64, u64>>; SHARDS],
}

impl Held {
    fn shard(&self, ino: INodeNo) -> &Mutex<HashMap<u64, u64>> {
        // File numbers are hashes, but all VMs' directories have number 0: mix in the slot.
        &self.shards[(ino.0 ^ (ino.0 >> 24)) as usize % SHARDS]
    }

    /// Counts a lookup that is about to be answered.
    pub fn hold(&self, ino: INodeNo) {
        *self.shard(ino).lock().entry(ino.0).or_default() += 1;
    }

    /// The kernel forgets `count` lookups.
    pub fn forget(&self, ino: INodeNo, count: u64) {
        let mut shard = self.shard(ino).lock();
        if let Some(held) = shard.get_mut(&ino.0) {
            *held = held.saturating_sub(count);
            if *held == 0 {
                shard.remove(&ino.0);
            }
        }
        // A storm of lookups should not leave its memory behind for ever.
        if shard.len() * 8 < shard.capacity() && shard.capacity() > 4096 {
            shard.shrink_to_fit();
        }
    }

    /// The mount has gone, and with it all that the kernel held of it.
    pub fn clear(&self) {
        for shard in &self.shards {
            *shard.lock() = HashMap::new();
        }
    }

    /// Whether the kernel may hold this inode.
    pub fn is_held(&self, ino: INodeNo) -> bool {
        ino == INodeNo::ROOT || self.shard(ino).lock().contains_key(&ino.0)
    }

    /// How many inodes the kernel holds.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}
