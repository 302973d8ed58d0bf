//! The fault guard: copying from and to memory that may vanish.
//!
//! A shared mapping of a file loses its pages when somebody truncates the file, and gets none when the file system
//! is full; touching such a page raises SIGBUS. The kernel has the same problem with user memory and solves it with an
//! *exception table*: the copy routine's faulting instruction is known by address, and the fault handler resumes at a
//! fix-up. This module does the same in user space.
//!
//! # Why it is sound
//!
//! All guarded accesses are one instruction (`rep movsb`) of one assembly routine. The SIGBUS handler compares the
//! interrupted program counter with that instruction's address. If they match, it sets the program counter to the instruction
//! after it, where the routine returns the number of bytes it did not copy: no Rust frame is skipped, the stack pointer and
//! callee-saved registers are untouched, and `rcx` is exact, as the CPU keeps it up to date when the instruction faults. If they
//! do not match, the signal is none of ours and goes to the handler that was installed before.
//!
//! Other ways were weighed. `process_vm_readv` on ourselves and `preadv`/`pwritev` on the file return errors by themselves, but
//! cost a system call and page pinning for each copy, and `pwrite` makes a truncated file longer instead of failing.
//! Architectures without the routine use `process_vm_readv`, which gives the same results, slower.
//!
//! A thread that blocks SIGBUS dies by the fault: never block it.

use crate::error::{Result, code};

/// Copies `len` bytes; an unreachable page on either side is `EFAULT`, with part of the bytes copied.
///
/// Context: any; may wait for the pages of a file.
///
/// # Safety
///
/// Both ranges are inside live mappings (whose pages may be missing) and don't overlap. [`install`] succeeded.
/// Other threads may access the ranges at the same time only by raw copies, not through references.
pub(crate) unsafe fn guarded_copy(dst: *mut u8, src: *const u8, len: usize) -> Result {
    // SAFETY: the caller's promises are those of the routine.
    let left = unsafe { imp::copy(dst, src, len) };
    if left == 0 { Ok(()) } else { Err(code::EFAULT) }
}

pub(crate) use imp::install;

#[cfg(target_arch = "x86_64")]
mod imp {
    use std::sync::OnceLock;

    use crate::error::{Error, Result};

    core::arch::global_asm!(
        ".pushsection .text.kshim_guarded_copy, \"ax\", @progbits",
        ".p2align 4",
        ".globl kshim_guarded_copy",
        ".hidden kshim_guarded_copy",
        ".type kshim_guarded_copy, @function",
        ".globl kshim_guarded_copy_insn",
        ".hidden kshim_guarded_copy_insn",
        ".globl kshim_guarded_copy_fixup",
        ".hidden kshim_guarded_copy_fixup",
        "kshim_guarded_copy:",
        "mov rcx, rdx",
        "kshim_guarded_copy_insn:",
        "rep movsb",
        "kshim_guarded_copy_fixup:",
        "mov rax, rcx",
        "ret",
        ".size kshim_guarded_copy, . - kshim_guarded_copy",
        ".popsection",
    );

    unsafe extern "C" {
        /// Returns the number of bytes not copied.
        #[link_name = "kshim_guarded_copy"]
        pub(super) fn copy(dst: *mut u8, src: *const u8, len: usize) -> usize;
        static kshim_guarded_copy_insn: u8;
        static kshim_guarded_copy_fixup: u8;
    }

    /// What handled SIGBUS before us.
    static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

