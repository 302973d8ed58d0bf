//! Block drivers whose disks are there when their path is opened: those of `ports/`, and those of who made this server.

use std::sync::OnceLock;

use kshim::error::Result;
use kshim::sync::SpinLock;

/// A driver: what its paths begin with, as `/dev/mine/`, and what makes them known.
pub type Driver = (&'static str, fn() -> Result);

/// Those that are always there. Names of what they offer are in `docs/ports.md`.
const PORTS: [Driver; 4] = [
    (brd::PREFIX, brd::init),
    (null_blk::PREFIX, null_blk::init),
    (nbd::PREFIX, nbd::init),
    (raid1::PREFIX, raid1::init),
];

/// Those of who made this server.
static MORE: SpinLock<Vec<Driver>> = SpinLock::new(Vec::new());

fn all() -> Vec<Driver> {
    let more = MORE.lock();
    PORTS.iter().chain(more.iter()).copied().collect()
}

/// Adds drivers, before [`init`].
pub(crate) fn add(drivers: &[Driver]) {
    MORE.lock().extend_from_slice(drivers);
}

/// Makes the paths of all drivers known. More than once does nothing more.
///
/// # Errors
///
/// What a driver answers; the first time and from then on.
pub(crate) fn init() -> Result {
    static DONE: OnceLock<Result> = OnceLock::new();
    *DONE.get_or_init(|| all().iter().try_for_each(|(_, init)| init()))
}

/// Whether a path is one of these drivers'.
pub(crate) fn has(path: &str) -> bool {
    all().iter().any(|(prefix, _)| path.starts_with(prefix))
}
