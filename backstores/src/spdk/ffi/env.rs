//! SPDK's environment, its subsystems, configuration and RPC server.

use std::ffi::{CString, c_int, c_void};
use std::mem::{MaybeUninit, size_of};
use std::path::Path;
use std::ptr::NonNull;

use kshim::error::{Result, code};

use super::{check, errno, sys};

/// Messages between SPDK's threads, for all of the process.
const MESSAGES: usize = (1 << 15) - 1;
/// Requests of the bdev layer, and how many each thread keeps.
const BDEV_IOS: u32 = (1 << 14) - 1;
const BDEV_IO_CACHE: u32 = 256;
/// Buffers of the bdev layer and of accel, and how many each thread keeps. The configuration may say otherwise.
const SMALL_BUFFERS: u64 = 4096;
const LARGE_BUFFERS: u64 = 256;
const SMALL_CACHE: u32 = 64;
const LARGE_CACHE: u32 = 8;

/// The SPDK that this was built with: major * 100 + minor.
pub(in crate::spdk) const VERSION: u32 = sys::SCST_SPDK_VERSION;

/// How the environment is set up.
pub(in crate::spdk) struct EnvConfig {
    /// Memory without hugepages; `None`: hugepages, as the host has them, and PCI devices.
    pub(in crate::spdk) mem_mib: Option<u32>,
    /// CPUs of the process.
    pub(in crate::spdk) cpus: Vec<usize>,
}

/// Starts SPDK's environment and thread library: once in a process.
///
/// Context: may sleep. Errors: DPDK's (said on stderr), `ENOMEM`, `EINVAL`.
pub(in crate::spdk) fn init(config: &EnvConfig) -> Result {
    let list: Vec<String> = config.cpus.iter().map(usize::to_string).collect();
    // One "lcore", floating on all CPUs of this process: DPDK would pin the calling thread.
    let lcores = CString::new(format!("0@({})", list.join(","))).map_err(|_| code::EINVAL)?;
    let mut opts = MaybeUninit::<sys::spdk_env_opts>::zeroed();
    // SAFETY: all bits zero is a value of this C struct of numbers, flags and pointers; the size is its own.
    let opts = unsafe {
        (*opts.as_mut_ptr()).opts_size = size_of::<sys::spdk_env_opts>() as _;
        sys::spdk_env_opts_init(opts.as_mut_ptr());
        opts.assume_init_mut()
    };
    opts.name = c"scstd".as_ptr();
    opts.core_mask = std::ptr::null();
    opts.lcore_map = lcores.as_ptr();
    opts.shm_id = -1;
    if let Some(mib) = config.mem_mib {
        opts.no_huge = true;
        opts.no_pci = true;
        opts.mem_size = c_int::try_from(mib)?;
        opts.iova_mode = c"va".as_ptr();
    }
    // SAFETY: both only set levels of SPDK's own log, which goes to stderr then.
    unsafe {
        sys::spdk_log_set_level(sys::SPDK_LOG_DISABLED);
        sys::spdk_log_set_print_level(sys::SPDK_LOG_ERROR);
    }
    // SAFETY: all that `opts` points to outlives the call.
    check(unsafe { sys::spdk_env_init(opts) })?;
    // SAFETY: the environment is there; no callbacks are asked for.
    check(unsafe { sys::spdk_thread_lib_init_ext(None, None, 0, MESSAGES as _) })?;
    pools()
}

/// Smaller pools than SPDK's own, which are meant for a whole machine.
fn pools() -> Result {
    let mut iobuf = MaybeUninit::<sys::spdk_iobuf_opts>::zeroed();
    // SAFETY: plain numbers; SPDK fills as much as the size says.
    let iobuf = unsafe {
        sys::spdk_iobuf_get_opts(iobuf.as_mut_ptr(), size_of::<sys::spdk_iobuf_opts>() as _);
        iobuf.assume_init_mut()
    };
    iobuf.small_pool_count = SMALL_BUFFERS;
    iobuf.large_pool_count = LARGE_BUFFERS;
    // SAFETY: a valid structure, copied.
    check(unsafe { sys::spdk_iobuf_set_opts(iobuf) })?;
    let mut bdev = MaybeUninit::<sys::spdk_bdev_opts>::zeroed();
    // SAFETY: plain numbers; SPDK fills as much as the size says.
    let bdev = unsafe {
        sys::spdk_bdev_get_opts(bdev.as_mut_ptr(), size_of::<sys::spdk_bdev_opts>() as _);
        bdev.assume_init_mut()
    };
    bdev.bdev_io_pool_size = BDEV_IOS;
    bdev.bdev_io_cache_size = BDEV_IO_CACHE;
    bdev.iobuf_small_cache_size = SMALL_CACHE;
    bdev.iobuf_large_cache_size = LARGE_CACHE;
    // SAFETY: a valid structure, copied.
    check(unsafe { sys::spdk_bdev_set_opts(bdev) })
}

