//! Attributes: files with `show` and `store`, and the references that their callbacks hold.

use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::executor::Executor;
use crate::error::{Result, code};
use crate::kthread::panic_text;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Completion, SpinLock, WaitQueue};
use crate::time::Delta;

/// How long a writer waits for its store.
pub const STORE_TIMEOUT: Delta = Delta::from_secs(15);

/// The longest value that can be written, in bytes: a page, as in sysfs.
pub const VALUE_MAX: usize = 4096;

type Show = dyn Fn() -> Result<String> + Send + Sync;
type Store = dyn Fn(&str) -> Result + Send + Sync;

/// An attribute before it is added to a [`Kobject`](super::Kobject).
///
/// `show` runs on the reader's thread, takes short locks only, and returns the whole content. `store` gets the text
/// as it was written, often with a newline at its end; text that is not UTF-8 is refused with `EINVAL` before. Values
/// longer than [`VALUE_MAX`] are refused as well, and writing nothing does nothing.
///
/// ```
/// use kshim::kobject::Attr;
/// use kshim::error::code;
///
/// let threads = Attr::rw(
///     "threads",
///     || Ok("3\n".to_owned()),
///     |text| match text.trim().parse::<u32>() {
///         Ok(_) => Ok(()),
///         Err(_) => Err(code::EINVAL),
///     },
/// );
/// # let _ = threads;
/// ```
#[doc(alias = "struct attribute")]
#[doc(alias = "struct kobj_attribute")]
pub struct Attr {
    name: String,
    mode: u16,
    direct: bool,
    show: Option<Box<Show>>,
    store: Option<Box<Store>>,
}

impl Attr {
    fn new(name: &str, mode: u16, show: Option<Box<Show>>, store: Option<Box<Store>>) -> Attr {
        Attr {
            name: name.to_owned(),
            mode,
            direct: false,
            show,
            store,
        }
    }

    /// An attribute that can be read, mode 0444.
    #[doc(alias = "__ATTR_RO")]
    pub fn ro(name: &str, show: impl Fn() -> Result<String> + Send + Sync + 'static) -> Attr {
        Attr::new(name, 0o444, Some(Box::new(show)), None)
    }

    /// An attribute that can be read and written, mode 0644.
    #[doc(alias = "__ATTR_RW")]
    pub fn rw(
        name: &str,
        show: impl Fn() -> Result<String> + Send + Sync + 'static,
        store: impl Fn(&str) -> Result + Send + Sync + 'static,
    ) -> Attr {
        Attr::new(name, 0o644, Some(Box::new(show)), Some(Box::new(store)))
    }

    /// An attribute that can be written, mode 0200.
    #[doc(alias = "__ATTR_WO")]
    pub fn wo(name: &str, store: impl Fn(&str) -> Result + Send + Sync + 'static) -> Attr {
        Attr::new(name, 0o200, None, Some(Box::new(store)))
    }

    /// With these permission bits. A view shows them; what has no `show` or no `store` stays unreadable or unwritable.
    #[must_use]
    pub fn mode(mut self, mode: u16) -> Attr {
        self.mode = mode & 0o777;
        self
    }

    /// The store runs at once on the writer's thread, and its result is not kept as the last one: for stores that only
    /// set a value under a short lock, as many stores of drivers.
    #[must_use]
    pub fn direct(mut self) -> Attr {
        self.direct = true;
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Debug for Attr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Attr")
            .field("name", &self.name)
            .field("mode", &format_args!("{:04o}", self.mode))
            .finish_non_exhaustive()
    }
}

/// What all nodes of a tree share.
pub(super) struct Shared {
    executor: Arc<dyn Executor>,
    next_ino: AtomicU64,
    /// Woken when the last active reference of a removed attribute is gone.
    drained: WaitQueue,
    stores: SpinLock<Stores>,
}

struct Stores {
    /// Stores that wait or run.
    pending: u64,
    last: Result,
    timeout: Delta,
}

