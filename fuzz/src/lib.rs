//! Fuzz entries: each takes any bytes, and fails (panics) if the target does what it never may.
//!
//! | entry | what the bytes are |
//! |---|---|
//! | [`pdus()`] | a stream of PDUs for the parsers, with and without digests |
//! | [`login()`] | the PDUs of a login and of a discovery session, for the state machine |
//! | [`text`] | text of keys and values |
//! | [`conf()`] | an scst.conf |
//! | [`connection()`] | what an initiator sends to a server in this process, from its login on |
//!
//! `cargo test -p scst-fuzz` runs the entries on seeds ([`seeds`]), on `fuzz/corpus/`, and on mutations of both
//! ([`mutate`]); the bin `scst-fuzz` does that for as long as it is told to. `fuzz/libfuzzer` has the same entries as
//! cargo-fuzz targets, guided by coverage (nightly toolchain).
#![forbid(unsafe_code)]

mod conf;
mod connection;
mod login;
pub mod mutate;
mod pdus;
pub mod seeds;

pub use conf::conf;
pub use connection::{connection, panics, watch_panics};
pub use login::{login, text};
pub use pdus::pdus;

/// What takes any bytes.
pub type Entry = fn(&[u8]);

/// The entries by name.
pub const ENTRIES: [(&str, Entry); 5] = [
    ("pdus", pdus),
    ("login", login),
    ("text", text),
    ("conf", conf),
    ("connection", connection),
];

/// The files of an entry's corpus, `fuzz/corpus/ENTRY`; empty where the source is not there.
pub fn corpus(entry: &str) -> Vec<Vec<u8>> {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(entry);
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut paths: Vec<_> = files.map(|f| f.path()).collect();
    paths.sort();
    paths.iter().filter_map(|p| std::fs::read(p).ok()).collect()
}
