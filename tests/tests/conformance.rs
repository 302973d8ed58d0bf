//! libiscsi's `iscsi-test-cu`: no failure that kernel SCST does not have (`data/conformance/scst-kernel.tsv`).
//!
//! `SCST_CONFORMANCE=all` runs every family of the table, not only those of the commands that a disk needs.

use std::path::Path;
use std::time::{Duration, Instant};

use scst_tests::conformance::{Table, Verdict, parse_output, parse_table, regressions};
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

fn conforms(options: &ServerOptions) {
    conforms_in(options, &FAMILIES);
}

fn conforms_in(options: &ServerOptions, families: &[&str]) {
    let Some([tool]) = require(["iscsi-test-cu"]) else {
        return;
    };
    let reference = reference();
    let mut families: Vec<String> = families.iter().map(|&f| f.to_owned()).collect();
    if std::env::var("SCST_CONFORMANCE").is_ok_and(|v| v == "all") {
        families = reference
            .keys()
            .filter_map(|n| n.split_once('.'))
            .map(|(f, _)| f.to_owned())
            .collect();
        families.dedup();
    }
    let server = Server::start(options);
    let mut ours = Table::new();
    for family in &families {
        let start = Instant::now();
        let mut table = run_family(&tool, family, &server.url(0), &reference);
        println!("{family}: {} tests in {:.1?}", table.len(), start.elapsed());
        assert!(!table.is_empty(), "{family}: the tool ran no test");
        ours.append(&mut table);
    }
    let count = |v| ours.values().filter(|row| row.verdict == v).count();
    println!(
        "pass {}, fail {}, skip {}",
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
    let worse = regressions(&ours, &reference);
    assert!(
        worse.is_empty(),
        "failures that kernel SCST does not have: {worse:#?}"
    );
}

#[test]
fn a_ram_lun_conforms_as_kernel_scst_does() {
    conforms(&ServerOptions::lun("100M"));
}

/// The tool takes CRC32C for headers, and for data if it can, wherever the target offers it.
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
    conforms_in(&ServerOptions::lun("100M").arg("--digests"), &iscsi);
}

#[test]
fn a_file_lun_conforms_as_kernel_scst_does() {
    let dir = tempfile::tempdir().unwrap();
    conforms(&ServerOptions::file(&dir.path().join("disk.img")).arg("--size=100M"));
}

#[test]
fn a_qcow_lun_conforms_as_kernel_scst_does() {
    if Server::is_external() {
        return;
    }
    let Some([qemu, _]) = require(["qemu-img", "tcmu-runner"]) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.qcow2");
    let image = image.to_str().expect("test paths are UTF-8");
    let create = ["create", "-q", "-f", "qcow2", image, "100M"];
    run(&qemu, &create, TEST_LIMIT).success();
    conforms(&ServerOptions::lun(format!("/dev/tcmur/qcow/{image}")));
}
