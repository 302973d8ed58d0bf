//! The running target: builds devices, target and portals from a [`ServeConfig`].

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, Result, bail};
use backstores::ram::{RamConfig, RamDisk};
use backstores::{spdk, tcmur};
use iscsi_scst::driver::IscsiDriver;
use iscsi_scst::param::{DIGEST_CRC32C, DIGEST_NONE, KeyValues, SessionKey, TgtParams};
use iscsi_scst::target::IscsiTarget;
use kshim::net::TcpListener;
use kshim::reactor::{PollerKind, Reactor, ReactorConfig};
use kshim::time::Delta;
use scst_core::core::{Core, CoreParams, LunParams};
use scst_core::dev_handlers::tcmur::Tcmur;
use scst_core::dev_handlers::vdisk::{IdentityOverrides, Vdisk, VdiskKind, VdiskParams};
use scst_core::device::Device;

use crate::cli::Poller;
use crate::config::{Backing, LunSpec, ServeConfig};

/// Commands that a session may have queued, and that one nexus may have at a LUN: SCST's own 32 and 64 keep a fast
/// initiator waiting.
const SERVE_QUEUED_COMMANDS: u32 = 256;
/// Write data that may come without being asked for: 64 KiB writes need no round trip, nor do 256 KiB ones.
const SERVE_FIRST_BURST_LENGTH: u32 = 262_144;

/// How long handlers of tcmu-runner may take to close their disks.
const HANDLER_CLOSE_LIMIT: Delta = Delta::from_secs(70);

/// A server that accepts connections.
pub(crate) struct Server {
    portals: Vec<SocketAddr>,
    core: Arc<Core>,
    driver: Arc<IscsiDriver>,
    reactors: Vec<Reactor>,
    ram: Vec<RamDisk>,
}

/// Starts a server on the portals of the configuration, or on the sockets that the service manager handed over.
///
/// # Errors
///
/// Why it cannot: a port in use, memory, a file. What was started is stopped again then.
pub(crate) fn start(config: &ServeConfig, inherited: Vec<TcpListener>) -> Result<Server> {
    let reactors = start_reactors(config.cpus, config.poller)?;
    let core = Core::new(CoreParams::default()).context("the core's threads cannot be started")?;
    let handles = reactors.iter().map(Reactor::handle).collect();
    let driver = IscsiDriver::new(Arc::clone(&core), handles)?;
    let mut server = Server {
        portals: Vec::new(),
        core,
        driver,
        reactors,
        ram: Vec::new(),
    };
    match server.configure(config, inherited) {
        Ok(()) => Ok(server),
        Err(e) => {
            if let Err(e) = server.stop() {
                log::error!("stopping what was started: {e:#}");
            }
            Err(e)
        }
    }
}

/// Errors: what the host answers, with the number of the reactor.
pub(crate) fn start_reactors(cpus: usize, poller: Poller) -> Result<Vec<Reactor>> {
    let poller = match poller {
        Poller::Auto => PollerKind::Auto,
        Poller::Uring => PollerKind::Uring,
        Poller::Epoll => PollerKind::Epoll,
    };
    let start = |n| {
        let mut config = ReactorConfig::new(format!("reactor{n}"));
        config.poller = poller;
        let what = || match poller {
            PollerKind::Uring => format!("--poller uring: reactor {n} cannot be started"),
            _ => format!("reactor {n} cannot be started"),
        };
        Reactor::spawn(config).with_context(what)
    };
    let reactors: Vec<Reactor> = (0..cpus.max(1)).map(start).collect::<Result<_>>()?;
    if let Some(r) = reactors.first() {
        log::info!("{} reactors on {:?}", reactors.len(), r.poller());
    }
    Ok(reactors)
}

impl Server {
    fn configure(&mut self, config: &ServeConfig, inherited: Vec<TcpListener>) -> Result<()> {
        self.core.set_poll_us(config.poll_us);
        let mut keys = KeyValues::default();
        keys.set(SessionKey::FirstBurstLength, SERVE_FIRST_BURST_LENGTH);
        if config.digests {
            for key in [SessionKey::HeaderDigest, SessionKey::DataDigest] {
                keys.set(key, DIGEST_NONE | DIGEST_CRC32C);
            }
        }
        let params = TgtParams {
            queued_commands: SERVE_QUEUED_COMMANDS,
            ..TgtParams::default()
        };
        let target = self.driver.add_target(&config.iqn, None, keys, params)?;
        target.set_accounts(config.accounts.clone());
        self.driver.set_discovery_accounts(config.accounts.clone());
        for (lun, spec) in (0..).zip(&config.luns) {
            self.add_lun(&target, lun, spec)
                .with_context(|| format!("LUN {lun}"))?;
        }
        self.core.enable_target(target.tgt(), true)?;
        self.listen(config, inherited)
    }

    fn listen(&mut self, config: &ServeConfig, inherited: Vec<TcpListener>) -> Result<()> {
        if !inherited.is_empty() {
            for listener in inherited {
                let addr = self.driver.add_listener(listener);
                self.portals
                    .push(addr.context("a socket of the service manager")?);
            }
            return Ok(());
        }
        for portal in &config.portals {
            let addr = self
                .driver
                .add_portal(*portal)
                .with_context(|| format!("portal {portal}: cannot listen"))?;
            self.portals.push(addr);
        }
        Ok(())
    }

