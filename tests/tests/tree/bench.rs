//! The tree of a core with the iSCSI driver in this process, and the recorded configurations built in it.

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use backstores::ram::{RamConfig, RamDisk};
use iscsi_scst::driver::IscsiDriver;
use kshim::kobject::tree::{EntryKind, Tree, TreeOps};
use kshim::reactor::{Reactor, ReactorConfig};
use scst_core::core::{Core, CoreParams};
use scst_core::scst_local::LocalDriver;
use scst_core::sysfs::ScstTree;
use scst_initiator::{Command, OpenOptions, Session, scsi};

use crate::Listing;

const IQN: &str = "iqn.2026-01.org.example:scst";
pub(crate) const TARGET: &str = "targets/iscsi/iqn.2026-01.org.example:scst";
/// Where the record's initiator was.
const INITIATOR_IP: &str = "10.0.2.2";
pub(crate) const MIB: u64 = 1 << 20;
/// The record was made on two CPUs.
const THREADS: usize = 2;

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('\n', "\\n")
        .replace('\t', "\\t")
}

/// Where the record's files are here.
pub(crate) struct Places {
    pub(crate) dir: tempfile::TempDir,
    ram: RamDisk,
}

impl Places {
    fn new(name: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir(dir.path().join("data"))?;
        let files = [
            ("disk0.img", 100),
            ("disk3.img", 64),
            ("disk4.img", 100),
            ("cd.iso", 2),
        ];
        for (name, mib) in files {
            File::create(dir.path().join("data").join(name))?.set_len(mib * MIB)?;
        }
        let ram = RamDisk::create(name, &RamConfig::new(128 * MIB))?;
        Ok(Self { dir, ram })
    }

    fn pairs(&self) -> [(String, &'static str); 3] {
        let dir = self.dir.path().display();
        [
            (format!("{dir}/data/"), "/data/"),
            (format!("{dir}/scst/"), "/var/lib/scst/"),
            (self.ram.path().to_owned(), "/dev/vdb"),
        ]
    }

    pub(crate) fn ours(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (ours, theirs) in &self.pairs() {
            text = text.replace(theirs, ours);
        }
        text
    }

    pub(crate) fn theirs(&self, text: &str) -> String {
        let mut text = text.replace("127.0.0.1", INITIATOR_IP);
        for (ours, theirs) in &self.pairs() {
            text = text.replace(ours, theirs);
        }
        text
    }
}

pub(crate) struct Bench {
    pub(crate) core: Arc<Core>,
    tree: Arc<ScstTree>,
    pub(crate) driver: Arc<IscsiDriver>,
    local: Arc<LocalDriver>,
    reactor: Reactor,
    pub(crate) view: Tree,
    pub(crate) places: Places,
}

impl Bench {
    pub(crate) fn start(name: &str) -> Result<Self> {
        let places = Places::new(name)?;
        let state = places.dir.path().join("scst");
        let core = Core::new(CoreParams {
            threads: THREADS,
            pr_dir: Some(state.join("pr")),
            state_dir: Some(state),
            ..CoreParams::default()
        })?;
        let tree = ScstTree::publish(&core)?;
        let reactor = Reactor::spawn(ReactorConfig::new("reactor0".to_owned()))?;
        let driver = IscsiDriver::new(Arc::clone(&core), vec![reactor.handle()])?;
        driver.set_enabled(false);
        driver.publish(&tree)?;
        let local = LocalDriver::new(&core);
        local.publish(&tree)?;
        let bench = Self {
            view: Tree::new(tree.root()),
            core,
            tree,
            driver,
            local,
            reactor,
            places,
        };
        // The kernel module makes this one by itself.
        let local = "targets/scst_local/mgmt";
        bench.write(
            local,
            "add_target scst_local_tgt session_name=scst_local_host",
        )?;
        Ok(bench)
    }

    pub(crate) fn write(&self, path: &str, value: &str) -> Result<()> {
        let value = self.places.ours(value);
        let done = self.view.write(path, value.as_bytes());
        done.with_context(|| format!("{value:?} to {path}"))
    }

    /// `scst.conf`, in the order in which it was applied when the record was made.
    pub(crate) fn reference(&self) -> Result<()> {
        let fileio = "handlers/vdisk_fileio/mgmt";
        for (handler, device) in [
            ("handlers/vcdrom/mgmt", "cd5"),
            (
                "handlers/vdisk_blockio/mgmt",
                "disk1 filename=/dev/vdb; thin_provisioned=1",
            ),
            (fileio, "disk0 filename=/data/disk0.img; thin_provisioned=1"),
            (fileio, "disk3 filename=/data/disk3.img; read_only=1"),
            (
                fileio,
                "disk4 filename=/data/disk4.img; blocksize=4096; thin_provisioned=1",
            ),
            ("handlers/vdisk_nullio/mgmt", "disk2 size=1073741824"),
        ] {
            self.write(handler, &format!("add_device {device}"))?;
        }
        self.write("devices/cd5/filename", "/data/cd.iso")?;
        self.write("targets/iscsi/mgmt", &format!("add_target {IQN}"))?;
        for (lun, device) in ["disk0", "disk1", "disk2", "disk3", "disk4", "cd5"]
            .into_iter()
            .enumerate()
        {
            self.write(
                &format!("{TARGET}/luns/mgmt"),
                &format!("add {device} {lun}"),
            )?;
        }
        self.write(&format!("{TARGET}/rel_tgt_id"), "1")?;
        self.write(&format!("{TARGET}/enabled"), "1")?;
        self.write("targets/iscsi/enabled", "1")
    }

