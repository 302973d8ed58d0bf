//! Where stores run.

use std::fmt;

/// A store with all it needs.
pub type Work = Box<dyn FnOnce() + Send>;

/// Runs work one after the other, in the order in which it came, on a thread that may sleep. Work that will never run
/// has to be dropped: its writer is then told `ENODEV`.
pub trait Executor: Send + Sync {
    /// Takes the work and returns without waiting for it. Context: any.
    fn execute(&self, work: Work);
}

impl<F: Fn(Work) + Send + Sync> Executor for F {
    fn execute(&self, work: Work) {
        self(work);
    }
}

/// Runs each store at once on the writer's own thread: for tests with one writer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Inline;

impl Executor for Inline {
    fn execute(&self, work: Work) {
        work();
    }
}

impl fmt::Debug for dyn Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Executor")
    }
}
