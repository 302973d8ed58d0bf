//! The core object: configuration, suspension, and the threads that are not a device's.
//!
//! C source: `scst/src/scst_main.c`

mod config;
mod groups;
mod luns;
mod pools;
mod settings;
mod suspend;
mod trace;

pub(crate) use config::check_name;
pub use config::{ConfigError, LunParams};
pub use luns::ReplaceUa;
pub use settings::DEF_MAX_TASKLET_CMD;
pub(crate) use suspend::InitWait;
pub use suspend::Suspended;

use crate::alua::Alua;
use crate::cmd::CmdThreads;
pub use crate::cmd::cmd_done;
use crate::copy_mgr::CopyManager;
use crate::device::Device;
use crate::event::Events;
use crate::mgmt::TmThread;
use crate::session::Session;
use crate::sgv::{MemLim, SgvConfig, SgvPools};
use crate::sysfs::ScstTree;
use crate::tgt::Tgt;
use crate::tgt_dev::TgtDev;
use kshim::error::Result;
use kshim::kthread::{self, Kthread, WorkerQueue};
use kshim::sync::percpu_ref::PercpuRef;
use kshim::sync::{Completion, Mutex, SpinLock, WaitQueue};
use kshim::time::Delta;
use settings::Settings;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicU32};
use std::sync::{Arc, Weak};

/// Work for the management thread.
type MgmtWork = Box<dyn FnOnce(&Arc<Core>) + Send>;

/// What `scst_mutex` protects.
#[derive(Debug, Default)]
pub(crate) struct Config {
    pub(crate) devices: BTreeMap<String, Arc<Device>>,
    pub(crate) tgts: Vec<Arc<Tgt>>,
    /// The last relative target port identifier that was given out.
    pub(crate) last_rel_tgt_id: u16,
}

/// How the core is set up.
#[derive(Clone, Debug)]
pub struct CoreParams {
    /// Threads of the global pool (`scst_threads`); handlers with `threads_num` 0 use it.
    pub threads: usize,
    /// Goes into the serial numbers of virtual devices (`setup_id`).
    pub setup_id: u32,
    /// Where persistent reservations are kept across power loss, a file for each device. Without it initiators that
    /// ask for that (APTPL) are refused.
    #[doc(alias = "SCST_PR_DIR")]
    pub pr_dir: Option<PathBuf>,
    /// Where handlers keep state over restarts (`/var/lib/scst`): what devices that are added by the management tree get
    /// as `VdiskParams::state_dir`. Without it nothing is saved.
    pub state_dir: Option<PathBuf>,
    /// Bytes that all commands together may use (`scst_max_cmd_mem`, which is in MiB); two fifths of them those of one
    /// device. Without it a quarter of the host's memory.
    #[doc(alias = "scst_max_cmd_mem")]
    pub max_cmd_mem: Option<u64>,
    /// How long a thread of a pool has nothing to do before it ends, in milliseconds.
    pub pool_idle_ms: u32,
}

/// Default of [`CoreParams::pool_idle_ms`].
const POOL_IDLE_MS: u32 = 10_000;

impl Default for CoreParams {
    /// As many threads as the machine has processors; setup id 0; idle threads end after ten seconds; reservations
    /// are lost with power.
    fn default() -> Self {
        Self {
            threads: kshim::host::cpus(),
            setup_id: 0,
            pr_dir: None,
            state_dir: None,
            max_cmd_mem: None,
            pool_idle_ms: POOL_IDLE_MS,
        }
    }
}

