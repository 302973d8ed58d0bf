//! `scstd run`: the full server. Nothing is configured but by the management tree: by a file at the start, by tools later.
//!
//! Key types: [`settings::Settings`] is what was asked for, [`Running`] the server. The tree has three views: the control
//! socket, a FUSE mount (`--sysfs`), and the file systems of `scstd exec`.

mod config;
mod settings;

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use iscsi_scst::driver::IscsiDriver;
use kshim::block;
use kshim::error::code;
use kshim::kobject::Kobject;
use kshim::kobject::control::Server as ControlServer;
use kshim::kobject::fuse::{FuseMount, FuseView, Owner};
use kshim::kobject::tree::Tree;
use kshim::net::TcpListener;
use kshim::page::PagePool;
use kshim::reactor::Reactor;
use kshim::sync::SpinLock;
use kshim::sys::signal::Termination;
use kshim::{fs, host};
use scst_core::core::{Core, CoreParams};
use scst_core::dev_handlers::tcmur;
use scst_core::event;
use scst_core::scst_local::LocalDriver;
use scst_core::sysfs::ScstTree;

use crate::cli::RunArgs;
use crate::spdk::Spdk;
use crate::{MOUNT_NAME, logger, server, signals};
use settings::Settings;

/// File systems of `scstd exec` that are served at the same time.
const MAX_EXEC_MOUNTS: usize = 256;
/// Directories of the state directory, as kernel SCST has them below `/var/lib/scst`.
const STATE_DIRS: [&str; 3] = ["pr", "vdev_mode_pages", "dif_tags"];

/// Runs the server until it is asked to stop.
///
/// # Errors
///
/// Why it could not start or not stop cleanly.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    // Before anything is opened: they have fixed numbers.
    let inherited = TcpListener::inherited().context("sockets of the service manager")?;
    let settings = Settings::check(args)?;
    // Before the first thread: all threads inherit the mask.
    let signals = signals::Signals::block()?;
    if host::raise_fd_limit().is_none() {
        log::warn!("the limit on descriptors cannot be raised");
    }
    PagePool::start_aging();
    // Ends after everything that is declared below.
    let _spdk = Spdk::start(&args.spdk)?;
    let mut running = Running::start(&settings)?;
    let ready = running
        .configure(&settings)
        .and_then(|()| running.open(&settings, inherited))
        .and_then(|()| {
            // Before anybody can know that it is ready.
            logger::started();
            ready(&running)
        });
    if let Err(e) = ready {
        if let Err(e) = running.stop() {
            log::error!("stopping what was started: {e:#}");
        }
        return Err(e);
    }
    tell_manager("READY=1");
    let why = loop {
        match signals.next()? {
            Termination::Hup => reload(&running, &settings),
            Termination::Term => break "SIGTERM",
            Termination::Int => break "SIGINT",
        }
    };
    log::info!("{why}: stopping");
    tell_manager("STOPPING=1");
    signals.exit_on_next()?;
    running.stop()
}

/// Applies what differs in the configuration file; what is wrong with it is logged, and the server goes on as it is.
fn reload(running: &Running, settings: &Settings) {
    if settings.config.is_none() {
        log::info!("SIGHUP: there is no configuration file to apply");
        return;
    }
    tell_manager("RELOADING=1");
    if let Err(e) = running.configure(settings) {
        log::error!("SIGHUP: {e:#}");
    }
    tell_manager("READY=1");
}

fn tell_manager(state: &str) {
    if let Err(e) = host::notify_service_manager(state) {
        log::warn!("cannot tell the service manager {state}: {e}");
    }
}

/// Tells on stdout what is served where.
fn ready(running: &Running) -> Result<()> {
    let mut text = String::new();
    for portal in running.driver.portals() {
        text += &format!("portal {portal}\n");
    }
    for target in running.driver.targets() {
        text += &format!("target {}\n", target.name());
    }
    if let Some(control) = &running.control {
        text += &format!("control {}\n", control.path().display());
    }
    if let Some(mount) = &running.mount {
        text += &format!("sysfs {}\n", mount.dir().display());
    }
    if let Some(mount) = &running.block_mount {
        text += &format!("block-sysfs {}\n", mount.dir().display());
    }
    text += "ready\n";
    let mut stdout = std::io::stdout();
    let told = stdout.write_all(text.as_bytes());
    if let Err(e) = told.and_then(|()| stdout.flush()) {
        log::warn!("cannot tell on stdout that the server is ready: {e}");
    }
    Ok(())
}

/// What runs.
struct Running {
    core: Arc<Core>,
    driver: Arc<IscsiDriver>,
    local: Arc<LocalDriver>,
    reactors: Vec<Reactor>,
    tree: Arc<ScstTree>,
    control: Option<ControlServer>,
    mount: Option<FuseMount>,
    block_mount: Option<FuseMount>,
    exec_mounts: Arc<ExecMounts>,
}

