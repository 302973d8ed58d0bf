//! SCST's test suite for its scstadmin, under `scstd exec`: with SCST's own, in Perl, and with ours. Its source is not ours: `SCST_TEST_SOURCE` names a
//! directory with a checkout of SCST; without it there is nothing to run.

use std::path::{Path, PathBuf};
use std::process::Command;

use scst_tests::run_server::{As, RunOptions, RunServer, fuse_works};
use scst_tests::server::scstadmin;

use crate::output;

/// What kernel SCST 3.11 passes of the 441 tests.
const KERNEL_PASSES: u32 = 419;

/// The numbers after each "Failed N/M subtests".
fn failures(report: &str) -> (u32, u32) {
    let mut failed = 0;
    for line in report.lines() {
        let n = line.strip_prefix("Failed ").and_then(|l| l.split_once('/'));
        if let Some((n, _)) = n {
            failed += n.parse::<u32>().unwrap_or(0);
        }
    }
    let total = report
        .lines()
        .find_map(|l| l.strip_prefix("Files="))
        .and_then(|l| l.split_once("Tests="))
        .and_then(|(_, l)| l.split_once(','))
        .map_or(0, |(n, _)| n.parse().unwrap_or(0));
    (total, failed)
}

/// Runs the suite in a checkout.
fn run_suite(source: &Path) {
    let server = RunServer::start(&RunOptions::default());
    let dir = source.join("scstadmin/scstadmin.sysfs/scst-1.0.0");
    let script = format!("cd '{}' && prove -Ilib t/0[2-9]*.t", dir.display());
    let out = output(server.exec(&script));
    let (total, failed) = failures(&String::from_utf8_lossy(&out.stdout));
    println!("{total} tests, {failed} failed");
    assert!(total >= 441, "{total}");
    assert!(
        total - failed >= KERNEL_PASSES,
        "{failed} of {total} failed"
    );
}

/// The suite has files at fixed places, so one follows the other.
#[test]
fn scsts_own_test_suite_passes_as_with_the_kernel() {
    let Some(source) = std::env::var_os("SCST_TEST_SOURCE").map(PathBuf::from) else {
        eprintln!("*** TEST NOT RUN: SCST_TEST_SOURCE names no checkout of SCST ***");
        return;
    };
    if !fuse_works(As::Me) {
        return;
    }
    run_suite(&source);
    // The same with our program in the place of theirs.
    let dir = tempfile::tempdir().expect("temporary directory");
    let copy = Command::new("cp")
        .arg("-r")
        .arg(source.join("scstadmin"))
        .arg(dir.path())
        .status();
    assert!(copy.is_ok_and(|s| s.success()));
    let program = dir.path().join("scstadmin/scstadmin.sysfs/scstadmin");
    std::fs::remove_file(&program).expect("SCST's scstadmin");
    std::fs::copy(scstadmin(), &program).expect("ours in its place");
    run_suite(dir.path());
}
