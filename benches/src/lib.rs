//! What `cargo xtask bench` measures with: parts shared by the load generator (`scst-load`), the floor responder
//! (`scst-floor`) and the micro benches (`scst-steps`, `scst-primitives`).
//!
//! Key types: [`initiator::Conn`] is a logged-in connection that batches what it sends, [`load::Load`] a running
//! workload over one or more of them, [`tx::Batch`] what waits to be sent, [`hist::Hist`] latencies.
//!
//! The initiator does as little as it can for each command, so that a target on the other core is the limit: many PDUs
//! per receive, one send per batch, read data dropped inside the kernel. It checks no data: that is what `tests/` do.
#![forbid(unsafe_code)]

pub mod hist;
pub mod initiator;
pub mod load;
pub mod rng;
pub mod tx;
pub mod wire;

/// Puts the calling thread on one CPU, and the threads that it starts.
///
/// # Errors
///
/// If there is no such CPU.
pub fn pin(cpu: usize) -> std::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}
