//! Commands in flight: which addresses a plug-in may complete.

use std::collections::{HashMap, VecDeque};
use std::ffi::c_int;

use kshim::prelude::*;
use kshim::sync::SpinLock;

use super::handler::{Call, Handler};
use super::mem::{CmdMem, DevMem};

/// A block is used again only after so many others, so that a second completion of a command finds nothing.
const QUARANTINE: usize = 64;

struct State<T> {
    live: HashMap<usize, (CmdMem, T)>,
    idle: VecDeque<CmdMem>,
}

/// The commands that a device's plug-in has, by address, each with its owner's part.
///
/// # Invariants
///
/// Every block of a command that a plug-in was ever given is in `live`, in `idle`, or in the hands of the one who removed it
/// and will give it back; none is freed before the table goes.
pub(in crate::tcmur) struct Table<T> {
    state: SpinLock<State<T>>,
}

impl<T> Table<T> {
    /// Nothing in flight.
    pub(in crate::tcmur) fn new() -> Table<T> {
        Table {
            state: SpinLock::new(State {
                live: HashMap::new(),
                idle: VecDeque::new(),
            }),
        }
    }

    /// Memory for a command. Context: any.
    pub(in crate::tcmur) fn take(&self) -> CmdMem {
        let mut st = self.state.lock();
        let old = if st.idle.len() > QUARANTINE {
            st.idle.pop_front()
        } else {
            None
        };
        drop(st);
        old.unwrap_or_else(CmdMem::new)
    }

    /// Takes the memory of a command back. Context: any.
    pub(in crate::tcmur) fn give_back(&self, mut mem: CmdMem) {
        // The data is freed outside the lock.
        drop(mem.take());
        self.state.lock().idle.push_back(mem);
    }

    /// Gives a command to the plug-in; from now on it can be completed. Returns its address and what the plug-in said.
    ///
    /// Context: a thread of the device; as long as the plug-in takes.
    pub(in crate::tcmur) fn call(
        &self,
        handler: &Handler,
        dev: &DevMem,
        mem: CmdMem,
        owner: T,
        call: Call,
    ) -> (usize, c_int) {
        let (addr, pointers) = (mem.addr(), mem.pointers());
        self.state.lock().live.insert(addr, (mem, owner));
        // SAFETY: the block lives as long as the table; the data is in it until the command is completed.
        let said = unsafe { handler.call(dev, pointers, call) };
        (addr, said)
    }

    /// Ends a command: nobody can complete it any more. `None`: there is none at this address. Context: any.
    pub(in crate::tcmur) fn remove(&self, addr: usize) -> Option<(CmdMem, T)> {
        self.state.lock().live.remove(&addr)
    }

    /// Looks at all commands in flight. Context: any; `f` runs under a spin lock.
    pub(in crate::tcmur) fn for_each(&self, mut f: impl FnMut(&mut T)) {
        for (_, owner) in self.state.lock().live.values_mut() {
            f(owner);
        }
    }

    /// Number of commands in flight. Context: any.
    pub(in crate::tcmur) fn len(&self) -> usize {
        self.state.lock().live.len()
    }
}

impl<T> Drop for Table<T> {
    fn drop(&mut self) {
        let st = self.state.get_mut();
        if !st.live.is_empty() {
            // The plug-in may still write to their data: better lost than reused.
            pr_err!("{} commands were never completed", st.live.len());
            for (_, (mem, _)) in st.live.drain() {
                std::mem::forget(mem);
            }
        }
        for mem in st.idle.drain(..) {
            // SAFETY: the device was closed some time ago; its plug-in has no reason to look at old commands.
            unsafe { mem.free() };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_not_used_again_at_once() {
        let t: Table<()> = Table::new();
        let first = t.take();
        let addr = first.addr();
        t.give_back(first);
        for _ in 0..QUARANTINE {
            let m = t.take();
            assert_ne!(m.addr(), addr);
            t.give_back(m);
        }
        assert_eq!(t.take().addr(), addr);
        assert!(t.remove(addr).is_none());
        assert_eq!(t.len(), 0);
    }
}
