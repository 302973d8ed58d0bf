//! The C interface to handler plug-ins of tcmu-runner 1.5.4, made from `backstores/abi/tcmu-runner.h` by
//! `cargo xtask codegen`. Do not edit.
#![allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    clippy::all,
    reason = "names and shape are those of the C header"
)]

pub const TCMU_SENSE_LEN: u32 = 96;
pub type size_t = std::ffi::c_ulong;
pub type __uint8_t = std::ffi::c_uchar;
pub type __uint16_t = std::ffi::c_ushort;
pub type __uint32_t = std::ffi::c_uint;
pub type __uint64_t = std::ffi::c_ulong;
pub type __off_t = std::ffi::c_long;
pub type __time_t = std::ffi::c_long;
pub type __syscall_slong_t = std::ffi::c_long;
pub type off_t = __off_t;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct timespec {
    pub tv_sec: __time_t,
    pub tv_nsec: __syscall_slong_t,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct iovec {
    pub iov_base: *mut std::ffi::c_void,
    pub iov_len: size_t,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct tcmu_device {
    _unused: [u8; 0],
}
pub const TCMULIB_CFG_DEV_CFGSTR: tcmulib_cfg_type = 0;
pub const TCMULIB_CFG_DEV_SIZE: tcmulib_cfg_type = 1;
pub const TCMULIB_CFG_WRITE_CACHE: tcmulib_cfg_type = 2;
pub type tcmulib_cfg_type = std::ffi::c_uint;
#[repr(C)]
#[derive(Copy, Clone)]
pub struct tcmulib_cfg_info {
    pub type_: std::ffi::c_int,
    pub data: tcmulib_cfg_info__bindgen_ty_1,
}
#[repr(C)]
#[derive(Copy, Clone)]
pub union tcmulib_cfg_info__bindgen_ty_1 {
    pub dev_size: u64,
    pub dev_cfgstring: *mut std::ffi::c_char,
    pub write_cache: bool,
}
pub const TCMU_STS_ASYNC_HANDLED: tcmu_status = -2;
pub const TCMU_STS_NOT_HANDLED: tcmu_status = -1;
pub const TCMU_STS_OK: tcmu_status = 0;
pub const TCMU_STS_NO_RESOURCE: tcmu_status = 1;
pub const TCMU_STS_PASSTHROUGH_ERR: tcmu_status = 2;
pub const TCMU_STS_BUSY: tcmu_status = 3;
pub const TCMU_STS_WR_ERR: tcmu_status = 4;
pub const TCMU_STS_RD_ERR: tcmu_status = 5;
pub const TCMU_STS_MISCOMPARE: tcmu_status = 6;
pub const TCMU_STS_INVALID_CMD: tcmu_status = 7;
pub const TCMU_STS_INVALID_CDB: tcmu_status = 8;
pub const TCMU_STS_INVALID_PARAM_LIST: tcmu_status = 9;
pub const TCMU_STS_INVALID_PARAM_LIST_LEN: tcmu_status = 10;
pub const TCMU_STS_TIMEOUT: tcmu_status = 11;
pub const TCMU_STS_FENCED: tcmu_status = 12;
pub const TCMU_STS_HW_ERR: tcmu_status = 13;
pub const TCMU_STS_RANGE: tcmu_status = 14;
pub const TCMU_STS_FRMT_IN_PROGRESS: tcmu_status = 15;
pub const TCMU_STS_CAPACITY_CHANGED: tcmu_status = 16;
pub const TCMU_STS_NOTSUPP_SAVE_PARAMS: tcmu_status = 17;
pub const TCMU_STS_WR_ERR_INCOMPAT_FRMT: tcmu_status = 18;
pub const TCMU_STS_TRANSITION: tcmu_status = 19;
pub const TCMU_STS_IMPL_TRANSITION_ERR: tcmu_status = 20;
pub const TCMU_STS_EXPL_TRANSITION_ERR: tcmu_status = 21;
pub const TCMU_STS_NO_LOCK_HOLDERS: tcmu_status = 22;
pub const TCMU_STS_NOTSUPP_SEG_DESC_TYPE: tcmu_status = 23;
pub const TCMU_STS_NOTSUPP_TGT_DESC_TYPE: tcmu_status = 24;
pub const TCMU_STS_CP_TGT_DEV_NOTCONN: tcmu_status = 25;
pub const TCMU_STS_INVALID_CP_TGT_DEV_TYPE: tcmu_status = 26;
pub const TCMU_STS_TOO_MANY_SEG_DESC: tcmu_status = 27;
pub const TCMU_STS_TOO_MANY_TGT_DESC: tcmu_status = 28;
pub type tcmu_status = std::ffi::c_int;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct tcmu_list_node {
    pub next: *mut tcmu_list_node,
    pub prev: *mut tcmu_list_node,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct tcmulib_cmd {
    pub cmd_id: u16,
    pub cdb: *mut u8,
    pub iovec: *mut iovec,
    pub iov_cnt: size_t,
    pub sense_buf: [u8; 96usize],
    pub hm_private: *mut std::ffi::c_void,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct tcmur_cmd {
    pub lib_cmd: *mut tcmulib_cmd,
    pub iovec: *mut iovec,
    pub iov_cnt: size_t,
    pub iov_base_copy: *mut std::ffi::c_void,
    pub cmd_state: *mut std::ffi::c_void,
    pub requested: size_t,
    pub cmds_list_entry: tcmu_list_node,
    pub start_time: timespec,
    pub timed_out: bool,
    pub done: ::std::option::Option<
        unsafe extern "C" fn(dev: *mut tcmu_device, cmd: *mut tcmur_cmd, ret: std::ffi::c_int),
    >,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct tcmur_handler {
    pub name: *const std::ffi::c_char,
    pub subtype: *const std::ffi::c_char,
    pub cfg_desc: *const std::ffi::c_char,
    pub opaque: *mut std::ffi::c_void,
    pub check_config: ::std::option::Option<
        unsafe extern "C" fn(
            cfgstring: *const std::ffi::c_char,
            reason: *mut *mut std::ffi::c_char,
        ) -> bool,
    >,
    pub reconfig: ::std::option::Option<
        unsafe extern "C" fn(dev: *mut tcmu_device, cfg: *mut tcmulib_cfg_info) -> std::ffi::c_int,
    >,
    pub open: ::std::option::Option<
        unsafe extern "C" fn(dev: *mut tcmu_device, reopen: bool) -> std::ffi::c_int,
    >,
    pub close: ::std::option::Option<unsafe extern "C" fn(dev: *mut tcmu_device)>,
    pub nr_threads: std::ffi::c_int,
    pub handle_cmd: ::std::option::Option<
        unsafe extern "C" fn(dev: *mut tcmu_device, cmd: *mut tcmur_cmd) -> std::ffi::c_int,
    >,
    pub read: ::std::option::Option<
        unsafe extern "C" fn(
            dev: *mut tcmu_device,
            cmd: *mut tcmur_cmd,
            iovec: *mut iovec,
            iov_cnt: size_t,
            len: size_t,
            off: off_t,
        ) -> std::ffi::c_int,
    >,
    pub write: ::std::option::Option<
        unsafe extern "C" fn(
            dev: *mut tcmu_device,
            cmd: *mut tcmur_cmd,
            iovec: *mut iovec,
            iov_cnt: size_t,
            len: size_t,
            off: off_t,
        ) -> std::ffi::c_int,
    >,
    pub flush: ::std::option::Option<
        unsafe extern "C" fn(dev: *mut tcmu_device, cmd: *mut tcmur_cmd) -> std::ffi::c_int,
    >,
    pub unmap: ::std::option::Option<
        unsafe extern "C" fn(
            dev: *mut tcmu_device,
            cmd: *mut tcmur_cmd,
            off: u64,
            len: u64,
        ) -> std::ffi::c_int,
    >,
    pub writesame: ::std::option::Option<
        unsafe extern "C" fn(
            dev: *mut tcmu_device,
            cmd: *mut tcmur_cmd,
            off: u64,
            len: u64,
            iovec: *mut iovec,
            iov_cnt: size_t,
        ) -> std::ffi::c_int,
    >,
    pub caw: ::std::option::Option<
        unsafe extern "C" fn(
            dev: *mut tcmu_device,
            cmd: *mut tcmur_cmd,
            off: u64,
            len: u64,
            iovec: *mut iovec,
            iov_cnt: size_t,
        ) -> std::ffi::c_int,
    >,
    pub report_event:
        ::std::option::Option<unsafe extern "C" fn(dev: *mut tcmu_device) -> std::ffi::c_int>,
    pub lock: ::std::option::Option<
        unsafe extern "C" fn(dev: *mut tcmu_device, tag: u16) -> std::ffi::c_int,
    >,
    pub unlock:
        ::std::option::Option<unsafe extern "C" fn(dev: *mut tcmu_device) -> std::ffi::c_int>,
    pub get_lock_tag: ::std::option::Option<
        unsafe extern "C" fn(dev: *mut tcmu_device, tag: *mut u16) -> std::ffi::c_int,
    >,
    pub get_lock_state:
        ::std::option::Option<unsafe extern "C" fn(dev: *mut tcmu_device) -> std::ffi::c_int>,
    pub _is_dbus_handler: bool,
    pub update_logdir: ::std::option::Option<unsafe extern "C" fn() -> bool>,
    pub init: ::std::option::Option<unsafe extern "C" fn() -> std::ffi::c_int>,
    pub destroy: ::std::option::Option<unsafe extern "C" fn()>,
}
pub const TCMUR_DEV_LOCK_UNKNOWN: tcmur_lock_state = 0;
pub const TCMUR_DEV_LOCK_UNLOCKED: tcmur_lock_state = 1;
pub const TCMUR_DEV_LOCK_READ_LOCKING: tcmur_lock_state = 2;
pub const TCMUR_DEV_LOCK_READ_LOCKED: tcmur_lock_state = 3;
pub const TCMUR_DEV_LOCK_WRITE_LOCKING: tcmur_lock_state = 4;
pub const TCMUR_DEV_LOCK_WRITE_LOCKED: tcmur_lock_state = 5;
pub type tcmur_lock_state = std::ffi::c_uint;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct tcmur_device {
    pub dev: *mut tcmu_device,
    pub hm_private: *mut std::ffi::c_void,
    pub cmdproc_thread: std::ffi::c_ulong,
    pub flags: u32,
    pub failover_type: u8,
    pub recovery_entry: tcmu_list_node,
    pub lock_lost_cnt: u64,
    pub conn_lost_cnt: u64,
    pub cmd_timed_out_cnt: u64,
    pub event_work: *mut std::ffi::c_void,
    pub lock_lost: bool,
    pub lock_state: u8,
    pub rest: [std::ffi::c_uchar; 942usize],
}
