//! The control socket: the view of a tree for other processes.
//!
//! [`Server`] listens on a local stream socket and serves one tree; [`Client`] is [`TreeOps`](super::tree::TreeOps) on
//! top of a connection. The format of what passes is in `docs/control-protocol.md` and in `wire`.
//!
//! What is not of the tree is an [`Extension`]'s; its client has a [`Channel`].
//!
//! Whoever may connect may do everything, so only root and the user of the server may.

mod client;
mod extension;
mod server;
#[cfg(test)]
mod tests;
mod wire;

use std::path::PathBuf;

pub use client::Client;
pub use extension::{
    Channel, Extension, FIRST_EXTENSION_OP, Message, OpenExtension, PUSH_TAG, Sink,
};
pub use server::{MAX_CLIENTS, Server};
pub use wire::VERSION;

/// Where a server listens and a client looks if nothing else is said: what the environment variable `variable` says, else
/// `control.sock` in the directory `program` of `$XDG_RUNTIME_DIR`, else of `/run`.
///
/// ```
/// use kshim::kobject::control::default_path;
///
/// assert!(default_path("MY_CONTROL", "my-server").ends_with("my-server/control.sock"));
/// ```
pub fn default_path(variable: &str, program: &str) -> PathBuf {
    let var = |name| crate::host::env(name).filter(|v| !v.is_empty());
    if let Some(path) = var(variable) {
        return PathBuf::from(path);
    }
    let run = var("XDG_RUNTIME_DIR").unwrap_or_else(|| "/run".to_owned());
    PathBuf::from(run).join(program).join("control.sock")
}
