//! How many messages of each kind the kernel has sent.

use std::sync::atomic::{AtomicU64, Ordering};

/// How many messages of each kind came, for `.status` and for the tests that count them.
#[derive(Debug, Default)]
pub struct Messages([AtomicU64; Message::ALL.len()]);

macro_rules! messages {
    ($($name:ident => $text:literal),* $(,)?) => {
        /// A kind of message that the kernel sends.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[allow(missing_docs, reason = "they are the kernel's own names")]
        pub enum Message { $($name),* }

        impl Message {
            /// All of them.
            pub const ALL: [(Message, &'static str); [$($text),*].len()] = [$((Message::$name, $text)),*];
        }
    };
}

messages! {
    Lookup => "lookup", Forget => "forget", Getattr => "getattr", Setattr => "setattr",
    Readlink => "readlink", Open => "open", Read => "read", Write => "write", Flush => "flush",
    Release => "release", Opendir => "opendir", Readdir => "readdir", Readdirplus => "readdirplus",
    Getxattr => "getxattr", Listxattr => "listxattr", Poll => "poll", Change => "change",
    Other => "other",
}

impl Messages {
    /// Counts one.
    pub fn count(&self, message: Message) {
        self.0[message as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Each kind's name and how many came.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Message::ALL
            .iter()
            .map(|(message, name)| (*name, self.0[*message as usize].load(Ordering::Relaxed)))
    }
}