impl Shared {
    pub(super) fn new(executor: Arc<dyn Executor>) -> Shared {
        Shared {
            executor,
            next_ino: AtomicU64::new(1),
            drained: WaitQueue::new(),
            stores: SpinLock::new(Stores {
                pending: 0,
                last: Ok(()),
                timeout: STORE_TIMEOUT,
            }),
        }
    }

    pub(super) fn next_ino(&self) -> u64 {
        self.next_ino.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn last_result(&self) -> Result<String> {
        let stores = self.stores.lock();
        if stores.pending > 0 {
            return Err(code::EAGAIN);
        }
        let number = stores.last.map_or_else(|e| e.to_errno(), |()| 0);
        Ok(format!("{number}\n"))
    }

    pub(super) fn set_store_timeout(&self, timeout: Delta) {
        self.stores.lock().timeout = timeout;
    }
}

thread_local! {
    /// The attributes whose callbacks run on this thread, and the trees whose store it executes.
    static RUNNING: RefCell<Vec<Frame>> = const { RefCell::new(Vec::new()) };
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Frame {
    file: u64,
    /// Address of the tree's shared part; a number that is only compared.
    tree: usize,
    on_executor: bool,
}

/// A published attribute.
pub(crate) struct AttrFile {
    name: String,
    ino: u64,
    mode: u16,
    direct: bool,
    shared: Arc<Shared>,
    state: SpinLock<FileState>,
}

struct FileState {
    /// None once removed.
    ops: Option<Arc<Ops>>,
    /// Callbacks that run.
    active: u32,
}

struct Ops {
    show: Option<Box<Show>>,
    store: Option<Box<Store>>,
}

/// A callback may run.
struct Active<'a> {
    file: &'a AttrFile,
    /// None only while it is dropped.
    ops: Option<Arc<Ops>>,
}

impl Active<'_> {
    fn show(&self) -> Result<&Show> {
        let show = self.ops.as_ref().and_then(|o| o.show.as_deref());
        show.ok_or(code::EIO)
    }

    fn store(&self) -> Result<&Store> {
        let store = self.ops.as_ref().and_then(|o| o.store.as_deref());
        store.ok_or(code::EIO)
    }
}

impl Drop for Active<'_> {
    fn drop(&mut self) {
        // What the callbacks of a removed attribute own is gone before the remover goes on.
        self.ops = None;
        RUNNING.with_borrow_mut(|frames| frames.pop());
        let last = {
            let mut state = self.file.state.lock();
            state.active -= 1;
            state.ops.is_none()
        };
        if last {
            // A remover that runs a callback itself waits for less than zero references.
            self.file.shared.drained.wake_up_all();
        }
    }
}

impl AttrFile {
    pub(super) fn new(attr: Attr, shared: &Arc<Shared>) -> AttrFile {
        AttrFile {
            name: attr.name,
            ino: shared.next_ino(),
            mode: attr.mode,
            direct: attr.direct,
            shared: Arc::clone(shared),
            state: SpinLock::new(FileState {
                ops: Some(Arc::new(Ops {
                    show: attr.show,
                    store: attr.store,
                })),
                active: 0,
            }),
        }
    }

    pub(crate) fn ino(&self) -> u64 {
        self.ino
    }

    pub(crate) fn mode(&self) -> u16 {
        self.mode
    }

    pub(crate) fn is_removed(&self) -> bool {
        self.state.lock().ops.is_none()
    }

    /// Whether the file may be opened so.
    ///
    /// Errors: `EACCES` when it has no callback or permission for that, for root as well; `ENODEV` when removed.
    pub(crate) fn check_open(&self, read: bool, write: bool) -> Result {
        let state = self.state.lock();
        let ops = state.ops.as_ref().ok_or(code::ENODEV)?;
        if read && (ops.show.is_none() || self.mode & 0o444 == 0) {
            return Err(code::EACCES);
        }
        if write && (ops.store.is_none() || self.mode & 0o222 == 0) {
            return Err(code::EACCES);
        }
        Ok(())
    }

    fn tree(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }

