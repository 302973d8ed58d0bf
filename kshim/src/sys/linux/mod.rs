//! Linux tenant.

pub(crate) mod exec;
pub(crate) mod file;
pub(crate) mod guard;
pub(crate) mod host;
pub(crate) mod mem;
pub(crate) mod mount;
pub(crate) mod net;
pub mod poll;
pub(crate) mod proc;
pub mod rand;
pub(crate) mod ring;
pub mod signal;
pub mod thread;
pub mod time;
pub(crate) mod tree;
pub(crate) mod unix;
