//! What plug-ins call, but for the helpers in [`super::iov`].
//!
//! Nothing here trusts the address of a device or a command: see the [module above](super).

use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::null_mut;
use std::sync::atomic::Ordering;

use kshim::prelude::*;

use super::handler::{Handler, text};
use super::mem::Event;
use crate::tcmur::abi::{tcmu_device, tcmur_cmd, tcmur_handler};
use crate::tcmur::device::{Device, Props};
use crate::tcmur::{add_handler, registry, remove_handler, serial};

unsafe extern "C" {
    /// Of `c/shim.c`: `strdup(3)`.
    fn scst_tcmur_strdup(text: *const c_char) -> *mut c_char;
}

/// Runs `f`; a panic of ours stays ours.
fn guard<R>(otherwise: R, f: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| {
        pr_err!("BUG: panic in a call of a handler");
        otherwise
    })
}

/// Runs `f` with the device that a plug-in names, if it is one.
fn with<R>(dev: *mut tcmu_device, otherwise: R, f: impl FnOnce(&Arc<Device>) -> R) -> R {
    let Some(dev) = registry::lookup(dev.addr()) else {
        pr_err_ratelimited!("a handler names a device that is not there");
        return otherwise;
    };
    match catch_unwind(AssertUnwindSafe(|| f(&dev))) {
        Ok(r) => r,
        Err(_) => {
            pr_err!("BUG: panic in a call of the handler of {}", dev.path);
            otherwise
        }
    }
}

