//! libiscsi's `iscsi-test-cu`: no failure but those that say nothing of a target ([`ACCEPTED`]).
//!
//! `SCST_CONFORMANCE=all` runs every family of the table, not only those of the commands that a disk needs;
//! `cargo xtask conformance` does that and makes `docs/conformance.md` of it.

use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use scst_tests::conformance::{Table, Verdict, parse_output, parse_table, print_table};
use scst_tests::digests::DigestProxy;
use scst_tests::tools::{require, run};
use scst_tests::{Server, ServerOptions};

/// Families of the commands that a disk needs.
const FAMILIES: [&str; 28] = [
    "TestUnitReady",
    "Inquiry",
    "Mandatory",
    "ReadCapacity10",
    "ReadCapacity16",
    "Read6",
    "Read10",
    "Read12",
    "Read16",
    "Write10",
    "Write12",
    "Write16",
    "Verify10",
    "Verify12",
    "Verify16",
    "WriteSame10",
    "WriteSame16",
    "Unmap",
    "ModeSense6",
    "StartStopUnit",
    "PreventAllow",
    "ReadOnly",
    "ReadDefectData12",
    "ReadDefectData10",
    "iSCSIcmdsn",
    "iSCSIdatasn",
    "iSCSIResiduals",
    "iSCSITMF",
];
/// How long one family may take.
const FAMILY_LIMIT: Duration = Duration::from_secs(120);
/// How long one test may take when it is run alone.
const TEST_LIMIT: Duration = Duration::from_secs(30);

fn reference() -> Table {
    parse_table(include_str!("../data/conformance/scst-kernel.tsv"))
}

fn run_tests(tool: &Path, what: &str, url: &str, limit: Duration) -> Table {
    // The second URL is the second path of the MultipathIO family.
    let out = run(
        tool,
        &["-d", "-v", "-V", "-t", &format!("ALL.{what}"), url, url],
        limit,
    );
    let table = parse_output(&out.stdout);
    if out.timed_out {
        println!("{what}: no end after {limit:?}");
    }
    for (name, row) in &table {
        if row.verdict == Verdict::Fail {
            println!("--- {name} failed; the family's output:\n{}", out.stdout);
            break;
        }
    }
    table
}

/// Runs a family; tests that it did not come to (one before them hung or crashed the tool) are run alone.
fn run_family(tool: &Path, family: &str, url: &str, reference: &Table) -> Table {
    let mut table = run_tests(tool, family, url, FAMILY_LIMIT);
    let prefix = format!("{family}.");
    for name in reference.keys().filter(|name| name.starts_with(&prefix)) {
        if !table.contains_key(name) {
            table.append(&mut run_tests(tool, name, url, TEST_LIMIT));
        }
    }
    table
}

/// Failures that are none of ours, with the reason.
const ACCEPTED: [(&str, &str); 8] = [
    (
        "CompareAndWrite.Simple",
        "256 blocks do not fit the CDB's field; no target passes it",
    ),
    (
        "CompareAndWrite.Miscompare",
        "256 blocks do not fit the CDB's field; no target passes it",
    ),
    (
        "Unmap.ZeroBlocks",
        "takes a MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT of FFFFFFFFh for -1",
    ),
    (
        "iSCSIResiduals.Read10Invalid",
        "a READ(10) sent as a write is refused, as recorded from kernel SCST",
    ),
    (
        "Inquiry.BlockLimits",
        "wants at most 2^20 blocks in an UNMAP; block devices have limits of their own",
    ),
    (
        "iSCSITMF.AbortTaskSimpleAsync",
        "a race: the write may end before the abort comes",
    ),
    (
        "Reserve6.Logout",
        "a race: the session may be there for some time after its logout",
    ),
    (
        "GetLBAStatus.UnmapSingle",
        "asks for LBA 9 and wants to hear of LBA 16, if a physical block has 8 blocks",
    ),
];