    fn add_lun(&mut self, target: &Arc<IscsiTarget>, lun: u64, spec: &LunSpec) -> Result<()> {
        let dev = self.device(spec)?;
        dev.max_tgt_dev_commands
            .store(SERVE_QUEUED_COMMANDS, Ordering::Relaxed);
        let acg = target.tgt().default_acg();
        let lun_params = LunParams {
            read_only: spec.read_only,
        };
        self.core
            .add_lun(target.tgt(), acg.id(), &dev, lun, lun_params)?;
        Ok(())
    }

    fn device(&mut self, spec: &LunSpec) -> Result<Arc<Device>> {
        let what = || format!("{} cannot be opened", spec.name);
        if let Backing::Tcmur {
            path,
            passthrough: true,
        } = &spec.backing
        {
            let tcmur = Tcmur::open(&spec.name, Path::new(path), spec.read_only);
            let tcmur = tcmur.with_context(what)?;
            return Ok(self.core.register_virtual_device(&spec.name, tcmur)?);
        }
        let params = self.vdisk_params(spec)?;
        // The error says itself what is behind it.
        let vdisk = Vdisk::new(&spec.name, &params);
        let vdisk = vdisk.map_err(|e| anyhow::anyhow!("{}: {e}", what()))?;
        Ok(self.core.register_virtual_device(&spec.name, vdisk)?)
    }

    /// The device behind a LUN: RAM and block devices by bios, files through the page cache.
    fn vdisk_params(&mut self, spec: &LunSpec) -> Result<VdiskParams> {
        let (kind, path) = match &spec.backing {
            Backing::Ram => {
                let disk = RamDisk::create(&spec.name, &RamConfig::new(spec.bytes))
                    .with_context(|| format!("RAM disk of {} bytes", spec.bytes))?;
                let path = disk.path().into();
                self.ram.push(disk);
                (VdiskKind::Blockio, Some(path))
            }
            Backing::Null => (VdiskKind::Nullio, None),
            Backing::File(path) => (VdiskKind::Fileio, Some(path.clone())),
            Backing::BlockDevice(path) => (VdiskKind::Blockio, Some(path.clone())),
            Backing::Tcmur { path, .. } | Backing::Port(path) => {
                (VdiskKind::Blockio, Some(path.into()))
            }
        };
        let mut params = VdiskParams::new(kind);
        params.filename = path;
        if spec.backing == Backing::Null {
            params.size = Some(spec.bytes);
        }
        params.read_only = spec.read_only;
        // SCST has O_DIRECT with asynchronous I/O only.
        params.o_direct =
            spec.direct && matches!(spec.backing, Backing::File(_) | Backing::BlockDevice(_));
        params.async_io = params.o_direct;
        params.rotational = Some(false);
        params.thin_provisioned = match spec.backing {
            // Not every handler or driver can give blocks back.
            Backing::Tcmur { .. } | Backing::Port(_) => None,
            _ => Some(!spec.read_only && spec.backing != Backing::Null),
        };
        let serial = format!("{:016x}", spec.serial);
        params.identity = IdentityOverrides {
            t10_dev_id: Some(format!("{serial}-{}", spec.name)),
            usn: Some(serial),
            ..IdentityOverrides::default()
        };
        Ok(params)
    }

    /// Addresses that it listens on, with the ports that were chosen.
    pub(crate) fn portals(&self) -> &[SocketAddr] {
        &self.portals
    }

    /// Closes all sessions, flushes, ends all threads.
    ///
    /// # Errors
    ///
    /// What could not be closed or flushed.
    pub(crate) fn stop(self) -> Result<()> {
        let stopped = stop_all(Parts {
            core: &self.core,
            driver: &self.driver,
            reactors: self.reactors,
            before_core: || {},
        });
        drop(self.ram);
        stopped
    }
}

/// What [`stop_all`] stops.
pub(crate) struct Parts<'a, F> {
    pub(crate) core: &'a Arc<Core>,
    pub(crate) driver: &'a Arc<IscsiDriver>,
    pub(crate) reactors: Vec<Reactor>,
    /// Called when nothing is registered any more and all threads still run.
    pub(crate) before_core: F,
}

/// Closes all sessions, unregisters all targets and devices, which flushes them, and ends all threads.
///
/// # Errors
///
/// What could not be closed or flushed.
pub(crate) fn stop_all(parts: Parts<'_, impl FnOnce()>) -> Result<()> {
    let Parts { core, driver, .. } = parts;
    let drained = driver.stop();
    let mut failed = Vec::new();
    for dev in core.devices() {
        if let Err(e) = core.unregister_virtual_device(dev.name()) {
            failed.push(format!("{}: {e}", dev.name()));
        }
    }
    for target in driver.targets() {
        if let Err(e) = core.unregister_target(target.tgt()) {
            failed.push(format!("{}: {e}", target.name()));
        }
    }
    (parts.before_core)();
    for reactor in parts.reactors {
        reactor.stop();
    }
    core.shutdown();
    if !tcmur::exit(HANDLER_CLOSE_LIMIT) {
        failed.push("some handlers did not close their disks".to_owned());
    }
    if !spdk::exit() {
        failed.push("SPDK did not end cleanly".to_owned());
    }
    if !drained {
        failed.push("some connections did not end in time".to_owned());
    }
    if failed.is_empty() {
        Ok(())
    } else {
        bail!("{}", failed.join("; "))
    }
}
