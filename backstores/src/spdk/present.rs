//! A build with SPDK.

use kshim::block::BlockProber;
use kshim::cpu::online_cpus;
use kshim::fs;
use kshim::prelude::*;
use kshim::sync::SpinLock;

use super::SpdkConfig;
use super::disk::Prober;
use super::engine::{Engine, Start};
use super::ffi::env::EnvConfig;

/// The largest configuration.
const MAX_JSON: usize = 16 << 20;

/// What became of SPDK in this process.
enum State {
    /// It was not started yet.
    Fresh,
    Running(Arc<Engine>),
    /// It is being started, or has ended, for good.
    Used,
}

static STATE: SpinLock<State> = SpinLock::new(State::Fresh);

/// The running SPDK. Errors: `ENXIO`: it does not run.
pub(super) fn engine() -> Result<Arc<Engine>> {
    if let State::Running(engine) = &*STATE.lock() {
        return Ok(Arc::clone(engine));
    }
    pr_err!("SPDK was not started: it needs a configuration or an RPC socket");
    Err(ENXIO)
}

pub(super) fn prober() -> Arc<dyn BlockProber> {
    Arc::new(Prober)
}

pub(super) fn start(config: &SpdkConfig) -> Result {
    let json = config.json.as_deref().map(|path| fs::read(path, MAX_JSON));
    let json = json.transpose()?;
    {
        let mut state = STATE.lock();
        if !matches!(*state, State::Fresh) {
            return Err(EEXIST);
        }
        *state = State::Used;
    }
    let engine = Engine::start(Start {
        env: EnvConfig {
            mem_mib: config.mem_mib,
            cpus: online_cpus(),
        },
        json,
        rpc: config.rpc.clone(),
    })?;
    *STATE.lock() = State::Running(engine);
    Ok(())
}

pub(super) fn bounced() -> u64 {
    super::request::bounced()
}

pub(super) fn exit() -> bool {
    let old = std::mem::replace(&mut *STATE.lock(), State::Used);
    match old {
        State::Running(engine) => engine.stop(),
        State::Fresh => {
            *STATE.lock() = State::Fresh;
            true
        }
        State::Used => true,
    }
}
