//! Memory that plug-ins see: of a device, and of a command.

use std::ffi::{CStr, CString, c_void};
use std::ptr::{NonNull, addr_of_mut, null_mut};
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU64, Ordering};

use kshim::page::PAGE_SIZE;
use kshim::prelude::*;
use kshim::scatterlist::SGTable;

use crate::tcmur::abi;

/// Longest CDB.
pub(in crate::tcmur) const MAX_CDB_LEN: usize = 260;
/// Most pieces that one request names: what `preadv(2)` takes, to which handlers pass them.
pub(in crate::tcmur) const MAX_IOVECS: usize = 1024;

/// What a plug-in can count on one of a device's events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tcmur) enum Event {
    /// Another server has the lock now.
    LockLost,
    /// The storage cannot be reached.
    ConnLost,
    /// A command took too long.
    CmdTimedOut,
}

/// The memory behind a `struct tcmu_device *`. Its address names the device.
///
/// # Invariants
///
/// `rdev` is from `Box::into_raw` and freed in `drop` only. Fields that change after the construction are accessed
/// atomically here; plug-ins read them.
pub(in crate::tcmur) struct DevMem {
    rdev: NonNull<abi::tcmur_device>,
    cfgstring: CString,
    name: CString,
}

// SAFETY: what `rdev` points to is owned by this value and changed atomically only.
unsafe impl Send for DevMem {}
// SAFETY: as for `Send`.
unsafe impl Sync for DevMem {}

impl DevMem {
    /// Memory of a device with this configuration string.
    pub(in crate::tcmur) fn new(cfgstring: &str) -> Result<DevMem> {
        let cfgstring = CString::new(cfgstring).map_err(|_| EINVAL)?;
        // SAFETY: all fields are integers, booleans and raw pointers, for which zeros are valid.
        let zeroed: abi::tcmur_device = unsafe { std::mem::zeroed() };
        let rdev = NonNull::from(Box::leak(Box::new(zeroed)));
        let mem = DevMem {
            rdev,
            cfgstring,
            name: c"uio0".to_owned(),
        };
        // SAFETY: the box was just made and nobody else has the pointer.
        unsafe { (*rdev.as_ptr()).dev = mem.dev() };
        Ok(mem)
    }

    /// The address that plug-ins know the device by: that of its `struct tcmur_device`, as good as any.
    pub(in crate::tcmur) fn addr(&self) -> usize {
        self.rdev.as_ptr().addr()
    }

    pub(super) fn dev(&self) -> *mut abi::tcmu_device {
        self.rdev.as_ptr().cast()
    }

    pub(super) fn rdev(&self) -> *mut c_void {
        self.rdev.as_ptr().cast()
    }

    pub(super) fn cfgstring(&self) -> &CStr {
        &self.cfgstring
    }

    pub(super) fn name(&self) -> &CStr {
        &self.name
    }

    fn hm_private(&self) -> &AtomicPtr<c_void> {
        // SAFETY: the field is inside the live allocation, aligned, and accessed through atomics by us. A plug-in
        // that changed it behind our back would do so by plain stores of an aligned word, which do not tear.
        unsafe { AtomicPtr::from_ptr(addr_of_mut!((*self.rdev.as_ptr()).hm_private)) }
    }

    pub(super) fn private(&self) -> *mut c_void {
        self.hm_private().load(Ordering::Acquire)
    }

    pub(super) fn set_private(&self, private: *mut c_void) {
        self.hm_private().store(private, Ordering::Release);
    }