/// Sets or asks for one of the properties.
fn prop<R: Default>(dev: *mut tcmu_device, f: impl FnOnce(&Props) -> R) -> R {
    with(dev, R::default(), |d| f(&d.props))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmur_register_handler(handler: *mut tcmur_handler) -> c_int {
    guard(-1, || {
        // SAFETY: what the plug-in's handler_init() passes, by the interface's contract.
        let made = unsafe { Handler::new(handler) };
        match made.and_then(|h| add_handler(h, |h| h.init().map_err(|_| "cannot be initialised"))) {
            Ok(()) => 0,
            Err(why) => {
                pr_err!("a handler {why}");
                -1
            }
        }
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmur_unregister_handler(handler: *mut tcmur_handler) -> bool {
    guard(false, || remove_handler(|h| std::ptr::eq(h.raw(), handler)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmur_cmd_complete(dev: *mut tcmu_device, data: *mut c_void, rc: c_int) {
    with(dev, (), |d| d.complete(data.addr(), rc));
}

/// `tcmur_cmd.done`, for handlers that call it themselves.
pub(super) unsafe extern "C" fn cmd_done(dev: *mut tcmu_device, cmd: *mut tcmur_cmd, ret: c_int) {
    with(dev, (), |d| d.complete(cmd.addr(), ret));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_private(dev: *mut tcmu_device) -> *mut c_void {
    with(dev, null_mut(), |d| d.mem.rdev())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmur_dev_get_private(dev: *mut tcmu_device) -> *mut c_void {
    with(dev, null_mut(), |d| d.mem.private())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmur_dev_set_private(dev: *mut tcmu_device, private: *mut c_void) {
    // As an address: a raw pointer cannot be sent, but it is the plug-in's own.
    with(dev, (), |d| d.mem.set_private(private));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_cfgstring(dev: *mut tcmu_device) -> *mut c_char {
    with(dev, null_mut(), |d| d.mem.cfgstring().as_ptr().cast_mut())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_uio_name(dev: *mut tcmu_device) -> *const c_char {
    with(dev, std::ptr::null(), |d| d.mem.name().as_ptr())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_set_num_lbas(dev: *mut tcmu_device, n: u64) {
    prop(dev, |p| p.num_lbas.store(n, Ordering::Relaxed));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_num_lbas(dev: *mut tcmu_device) -> u64 {
    prop(dev, |p| p.num_lbas.load(Ordering::Relaxed))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_set_block_size(dev: *mut tcmu_device, size: u32) {
    prop(dev, |p| p.block_size.store(size, Ordering::Relaxed));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_block_size(dev: *mut tcmu_device) -> u32 {
    with(dev, 512, |d| d.props.block_size())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_lba_to_byte(dev: *mut tcmu_device, lba: u64) -> u64 {
    prop(dev, |p| lba.saturating_mul(u64::from(p.block_size())))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_byte_to_lba(dev: *mut tcmu_device, byte: u64) -> u64 {
    prop(dev, |p| byte / u64::from(p.block_size()))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_cdb_to_byte(dev: *mut tcmu_device, cdb: *mut u8) -> u64 {
    // SAFETY: the plug-in's CDB.
    let lba = unsafe { super::iov::tcmu_cdb_get_lba(cdb) };
    prop(dev, |p| lba.saturating_mul(u64::from(p.block_size())))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_set_max_xfer_len(dev: *mut tcmu_device, len: u32) {
    prop(dev, |p| p.max_xfer_len.store(len, Ordering::Relaxed));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_max_xfer_len(dev: *mut tcmu_device) -> u32 {
    prop(dev, |p| p.max_xfer_len.load(Ordering::Relaxed))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_set_opt_xcopy_rw_len(dev: *mut tcmu_device, len: u32) {
    prop(dev, |p| p.opt_xcopy_rw_len.store(len, Ordering::Relaxed));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_opt_xcopy_rw_len(dev: *mut tcmu_device) -> u32 {
    prop(dev, |p| p.opt_xcopy_rw_len.load(Ordering::Relaxed))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_set_max_unmap_len(dev: *mut tcmu_device, len: u32) {
    prop(dev, |p| p.max_unmap_len.store(len, Ordering::Relaxed));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_max_unmap_len(dev: *mut tcmu_device) -> u32 {
    prop(dev, |p| p.max_unmap_len.load(Ordering::Relaxed))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_set_opt_unmap_gran(dev: *mut tcmu_device, len: u32, split: bool) {
    prop(dev, |p| {
        p.opt_unmap_gran.store(len, Ordering::Relaxed);
        p.split_unmaps.store(split, Ordering::Relaxed);
    });
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_opt_unmap_gran(dev: *mut tcmu_device) -> u32 {
    prop(dev, |p| p.opt_unmap_gran.load(Ordering::Relaxed))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_set_unmap_gran_align(dev: *mut tcmu_device, len: u32) {
    prop(dev, |p| p.unmap_gran_align.store(len, Ordering::Relaxed));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_unmap_gran_align(dev: *mut tcmu_device) -> u32 {
    prop(dev, |p| p.unmap_gran_align.load(Ordering::Relaxed))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_set_write_cache_enabled(dev: *mut tcmu_device, on: bool) {
    prop(dev, |p| p.write_cache.store(on, Ordering::Relaxed));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_write_cache_enabled(dev: *mut tcmu_device) -> bool {
    prop(dev, |p| p.write_cache.load(Ordering::Relaxed))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_set_solid_state_media(dev: *mut tcmu_device, on: bool) {
    prop(dev, |p| p.solid_state.store(on, Ordering::Relaxed));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_solid_state_media(dev: *mut tcmu_device) -> bool {
    prop(dev, |p| p.solid_state.load(Ordering::Relaxed))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_set_unmap_enabled(dev: *mut tcmu_device, on: bool) {
    prop(dev, |p| p.unmap.store(on, Ordering::Relaxed));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_dev_get_unmap_enabled(dev: *mut tcmu_device) -> bool {
    prop(dev, |p| p.unmap.load(Ordering::Relaxed))
}

/// What tcmu-runner reads from the kernel's configfs. Here there is no such thing; the attributes that handlers ask for
/// are known.
#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_cfgfs_dev_get_attr_int(
    dev: *mut tcmu_device,
    name: *const c_char,
) -> c_int {
    // SAFETY: the plug-in's string.
    let name = unsafe { text(name) }.unwrap_or_default();
    let value = with(dev, None, |d| match name.as_str() {
        "hw_block_size" => Some(d.props.block_size()),
        "hw_max_sectors" => Some(d.props.max_xfer_len.load(Ordering::Relaxed)),
        _ => None,
    });
    value
        .and_then(|v| c_int::try_from(v).ok())
        .unwrap_or(ENOENT.to_errno())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_cfgfs_dev_get_info_u64(
    dev: *mut tcmu_device,
    name: *const c_char,
    fn_ret: *mut c_int,
) -> u64 {
    // SAFETY: the plug-in's string.
    let name = unsafe { text(name) }.unwrap_or_default();
    let value = with(dev, None, |d| if name == "Size" { d.size } else { None });
    // SAFETY: the plug-in's variable, or NULL.
    if let Some(ret) = unsafe { fn_ret.as_mut() } {
        *ret = if value.is_some() {
            0
        } else {
            EINVAL.to_errno()
        };
    }
    value.unwrap_or(0)
}

/// A serial number, which the plug-in frees.
#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_cfgfs_dev_get_wwn(dev: *mut tcmu_device) -> *mut c_char {
    let wwn = with(dev, None, |d| {
        std::ffi::CString::new(serial(&d.cfgstring)).ok()
    });
    // SAFETY: a string of ours.
    wwn.map_or(null_mut(), |wwn| unsafe { scst_tcmur_strdup(wwn.as_ptr()) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmur_dev_update_size(dev: *mut tcmu_device, size: u64) -> c_int {
    let bad = EINVAL.to_errno();
    with(dev, bad, |d| {
        d.update_size(size).map_or_else(|e| e.to_errno(), |()| 0)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_notify_conn_lost(dev: *mut tcmu_device) {
    with(dev, (), |d| d.notify(Event::ConnLost));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_notify_lock_lost(dev: *mut tcmu_device) {
    with(dev, (), |d| d.notify(Event::LockLost));
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_notify_cmd_timed_out(dev: *mut tcmu_device) {
    with(dev, (), |d| d.notify(Event::CmdTimedOut));
}

/// Levels of `c/shim.c`.
fn level(level: c_int) -> log::Level {
    match level {
        0 | 1 => log::Level::Error,
        2 => log::Level::Warn,
        3 => log::Level::Info,
        4 => log::Level::Debug,
        _ => log::Level::Trace,
    }
}

/// Whether a message would get anywhere.
#[unsafe(no_mangle)]
unsafe extern "C" fn scst_tcmur_log_enabled(at: c_int) -> c_int {
    c_int::from(guard(false, || log::log_enabled!(target: LOG, level(at))))
}

/// Under which name messages of plug-ins are logged.
const LOG: &str = "backstores::tcmur";

#[unsafe(no_mangle)]
unsafe extern "C" fn scst_tcmur_log(
    dev: *mut tcmu_device,
    at: c_int,
    func: *const c_char,
    line: c_int,
    message: *const c_char,
) {
    guard((), || {
        let known = if dev.is_null() {
            None
        } else {
            registry::lookup(dev.addr())
        };
        let path = known.as_ref().map_or("handler", |d| d.cfgstring.as_str());
        let text = |p: *const c_char| {
            if p.is_null() {
                return String::new();
            }
            // SAFETY: strings from the C half, which end with a NUL.
            let s = unsafe { CStr::from_ptr(p) }.to_string_lossy();
            s.trim_end().replace(|c: char| c.is_control(), " ")
        };
        let (func, message) = (text(func), text(message));
        log::log!(target: LOG, level(at), "{path}: {func}:{line}: {message}");
    });
}
