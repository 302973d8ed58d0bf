//! The Linux kernel API in user space.
//!
//! Ported kernel code finds here what it calls in the kernel: locks, wait queues, work queues, RCU, percpu
//! references, pages, scatterlists, bios and block devices, files, sockets, and, in the place of interrupt
//! context, *reactors*. Names follow Rust-for-Linux's `kernel` crate where it has the item, the C kernel otherwise.
//!
//! Under `--cfg loom` only the model-checked cores of [`sync`], [`workqueue`] and `reactor` are built, on loom's threads and
//! atomics: `RUSTFLAGS="--cfg loom" cargo test -p kshim --lib loom_`.
//!
//! Every host call goes through [`sys`]; nothing else in the workspace names the standard library's threads,
//! files, sockets or clocks.
//!
//! | subsystem | modules |
//! |---|---|
//! | errors, logging, assertions | [`error`], [`mod@print`], [`mod@bug`] |
//! | locks, waiting, RCU, references | [`sync`], [`percpu`] |
//! | threads, deferred work, interrupt context | [`kthread`], [`workqueue`], [`reactor`], [`cpu`] |
//! | time and timers | [`time`] |
//! | memory | [`page`], [`slab`], [`mempool`], [`scatterlist`] |
//! | block devices | [`block`] |
//! | files, sockets, the host | [`fs`], [`net`], [`host`] |
//! | the management tree | [`kobject`], [`params`] |
//! | numbers, checksums, fault injection | [`idr`], [`crypto`], [`fault_inject`] |
//!
//! # What the documentation says of an item
//!
//! *Context* is where it may be called, as in the kernel's own documentation: "may sleep" (not on a reactor inside a round, nor
//! with a spin lock held), "any" or "reactor-safe". Where nothing is said, any will do: such a call looks at or changes the object
//! that it is called on, and never waits. *Errors* are errnos, named as [`error::code`] has them. *C header* is where the kernel has the
//! item; `doc(alias)` is its name there, which the search of these pages finds.
//!
//! `docs/kernel-api-map.md` says where each function of the kernel is, `docs/porting-a-driver.md` how to port a driver.
#![deny(missing_docs)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests may use the host's threads and files directly"
    )
)]
#![cfg_attr(
    loom,
    allow(dead_code, reason = "the models do not use all of the cores")
)]

#[cfg(not(loom))]
pub mod block;
#[cfg(not(loom))]
pub mod bug;
#[cfg(not(loom))]
pub mod cpu;
#[cfg(not(loom))]
pub mod crypto;
#[cfg(not(loom))]
pub mod error;
#[cfg(not(loom))]
pub mod fault_inject;
#[cfg(not(loom))]
pub mod fs;
#[cfg(not(loom))]
pub mod host;
#[cfg(not(loom))]
pub mod idr;
#[cfg(not(loom))]
pub mod kobject;
#[cfg(not(loom))]
pub mod kthread;
#[cfg(not(loom))]
pub mod mempool;
#[cfg(not(loom))]
// What a peer sends may not end a thread. Tests may.
#[cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::string_slice,
        clippy::panic,
        clippy::unreachable,
        clippy::arithmetic_side_effects
    )
)]
pub mod net;
#[cfg(not(loom))]
pub mod ns;
#[cfg(not(loom))]
pub mod page;
#[cfg(not(loom))]
pub mod params;
#[cfg(not(loom))]
pub mod percpu;
#[cfg(not(loom))]
pub mod print;
#[cfg(not(loom))]
pub mod reactor;
#[cfg(loom)]
#[path = "reactor/wake.rs"]
mod reactor_wake;
#[cfg(not(loom))]
pub mod scatterlist;
#[cfg(not(loom))]
pub mod slab;
pub mod sync;
pub mod sys;
#[cfg(not(loom))]
pub mod time;
#[cfg(not(loom))]
pub mod umh;
pub mod workqueue;

#[cfg(not(loom))]
pub mod prelude;

/// The examples of the README compile and run.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