    fn activate(&self, on_executor: bool) -> Result<Active<'_>> {
        let ops = {
            let mut state = self.state.lock();
            let ops = state.ops.clone().ok_or(code::ENODEV)?;
            state.active = state.active.checked_add(1).ok_or(code::EAGAIN)?;
            ops
        };
        let frame = Frame {
            file: self.ino,
            tree: self.tree(),
            on_executor,
        };
        RUNNING.with_borrow_mut(|frames| frames.push(frame));
        Ok(Active {
            file: self,
            ops: Some(ops),
        })
    }

    /// The content.
    ///
    /// Context: as the attribute's `show`. Errors: `ENODEV` when removed, `EIO` without `show`, what `show` answers.
    pub(crate) fn show(&self) -> Result<String> {
        let active = self.activate(false)?;
        let show = active.show()?;
        self.guarded("show", show)
    }

    /// Writes a value and waits for the store.
    ///
    /// Context: may sleep. Errors: `ENODEV` when removed, `EIO` without `store`, `EINVAL` and `E2BIG` for the value,
    /// `EAGAIN` when it takes long, what `store` answers.
    pub(crate) fn store(self: &Arc<Self>, value: &[u8]) -> Result {
        if value.len() > VALUE_MAX {
            return Err(code::E2BIG);
        }
        let text = std::str::from_utf8(value).map_err(|_| code::EINVAL)?;
        if self.is_removed() {
            return Err(code::ENODEV);
        }
        if text.is_empty() {
            return Ok(());
        }
        let tree = self.tree();
        let nested = RUNNING.with_borrow(|f| f.iter().any(|f| f.tree == tree && f.on_executor));
        if self.direct || nested {
            return self.run_store(text, nested);
        }
        self.store_by_executor(text)
    }

    fn store_by_executor(self: &Arc<Self>, text: &str) -> Result {
        crate::might_sleep!();
        let outcome = Arc::new(Outcome::default());
        let timeout = {
            let mut stores = self.shared.stores.lock();
            stores.pending += 1;
            stores.timeout
        };
        let mut job = Job {
            file: Arc::clone(self),
            outcome: Arc::clone(&outcome),
            result: Err(code::ENODEV),
        };
        let text = text.to_owned();
        let work = move || job.result = job.file.run_store(&text, true);
        self.shared.executor.execute(Box::new(work));
        if !outcome.done.wait_for_completion_timeout(timeout) {
            crate::pr_warn!("{}: the store takes long", self.name);
            return Err(code::EAGAIN);
        }
        let result = *outcome.result.lock();
        result.unwrap_or(Err(code::ENODEV))
    }

    fn run_store(&self, text: &str, on_executor: bool) -> Result {
        let active = self.activate(on_executor)?;
        let store = active.store()?;
        self.guarded("store", || store(text))
    }

    fn guarded<T>(&self, what: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
        catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
            let text = panic_text(&*panic);
            crate::pr_err!("{what} of attribute {} panicked: {text}", self.name);
            Err(code::EIO)
        })
    }

    /// No new callback begins from here on.
    pub(super) fn deactivate(&self) {
        let ops = self.state.lock().ops.take();
        // Not under the lock: what the callbacks own goes with them.
        drop(ops);
    }

    /// Waits until no callback runs, except those of the calling thread.
    pub(super) fn drain(&self) {
        crate::might_sleep!();
        let (file, tree) = (self.ino, self.tree());
        let mine = |f: &&Frame| f.file == file && f.tree == tree;
        let own = RUNNING.with_borrow(|frames| frames.iter().filter(mine).count());
        let drained = || usize::try_from(self.state.lock().active).is_ok_and(|n| n <= own);
        self.shared.drained.wait_event(drained);
    }
}

/// How a store ended, for a writer that may have left.
#[derive(Default)]
struct Outcome {
    result: SpinLock<Option<Result>>,
    done: Completion,
}

/// A store on its way through the executor. Dropping it, run or not, tells the writer.
struct Job {
    file: Arc<AttrFile>,
    outcome: Arc<Outcome>,
    result: Result,
}

impl Drop for Job {
    fn drop(&mut self) {
        {
            let mut stores = self.file.shared.stores.lock();
            stores.pending -= 1;
            stores.last = self.result;
        }
        *self.outcome.result.lock() = Some(self.result);
        self.outcome.done.complete_all();
    }
}
