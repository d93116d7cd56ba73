//! The same zones source as in `engine`, watched by inotify alone.

use vminfod::source::zones::Watcher;

#[path = "engine/tests.rs"]
mod tests;

const WATCHER: Watcher = Watcher::Inotify;