    /// Installs the handler, once per process.
    pub(crate) fn install() -> Result {
        static DONE: OnceLock<Result> = OnceLock::new();
        *DONE.get_or_init(|| {
            // SAFETY: all zeros is a valid `sigaction` (SIG_DFL, empty mask, no flags).
            let mut new: libc::sigaction = unsafe { std::mem::zeroed() };
            // SAFETY: as above.
            let mut old: libc::sigaction = unsafe { std::mem::zeroed() };
            // First read the old one, so that the handler finds it from its first moment.
            // SAFETY: the third argument points to a live `sigaction`; the null second one changes nothing.
            if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut old) } != 0 {
                return Err(Error::from(std::io::Error::last_os_error()));
            }
            let _ = PREVIOUS.set(old);
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                on_sigbus;
            new.sa_sigaction = handler as *const () as usize;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            // SAFETY: `new` is initialised, its handler has the signature SA_SIGINFO asks for and calls nothing
            // that is not async-signal-safe.
            if unsafe { libc::sigaction(libc::SIGBUS, &raw const new, std::ptr::null_mut()) } != 0 {
                return Err(Error::from(std::io::Error::last_os_error()));
            }
            Ok(())
        })
    }

    extern "C" fn on_sigbus(
        sig: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        let context_ptr = context.cast::<libc::ucontext_t>();
        // SAFETY: the kernel passes a valid context to an SA_SIGINFO handler, ours alone until we return.
        let regs = unsafe { &mut (*context_ptr).uc_mcontext.gregs };
        let rip = &mut regs[libc::REG_RIP as usize];
        if *rip == (&raw const kshim_guarded_copy_insn).addr() as i64 {
            *rip = (&raw const kshim_guarded_copy_fixup).addr() as i64;
            return;
        }
        chain(sig, info, context);
    }

    /// Passes a SIGBUS that is not ours on.
    fn chain(sig: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
        let previous = PREVIOUS.get();
        let handler = previous.map_or(libc::SIG_DFL, |p| p.sa_sigaction);
        if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
            // Returning runs the faulting instruction again, which now ends the process, as it should.
            // SAFETY: `signal` with SIG_DFL is async-signal-safe.
            unsafe { libc::signal(sig, libc::SIG_DFL) };
            return;
        }
        if previous.is_some_and(|p| p.sa_flags & libc::SA_SIGINFO != 0) {
            type Action = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: with SA_SIGINFO the field is a function of this signature, as its installer promised.
            let f = unsafe { std::mem::transmute::<usize, Action>(handler) };
            f(sig, info, context);
        } else {
            // SAFETY: without SA_SIGINFO the field is a function of the signal number alone.
            let f = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler) };
            f(sig);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
mod imp {
    use crate::error::Result;

    /// Nothing to prepare.
    pub(crate) fn install() -> Result {
        Ok(())
    }

    /// Returns the number of bytes not copied.
    ///
    /// # Safety
    ///
    /// As [`super::guarded_copy`].
    pub(super) unsafe fn copy(dst: *mut u8, src: *const u8, len: usize) -> usize {
        let mut done = 0;
        while done < len {
            // SAFETY: `done < len`: inside the destination.
            let to = unsafe { dst.add(done) };
            // SAFETY: `done < len`: inside the source.
            let from = unsafe { src.add(done) };
            let local = libc::iovec {
                iov_base: to.cast(),
                iov_len: len - done,
            };
            let remote = libc::iovec {
                iov_base: from.cast_mut().cast(),
                iov_len: len - done,
            };
            // SAFETY: one iovec each; the kernel checks both sides and reports what it cannot reach.
            let n = unsafe {
                libc::process_vm_readv(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0)
            };
            match usize::try_from(n) {
                Ok(n) if n > 0 => done += n,
                _ => break,
            }
        }
        len - done
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::linux::mem::{Access, Mapping};

    #[test]
    fn a_truncated_mapping_is_efault_both_ways() {
        install().unwrap();
        install().unwrap();
        let f = tempfile::tempfile().unwrap();
        f.set_len(1 << 16).unwrap();
        let m = Mapping::shared_file(f.as_fd(), 0, 1 << 16, Access::ReadWrite).unwrap();
        let mut buf = vec![1u8; 1 << 16];
        // SAFETY: both sides are 64 KiB, live and distinct.
        unsafe { guarded_copy(m.ptr().as_ptr(), buf.as_ptr(), buf.len()) }.unwrap();
        f.set_len(4096).unwrap();
        // SAFETY: as above.
        let r = unsafe { guarded_copy(buf.as_mut_ptr(), m.ptr().as_ptr(), buf.len()) };
        assert_eq!(r, Err(code::EFAULT));
        // SAFETY: as above.
        let r = unsafe { guarded_copy(m.ptr().as_ptr(), buf.as_ptr(), buf.len()) };
        assert_eq!(r, Err(code::EFAULT));
        // SAFETY: as above.
        unsafe { guarded_copy(buf.as_mut_ptr(), m.ptr().as_ptr(), 4096) }.unwrap();
        assert!(buf.iter().all(|&b| b == 1));
    }
}
