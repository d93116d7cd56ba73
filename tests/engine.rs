//! The zones source over real folders, watched as it does where it may do everything.

use vminfod::source::zones::Watcher;

#[path = "engine/tests.rs"]
mod tests;

const WATCHER: Watcher = Watcher::Auto;
