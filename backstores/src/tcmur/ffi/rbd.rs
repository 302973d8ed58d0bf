//! How large a RADOS block device is: asked from librbd, which is there when handler_rbd is.

use std::ffi::{CString, c_char, c_int, c_void};
use std::ptr::{null, null_mut};

use kshim::prelude::*;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};

type Handle = *mut c_void;

struct Api {
    create: Symbol<unsafe extern "C" fn(*mut Handle, *const c_char) -> c_int>,
    read_conf: Symbol<unsafe extern "C" fn(Handle, *const c_char) -> c_int>,
    connect: Symbol<unsafe extern "C" fn(Handle) -> c_int>,
    shutdown: Symbol<unsafe extern "C" fn(Handle)>,
    ioctx: Symbol<unsafe extern "C" fn(Handle, *const c_char, *mut Handle) -> c_int>,
    ioctx_destroy: Symbol<unsafe extern "C" fn(Handle)>,
    open: Symbol<unsafe extern "C" fn(Handle, *const c_char, *mut Handle, *const c_char) -> c_int>,
    close: Symbol<unsafe extern "C" fn(Handle) -> c_int>,
    size: Symbol<unsafe extern "C" fn(Handle, *mut u64) -> c_int>,
}

/// An image, as the configuration string of handler_rbd names it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::tcmur) struct Image<'a> {
    /// Pool.
    pub(in crate::tcmur) pool: &'a str,
    /// Image.
    pub(in crate::tcmur) name: &'a str,
    /// `id=`
    pub(in crate::tcmur) id: Option<&'a str>,
    /// `conf=`
    pub(in crate::tcmur) conf: Option<&'a str>,
}

fn library(names: &[&str]) -> Result<Library> {
    for name in names {
        // SAFETY: the constructors of a well-known library run.
        if let Ok(lib) = unsafe { Library::open(Some(*name), RTLD_NOW | RTLD_LOCAL) } {
            return Ok(lib);
        }
    }
    pr_err!("{} cannot be loaded", names.join(" or "));
    Err(ENOENT)
}

fn api() -> Result<Api> {
    let rados = std::mem::ManuallyDrop::new(library(&["librados.so.2"])?);
    let rbd = std::mem::ManuallyDrop::new(library(&["librbd.so.1"])?);
    let missing = |_| ENOSYS;
    // SAFETY: the types are those of the libraries' documented C interfaces, stable under these sonames. The libraries
    // are never unloaded.
    unsafe {
        Ok(Api {
            create: rados.get(b"rados_create\0").map_err(missing)?,
            read_conf: rados.get(b"rados_conf_read_file\0").map_err(missing)?,
            connect: rados.get(b"rados_connect\0").map_err(missing)?,
            shutdown: rados.get(b"rados_shutdown\0").map_err(missing)?,
            ioctx: rados.get(b"rados_ioctx_create\0").map_err(missing)?,
            ioctx_destroy: rados.get(b"rados_ioctx_destroy\0").map_err(missing)?,
            open: rbd.get(b"rbd_open_read_only\0").map_err(missing)?,
            close: rbd.get(b"rbd_close\0").map_err(missing)?,
            size: rbd.get(b"rbd_get_size\0").map_err(missing)?,
        })
    }
}

fn check(what: &str, ret: c_int) -> Result {
    if ret < 0 {
        pr_err!("rbd: {what}: {}", Error::from_errno(ret));
    }
    to_result(ret.min(0))
}

/// Bytes of an image.
///
/// Context: may sleep, as long as the cluster takes.
///
/// # Errors
///
/// `ENOENT`: no librbd, no such pool or image. `ENOSYS`: a strange librbd. Others: librados and librbd's.
pub(in crate::tcmur) fn image_size(image: &Image<'_>) -> Result<u64> {
    let api = api()?;
    let c = |s: &str| CString::new(s).map_err(|_| EINVAL);
    let (pool, name) = (c(image.pool)?, c(image.name)?);
    let id = image.id.map(c).transpose()?;
    let conf = image.conf.map(c).transpose()?;
    let (id, conf) = (
        id.as_ref().map_or(null(), |s| s.as_ptr()),
        conf.as_ref().map_or(null(), |s| s.as_ptr()),
    );
    let (mut cluster, mut io, mut img) = (null_mut(), null_mut(), null_mut());
    // SAFETY: the calls are in the order that librados and librbd document, each handle is used between the call that
    // makes and the one that ends it; strings live until the end of the function.
    unsafe {
        check("create", (api.create)(&raw mut cluster, id))?;
        let read = (api.read_conf)(cluster, conf);
        let r = (if conf.is_null() {
            Ok(())
        } else {
            check("configuration", read)
        })
        .and_then(|()| check("connect", (api.connect)(cluster)))
        .and_then(|()| {
            check("pool", (api.ioctx)(cluster, pool.as_ptr(), &raw mut io))?;
            let opened = (api.open)(io, name.as_ptr(), &raw mut img, null());
            let size = check("image", opened).and_then(|()| {
                let mut size = 0;
                let r = check("size", (api.size)(img, &raw mut size));
                (api.close)(img);
                r.map(|()| size)
            });
            (api.ioctx_destroy)(io);
            size
        });
        (api.shutdown)(cluster);
        r
    }
}
