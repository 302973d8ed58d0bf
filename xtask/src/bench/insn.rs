//! Instructions per command: the server under callgrind, a scripted session of a fixed number of commands.
//!
//! One server runs all kinds. For each: a run to warm up, then one of N and one of 2 N commands, with the counters
//! dumped (and by that zeroed) after each. The difference of the two is N commands: start, login and logout cancel
//! out. Only user-space instructions are counted, so load on the machine does not show; batches are the same in each
//! run (`scst-load --lockstep`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::procs::Proc;
use super::targets::start_server;
use super::{Bins, report};
use crate::sh;

/// The figures that were last accepted.
const LEDGER: &str = "benches/instructions.tsv";
/// Growth in per cent that is worth a warning.
const WARN: f64 = 5.0;
/// The same for commands that change threads: how often a thread must be woken depends on the moment.
const WARN_THREADS: f64 = 30.0;
/// Two runs of the same code differ by about this much.
const SAME: f64 = 1.0;

/// A kind of command: name, LUN, commands of a run, arguments of the load generator.
type Kind = (&'static str, usize, u64, &'static [&'static str]);

const RAM: usize = 0;
const FILE: usize = 1;
const NULL: usize = 2;
const KINDS: [Kind; 10] = [
    (
        "ram_r4k_qd1",
        RAM,
        500,
        &["-w", "randread", "-b", "4096", "-q", "1"],
    ),
    (
        "ram_r4k_qd32",
        RAM,
        3200,
        &["-w", "randread", "-b", "4096", "-q", "32"],
    ),
    (
        "ram_w4k_qd32",
        RAM,
        3200,
        &["-w", "randwrite", "-b", "4096", "-q", "32"],
    ),
    (
        "ram_r512_qd128",
        RAM,
        6400,
        &["-w", "randread", "-b", "512", "-q", "128"],
    ),
    (
        "ram_r128k_qd8",
        RAM,
        800,
        &["-w", "read", "-b", "131072", "-q", "8"],
    ),
    (
        "ram_w128k_qd8",
        RAM,
        800,
        &["-w", "write", "-b", "131072", "-q", "8"],
    ),
    (
        "file_r4k_qd32",
        FILE,
        3200,
        &["-w", "randread", "-b", "4096", "-q", "32"],
    ),
    (
        "file_w4k_qd32",
        FILE,
        3200,
        &["-w", "randwrite", "-b", "4096", "-q", "32"],
    ),
    (
        "null_r512_qd128",
        NULL,
        6400,
        &["-w", "randread", "-b", "512", "-q", "128"],
    ),
    (
        "ram_r4k_qd32_digests",
        RAM,
        3200,
        &["-w", "randread", "-b", "4096", "-q", "32", "--digests"],
    ),
];

/// Counts all kinds, compares with the ledger, prints; `bless` writes the ledger.
pub(super) fn run(bins: &Bins, bless: bool) -> Result<()> {
    let start = Instant::now();
    let scratch = bins.0.join(format!("insn-{}", std::process::id()));
    std::fs::create_dir_all(&scratch)?;
    let counted = count(bins, &scratch);
    if counted.is_ok() && !bless {
        let _ = std::fs::remove_dir_all(&scratch);
    }
    let counted = counted?;
    if bless {
        println!("dumps for callgrind_annotate: {}", scratch.display());
    }
    let recorded = recorded();
    let mut table =
        String::from("| command | instructions | recorded | change |\n|---|---|---|---|\n");
    let mut ledger = String::from("command\tinstructions\n");
    let mut grown = Vec::new();
    for (kind, count) in &counted {
        let was = recorded.get(*kind).copied();
        let change = was.map(|was| (count / was - 1.0) * 100.0);
        let told = change.map_or_else(|| "new".to_owned(), |c| format!("{c:+.1} %"));
        let was = was.map_or_else(|| "-".to_owned(), |w| format!("{w:.0}"));
        writeln!(table, "| {kind} | {count:.0} | {was} | {told} |")?;
        writeln!(ledger, "{kind}\t{count:.0}")?;
        if change.is_some_and(|c| c >= warn_at(kind)) {
            grown.push(format!("{kind} {told}"));
        }
        if change.is_some_and(|c| c <= -SAME - warn_at(kind) + WARN) && !bless {
            println!("instructions: {kind} fell by {told}: record it with --instructions --bless");
        }
    }
    println!("{table}");
    if bless {
        std::fs::write(sh::top().join(LEDGER), ledger)?;
        let short: String = counted
            .iter()
            .map(|(kind, count)| format!("| {kind} | {count:.0} |\n"))
            .collect();
        let head = "| command | user-space instructions |\n|---|---|\n";
        report::write("instructions", &format!("{head}{short}"))?;
    }
    if !grown.is_empty() && !bless {
        println!(
            "warning: instructions per command grew: {}",
            grown.join(", ")
        );
    }
    println!(
        "== instructions: counted in {:.0} s",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn warn_at(kind: &str) -> f64 {
    if kind.starts_with("file_w") {
        WARN_THREADS
    } else {
        WARN
    }
}

fn recorded() -> BTreeMap<String, f64> {
    let text = std::fs::read_to_string(sh::top().join(LEDGER)).unwrap_or_default();
    let row = |line: &str| {
        let (kind, count) = line.split_once('\t')?;
        Some((kind.to_owned(), count.trim().parse().ok()?))
    };
    text.lines().filter_map(row).collect()
}

fn count(bins: &Bins, scratch: &Path) -> Result<Vec<(&'static str, f64)>> {
    let file = scratch.join("disk.img").display().to_string();
    std::fs::write(&file, vec![0; 64 << 20])?;
    let out = format!("--callgrind-out-file={}", scratch.join("out").display());
    let scstd = bins.path("scstd");
    let argv = [
        // Valgrind counts each byte of a "rep movsb": have the C library copy long pieces as it copies short ones.
        "env",
        "GLIBC_TUNABLES=glibc.cpu.x86_rep_movsb_threshold=1073741824",
        "valgrind",
        "-q",
        "--tool=callgrind",
        &out,
        &scstd,
        "-qq",
        "serve",
        "--digests",
        "64M",
        &file,
        "--nullio",
        "64M",
        "--portal",
        "127.0.0.1:0",
        "--cpus",
        "1",
        "--poller",
        "epoll",
    ];
    let argv: Vec<String> = argv.iter().map(|s| (*s).to_owned()).collect();
    let (server, urls) = start_server(&argv, &[]).context("server under valgrind")?;
    let mut dumps = Dumps {
        server,
        scratch: scratch.to_owned(),
        taken: 0,
    };
    let mut counted = Vec::new();
    for (kind, lun, n, args) in KINDS {
        let url = urls.get(lun).context("LUN missing")?;
        let load = |n: u64| -> Result<()> {
            let (exe, n) = (bins.path("scst-load"), n.to_string());
            let mut argv = vec![exe.as_str(), url, "--lockstep", "--count", &n];
            argv.extend(["--region", "33554432", "-t", "120"]);
            argv.extend(args);
            sh::output(&argv).map(drop).with_context(|| kind.to_owned())
        };
        load(n)?;
        dumps.take("warm")?;
        load(n)?;
        let once = dumps.take(&format!("{kind} {n}"))?;
        load(2 * n)?;
        let twice = dumps.take(&format!("{kind} {}", 2 * n))?;
        counted.push((kind, twice.saturating_sub(once) as f64 / n as f64));
    }
    dumps.server.stop();
    Ok(counted)
}

struct Dumps {
    server: Proc,
    scratch: PathBuf,
    taken: u32,
}

impl Dumps {
    /// Dumps and zeroes the counters; the instructions since the last time.
    fn take(&mut self, hint: &str) -> Result<u64> {
        let pid = self.server.pid().to_string();
        sh::output(&["callgrind_control", &format!("--dump={hint}"), &pid])?;
        self.taken += 1;
        let path = self.scratch.join(format!("out.{}", self.taken));
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let total = text.lines().rev().find_map(|l| {
            l.strip_prefix("totals: ")
                .or_else(|| l.strip_prefix("summary: "))
        });
        match total.and_then(|t| t.split_whitespace().next()?.parse().ok()) {
            Some(n) => Ok(n),
            None => bail!("{}: no totals", path.display()),
        }
    }
}
