//! Loading plug-ins. They are never unloaded: threads and thread-local destructors of theirs may outlive any device.

use std::ffi::c_int;
use std::path::Path;

use kshim::prelude::*;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

/// Loads one plug-in and lets it register its handlers.
///
/// Context: may sleep.
///
/// # Errors
///
/// Why it cannot be used, as text: no plug-in, symbols missing, `handler_init` failed.
pub(in crate::tcmur) fn load(path: &Path) -> Result<(), String> {
    // SAFETY: constructors of the library run; it was put where the operator's plug-ins are.
    let lib = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    let lib = lib.map_err(|e| {
        let mut text = e.to_string();
        let mut source = std::error::Error::source(&e);
        while let Some(s) = source {
            text = s.to_string();
            source = s.source();
        }
        text
    })?;
    // Also when it cannot be used: its constructors have run.
    let lib = std::mem::ManuallyDrop::new(lib);
    // SAFETY: the type that the interface says.
    let init = unsafe { lib.get::<unsafe extern "C" fn() -> c_int>(c"handler_init") };
    let init = init.map_err(|_| "is no handler: handler_init() is missing".to_owned())?;
    // SAFETY: called once, as the interface says.
    match unsafe { init() } {
        0 => Ok(()),
        e => Err(format!("handler_init() failed: {e}")),
    }
}
