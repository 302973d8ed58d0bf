//! Calls into a plug-in.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fmt;
use std::ptr::null_mut;

use kshim::prelude::*;

use super::mem::{CmdPtrs, DevMem};
use crate::tcmur::abi;
use crate::tcmur::spec::NO_GROUP;

/// Longest name, subtype or description that is looked at.
const MAX_TEXT: usize = 4096;
/// Most threads that a handler can ask for.
const MAX_THREADS: usize = 64;

bitflags::bitflags! {
    /// Which calls a handler has.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::tcmur) struct Calls: u32 {
        /// `read`
        const READ = 1;
        /// `write`
        const WRITE = 1 << 1;
        /// `flush`
        const FLUSH = 1 << 2;
        /// `unmap`
        const UNMAP = 1 << 3;
        /// `writesame`
        const WRITESAME = 1 << 4;
        /// `caw`
        const CAW = 1 << 5;
        /// `handle_cmd`
        const HANDLE_CMD = 1 << 6;
        /// `report_event`
        const REPORT_EVENT = 1 << 7;
        /// `lock`
        const LOCK = 1 << 8;
    }
}

/// Who has a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tcmur) enum LockOwner {
    /// The server that has this target port group.
    Group(u16),
    /// No server.
    Nobody,
    /// The handler does not say.
    Unknown,
}

/// One call with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tcmur) enum Call {
    /// `len` bytes at `off` into the command's data.
    Read { off: u64, len: usize },
    /// `len` bytes of the command's data at `off`.
    Write { off: u64, len: usize },
    /// Make durable.
    Flush,
    /// Give back.
    Unmap { off: u64, len: u64 },
    /// The command's data over and over.
    WriteSame { off: u64, len: u64 },
    /// The CDB.
    HandleCmd,
}

/// A kind of backing store that a plug-in has registered.
///
/// # Invariants
///
/// `raw` stays valid for the life of the process: plug-ins are never unloaded.
pub(in crate::tcmur) struct Handler {
    raw: *mut abi::tcmur_handler,
    /// What `/dev/tcmur/` paths name.
    pub(in crate::tcmur) subtype: String,
    /// For people.
    pub(in crate::tcmur) name: String,
    /// What the configuration string looks like.
    pub(in crate::tcmur) description: String,
    /// 0: asynchronous.
    pub(in crate::tcmur) nr_threads: usize,
    /// What it can do.
    pub(in crate::tcmur) calls: Calls,
}

// SAFETY: the structure is not changed after its registration, and its functions may be called from any thread.
unsafe impl Send for Handler {}
// SAFETY: as for `Send`.
unsafe impl Sync for Handler {}

/// Copies a C string.
///
/// # Safety
///
/// `text` is NULL or points to a string that ends with a NUL.
pub(super) unsafe fn text(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller vouches for it.
    let s = unsafe { CStr::from_ptr(text) };
    let s: String = s.to_string_lossy().chars().take(MAX_TEXT).collect();
    Some(s)
}

