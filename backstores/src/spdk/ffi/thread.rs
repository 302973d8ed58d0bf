//! `spdk_thread`s.

use std::ffi::CString;
use std::marker::PhantomData;
use std::ptr::NonNull;

use kshim::error::{Result, code};

use super::sys;

/// Messages that one poll runs at most; 0: SPDK's own limit.
const MAX_MESSAGES: u32 = 0;

/// An `spdk_thread`, which the OS thread that made it polls; it is the current one there.
///
/// # Invariants
///
/// `raw` is alive until [`Thread::destroy`], and current on the OS thread that made it, where this value stays.
pub(in crate::spdk) struct Thread {
    raw: NonNull<sys::spdk_thread>,
    _not_send: PhantomData<*mut ()>,
}

impl Thread {
    /// Makes one, current on this OS thread from now on. The first of the process is SPDK's "app thread".
    ///
    /// Context: any thread that has none yet. Errors: `ENOMEM`; `EINVAL`: a name with NUL.
    pub(in crate::spdk) fn new(name: &str) -> Result<Thread> {
        let name = CString::new(name).map_err(|_| code::EINVAL)?;
        // SAFETY: the thread library is initialised (an engine exists); the name is copied.
        let raw = unsafe { sys::spdk_thread_create(name.as_ptr(), std::ptr::null()) };
        let raw = NonNull::new(raw).ok_or(code::ENOMEM)?;
        // SAFETY: `raw` is alive.
        unsafe { sys::spdk_set_thread(raw.as_ptr()) };
        Ok(Thread {
            raw,
            _not_send: PhantomData,
        })
    }

    /// Runs what is due: messages, pollers. Whether there was something.
    ///
    /// Context: not from inside a callback of SPDK.
    pub(in crate::spdk) fn poll(&self) -> bool {
        // SAFETY: alive by the invariant, and polled by this OS thread alone; callbacks don't poll.
        unsafe { sys::spdk_thread_poll(self.raw.as_ptr(), MAX_MESSAGES, 0) > 0 }
    }

    /// Asks it to end: it will when everything on it is closed, and was polled.
    pub(in crate::spdk) fn exit(&self) {
        // SAFETY: alive, and current here.
        unsafe { sys::spdk_thread_exit(self.raw.as_ptr()) };
    }

    /// Whether it has ended.
    pub(in crate::spdk) fn is_exited(&self) -> bool {
        // SAFETY: alive.
        unsafe { sys::spdk_thread_is_exited(self.raw.as_ptr()) }
    }

    /// Frees a thread that [has ended](Thread::is_exited); one that has not stays, as others may know it.
    pub(in crate::spdk) fn destroy(self) -> bool {
        let ended = self.is_exited();
        // SAFETY: nothing of this thread is left that would need a current thread.
        unsafe { sys::spdk_set_thread(std::ptr::null_mut()) };
        if ended {
            // SAFETY: it has exited; `self` is consumed.
            unsafe { sys::spdk_thread_destroy(self.raw.as_ptr()) };
        }
        ended
    }
}
