//! `vms.json`, which is never written down: the bytes between any two positions, from the VMs' texts.

use crate::cache::Snapshot;

/// The length of `vms.json`: `[`, a line for each VM, `]`.
pub fn len(snapshot: &Snapshot) -> u64 {
    // Each VM weighs its text, a comma and a newline; the last has no comma.
    let lines = snapshot
        .vms
        .weight()
        .saturating_sub(u64::from(!snapshot.vms.is_empty()));
    "[\n".len() as u64 + lines + "]\n".len() as u64
}

/// Appends up to `size` bytes of `vms.json` from `offset` on.
pub fn read(snapshot: &Snapshot, offset: u64, size: usize, out: &mut Vec<u8>) {
    let len = len(snapshot);
    let end = len.min(offset.saturating_add(size as u64));
    let mut at = offset;
    let mut copy = |from: u64, piece: &[u8]| {
        // `from` is where the piece begins in the file; what lies within [at, end) is copied.
        let begin = at.saturating_sub(from).min(piece.len() as u64) as usize;
        let stop = end.saturating_sub(from).min(piece.len() as u64) as usize;
        if begin < stop {
            out.extend_from_slice(&piece[begin..stop]);
            at = from + stop as u64;
        }
        at < end
    };
    if !copy(0, b"[\n") {
        return;
    }
    let lines_at = 2;
    let (entries, inside) = snapshot.vms.at_weight(offset.saturating_sub(lines_at));
    let mut from = offset.max(lines_at) - inside;
    let last = len - 2;
    for (_, vm) in entries {
        let json = vm.json().as_bytes();
        let behind = from + json.len() as u64;
        let separator: &[u8] = if behind + 1 == last { b"\n" } else { b",\n" };
        if !copy(from, json) || !copy(behind, separator) {
            return;
        }
        from = behind + separator.len() as u64;
    }
    copy(last, b"]\n");
}
