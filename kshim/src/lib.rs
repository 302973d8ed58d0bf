//! The Linux kernel API in user space.
//!
//! Ported kernel code finds here what it calls in the kernel: locks, wait queues, work queues, RCU, percpu
//! references, pages, scatterlists, bios and block devices, files, sockets, and, in the place of interrupt
//! context, *reactors*. Names follow Rust-for-Linux's `kernel` crate where it has the item, the C kernel otherwise.
//!
//! Every host call goes through [`sys`]; nothing else in the workspace names the standard library's threads,
//! files, sockets or clocks.
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        clippy::disallowed_types,
        reason = "tests may use the host's threads and files directly"
    )
)]

pub mod block;
pub mod bug;
pub mod cpu;
pub mod crypto;
pub mod error;
pub mod fs;
pub mod host;
pub mod kthread;
pub mod mempool;
pub mod net;
pub mod page;
pub mod percpu;
pub mod print;
pub mod reactor;
pub mod scatterlist;
pub mod slab;
pub mod sync;
pub mod sys;
pub mod time;
pub mod workqueue;

pub mod prelude;
