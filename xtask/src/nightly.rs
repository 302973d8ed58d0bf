//! The second test tier: the tests of `cargo test` with larger numbers, and the loom suites.

use anyhow::{Result, bail};

use crate::sh;

/// A part of the tier: name, command, environment.
type Part = (
    &'static str,
    &'static [&'static str],
    &'static [(&'static str, &'static str)],
);

/// One integration test in release mode, output shown.
macro_rules! integration {
    ($($arg:literal),*) => {
        &["cargo", "test", "--release", "-p", "scst-tests", $($arg),*, "--", "--nocapture", "--test-threads=1"]
    };
}

const PARTS: &[Part] = &[
    (
        "torn",
        integration!("--test", "torn_session"),
        &[("SCST_TORN_SESSIONS", "10000")],
    ),
    (
        "reconfigure",
        integration!("--test", "reconfigure"),
        &[("SCST_RECONFIG_ROUNDS", "1000")],
    ),
    (
        "props",
        &[
            "cargo",
            "test",
            "--release",
            "--workspace",
            "--exclude",
            "scst-tests",
            "--exclude",
            "xtask",
        ],
        &[("PROPTEST_CASES", "20000")],
    ),
    (
        "loom",
        &["cargo", "test", "--release", "-p", "kshim", "--lib", "loom"],
        &[
            ("RUSTFLAGS", "--cfg loom"),
            ("LOOM_MAX_PREEMPTIONS", "4"),
            ("CARGO_TARGET_DIR", "target/loom"),
        ],
    ),
    (
        "fuzz",
        &["cargo", "test", "--release", "-p", "scst-fuzz"],
        &[("SCST_FUZZ_RUNS", "2000000")],
    ),
    (
        "kill",
        integration!("--test", "image"),
        &[("SCST_KILL_ROUNDS", "200")],
    ),
    (
        "conformance",
        integration!("--test", "conformance"),
        &[("SCST_CONFORMANCE", "all")],
    ),
    ("guest-kit", &["tools/guest", "target/guest"], &[]),
    (
        "guest",
        integration!("--test", "guest"),
        &[("SCST_GUEST", "../target/guest")],
    ),
    (
        "image",
        integration!("--test", "image"),
        &[("SCST_IMAGE_MIB", "1024")],
    ),
];

/// Runs the named parts, or all; goes on after a failure and fails at the end.
pub(crate) fn run(names: &[&str]) -> Result<()> {
    for name in names {
        if !PARTS.iter().any(|p| p.0 == *name) {
            let known: Vec<&str> = PARTS.iter().map(|p| p.0).collect();
            bail!(
                "no such part of nightly: {name} (there are: {})",
                known.join(" ")
            );
        }
    }
    let mut failed = Vec::new();
    for (name, argv, env) in PARTS {
        if !names.is_empty() && !names.contains(name) {
            continue;
        }
        // Missing tools fail here as they do in CI.
        let mut env: Vec<(&str, &str)> = env.to_vec();
        env.push(("CI", "true"));
        if let Err(e) = sh::step(name, argv, &env) {
            eprintln!("xtask: {e:#}");
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("nightly failed: {}", failed.join(" "));
}
