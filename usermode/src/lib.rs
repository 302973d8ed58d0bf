//! What the server `scstd` and the tool `scstadmin` share: the configuration file and the management of a running server.
#![forbid(unsafe_code)]

pub mod admin;
pub mod conf;
pub mod events;