impl Running {
    /// Starts threads and publishes the tree; nothing can be reached yet.
    fn start(settings: &Settings) -> Result<Self> {
        for name in STATE_DIRS {
            let dir = settings.state_dir.join(name);
            let made = fs::create_dir_all(&dir);
            made.with_context(|| format!("--state-dir: {} cannot be made", dir.display()))?;
        }
        let params = CoreParams {
            pr_dir: Some(settings.state_dir.join("pr")),
            state_dir: Some(settings.state_dir.clone()),
            ..CoreParams::default()
        };
        let reactors = server::start_reactors(settings.cpus, settings.poller)?;
        let core = Core::new(params).context("the core's threads cannot be started")?;
        let tree = ScstTree::publish(&core).context("the management tree")?;
        tree.register_dev_type(tcmur::dev_type())
            .context("handlers/tcmur")?;
        let handles = reactors.iter().map(Reactor::handle).collect();
        let driver = IscsiDriver::new(Arc::clone(&core), handles)?;
        // Until `targets/iscsi/enabled` says otherwise.
        driver.set_enabled(false);
        driver.publish(&tree).context("targets/iscsi")?;
        let local = LocalDriver::new(&core);
        local.publish(&tree).context("targets/scst_local")?;
        Ok(Self {
            core,
            driver,
            local,
            reactors,
            tree,
            control: None,
            mount: None,
            block_mount: None,
            exec_mounts: Arc::default(),
        })
    }

    /// Applies the configuration file.
    fn configure(&self, settings: &Settings) -> Result<()> {
        match &settings.config {
            Some(config) => config.apply(&Tree::new(self.tree.root())),
            None => Ok(()),
        }
    }

    /// Opens control socket, mount and portals.
    fn open(&mut self, settings: &Settings, inherited: Vec<TcpListener>) -> Result<()> {
        let root = self.tree.root();
        let (mounts, served) = (Arc::clone(&self.exec_mounts), Arc::clone(root));
        let on_fuse = move |device| mounts.add(&served, device);
        let events = Some(event::Control::extension(&self.core));
        let control = ControlServer::start(&settings.control, Tree::new(root), on_fuse, events);
        self.control = Some(control.map_err(|e| control_error(settings, e))?);
        if let Some(dir) = &settings.sysfs {
            let mount = FuseMount::mount(root, dir, MOUNT_NAME);
            self.mount = Some(mount.with_context(|| format!("--sysfs {}", dir.display()))?);
        }
        if let Some(dir) = &settings.block_sysfs {
            let mount = FuseMount::mount(block::class(), dir, MOUNT_NAME);
            let what = || format!("--block-sysfs {}", dir.display());
            self.block_mount = Some(mount.with_context(what)?);
        }
        self.listen(settings, inherited)
    }

    fn listen(&self, settings: &Settings, inherited: Vec<TcpListener>) -> Result<()> {
        if !inherited.is_empty() {
            for listener in inherited {
                let addr = self.driver.add_listener(listener);
                addr.context("a socket of the service manager")?;
            }
            return Ok(());
        }
        for portal in &settings.portals {
            match self.driver.add_portal(*portal) {
                Ok(_) => {}
                // A host without IPv6.
                Err(code::EAFNOSUPPORT | code::EADDRNOTAVAIL) if settings.default_portals => {
                    log::info!("portal {portal}: there is no such address family here");
                }
                Err(e) => {
                    return Err(e).with_context(|| format!("portal {portal}: cannot listen"));
                }
            }
        }
        if self.driver.portals().is_empty() {
            bail!("no portal can be listened on");
        }
        Ok(())
    }

    /// Closes the views, then all sessions, flushes, ends all threads.
    ///
    /// # Errors
    ///
    /// What could not be closed or flushed.
    fn stop(self) -> Result<()> {
        drop((self.mount, self.block_mount));
        self.exec_mounts.clear();
        drop(self.control);
        let stopped = server::stop_all(server::Parts {
            core: &self.core,
            driver: &self.driver,
            reactors: self.reactors,
            before_core: || {
                self.local.stop();
                self.tree.unpublish();
            },
        });
        drop(self.tree);
        stopped
    }
}

fn control_error(settings: &Settings, e: kshim::error::Error) -> anyhow::Error {
    let path = settings.control.display();
    match e {
        code::EADDRINUSE => anyhow::anyhow!("{path}: another server has this control socket"),
        e => anyhow::Error::new(e).context(format!("control socket {path} (see --control)")),
    }
}

/// The file systems of `scstd exec`.
#[derive(Default)]
struct ExecMounts(SpinLock<Vec<FuseView>>);

impl ExecMounts {
    /// Errors: EMFILE, as [`FuseView::serve`].
    fn add(&self, root: &Arc<Kobject>, device: OwnedFd) -> kshim::error::Result {
        let (ended, live) = {
            let mut all = self.0.lock();
            let views = std::mem::take(&mut *all).into_iter();
            let (ended, live): (Vec<_>, Vec<_>) = views.partition(FuseView::is_ended);
            let n = live.len();
            *all = live;
            (ended, n)
        };
        // Joins their threads.
        drop(ended);
        if live >= MAX_EXEC_MOUNTS {
            return Err(code::EMFILE);
        }
        let view = FuseView::serve(root, device, Owner::ROOT)?;
        self.0.lock().push(view);
        Ok(())
    }

    fn clear(&self) {
        let all = std::mem::take(&mut *self.0.lock());
        drop(all);
    }
}