    /// Counts an event where plug-ins look for it; returns the count.
    pub(in crate::tcmur) fn count(&self, event: Event) -> u64 {
        let rdev = self.rdev.as_ptr();
        // SAFETY: the address of a field inside the live allocation; nothing is read.
        let field = unsafe {
            match event {
                Event::LockLost => addr_of_mut!((*rdev).lock_lost_cnt),
                Event::ConnLost => addr_of_mut!((*rdev).conn_lost_cnt),
                Event::CmdTimedOut => addr_of_mut!((*rdev).cmd_timed_out_cnt),
            }
        };
        // SAFETY: as in `hm_private`.
        unsafe { AtomicU64::from_ptr(field) }.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Who may write, where several servers share a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tcmur) enum LockState {
    /// Others.
    Unlocked,
    /// Nobody asked for the lock yet; reads do not need it.
    Read,
    /// This server is taking the lock.
    Locking,
    /// This server.
    Write,
}

impl DevMem {
    /// Puts the state of the lock where plug-ins look for it. Context: any.
    pub(in crate::tcmur) fn set_lock_state(&self, state: LockState) {
        let n = match state {
            LockState::Unlocked => abi::TCMUR_DEV_LOCK_UNLOCKED,
            LockState::Read => abi::TCMUR_DEV_LOCK_READ_LOCKED,
            LockState::Locking => abi::TCMUR_DEV_LOCK_WRITE_LOCKING,
            LockState::Write => abi::TCMUR_DEV_LOCK_WRITE_LOCKED,
        };
        let n = u8::try_from(n).unwrap_or(0);
        // SAFETY: the address of a field inside the live allocation, accessed through atomics by us.
        unsafe { AtomicU8::from_ptr(addr_of_mut!((*self.rdev.as_ptr()).lock_state)) }
            .store(n, Ordering::Relaxed);
    }
}

impl Drop for DevMem {
    fn drop(&mut self) {
        // SAFETY: from `Box::leak` in `new`, and nobody uses it any more: a device goes when it was closed and forgotten.
        drop(unsafe { Box::from_raw(self.rdev.as_ptr()) });
    }
}

/// What a plug-in sees of one command.
#[repr(C)]
struct Block {
    tcmur: abi::tcmur_cmd,
    lib: abi::tcmulib_cmd,
    cdb: [u8; MAX_CDB_LEN],
    iov: [abi::iovec; MAX_IOVECS],
}

/// How the pieces of a table go to a plug-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::tcmur) enum Access {
    /// The plug-in reads them.
    Read,
    /// The plug-in writes them.
    Write,
}

/// The memory behind a `struct tcmur_cmd *`, with the data that the command is about. Its address names the command.
///
/// Dropping it frees the data but not the block, as a plug-in may know its address; [`CmdMem::free`] does.
///
/// # Invariants
///
/// `block` is from `Box::into_raw`. The pieces in `iov` are those of `data`, which stays unchanged while they are there.
pub(in crate::tcmur) struct CmdMem {
    block: NonNull<Block>,
    data: SGTable,
}

// SAFETY: the block is owned by this value; plug-ins may use it from any thread by contract.
unsafe impl Send for CmdMem {}

impl CmdMem {
    /// Memory for one command.
    pub(in crate::tcmur) fn new() -> CmdMem {
        let mut zeroed = Box::<Block>::new_uninit();
        // SAFETY: the box has room for one block.
        unsafe { zeroed.as_mut_ptr().write_bytes(0, 1) };
        // SAFETY: all fields are integers, booleans, raw pointers, and arrays and optional function pointers, for all of
        // which zeros are valid.
        let zeroed = unsafe { zeroed.assume_init() };
        CmdMem {
            block: NonNull::from(Box::leak(zeroed)),
            data: SGTable::new(),
        }
    }

    /// The address that plug-ins know the command by.
    pub(in crate::tcmur) fn addr(&self) -> usize {
        self.block.as_ptr().addr()
    }

    /// What a call into a plug-in is given.
    pub(in crate::tcmur) fn pointers(&self) -> CmdPtrs {
        let block = self.block.as_ptr();
        // SAFETY: addresses of fields inside the live block; `iov_cnt` is read while no plug-in has the command.
        unsafe {
            CmdPtrs {
                cmd: addr_of_mut!((*block).tcmur),
                iov: addr_of_mut!((*block).iov).cast(),
                iov_cnt: (*block).lib.iov_cnt,
            }
        }
    }