/// One SCST in the process. Tests make many; the server makes one.
pub struct Core {
    /// `scst_mutex`: all configuration. Taken by the management thread and at start and stop only.
    #[doc(alias = "scst_mutex")]
    pub(crate) config: Mutex<Config>,
    /// The targets of `config`, for commands that may not wait for it.
    #[doc(alias = "scst_mutex2")]
    pub(crate) tgt_list: SpinLock<Vec<Weak<Tgt>>>,
    /// `scst_suspend_mutex` with the nesting count.
    #[doc(alias = "scst_suspend_mutex")]
    pub(crate) suspend: Mutex<u32>,
    /// The nesting count, for those who may not wait for it.
    pub(crate) suspend_count: AtomicU32,
    /// When the last suspension began, in nanoseconds.
    pub(crate) suspended_since: AtomicI64,
    pub(crate) settings: Settings,
    /// Held by every command from LUN translation until its effects are over.
    #[doc(alias = "scst_cmd_count")]
    pub(crate) cmd_ref: Arc<PercpuRef>,
    pub(crate) cmd_ref_zero: Arc<Completion>,
    /// Sessions with commands that came while activity was suspended.
    pub(crate) init_sessions: SpinLock<Vec<Arc<Session>>>,
    pub(crate) main_threads: Arc<CmdThreads>,
    /// Device groups.
    pub(crate) alua: Alua,
    /// Nexuses whose LUN is gone and that wait for their last command.
    pub(crate) nexus_idle: WaitQueue,
    /// Those of them that nobody waits for any more.
    pub(crate) dying: SpinLock<Vec<(Arc<Session>, Arc<TgtDev>)>>,
    /// EXTENDED COPY.
    pub(crate) copy_mgr: CopyManager,
    /// Memory of commands' data.
    pub(crate) sgv: Arc<SgvPools>,
    /// The limit for commands that are for no device.
    pub(crate) sgv_no_dev: Arc<MemLim>,
    pub(crate) tm: TmThread,
    events: Arc<Events>,
    /// The management tree, which is told of all changes.
    pub(crate) tree: SpinLock<Option<Arc<ScstTree>>>,
    mgmt: Arc<WorkerQueue<MgmtWork>>,
    mgmt_thread: SpinLock<Option<Kthread>>,
    /// `scst_max_dev_cmd_mem` in bytes.
    pub(crate) max_dev_cmd_mem: u64,
    params: CoreParams,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("params", &self.params)
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Starts the core's threads. Errors: what thread creation answers. Context: may sleep.
    pub fn new(params: CoreParams) -> Result<Arc<Self>> {
        let zero = Arc::new(Completion::new());
        let on_zero = Arc::clone(&zero);
        let mgmt: Arc<WorkerQueue<MgmtWork>> = Arc::new(WorkerQueue::new());
        let cpus = kshim::host::cpus();
        let mut sgv_config = SgvConfig::for_host(kshim::host::total_ram(), cpus);
        sgv_config.max_cmd_mem = params.max_cmd_mem.unwrap_or(sgv_config.max_cmd_mem);
        let sgv = SgvPools::new(&sgv_config);
        let idle = Delta::from_millis(i64::from(params.pool_idle_ms));
        let main_threads = CmdThreads::new_main("scstd", params.threads, idle)?;
        let core = Arc::new(Self {
            alua: Alua::new(),
            nexus_idle: WaitQueue::new(),
            dying: SpinLock::new(Vec::new()),
            copy_mgr: CopyManager::new(&main_threads),
            config: Mutex::new(Config::default()),
            tgt_list: SpinLock::new(Vec::new()),
            suspend: Mutex::new(0),
            suspend_count: AtomicU32::new(0),
            suspended_since: AtomicI64::new(0),
            settings: Settings::new(params.setup_id),
            cmd_ref: Arc::new(PercpuRef::new(move || on_zero.complete_all())),
            cmd_ref_zero: zero,
            init_sessions: SpinLock::new(Vec::new()),
            main_threads,
            sgv_no_dev: sgv.device_limit(sgv_config.max_dev_cmd_mem()),
            sgv,
            max_dev_cmd_mem: sgv_config.max_dev_cmd_mem(),
            tm: TmThread::start()?,
            events: Arc::new(Events::start()?),
            tree: SpinLock::new(None),
            mgmt: Arc::clone(&mgmt),
            mgmt_thread: SpinLock::new(None),
            params,
        });
        let weak = Arc::downgrade(&core);
        let thread = kthread::run("scst_mgmtd", move |stop| {
            while let Some(work) = mgmt.wait_next(stop) {
                let Some(core) = weak.upgrade() else { return };
                work(&core);
            }
        })?;
        *core.mgmt_thread.lock() = Some(thread);
        Ok(core)
    }

    /// Parameters given at start.
    pub fn params(&self) -> &CoreParams {
        &self.params
    }

    /// What happens here, for who wants to know. Context: any.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// Runs `work` on the management thread, after what was posted before. Context: any.
    #[doc(alias = "scst_mgmtd")]
    pub fn post_mgmt(&self, work: impl FnOnce(&Arc<Core>) + Send + 'static) {
        self.mgmt.push(Box::new(work));
    }

    /// Stops the core's threads once everything is unregistered. Context: may sleep, not from the core's threads.
    pub fn shutdown(&self) {
        while self.resume_by_operator().is_ok() {}
        let thread = self.mgmt_thread.lock().take();
        if let Some(t) = thread {
            t.stop();
        }
        self.tm.stop();
        self.events.stop();
        self.copy_mgr.threads.stop();
        self.main_threads.stop();
        self.sgv.stop();
    }
}