/// Names of failures that are not accepted.
fn failures(ours: &Table) -> Vec<String> {
    ours.iter()
        .filter(|(_, row)| row.verdict == Verdict::Fail)
        .filter(|(name, _)| !ACCEPTED.iter().any(|(n, _)| n == name))
        .map(|(name, row)| format!("{name}: {}", row.why))
        .collect()
}

/// Where the table of a whole run is written, for `docs/conformance.md`: a file of the LUN's name in
/// `SCST_CONFORMANCE_OUT`.
fn write_table(lun: &str, ours: &Table) {
    if let Some(dir) = std::env::var_os("SCST_CONFORMANCE_OUT") {
        let path = Path::new(&dir).join(format!("scst-usermode-{lun}.tsv"));
        std::fs::write(&path, print_table(ours)).unwrap();
    }
}

/// Runs the families. In a whole run each has a server and a disk of its own, as some leave data behind that others do
/// not expect.
fn conforms(lun: &str, start_server: impl Fn() -> Server) {
    conforms_in(lun, || Bed::of(start_server()), &FAMILIES);
}

/// A server, and what stands between it and the tool.
struct Bed {
    server: Server,
    digests: Option<DigestProxy>,
}

impl Bed {
    fn of(server: Server) -> Self {
        let digests = None;
        Self { server, digests }
    }

    fn url(&self) -> String {
        let Some(proxy) = &self.digests else {
            return self.server.url(0);
        };
        let (iqn, lun) = (&self.server.iqn, self.server.lun(0));
        format!("iscsi://{}/{iqn}/{lun}", proxy.addr)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Some(proxy) = &self.digests {
            let (added, checked, wrong) = proxy.counts();
            println!("data digests: {added} added, {checked} checked, {wrong} wrong");
            if !std::thread::panicking() {
                assert_eq!(wrong, 0, "digests of the server are wrong");
            }
        }
    }
}

fn conforms_in(lun: &str, start_bed: impl Fn() -> Bed, families: &[&str]) {
    let Some([tool]) = require(["iscsi-test-cu"]) else {
        return;
    };
    let reference = reference();
    let mut families: Vec<String> = families.iter().map(|&f| f.to_owned()).collect();
    let all = std::env::var("SCST_CONFORMANCE").is_ok_and(|v| v == "all");
    if all {
        families = reference
            .keys()
            .filter_map(|n| n.split_once('.'))
            .map(|(f, _)| f.to_owned())
            .collect();
        families.dedup();
    }
    let mut bed = start_bed();
    let mut ours = Table::new();
    for family in &families {
        let start = Instant::now();
        let mut table = run_family(&tool, family, &bed.url(), &reference);
        println!("{family}: {} tests in {:.1?}", table.len(), start.elapsed());
        assert!(!table.is_empty(), "{family}: the tool ran no test");
        ours.append(&mut table);
        if all {
            drop(bed);
            bed = start_bed();
        }
    }
    let count = |v| ours.values().filter(|row| row.verdict == v).count();
    println!(
        "{lun}: pass {}, fail {}, skip {}",
        count(Verdict::Pass),
        count(Verdict::Fail),
        count(Verdict::Skip)
    );
    for (name, row) in &ours {
        let theirs = reference.get(name).map(|r| r.verdict);
        if Some(row.verdict) != theirs {
            println!(
                "{name}: {:?}, kernel SCST {theirs:?}: {}",
                row.verdict, row.why
            );
        }
    }
    drop(bed);
    if all {
        write_table(lun, &ours);
    }
    let worse = failures(&ours);
    assert!(
        worse.is_empty(),
        "failures that are not accepted: {worse:#?}"
    );
}

#[test]
fn a_ram_lun_conforms() {
    conforms("ram", || Server::start(&ServerOptions::lun("100M")));
}