    /// Sets the command up anew: this CDB, no data, no sense. A CDB that is too long is cut.
    pub(in crate::tcmur) fn prepare(&mut self, id: u16, cdb: &[u8]) {
        let block = self.block.as_ptr();
        let n = cdb.len().min(MAX_CDB_LEN);
        let mut padded = [0; MAX_CDB_LEN];
        if let (Some(to), Some(from)) = (padded.get_mut(..n), cdb.get(..n)) {
            to.copy_from_slice(from);
        }
        let now = kshim::time::Instant::now().as_nanos();
        // SAFETY: the block is live, and no plug-in has the command: it was made or taken out of the table of commands in
        // flight. The pointers stay inside the block.
        unsafe {
            (*block).cdb = padded;
            (*block).lib = abi::tcmulib_cmd {
                cmd_id: id,
                cdb: addr_of_mut!((*block).cdb).cast(),
                iovec: addr_of_mut!((*block).iov).cast(),
                iov_cnt: 0,
                sense_buf: [0; abi::TCMU_SENSE_LEN as usize],
                hm_private: addr_of_mut!((*block).tcmur).cast(),
            };
            (*block).tcmur = abi::tcmur_cmd {
                lib_cmd: addr_of_mut!((*block).lib),
                iovec: null_mut(),
                iov_cnt: 0,
                iov_base_copy: null_mut(),
                cmd_state: null_mut(),
                requested: 0,
                cmds_list_entry: abi::tcmu_list_node {
                    next: null_mut(),
                    prev: null_mut(),
                },
                start_time: abi::timespec {
                    tv_sec: now / 1_000_000_000,
                    tv_nsec: now % 1_000_000_000,
                },
                timed_out: false,
                done: Some(super::exports::cmd_done),
            };
        }
    }

    /// Makes `len` bytes of `sg` from `at` on the data of the command, which keeps the table.
    ///
    /// # Errors
    ///
    /// The table comes back with `EINVAL`: out of range, too many pieces, or a piece that is no multiple of `unit`;
    /// `EFAULT`: memory that cannot be accessed so.
    pub(in crate::tcmur) fn load(
        &mut self,
        sg: SGTable,
        at: usize,
        len: usize,
        access: Access,
        unit: usize,
    ) -> Result<(), (SGTable, Error)> {
        self.data = sg;
        let block = self.block.as_ptr();
        // SAFETY: the array is inside the live block, and no plug-in has the command.
        let iov = unsafe { &mut (*block).iov };
        let mut n = 0;
        let mut fits = true;
        let push = |base: *mut u8, len: usize| {
            fits &= len.is_multiple_of(unit.max(1));
            match iov.get_mut(n) {
                Some(slot) => {
                    *slot = abi::iovec {
                        iov_base: base.cast(),
                        iov_len: len as abi::size_t,
                    };
                    n += 1;
                }
                None => fits = false,
            }
            fits
        };
        let filled = if self.data.has_lent() {
            // Others may write to it, and it may be a file that is cut.
            Err(EFAULT)
        } else {
            self.each_piece(at, len, access, push)
        };
        let done = filled.and(if fits { Ok(()) } else { Err(EINVAL) });
        if let Err(e) = done {
            return Err((self.take(), e));
        }
        // SAFETY: the block is live, and no plug-in has the command.
        unsafe { (*block).lib.iov_cnt = n as abi::size_t };
        Ok(())
    }

    fn each_piece(
        &mut self,
        at: usize,
        len: usize,
        access: Access,
        mut push: impl FnMut(*mut u8, usize) -> bool,
    ) -> Result {
        match access {
            Access::Write => self.data.for_each_raw_mut(at, len, push),
            Access::Read => self
                .data
                .for_each_raw(at, len, |p, n| push(p.cast_mut(), n)),
        }
    }

    /// The data; the command has none any more.
    pub(in crate::tcmur) fn take(&mut self) -> SGTable {
        // SAFETY: the block is live, and no plug-in has the command.
        unsafe { (*self.block.as_ptr()).lib.iov_cnt = 0 };
        std::mem::take(&mut self.data)
    }

