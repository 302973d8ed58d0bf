//! The C boundary: the only place of this crate with `unsafe`.
//!
//! - [`load`]: plug-ins, and what they registered;
//! - [`handler`]: calls into a plug-in;
//! - [`mem`]: the memory of devices and commands that plug-ins see;
//! - [`exports`]: what plug-ins call;
//! - [`iov`]: the helpers among these that only look at memory they are given;
//! - [`table`]: commands in flight;
//! - [`rbd`]: how large a RADOS block device is.
//!
//! # What a plug-in is trusted with
//!
//! It is code in this process: what it does to memory that it was never given nobody can contain. What is contained
//! are wrong *calls*. An address of a device or a command that comes from a plug-in is looked up before it is
//! used ([`super::registry::lookup`], [`table::Table`]); memory that a plug-in knows outlives the plug-in's reasons to
//! use it: that of commands lives as long as its device and is used again only after many others, that of devices
//! stays for some time after they were closed. No panic leaves Rust.

pub(super) mod exports;
pub(super) mod handler;
pub(super) mod iov;
pub(super) mod load;
pub(super) mod mem;
pub(super) mod rbd;
pub(super) mod table;