#[test]
fn a_file_lun_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    conforms("file", || {
        let _ = std::fs::remove_file(&path);
        Server::start(&ServerOptions::file(&path).arg("--size=100M"))
    });
}

/// Without the page cache, beside the test's program: below /tmp there may be no O_DIRECT.
#[test]
fn a_file_lun_conforms_with_o_direct() {
    let near = std::env::current_exe().unwrap();
    let dir = tempfile::tempdir_in(near.parent().unwrap()).unwrap();
    let path = dir.path().join("disk.img");
    std::fs::File::create(&path).unwrap();
    let direct = kshim::fs::OpenOptions::new().direct(true);
    let open = kshim::fs::File::open(&path, &direct);
    if !open.is_ok_and(|f| f.dio_align() <= 512) {
        println!("NOT RUN: no O_DIRECT for blocks of 512 bytes here");
        return;
    }
    conforms("direct", || {
        let _ = std::fs::remove_file(&path);
        Server::start(
            &ServerOptions::file(&path)
                .arg("--size=100M")
                .arg("--direct"),
        )
    });
}

/// The tool takes CRC32C for headers where the target offers it; it has none for data (libiscsi has since 1.20), so that a
/// proxy adds them.
#[test]
fn iscsi_families_conform_with_digests() {
    let iscsi = [
        "iSCSIcmdsn",
        "iSCSIdatasn",
        "iSCSIResiduals",
        "iSCSITMF",
        "Write10",
        "Read10",
    ];
    let options = ServerOptions::lun("100M").arg("--digests");
    let start = || {
        let server = Server::start(&options);
        let digests = Some(DigestProxy::start(server.addr));
        Bed { server, digests }
    };
    conforms_in("digests", start, &iscsi);
}

#[test]
fn a_qcow_lun_conforms() {
    if Server::is_external() {
        return;
    }
    let Some([qemu, _]) = require(["qemu-img", "tcmu-runner"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.qcow2");
    let image = image.to_str().expect("test paths are UTF-8");
    conforms("qcow", || {
        let create = ["create", "-q", "-f", "qcow2", image, "100M"];
        run(&qemu, &create, TEST_LIMIT).success();
        Server::start(&ServerOptions::lun(format!("/dev/tcmur/qcow/{image}")))
    });
}

/// A loop device, by vdisk_blockio; only in a whole run, and only where one can be set up (root, and the kernel has them).
#[test]
fn a_block_device_lun_conforms() {
    if std::env::var("SCST_CONFORMANCE").is_ok_and(|v| v == "all") {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        let Some(device) = LoopDevice::new(&path, 100 << 20) else {
            println!("NOT RUN: no loop device can be set up here");
            return;
        };
        conforms("block", || {
            device.clear();
            Server::start(&ServerOptions::lun(device.path.to_string_lossy()))
        });
    }
}

/// A loop device on a file; detached when dropped.
struct LoopDevice {
    path: PathBuf,
    file: PathBuf,
    bytes: u64,
}

impl LoopDevice {
    fn new(file: &Path, bytes: u64) -> Option<Self> {
        std::fs::File::create(file).unwrap().set_len(bytes).unwrap();
        let out = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(file)
            .output()
            .ok()?;
        let path = String::from_utf8(out.stdout).ok()?.trim().to_owned();
        (out.status.success() && !path.is_empty()).then(|| Self {
            path: path.into(),
            file: file.to_owned(),
            bytes,
        })
    }

    fn clear(&self) {
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&self.path)
            .unwrap();
        let zeros = vec![0; 1 << 20];
        for at in (0..self.bytes).step_by(1 << 20) {
            file.write_all_at(&zeros, at).unwrap();
        }
        file.sync_all().unwrap();
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let status = Command::new("losetup").arg("-d").arg(&self.path).status();
        if !status.is_ok_and(|s| s.success()) {
            eprintln!("{}: cannot be detached", self.path.display());
        }
        let _ = std::fs::remove_file(&self.file);
    }
}