    /// How many bytes of the data the plug-in has left untouched, as far as its use of the pieces tells.
    pub(in crate::tcmur) fn left(&self) -> usize {
        let block = self.block.as_ptr();
        // SAFETY: the array is inside the live block; the plug-in has said that it is done with the command.
        let (iov, n) = unsafe { (&(*block).iov, (*block).lib.iov_cnt as usize) };
        iov.iter()
            .take(n)
            .fold(0, |sum, v| sum.saturating_add(v.iov_len as usize))
    }

    /// The sense data that the plug-in has left.
    pub(in crate::tcmur) fn sense(&self) -> [u8; abi::TCMU_SENSE_LEN as usize] {
        // SAFETY: the block is live; the plug-in has said that it is done with the command.
        unsafe { (*self.block.as_ptr()).lib.sense_buf }
    }

    /// Frees the block.
    ///
    /// # Safety
    ///
    /// No plug-in uses its address any more.
    pub(in crate::tcmur) unsafe fn free(self) {
        // SAFETY: from `Box::leak` in `new`; the caller vouches for plug-ins.
        drop(unsafe { Box::from_raw(self.block.as_ptr()) });
    }
}

/// What a call into a plug-in is given of a command.
#[derive(Clone, Copy)]
pub(in crate::tcmur) struct CmdPtrs {
    pub(super) cmd: *mut abi::tcmur_cmd,
    pub(super) iov: *mut abi::iovec,
    pub(super) iov_cnt: abi::size_t,
}

/// Blocks of commands have the size of a few pages.
const _: () = assert!(size_of::<Block>() < 5 * PAGE_SIZE);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_names_the_pieces_of_its_data() {
        let mut mem = CmdMem::new();
        mem.prepare(7, &[0x28, 1, 2]);
        let mut sg = SGTable::alloc_zeroed(8192).unwrap();
        sg.push_alloc(4096).unwrap();
        mem.load(sg, 512, 8192, Access::Write, 512).ok().unwrap();
        assert_eq!(mem.pointers().iov_cnt, 2);
        assert_eq!(mem.left(), 8192);
        assert_eq!(mem.take().len(), 12288);
        assert_eq!(mem.left(), 0);
        assert_eq!(mem.sense(), [0; 96]);
        // SAFETY: no plug-in was involved.
        unsafe { mem.free() };
    }

    #[test]
    fn what_cannot_be_passed_comes_back() {
        let mut mem = CmdMem::new();
        mem.prepare(0, &[]);
        let mut zeroes = SGTable::new();
        zeroes.push_zeroes(512).unwrap();
        let (sg, e) = mem.load(zeroes, 0, 512, Access::Write, 1).unwrap_err();
        assert_eq!((sg.len(), e), (512, EFAULT));
        assert!(mem.load(sg, 0, 512, Access::Read, 1).is_ok());
        let _ = mem.take();
        let mut odd = SGTable::alloc_zeroed(100).unwrap();
        odd.push_alloc(412).unwrap();
        let (odd, e) = mem.load(odd, 0, 512, Access::Read, 512).unwrap_err();
        assert_eq!((odd.len(), e), (512, EINVAL));
        assert!(mem.load(odd, 0, 513, Access::Read, 1).is_err());
        // SAFETY: no plug-in was involved.
        unsafe { mem.free() };
    }

    #[test]
    fn counters_are_where_handler_rbd_reads_them() {
        let mem = DevMem::new("rbd/pool/image").unwrap();
        mem.count(Event::LockLost);
        mem.count(Event::ConnLost);
        mem.count(Event::ConnLost);
        assert_eq!(mem.count(Event::CmdTimedOut), 1);
        let at = |off: usize| {
            // SAFETY: inside the allocation, aligned.
            unsafe { *mem.rdev.as_ptr().cast::<u8>().add(off).cast::<u64>() }
        };
        assert_eq!((at(0x30), at(0x38), at(0x40)), (1, 2, 1));
        assert_eq!(at(0), mem.addr() as u64);
        mem.set_lock_state(LockState::Write);
        assert_eq!(at(0x50) >> 8 & 0xFF, 5);
    }
}