    /// What `scst-extra.conf` has more, but for the pass-through device.
    pub(crate) fn extra(&self) -> Result<()> {
        let local = "targets/scst_local/mgmt";
        self.write(local, "add_target loc1 session_name=locsess")?;
        self.write(
            "targets/iscsi/mgmt",
            "add_attribute IncomingUser disc 12charsecret",
        )?;
        self.write(&format!("{TARGET}/ini_groups/mgmt"), "create grp1")?;
        let group = format!("{TARGET}/ini_groups/grp1");
        self.write(&format!("{group}/luns/mgmt"), "add disk0 0")?;
        self.write(&format!("{group}/luns/mgmt"), "add disk3 7")?;
        self.write(
            &format!("{group}/initiators/mgmt"),
            "add iqn.2026-01.org.example:ini*",
        )?;
        for (path, value) in [
            ("device_groups/mgmt", "create dg1"),
            ("device_groups/dg1/devices/mgmt", "add disk0"),
            ("device_groups/dg1/target_groups/mgmt", "create tg1"),
            ("device_groups/dg1/target_groups/mgmt", "create tg2"),
            ("device_groups/dg1/target_groups/tg1/group_id", "1"),
            ("device_groups/dg1/target_groups/tg1/state", "active"),
            (
                "device_groups/dg1/target_groups/tg1/mgmt",
                "add iqn.2026-01.org.example:scst",
            ),
            ("device_groups/dg1/target_groups/tg2/group_id", "2"),
            ("device_groups/dg1/target_groups/tg2/state", "nonoptimized"),
            (
                "device_groups/dg1/target_groups/tg2/mgmt",
                "add remote_tgt_1",
            ),
            (
                "device_groups/dg1/target_groups/tg2/remote_tgt_1/rel_tgt_id",
                "77",
            ),
        ] {
            self.write(path, value)?;
        }
        Ok(())
    }

    pub(crate) fn login(&self, addr: SocketAddr, name: &str) -> Result<Session> {
        let options = OpenOptions {
            initiator: format!("iqn.2026-01.org.example:{name}"),
            isid: [0x80, 0x12, 0x34, 0x56, 0, 1],
            ..OpenOptions::normal(IQN)
        };
        let mut session = Session::open(addr, &options)?;
        // The first one brings the unit attention.
        for _ in 0..2 {
            session.scsi(&Command::new(0, scsi::test_unit_ready()))?;
        }
        // The answers are here; the target may still be putting the commands away.
        let dir = format!("{TARGET}/sessions/iqn.2026-01.org.example:{name}");
        while self.view.read(&format!("{dir}/commands"))? != b"0\n" {
            std::thread::yield_now();
        }
        Ok(session)
    }

    pub(crate) fn listing(&self) -> Result<Listing> {
        let mut all = Listing::new();
        let mut dirs = vec![String::new()];
        while let Some(dir) = dirs.pop() {
            let mode = self.view.stat(&dir)?.mode;
            all.insert(self.places.theirs(&dir), format!("dir\t{mode:04o}\t"));
            for e in self.view.list(&dir)? {
                let path = match dir.as_str() {
                    "" => e.name.clone(),
                    dir => format!("{dir}/{}", e.name),
                };
                let shown = self.places.theirs(&path);
                let (kind, content) = match e.kind {
                    EntryKind::Dir => {
                        dirs.push(path);
                        continue;
                    }
                    EntryKind::Link => ("link", self.view.readlink(&path)?),
                    EntryKind::File if e.mode & 0o444 == 0 => ("file", "<not readable>".into()),
                    EntryKind::File => {
                        let bytes = self.view.read(&path);
                        let bytes = bytes.with_context(|| format!("reading {path}"))?;
                        let text = self.places.theirs(&String::from_utf8_lossy(&bytes));
                        ("file", escape(&text))
                    }
                };
                all.insert(shown, format!("{kind}\t{:04o}\t{content}", e.mode));
            }
        }
        Ok(all)
    }

    pub(crate) fn stop(self) -> Result<()> {
        self.driver.stop();
        self.local.stop();
        self.tree.unpublish();
        for target in self.driver.targets() {
            self.core.unregister_target(target.tgt())?;
        }
        for dev in self.core.devices() {
            self.core.unregister_virtual_device(dev.name())?;
        }
        self.reactor.stop();
        self.core.shutdown();
        Ok(())
    }
}
