//! Threads of the host: creation, names, affinity, niceness, futex parking and the per-thread record of the shim.

use std::cell::Cell;
use std::io;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use rustix::thread::{CpuSet, Timespec, futex};

/// Longest thread name that the host keeps, in bytes (`TASK_COMM_LEN` - 1).
pub const MAX_NAME_LEN: usize = 15;

/// How to start a thread.
#[derive(Debug, Default, Clone)]
pub struct ThreadOptions {
    /// Shown by `ps -L`; cut to [`MAX_NAME_LEN`] bytes.
    pub name: String,
    /// Runs on this CPU only.
    pub cpu: Option<usize>,
    /// Niceness, -20 to 19. Raising the priority needs a privilege; where it is missing the value stays unchanged.
    pub nice: i32,
}

/// Handle of a started thread.
#[derive(Debug)]
pub struct JoinHandle(std::thread::JoinHandle<()>);

impl JoinHandle {
    /// Waits for the thread's end. Panics of the thread's function must have been caught by that function.
    ///
    /// Context: may sleep.
    pub fn join(self) {
        // The starter catches and logs panics; a second report here would only repeat it.
        let _ = self.0.join();
    }

    /// Whether the calling thread is the one this handle stands for.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.0.thread().id() == std::thread::current().id()
    }
}

/// The longest start of `name` that the host keeps.
#[must_use]
pub fn cut_name(name: &str) -> &str {
    let mut end = name.len().min(MAX_NAME_LEN);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}

/// Starts a thread. It has the signals that ask a process to end blocked, whether its starter has or not.
///
/// An affinity that the host refuses is an error of [`set_affinity`], which the caller of this function does not
/// see: placement is an optimisation, a thread that runs elsewhere is still right.
///
/// Context: may sleep. Errors: `EAGAIN` when the host has no room for another thread, `EINVAL` for a name with a
/// NUL byte.
pub fn spawn(opts: &ThreadOptions, f: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle> {
    let name = cut_name(&opts.name);
    if name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (cpu, nice) = (opts.cpu, opts.nice);
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            // They are the starting thread's to wait for: of a thread that takes one by default the process dies. A host that
            // refuses refuses the process, too, which then says so.
            let _ = super::signal::block_termination();
            if let Some(cpu) = cpu {
                let _ = set_affinity(cpu);
            }
            if nice != 0 {
                let _ = set_nice(nice);
            }
            f();
        })
        .map(JoinHandle)
}

/// Binds the calling thread to one CPU.
///
/// Context: any thread. Errors: `EINVAL` when the CPU does not exist or the thread may not run on it.
pub fn set_affinity(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).map_err(Into::into)
}

/// Sets the niceness of the calling thread only.
///
/// Context: any thread. Errors: `EACCES` or `EPERM` when a higher priority is asked for without the privilege.
pub fn set_nice(nice: i32) -> io::Result<()> {
    // On Linux the process id 0 of PRIO_PROCESS means the calling thread.
    rustix::process::setpriority_process(None, nice).map_err(Into::into)
}

/// CPUs that this process may run on, in ascending order; never empty.
#[must_use]
pub fn allowed_cpus() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&c| set.is_set(c)).collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// The CPU that runs the calling thread; a hint that may be stale at once.
#[must_use]
pub fn current_cpu() -> usize {
    rustix::thread::sched_getcpu()
}

/// The host's id of the calling thread, as `ps -L` shows it.
#[must_use]
pub fn current_tid() -> i32 {
    rustix::thread::gettid().as_raw_nonzero().get()
}

/// Gives the CPU to another runnable thread.
pub fn yield_now() {
    std::thread::yield_now();
}

/// Whether the calling thread is unwinding from a panic.
#[must_use]
pub fn panicking() -> bool {
    std::thread::panicking()
}

/// Sleeps while `word` holds `expected`, until [`futex_wake`] or the end of `timeout`. May return early.
///
/// Context: may sleep.
pub fn futex_wait(word: &AtomicU32, expected: u32, timeout: Option<Duration>) {
    // A timeout beyond what the host can express is no timeout.
    let ts = timeout.and_then(|t| Timespec::try_from(t).ok());
    // Every outcome (woken, changed value, interrupted, timed out) means "look again" to the caller.
    let _ = futex::wait(word, futex::Flags::PRIVATE, expected, ts.as_ref());
}

/// Wakes one thread that sleeps in [`futex_wait`] on `word`.
///
/// Context: any thread, reactor-safe.
pub fn futex_wake(word: &AtomicU32) {
    let _ = futex::wake(word, futex::Flags::PRIVATE, 1);
}

/// What the shim remembers of each thread. Plain cells without a destructor: reading them costs one load, also
/// late in the life of a thread.
pub(crate) struct Local {
    /// Dense id of the thread plus one; 0 = not assigned yet.
    pub(crate) index: Cell<usize>,
    /// Depth of RCU read sections.
    pub(crate) rcu_depth: Cell<usize>,
    /// Epoch under which an overflow thread is counted as an RCU reader.
    pub(crate) rcu_epoch: Cell<u64>,
    /// Set while the thread runs a reactor's round.
    pub(crate) in_reactor: Cell<bool>,
    /// Depth of sections that must not sleep (`lock_irqsave`), kept in debug builds only.
    pub(crate) atomic_depth: Cell<usize>,
}

thread_local! {
    pub(crate) static LOCAL: Local = const {
        Local {
            index: Cell::new(0),
            rcu_depth: Cell::new(0),
            rcu_epoch: Cell::new(0),
            in_reactor: Cell::new(false),
            atomic_depth: Cell::new(0),
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_on_a_character() {
        assert_eq!(cut_name("short"), "short");
        assert_eq!(cut_name("exactly15bytes!"), "exactly15bytes!");
        assert_eq!(cut_name("sixteen bytes ab"), "sixteen bytes a");
        assert_eq!(cut_name("fourteen bytesé"), "fourteen bytes");
    }

    #[test]
    fn a_thread_carries_its_name_and_cpu() {
        let cpu = allowed_cpus()[0];
        let (tx, rx) = crossbeam_channel::bounded(1);
        let opts = ThreadOptions {
            name: "a-rather-long-thread-name".into(),
            cpu: Some(cpu),
            nice: 1,
        };
        let handle = spawn(&opts, move || {
            let name = std::thread::current().name().map(str::to_owned);
            let _ = tx.send((name, current_cpu()));
        })
        .expect("spawn");
        let (name, on) = rx.recv().expect("thread ran");
        assert_eq!(name.as_deref(), Some("a-rather-long-t"));
        assert_eq!(on, cpu);
        assert!(!handle.is_current());
        handle.join();
    }

    #[test]
    fn a_thread_takes_no_signal_that_ends_the_process() {
        let (tx, rx) = std::sync::mpsc::channel();
        let handle = spawn(&ThreadOptions::default(), move || {
            let _ = tx.send(std::fs::read_to_string("/proc/thread-self/status"));
        });
        let status = rx.recv().unwrap().unwrap();
        handle.unwrap().join();
        let line = status.lines().find_map(|l| l.strip_prefix("SigBlk:"));
        let blocked = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            assert_ne!(blocked & (1 << (signal - 1)), 0, "{signal}");
        }
    }

    #[test]
    fn bad_names_and_cpus_are_refused() {
        let opts = ThreadOptions {
            name: "a\0b".into(),
            ..ThreadOptions::default()
        };
        assert!(spawn(&opts, || ()).is_err());
        assert!(set_affinity(usize::MAX).is_err());
    }
}
