//! Synchronisation: locks, waiting, completions, RCU and percpu references.
//!
//! Names follow Rust-for-Linux where it has the item, the C kernel otherwise. Every primitive takes its atomics,
//! locks and parking from [`crate::sys::sync`]; the lock-free ones are model-checked with loom
//! (`RUSTFLAGS="--cfg loom" cargo test -p kshim --lib loom_`).
//!
//! | here | kernel |
//! |---|---|
//! | [`SpinLock`], [`Mutex`], [`RwSem`] | `spinlock_t`, `struct mutex`, `struct rw_semaphore`, `rwlock_t` |
//! | [`CondVar`] | Rust-for-Linux only |
//! | [`WaitQueue`], [`Completion`] | `wait_queue_head_t`, `struct completion` |
//! | [`rcu`] | `rcu_read_lock`, `synchronize_rcu`, `call_rcu`, `rcu_barrier` |
//! | [`percpu_ref`] | `struct percpu_ref` |
//! | [`Arc`] | `kref` |

#[cfg(not(loom))]
mod condvar;
#[cfg(not(loom))]
pub mod lock;
#[cfg(not(loom))]
mod mutex;
#[cfg(not(loom))]
mod rwsem;
#[cfg(not(loom))]
mod spinlock;

mod completion;
pub mod percpu_ref;
pub mod rcu;
mod stop;
mod wait;

pub use crate::sys::sync::{Arc, atomic};
pub use completion::Completion;
#[cfg(not(loom))]
pub(crate) use stop::StopToken;
pub use wait::WaitQueue;

#[cfg(not(loom))]
pub use crate::sys::sync::Weak;
#[cfg(not(loom))]
pub use condvar::{CondVar, CondVarTimeoutResult};
#[cfg(not(loom))]
pub use mutex::{Mutex, MutexGuard};
#[cfg(not(loom))]
pub use percpu_ref::PercpuRef;
#[cfg(not(loom))]
pub use rwsem::{RwSem, RwSemReadGuard, RwSemWriteGuard};
#[cfg(not(loom))]
pub use spinlock::{IrqGuard, SpinLock, SpinLockGuard};
#[cfg(not(loom))]
pub use std::sync::{LazyLock, OnceLock};

/// Debug builds: asserts that the caller may sleep.
#[inline]
#[track_caller]
fn might_sleep() {
    #[cfg(not(loom))]
    crate::might_sleep!();
}