/// The end of [`init`], when no SPDK thread is left and nothing uses SPDK's memory any more.
pub(in crate::spdk) fn fini() {
    // SAFETY: the caller has ended everything.
    unsafe {
        sys::spdk_thread_lib_fini();
        sys::spdk_env_fini();
    }
}

/// Something that SPDK does in steps on the app thread, which its owner polls meanwhile.
///
/// # Invariants
///
/// SPDK has the address of `rc` until it is `Some`: the box is leaked if it is dropped before.
pub(in crate::spdk) struct Pending {
    rc: NonNull<Option<c_int>>,
    /// What SPDK reads meanwhile.
    data: Option<Vec<u8>>,
}

extern "C" fn told(rc: c_int, ctx: *mut c_void) {
    // SAFETY: `ctx` is the `rc` of a `Pending`, which lives until this is called; same thread.
    unsafe { *ctx.cast::<Option<c_int>>() = Some(rc) };
}

extern "C" fn told_done(ctx: *mut c_void) {
    told(0, ctx);
}

impl Pending {
    fn new(data: Option<Vec<u8>>) -> Pending {
        Pending {
            rc: NonNull::from(Box::leak(Box::new(None))),
            data,
        }
    }

    fn ctx(&self) -> *mut c_void {
        self.rc.as_ptr().cast()
    }

    /// Its result, when it has ended.
    pub(in crate::spdk) fn result(&self) -> Option<Result> {
        // SAFETY: by the invariant; SPDK writes it on this thread only.
        unsafe { *self.rc.as_ptr() }.map(|rc| {
            if rc == 0 {
                Ok(())
            } else {
                Err(errno(-rc.abs()))
            }
        })
    }

    /// Starts what the configuration has for the present state (before or after [`Pending::subsystems`]).
    ///
    /// Context: the app thread.
    pub(in crate::spdk) fn config(json: &[u8]) -> Pending {
        let mut p = Pending::new(Some(json.to_vec()));
        let ctx = p.ctx();
        if let Some(data) = &mut p.data {
            let len = isize::try_from(data.len()).unwrap_or(isize::MAX);
            // SAFETY: the data is this value's own and stays until the end, as does `ctx`.
            unsafe {
                sys::spdk_subsystem_load_config(
                    data.as_mut_ptr().cast(),
                    len as _,
                    Some(told),
                    ctx,
                    true,
                );
            }
        }
        p
    }

    /// Starts all subsystems. Context: the app thread.
    pub(in crate::spdk) fn subsystems() -> Pending {
        let p = Pending::new(None);
        // SAFETY: `ctx` stays until the callback.
        unsafe { sys::spdk_subsystem_init(Some(told), p.ctx()) };
        p
    }

    /// Ends all subsystems. Context: the app thread.
    pub(in crate::spdk) fn end_subsystems() -> Pending {
        let p = Pending::new(None);
        // SAFETY: `ctx` stays until the callback.
        unsafe { sys::spdk_subsystem_fini(Some(told_done), p.ctx()) };
        p
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.result().is_some() {
            // SAFETY: SPDK is done with it; it was leaked from a box.
            drop(unsafe { Box::from_raw(self.rc.as_ptr()) });
        } else {
            std::mem::forget(self.data.take());
        }
    }
}

/// From now on RPC methods of a running SPDK are allowed. Context: the app thread.
pub(in crate::spdk) fn running() {
    // SAFETY: sets a number.
    unsafe { sys::spdk_rpc_set_state(sys::SCST_SPDK_RPC_RUNTIME) };
}

/// A listening RPC socket. Stays on the app thread.
pub(in crate::spdk) struct Rpc(NonNull<sys::spdk_rpc_server>);

impl Rpc {
    /// Context: the app thread. Errors: `EINVAL`: a path with NUL; `EADDRINUSE`: SPDK could not listen there.
    pub(in crate::spdk) fn listen(path: &Path) -> Result<Rpc> {
        let path = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| code::EINVAL)?;
        // SAFETY: the path is copied.
        let server = unsafe { sys::spdk_rpc_server_listen(path.as_ptr()) };
        NonNull::new(server).map(Rpc).ok_or(code::EADDRINUSE)
    }

    /// Takes connections and requests. Context: the app thread.
    pub(in crate::spdk) fn poll(&self) {
        // SAFETY: alive until the drop.
        unsafe { sys::spdk_rpc_server_accept(self.0.as_ptr()) };
    }
}

impl Drop for Rpc {
    fn drop(&mut self) {
        // SAFETY: alive, and not used afterwards.
        unsafe { sys::spdk_rpc_server_close(self.0.as_ptr()) };
    }
}
