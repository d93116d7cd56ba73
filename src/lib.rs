//! Every VM of a host, complete, in memory, kept true by watching the sources, and shown as a
//! filesystem.
//!
//! Data flows one way:
//!
//! ```text
//! source ──report──▶ ingest ──publish──▶ cache ──follow──▶ fs (the mount)
//!    ▲                                                         │
//!    └──────────────apply──── mutation ◀──────────wish─────────┘
//! ```
//!
//! The modules, from the ground up; an import only ever points down this list's floors:
//!
//! - [`vm`]: the VM object, the table of its properties, its files, what changed. Pure.
//! - [`cache`]: the current VMs and the events, published together, read without waiting.
//! - [`source`]: where VMs are read from: lists, watches, reports. Never sees the cache.
//! - [`ingest`]: the one loop that owns the cache's writer.
//! - [`mutation`]: changes of VMs: applied to the source, confirmed by what the mount shows.
//! - [`fs`]: names and contents of the tree, and the mount. Never sees a source.
//! - [`daemon`]: wires them: threads, signals, the order of start and stop.
//! - [`client`]: what the command-line tools share. Sees only a mounted tree.
//! - [`sample`]: writes a realistic zone store, for demos, tests and benches.
//!
//! `ARCHITECTURE.md` says who owns which state, which thread does what and what happens when a
//! part fails.

// What users and sources give is an error, never a panic.
#![cfg_attr(
    not(test),
    warn(clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod cache;
pub mod client;
pub mod daemon;
pub mod fs;
pub mod ingest;
pub mod mutation;
pub mod sample;
pub mod source;
pub mod vm;
