//! Builds the configurations of `tests/sysfs` by writing into the management tree, and compares the whole tree with what kernel
//! SCST showed (`tests/sysfs/tree.txt`): names, kinds, modes, contents, links.
//!
//! `tests/sysfs/known-tree.tsv` says what differs, and why: section, path with `*` for any characters, and the reason.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use backstores::ram::{RamConfig, RamDisk};
use iscsi_scst::driver::IscsiDriver;
use kshim::kobject::tree::{EntryKind, Tree, TreeOps};
use kshim::reactor::{Reactor, ReactorConfig};
use scst_core::core::{Core, CoreParams};
use scst_core::sysfs::ScstTree;
use scst_initiator::{Command, OpenOptions, Session, scsi};

const TREE: &str = include_str!("../sysfs/tree.txt");
const KNOWN: &str = include_str!("../sysfs/known-tree.tsv");
const ROOT: &str = "/sys/kernel/scst_tgt";
const IQN: &str = "iqn.2026-01.org.example:scst";
const TARGET: &str = "targets/iscsi/iqn.2026-01.org.example:scst";
/// Where the record's initiator was.
const INITIATOR_IP: &str = "10.0.2.2";
const MIB: u64 = 1 << 20;
/// The record was made on two CPUs.
const THREADS: usize = 2;

/// Kind, mode and content by path.
type Listing = BTreeMap<String, String>;

/// A section of the record.
fn recorded(section: &str) -> Listing {
    let head = format!("##### SECTION {section}");
    let lines = TREE.lines().skip_while(|l| *l != head).skip(1);
    let lines = lines.take_while(|l| !l.starts_with("##### "));
    let mut all = Listing::new();
    for line in lines.filter(|l| l.starts_with(ROOT)) {
        if let Some((path, rest)) = line.split_once('\t') {
            let path = path.trim_start_matches(ROOT).trim_start_matches('/');
            all.insert(path.to_owned(), rest.to_owned());
        }
    }
    all
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('\n', "\\n")
        .replace('\t', "\\t")
}

/// A path against a pattern with `*`.
fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((head, tail)) => path.strip_prefix(head).is_some_and(|rest| {
            let mut ends = (0..=rest.len()).filter(|n| rest.is_char_boundary(*n));
            ends.any(|n| matches(tail, &rest[n..]))
        }),
    }
}

/// Where the record's files are here.
struct Places {
    dir: tempfile::TempDir,
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

    fn ours(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (ours, theirs) in &self.pairs() {
            text = text.replace(theirs, ours);
        }
        text
    }

    fn theirs(&self, text: &str) -> String {
        let mut text = text.replace("127.0.0.1", INITIATOR_IP);
        for (ours, theirs) in &self.pairs() {
            text = text.replace(ours, theirs);
        }
        text
    }
}

struct Bench {
    core: Arc<Core>,
    tree: Arc<ScstTree>,
    driver: Arc<IscsiDriver>,
    reactor: Reactor,
    view: Tree,
    places: Places,
}

impl Bench {
    fn start(name: &str) -> Result<Self> {
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
        Ok(Self {
            view: Tree::new(tree.root()),
            core,
            tree,
            driver,
            reactor,
            places,
        })
    }

    fn write(&self, path: &str, value: &str) -> Result<()> {
        let value = self.places.ours(value);
        let done = self.view.write(path, value.as_bytes());
        done.with_context(|| format!("{value:?} to {path}"))
    }

    /// `scst.conf`, in the order in which it was applied when the record was made.
    fn reference(&self) -> Result<()> {
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

    /// What `scst-extra.conf` has more, but for the pass-through device and the local targets.
    fn extra(&self) -> Result<()> {
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

    fn login(&self, addr: SocketAddr, name: &str) -> Result<Session> {
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

    fn listing(&self) -> Result<Listing> {
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

    fn stop(self) -> Result<()> {
        self.driver.stop();
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

/// Compares a section; each pattern of the list has to be of use.
fn compare(section: &str, here: &Listing) -> Result<()> {
    let kernel = recorded(section);
    ensure!(!kernel.is_empty(), "no section {section}");
    let mut patterns: Vec<(&str, bool)> = Vec::new();
    for line in KNOWN.lines().filter(|l| !l.starts_with('#')) {
        let (sections, rest) = line.split_once('\t').context("three columns")?;
        let (pattern, reason) = rest.split_once('\t').context("three columns")?;
        ensure!(!reason.is_empty(), "{pattern}: why?");
        if sections.contains(section) {
            patterns.push((pattern, false));
        }
    }
    let mut wrong = Vec::new();
    let mut same = 0;
    for path in kernel
        .keys()
        .chain(here.keys().filter(|p| !kernel.contains_key(*p)))
    {
        let (want, got) = (kernel.get(path), here.get(path));
        if want == got {
            same += 1;
            continue;
        }
        let mut listed = false;
        for (_, used) in patterns.iter_mut().filter(|(p, _)| matches(p, path)) {
            (listed, *used) = (true, true);
        }
        if !listed {
            wrong.push(format!("{path}\n     kernel {want:?}\n     here   {got:?}"));
        }
    }
    for (pattern, _) in patterns.iter().filter(|(_, used)| !used) {
        wrong.push(format!("{pattern}: nothing differs there any more"));
    }
    println!(
        "section {section}: {same} of {} as in the kernel",
        kernel.len()
    );
    ensure!(wrong.is_empty(), "section {section}:\n{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn an_empty_configuration_looks_like_the_kernels() -> Result<()> {
    let bench = Bench::start("tree-a")?;
    let here = bench.listing()?;
    bench.stop()?;
    compare("A", &here)
}

#[test]
fn the_reference_configuration_looks_like_the_kernels() -> Result<()> {
    let bench = Bench::start("tree-b")?;
    bench.reference()?;
    let addr = bench.driver.add_portal("127.0.0.1:0".parse()?)?;
    let session = bench.login(addr, "init1")?;
    let here = bench.listing()?;
    session.close()?;
    bench.stop()?;
    compare("B", &here)
}

#[test]
fn groups_and_accounts_look_like_the_kernels() -> Result<()> {
    let bench = Bench::start("tree-c")?;
    bench.reference()?;
    let addr = bench.driver.add_portal("127.0.0.1:0".parse()?)?;
    let first = bench.login(addr, "init1")?;
    bench.extra()?;
    let second = bench.login(addr, "init2")?;
    let here = bench.listing()?;
    first.close()?;
    second.close()?;
    bench.stop()?;
    compare("C", &here)
}
