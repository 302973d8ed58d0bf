//! The configuration that the conversations were recorded with, in this process: SCST's defaults everywhere.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use crate::manage::TreeManage;
use anyhow::{Context as _, Result, ensure};
use backstores::ram::{RamConfig, RamDisk};
use iscsi_scst::driver::IscsiDriver;
use iscsi_scst::param::{KeyValues, TgtParams};
use kshim::kobject::tree::Tree;
use kshim::reactor::{Reactor, ReactorConfig};
use scst_core::core::{Core, CoreParams, LunParams};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::sysfs::ScstTree;

/// Name of the target.
pub(crate) const IQN: &str = "iqn.2026-01.org.example:scst";
const MIB: u64 = 1 << 20;

/// The running reference configuration.
pub(crate) struct ReferenceServer {
    addr: SocketAddr,
    core: Arc<Core>,
    driver: Arc<IscsiDriver>,
    tree: Arc<ScstTree>,
    reactor: Reactor,
    devices: Vec<&'static str>,
    _ram: RamDisk,
    data: tempfile::TempDir,
}

impl ReferenceServer {
    /// Starts it on a free port of 127.0.0.1.
    pub(crate) fn start() -> Result<Self> {
        let data = tempfile::tempdir()?;
        let reactor = Reactor::spawn(ReactorConfig::new("reactor0".to_owned()))?;
        let core = Core::new(CoreParams {
            pr_dir: Some(data.path().join("pr")),
            state_dir: Some(data.path().join("state")),
            ..CoreParams::default()
        })?;
        let tree = ScstTree::publish(&core)?;
        let driver = IscsiDriver::new(Arc::clone(&core), vec![reactor.handle()])?;
        driver.publish(&tree)?;
        let target = driver.add_target(IQN, None, KeyValues::default(), TgtParams::default())?;
        let ram = RamDisk::create("behaviour", &RamConfig::new(128 * MIB))?;
        let luns = disks(data.path(), ram.path())?;
        let mut devices = Vec::new();
        for (lun, (name, mut params)) in (0..).zip(luns) {
            params.state_dir = Some(data.path().join("state"));
            let vdisk = Vdisk::new(name, &params).with_context(|| name.to_owned())?;
            let dev = core.register_virtual_device(name, vdisk)?;
            let lun_params = LunParams {
                read_only: params.read_only,
            };
            let acg = target.tgt().default_acg();
            core.add_lun(target.tgt(), acg.id(), &dev, lun, lun_params)?;
            devices.push(name);
        }
        core.enable_target(target.tgt(), true)?;
        let addr = driver.add_portal("127.0.0.1:0".parse()?)?;
        Ok(Self {
            addr,
            core,
            driver,
            tree,
            reactor,
            devices,
            _ram: ram,
            data,
        })
    }

    /// Its portal.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Management of its target.
    pub(crate) fn manage(&self) -> Result<TreeManage> {
        let tree = Tree::new(self.tree.root());
        Ok(TreeManage::new(tree, self.data.path())?)
    }

    /// Closes everything, as the server does.
    pub(crate) fn stop(self) -> Result<()> {
        let drained = self.driver.stop();
        for name in &self.devices {
            self.core.unregister_virtual_device(name)?;
        }
        for target in self.driver.targets() {
            self.core.unregister_target(target.tgt())?;
        }
        self.reactor.stop();
        self.tree.unpublish();
        self.core.shutdown();
        ensure!(drained, "some connections did not end in time");
        Ok(())
    }
}

/// The devices of `scst.conf`, in the order of their LUNs.
fn disks(data: &Path, block_device: &str) -> Result<Vec<(&'static str, VdiskParams)>> {
    let file = |name: &str, size: u64| -> Result<String> {
        let path = data.join(name);
        std::fs::File::create(&path)?.set_len(size)?;
        Ok(path.to_str().context("a path that is text")?.to_owned())
    };
    let disk0 = file("disk0.img", 100 * MIB)?;
    let disk3 = file("disk3.img", 64 * MIB)?;
    let disk4 = file("disk4.img", 100 * MIB)?;
    let mut cd5 = VdiskParams::new(VdiskKind::Vcdrom);
    cd5.filename = Some(file("cd.iso", 2 * MIB)?.into());
    let fileio = |params: &[(&str, &str)]| VdiskParams::parse(VdiskKind::Fileio, params);
    let thin = ("thin_provisioned", "1");
    Ok(vec![
        ("disk0", fileio(&[("filename", &disk0), thin])?),
        (
            "disk1",
            VdiskParams::parse(VdiskKind::Blockio, &[("filename", block_device), thin])?,
        ),
        (
            "disk2",
            VdiskParams::parse(VdiskKind::Nullio, &[("size", "1073741824")])?,
        ),
        (
            "disk3",
            fileio(&[("filename", &disk3), ("read_only", "1")])?,
        ),
        (
            "disk4",
            fileio(&[("filename", &disk4), ("blocksize", "4096"), thin])?,
        ),
        ("cd5", cd5),
    ])
}