impl Handler {
    /// Looks at what a plug-in registers.
    ///
    /// # Errors
    ///
    /// Why it cannot be used.
    ///
    /// # Safety
    ///
    /// `raw` is NULL or points to a `struct tcmur_handler` of 1.5.4 that stays as it is.
    pub(super) unsafe fn new(raw: *mut abi::tcmur_handler) -> Result<Handler, &'static str> {
        // SAFETY: the caller vouches for it.
        let h = unsafe { raw.as_ref() }.ok_or("is NULL")?;
        // SAFETY: pointers to strings or NULL, by the interface's contract.
        let (subtype, name, description) =
            unsafe { (text(h.subtype), text(h.name), text(h.cfg_desc)) };
        let subtype = subtype.ok_or("has no subtype")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if subtype.is_empty() || subtype.len() > 64 || !subtype.chars().all(plain) {
            return Err("has a subtype that cannot be part of a path");
        }
        if h.open.is_none() || h.close.is_none() {
            return Err("lacks open or close");
        }
        let nr_threads = usize::try_from(h.nr_threads).unwrap_or(usize::MAX);
        if nr_threads > MAX_THREADS {
            return Err("asks for a strange number of threads");
        }
        let mut calls = Calls::empty();
        calls.set(Calls::READ, h.read.is_some());
        calls.set(Calls::WRITE, h.write.is_some());
        calls.set(Calls::FLUSH, h.flush.is_some());
        calls.set(Calls::UNMAP, h.unmap.is_some());
        calls.set(Calls::WRITESAME, h.writesame.is_some());
        calls.set(Calls::CAW, h.caw.is_some());
        calls.set(Calls::HANDLE_CMD, h.handle_cmd.is_some());
        calls.set(Calls::REPORT_EVENT, h.report_event.is_some());
        calls.set(Calls::LOCK, h.lock.is_some());
        if !calls.intersects(Calls::READ | Calls::HANDLE_CMD) {
            return Err("can neither read nor take commands");
        }
        Ok(Handler {
            raw,
            name: name.unwrap_or_else(|| subtype.clone()),
            subtype,
            description: description.unwrap_or_default(),
            nr_threads,
            calls,
        })
    }

    pub(super) fn raw(&self) -> *mut abi::tcmur_handler {
        self.raw
    }

    fn table(&self) -> &abi::tcmur_handler {
        // SAFETY: the type's invariant; registered structures are not changed.
        unsafe { &*self.raw }
    }

    /// Prepares what the handler has once per process.
    pub(super) fn init(&self) -> Result<(), c_int> {
        let Some(init) = self.table().init else {
            return Ok(());
        };
        // SAFETY: the contract of the interface: callable once, after the registration.
        match unsafe { init() } {
            0 => Ok(()),
            e => Err(e),
        }
    }

    /// Undoes [`init`](Self::init), at the end of the process. Context: may sleep.
    pub(in crate::tcmur) fn destroy(&self) {
        if let Some(destroy) = self.table().destroy {
            // SAFETY: the contract of the interface: callable once, when no device is open any more.
            unsafe { destroy() };
        }
    }

    /// Why the handler would not open this; `None`: it has no objection. Context: may sleep.
    pub(in crate::tcmur) fn check_config(&self, cfgstring: &str) -> Option<String> {
        let check = self.table().check_config?;
        let cfg = CString::new(cfgstring).ok()?;
        let mut reason: *mut c_char = null_mut();
        // SAFETY: a string and a place for a pointer, as the interface says.
        if unsafe { check(cfg.as_ptr(), &raw mut reason) } {
            return None;
        }
        // SAFETY: NULL, or text from malloc(). It is not freed: this happens once per failed open, and whether it really is from
        // malloc() only the plug-in knows.
        let reason = unsafe { text(reason) };
        Some(reason.unwrap_or_else(|| "the handler refuses it".to_owned()))
    }

    /// Opens a device. Context: may sleep, for long.
    pub(in crate::tcmur) fn open(&self, dev: &DevMem, reopen: bool) -> Result<(), c_int> {
        let Some(open) = self.table().open else {
            return Err(-1);
        };
        // SAFETY: the device's memory is live, and stays so long after `close`.
        match unsafe { open(dev.dev(), reopen) } {
            0 => Ok(()),
            e => Err(e),
        }
    }

    /// Closes it. Context: may sleep, for long.
    pub(in crate::tcmur) fn close(&self, dev: &DevMem) {
        if let Some(close) = self.table().close {
            // SAFETY: as in `open`; it was opened, and no command is in flight.
            unsafe { close(dev.dev()) };
        }
    }

    /// Tells the handler that its device is to have another size. Returns whether it agrees; a handler that is not interested
    /// does. Context: may sleep.
    pub(in crate::tcmur) fn resize(&self, dev: &DevMem, bytes: u64) -> Result<(), c_int> {
        let Some(reconfig) = self.table().reconfig else {
            return Ok(());
        };
        let mut info = abi::tcmulib_cfg_info {
            type_: abi::TCMULIB_CFG_DEV_SIZE as c_int,
            data: abi::tcmulib_cfg_info__bindgen_ty_1 { dev_size: bytes },
        };
        // SAFETY: as in `open`; the handler looks at the structure during the call only.
        match unsafe { reconfig(dev.dev(), &raw mut info) } {
            0 => Ok(()),
            e => Err(e),
        }
    }

    /// Takes the lock that servers share, from whoever has it, and names it after a target port group, or nobody. Returns a status.
    /// Context: may sleep, for long.
    pub(in crate::tcmur) fn lock(&self, dev: &DevMem, group: Option<u16>) -> c_int {
        let tag = group.unwrap_or(NO_GROUP);
        // SAFETY: as in `open`; it is open, and no command is in flight.
        let said = self.table().lock.map(|f| unsafe { f(dev.dev(), tag) });
        said.unwrap_or(abi::TCMU_STS_NOT_HANDLED)
    }

    /// Whose the lock is, as far as the handler can tell. Context: may sleep.
    pub(in crate::tcmur) fn lock_owner(&self, dev: &DevMem) -> LockOwner {
        let mut tag = NO_GROUP;
        // SAFETY: as in `lock`; the handler writes to the variable during the call only.
        let said = self
            .table()
            .get_lock_tag
            .map(|f| unsafe { f(dev.dev(), &raw mut tag) });
        match said {
            Some(abi::TCMU_STS_OK) => LockOwner::Group(tag),
            Some(abi::TCMU_STS_NO_LOCK_HOLDERS) => LockOwner::Nobody,
            _ => LockOwner::Unknown,
        }
    }

    /// Gives the lock back. Returns a status. Context: may sleep, for long.
    pub(in crate::tcmur) fn unlock(&self, dev: &DevMem) -> c_int {
        // SAFETY: as in `lock`.
        let said = self.table().unlock.map(|f| unsafe { f(dev.dev()) });
        said.unwrap_or(abi::TCMU_STS_OK)
    }

    /// Whether the handler says that it has the lock; one that cannot tell has it. Context: may sleep.
    pub(in crate::tcmur) fn has_lock(&self, dev: &DevMem) -> bool {
        // SAFETY: as in `lock`.
        let state = self.table().get_lock_state.map(|f| unsafe { f(dev.dev()) });
        state.is_none_or(|s| s == abi::TCMUR_DEV_LOCK_WRITE_LOCKED as c_int)
    }

    /// Tells that the event counters have changed. Context: may sleep.
    pub(in crate::tcmur) fn report_event(&self, dev: &DevMem) -> Result<(), c_int> {
        let Some(report) = self.table().report_event else {
            return Ok(());
        };
        // SAFETY: as in `open`.
        match unsafe { report(dev.dev()) } {
            0 => Ok(()),
            e => Err(e),
        }
    }

    /// Gives a command to the plug-in. Returns what it said; a call that it does not have is not handled.
    ///
    /// Context: a thread of the device.
    ///
    /// # Safety
    ///
    /// The memory of the command, and the data that it names, live until the plug-in has completed it.
    pub(in crate::tcmur) unsafe fn call(&self, dev: &DevMem, p: CmdPtrs, call: Call) -> c_int {
        const NONE: c_int = abi::TCMU_STS_NOT_HANDLED;
        let (h, dev) = (self.table(), dev.dev());
        let (cmd, iov, n) = (p.cmd, p.iov, p.iov_cnt);
        let pos = |off: u64| abi::off_t::try_from(off).unwrap_or(abi::off_t::MAX);
        // SAFETY: the functions are the plug-in's, with the arguments that the interface says; the caller vouches for
        // the command's memory.
        unsafe {
            match call {
                Call::Read { off, len } => h
                    .read
                    .map(|f| f(dev, cmd, iov, n, len as abi::size_t, pos(off))),
                Call::Write { off, len } => h
                    .write
                    .map(|f| f(dev, cmd, iov, n, len as abi::size_t, pos(off))),
                Call::Flush => h.flush.map(|f| f(dev, cmd)),
                Call::Unmap { off, len } => h.unmap.map(|f| f(dev, cmd, off, len)),
                Call::WriteSame { off, len } => h.writesame.map(|f| f(dev, cmd, off, len, iov, n)),
                Call::HandleCmd => h.handle_cmd.map(|f| f(dev, cmd)),
            }
        }
        .unwrap_or(NONE)
    }
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler")
            .field("subtype", &self.subtype)
            .field("nr_threads", &self.nr_threads)
            .field("calls", &self.calls)
            .finish_non_exhaustive()
    }
}
