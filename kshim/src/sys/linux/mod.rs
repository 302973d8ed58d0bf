//! Linux tenant.

pub(crate) mod file;
pub(crate) mod guard;
pub(crate) mod host;
pub(crate) mod mem;
pub(crate) mod proc;
pub mod thread;
pub mod time;
