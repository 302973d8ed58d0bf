//! The block drivers of `ports/`: disks that are there when their path is opened.

use std::sync::OnceLock;

use kshim::error::Result;

/// A driver: what its paths begin with, and what makes them known.
type Port = (&'static str, fn() -> Result);

/// The drivers. Names of what they offer are in `docs/ports.md`.
const PORTS: [Port; 4] = [
    (brd::PREFIX, brd::init),
    (null_blk::PREFIX, null_blk::init),
    (nbd::PREFIX, nbd::init),
    (raid1::PREFIX, raid1::init),
];

/// Makes the paths of all drivers known. More than once does nothing more.
///
/// # Errors
///
/// What a driver answers; the first time and from then on.
pub(crate) fn init() -> Result {
    static DONE: OnceLock<Result> = OnceLock::new();
    *DONE.get_or_init(|| PORTS.iter().try_for_each(|(_, init)| init()))
}

/// Whether a path is one of these drivers'.
pub(crate) fn has(path: &str) -> bool {
    PORTS.iter().any(|(prefix, _)| path.starts_with(prefix))
}
