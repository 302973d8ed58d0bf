//! Read-copy-update: readers that cost next to nothing, writers that wait for readers.
//!
//! A reader holds a [`Guard`] from [`read_lock`] while it uses what it found. A writer publishes a new version and
//! then waits for a *grace period*, after which nobody can still see the old one: [`synchronize_rcu`] sleeps until
//! then, [`call_rcu`] runs a callback then. [`Rcu`] is the container that does this for one value.
//!
//! The back end counts epochs (`epoch.rs`, model-checked). A thread's outermost `read_lock` writes the current epoch
//! to the thread's own padded slot and executes one fence; nested ones count in a thread-local variable. A reactor
//! holds the outer lock for a whole round, so everything inside a round pays the nested price. A waiting writer
//! sleeps; the last reader of the old epoch wakes it.
//!
//! C header: `include/linux/rcupdate.h`

mod epoch;

#[cfg(not(loom))]
mod callback;
#[cfg(not(loom))]
mod cell;
#[cfg(not(loom))]
mod read;

#[cfg(not(loom))]
pub use callback::{barrier, call_rcu, start};
#[cfg(not(loom))]
pub use cell::Rcu;
pub(super) use epoch::Domain;
#[cfg(not(loom))]
pub use read::{Guard, read_lock, read_lock_held, synchronize_rcu};
