//! The second test tier: the tests of `cargo test` with larger numbers, long fuzzing, the guest, and the loom suites.
//!
//! Each part has a limit of time after which it is ended and counts as failed; the whole has a budget, and what does not fit
//! is named as not run. The summary goes to `target/nightly/summary.tsv` as well.

use std::fmt::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// Where the summary is kept.
const SUMMARY: &str = "target/nightly/summary.tsv";
/// How often a running part is looked at.
const POLL: Duration = Duration::from_millis(200);

/// A part of the tier.
struct Part {
    name: &'static str,
    /// Minutes after which it is ended. Two or three times what it takes on two CPUs.
    limit_min: u64,
    argv: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
}

const fn part(
    name: &'static str,
    limit_min: u64,
    argv: &'static [&'static str],
    env: &'static [(&'static str, &'static str)],
) -> Part {
    Part {
        name,
        limit_min,
        argv,
        env,
    }
}

/// One integration test in release mode, output shown.
macro_rules! integration {
    ($($arg:literal),*) => {
        &["cargo", "test", "--release", "-p", "scst-tests", $($arg),*, "--", "--nocapture", "--test-threads=1"]
    };
}

/// Tests of a crate in release mode.
macro_rules! tests {
    ($package:literal $(, $arg:literal)*) => {
        &["cargo", "test", "--release", "-p", $package $(, $arg)*]
    };
}

/// Fifteen minutes of one fuzz entry.
macro_rules! fuzz {
    ($entry:literal) => {
        &[
            "cargo",
            "run",
            "--release",
            "-p",
            "scst-fuzz",
            "--",
            $entry,
            "900",
        ]
    };
}

const PARTS: &[Part] = &[
    part(
        "torn",
        20,
        // On io_uring and on epoll.
        integration!("--test", "torn_session"),
        &[("SCST_TORN_SESSIONS", "10000")],
    ),
    part(
        "reconfigure",
        30,
        integration!("--test", "reconfigure"),
        &[("SCST_RECONFIG_ROUNDS", "1000")],
    ),
    part(
        "management",
        30,
        integration!("--test", "management"),
        &[("SCST_RECONFIGURE_ROUNDS", "1000")],
    ),
    part(
        "kill",
        40,
        integration!("--test", "image"),
        &[("SCST_KILL_ROUNDS", "200")],
    ),
    part(
        "kill-mirror",
        20,
        integration!("--test", "mirror"),
        &[("SCST_KILL_ROUNDS", "200")],
    ),
    part(
        "mirror-model",
        30,
        tests!("raid1"),
        &[("SCST_RAID1_CASES", "5000")],
    ),
    part(
        "package",
        20,
        &["cargo", "package", "-p", "kshim", "--allow-dirty"],
        &[],
    ),
    part(
        "kill-rbd",
        40,
        integration!("--test", "ceph"),
        &[("SCST_KILL_ROUNDS", "200")],
    ),
    part(
        "streams",
        20,
        integration!("--test", "malformed"),
        &[("SCST_FUZZ_STREAMS", "10000")],
    ),
    part(
        "wire",
        30,
        tests!("iscsi-scst"),
        &[("SCST_WIRE_ROUNDS", "20")],
    ),
    part(
        "alua",
        20,
        tests!("scst-core", "--test", "alua"),
        &[("SCST_ALUA_CASES", "5000")],
    ),
    part(
        "nexus",
        30,
        tests!("scst-core", "--test", "nexus_model"),
        &[("SCST_NEXUS_CASES", "200000")],
    ),
    part(
        "cdb",
        30,
        tests!("scst-core", "--test", "any_cdb"),
        &[("SCST_CDB_RUNS", "20000000")],
    ),
    part("fuzz-pdus", 20, fuzz!("pdus"), &[]),
    part("fuzz-login", 20, fuzz!("login"), &[]),
    part("fuzz-text", 20, fuzz!("text"), &[]),
    part("fuzz-conf", 20, fuzz!("conf"), &[]),
    part("fuzz-connection", 20, fuzz!("connection"), &[]),
    part(
        "conformance",
        30,
        integration!("--test", "conformance"),
        &[("SCST_CONFORMANCE", "all")],
    ),
    part("guest-kit", 20, &["tools/guest", "target/guest"], &[]),
    part(
        "guest",
        30,
        integration!("--test", "guest"),
        &[("SCST_GUEST", "../target/guest")],
    ),
    part(
        "image",
        30,
        integration!("--test", "image"),
        &[("SCST_IMAGE_MIB", "1024")],
    ),
    part(
        "loom",
        60,
        tests!("kshim", "--lib", "loom"),
        &[
            ("RUSTFLAGS", "--cfg loom"),
            ("LOOM_MAX_PREEMPTIONS", "4"),
            ("CARGO_TARGET_DIR", "target/loom"),
        ],
    ),
    part(
        "props",
        60,
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
];

/// The parts by name, for the usage.
pub(crate) fn names() -> String {
    let names: Vec<&str> = PARTS.iter().map(|p| p.name).collect();
    names.join(" ")
}

/// How a part ended.
enum End {
    Ok,
    Failed(String),
    /// It came to its limit.
    Late,
    /// The budget was used up.
    NotRun,
}

impl End {
    fn text(&self) -> String {
        match self {
            Self::Ok => "ok".to_owned(),
            Self::Failed(why) => format!("FAILED: {why}"),
            Self::Late => "FAILED: ended at its limit of time".to_owned(),
            Self::NotRun => "not run: the budget is used up".to_owned(),
        }
    }
}

/// `[--budget MINUTES] [PART..]`: runs the named parts, or all; goes on after a failure and fails at the end.
pub(crate) fn run(args: &[&str]) -> Result<()> {
    let (budget, wanted) = match args {
        ["--budget", minutes, rest @ ..] => {
            let minutes: u64 = minutes.parse().context("--budget MINUTES")?;
            (Duration::from_secs(minutes * 60), rest)
        }
        rest => (Duration::MAX, rest),
    };
    for name in wanted {
        if !PARTS.iter().any(|p| p.name == *name) {
            bail!("no such part of nightly: {name} (there are: {})", names());
        }
    }
    let begin = Instant::now();
    let mut results = Vec::new();
    for part in PARTS {
        if !wanted.is_empty() && !wanted.contains(&part.name) {
            continue;
        }
        let left = budget.saturating_sub(begin.elapsed());
        let start = Instant::now();
        let end = if left.is_zero() {
            End::NotRun
        } else {
            run_part(part, left.min(Duration::from_secs(part.limit_min * 60)))?
        };
        println!("== {}: {}", part.name, end.text());
        results.push((part.name, start.elapsed(), end));
    }
    summarize(&results)
}

fn run_part(part: &Part, limit: Duration) -> Result<End> {
    let (program, args) = part.argv.split_first().context("empty command")?;
    println!("== {}: {}", part.name, part.argv.join(" "));
    let mut child = Command::new(program)
        .args(args)
        // Missing tools fail here as they do in CI.
        .env("CI", "true")
        .envs(part.env.iter().copied())
        .current_dir(sh::top())
        // A group of its own, so that its servers and guests end with it.
        .process_group(0)
        .spawn()
        .with_context(|| format!("{}: cannot run {program}", part.name))?;
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(if status.success() {
                End::Ok
            } else {
                End::Failed(status.to_string())
            });
        }
        if Instant::now() > end {
            end_group(&mut child)?;
            return Ok(End::Late);
        }
        std::thread::sleep(POLL);
    }
}

/// Kills a part with all it has started.
fn end_group(child: &mut Child) -> Result<()> {
    let group = format!("-{}", child.id());
    let status = Command::new("kill").args(["-9", "--", &group]).status()?;
    if !status.success() {
        println!("group {group} cannot be ended");
        child.kill()?;
    }
    child.wait()?;
    Ok(())
}

fn summarize(results: &[(&str, Duration, End)]) -> Result<()> {
    let mut table = String::from("part\tseconds\tend\n");
    for (name, took, end) in results {
        writeln!(table, "{name}\t{:.0}\t{}", took.as_secs_f64(), end.text())?;
    }
    let file = sh::top().join(SUMMARY);
    if let Some(dir) = file.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(&file, &table).context(SUMMARY)?;
    println!("\n== nightly\n{table}");
    let failed: Vec<&str> = results
        .iter()
        .filter(|(_, _, end)| matches!(end, End::Failed(_) | End::Late))
        .map(|(name, ..)| *name)
        .collect();
    if failed.is_empty() {
        return Ok(());
    }
    bail!("nightly failed: {}", failed.join(" "));
}
