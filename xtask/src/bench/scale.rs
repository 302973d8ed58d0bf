//! `--scaling`: what must not cost, and what an idle session takes.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::procs::{self, Proc};
use super::targets::{Target, start_server};
use super::{Bins, Options, TARGET_CPU, one, report};
use crate::sh;

/// Numbers of idle sessions.
const IDLE: [u32; 4] = [1, 10, 100, 1000];
/// How long the CPU time of idle sessions is watched.
const WATCH: Duration = Duration::from_secs(5);
/// After the last session ended: the pools give memory back within this time.
const AGING: Duration = Duration::from_secs(5);

/// Two configurations that are compared: names, server's and load's arguments.
struct Pair {
    what: &'static str,
    sides: [Side; 2],
}

struct Side {
    name: &'static str,
    /// The server: its LUNs, reactors and CPUs.
    luns: usize,
    reactors: usize,
    load: &'static [&'static str],
}

const fn side(
    name: &'static str,
    luns: usize,
    reactors: usize,
    load: &'static [&'static str],
) -> Side {
    Side {
        name,
        luns,
        reactors,
        load,
    }
}

const R4K: &[&str] = &["-w", "randread", "-q", "32", "--region", "4194304"];
const R4K_64: &[&str] = &[
    "-w", "randread", "-q", "32", "--region", "4194304", "--luns", "64",
];
const R4K_8S: &[&str] = &[
    "-w",
    "randread",
    "-q",
    "8",
    "--region",
    "4194304",
    "--sessions",
    "8",
];
const R4K_256S: &[&str] = &[
    "-w",
    "randread",
    "-q",
    "1",
    "--region",
    "4194304",
    "--sessions",
    "256",
];
const R4K_32S: &[&str] = &[
    "-w",
    "randread",
    "-q",
    "8",
    "--region",
    "4194304",
    "--sessions",
    "32",
];
const R4K_D: &[&str] = &[
    "-w",
    "randread",
    "-q",
    "32",
    "--region",
    "4194304",
    "--digests",
];
const W4K: &[&str] = &["-w", "randwrite", "-q", "32", "--region", "4194304"];
const W4K_D: &[&str] = &[
    "-w",
    "randwrite",
    "-q",
    "32",
    "--region",
    "4194304",
    "--digests",
];
const R128K: &[&str] = &[
    "-w", "read", "-b", "131072", "-q", "8", "--region", "4194304",
];
const R128K_D: &[&str] = &[
    "-w",
    "read",
    "-b",
    "131072",
    "-q",
    "8",
    "--region",
    "4194304",
    "--digests",
];

const PAIRS: [Pair; 6] = [
    Pair {
        what: "64 LUNs",
        sides: [side("1 LUN", 1, 1, R4K), side("64 LUNs", 64, 1, R4K_64)],
    },
    Pair {
        what: "digests, r4k_qd32",
        sides: [side("off", 1, 1, R4K), side("on", 1, 1, R4K_D)],
    },
    Pair {
        what: "digests, w4k_qd32",
        sides: [side("off", 1, 1, W4K), side("on", 1, 1, W4K_D)],
    },
    Pair {
        what: "digests, sr128k_qd8",
        sides: [side("off", 1, 1, R128K), side("on", 1, 1, R128K_D)],
    },
    Pair {
        what: "256 commands in flight",
        sides: [
            side("32 sessions", 1, 1, R4K_32S),
            side("256 sessions", 1, 1, R4K_256S),
        ],
    },
    Pair {
        what: "8 sessions",
        sides: [
            side("1 reactor", 1, 1, R4K_8S),
            side("2 reactors", 1, 2, R4K_8S),
        ],
    },
];

/// Runs all checks and writes the section.
pub(super) fn run(o: &Options, bins: &Bins) -> Result<()> {
    let mut out = report::circumstances(o)?;
    out += "\n\n| what | A | B | IOPS A | IOPS B | B/A | CPU us/IO A | CPU us/IO B | others % |\n";
    out += "|---|---|---|---|---|---|---|---|---|\n";
    for pair in &PAIRS {
        let row = pair.measure(o, bins)?;
        println!("{row}");
        out += &row;
        out.push('\n');
    }
    let row = mixed(o, bins)?;
    println!("{row}");
    out += &format!("\n{row}\n\n");
    let idle = idle(bins)?;
    println!("{idle}");
    out += &idle;
    if o.write {
        report::write("scaling", &out)?;
    }
    Ok(())
}

fn serve(bins: &Bins, luns: usize, reactors: usize) -> Result<(Proc, Target)> {
    let exe = bins.path("scstd");
    let (count, size) = (reactors.to_string(), if luns == 1 { "256M" } else { "4M" });
    let mut argv = vec![exe.as_str(), "-qq", "serve"];
    argv.extend(std::iter::repeat_n(size, luns));
    argv.extend(["--digests", "--portal", "127.0.0.1:0", "--cpus", &count]);
    let argv: Vec<String> = argv.iter().map(|s| (*s).to_owned()).collect();
    // Several reactors may use every CPU.
    let cpus: &[usize] = if reactors == 1 { &[TARGET_CPU] } else { &[] };
    let (server, urls) = start_server(&argv, cpus)?;
    let target = Target {
        name: "ram".to_owned(),
        url: urls.first().context("no LUN")?.clone(),
        pid: server.pid(),
    };
    Ok((server, target))
}

/// Writes every block that the loads below touch, as never written memory is no measure.
fn fill(bins: &Bins, target: &Target, luns: usize) -> Result<()> {
    let (load, luns) = (bins.path("scst-load"), luns.to_string());
    let argv = [
        &load,
        &target.url,
        "-w",
        "write",
        "-b",
        "16384",
        "-q",
        "32",
        "--region",
        "4194304",
        "--luns",
        &luns,
        "-t",
        "0.5",
    ];
    sh::output(&argv).map(drop)
}

impl Pair {
    fn measure(&self, o: &Options, bins: &Bins) -> Result<String> {
        let [a, b] = &self.sides;
        let servers = [
            serve(bins, a.luns, a.reactors)?,
            serve(bins, b.luns, b.reactors)?,
        ];
        for (side, server) in self.sides.iter().zip(&servers) {
            fill(bins, &server.1, side.luns)?;
        }
        let secs = o.secs.to_string();
        let mut iops = [Vec::new(), Vec::new()];
        let mut cpu = [Vec::new(), Vec::new()];
        let mut foreign = Vec::new();
        for _ in 0..o.rounds {
            for (n, side) in self.sides.iter().enumerate() {
                std::thread::sleep(o.gap);
                let mut args = side.load.to_vec();
                args.extend(["-t", &secs]);
                let run = one(o, bins, &servers[n].1, &args)?;
                iops[n].push(run.iops);
                cpu[n].push(run.target_us);
                foreign.push(run.foreign);
            }
        }
        for (server, _) in servers {
            server.stop();
        }
        let [ia, ib] = iops.map(report::median);
        let [ca, cb] = cpu.map(report::median);
        Ok(format!(
            "| {} | {} | {} | {ia:.0} | {ib:.0} | {:.2} | {ca:.2} | {cb:.2} | {:.0} |",
            self.what,
            a.name,
            b.name,
            ib / ia,
            report::median(foreign)
        ))
    }
}

fn mixed(o: &Options, bins: &Bins) -> Result<String> {
    let (server, target) = serve(bins, 1, 1)?;
    let secs = o.secs.to_string();
    fill(bins, &target, 1)?;
    let args = [
        "-w", "mixed", "-b", "16384", "-q", "32", "--region", "4194304", "-t", &secs,
    ];
    let run = one(o, bins, &target, &args)?;
    server.stop();
    Ok(format!(
        "Mixed, 70 % reads, 16 KiB, QD 32, 4 MiB of RAM: {:.0} MB/s, {run}.",
        run.mbps
    ))
}

/// Memory and CPU of sessions that do nothing.
fn idle(bins: &Bins) -> Result<String> {
    let (server, target) = serve(bins, 1, 1)?;
    let before = procs::resident_kib(target.pid)?;
    let mut out = format!(
        "Resident with no session (RAM disk of 256 MiB, never written): {:.1} MiB.\n\n",
        before as f64 / 1024.0
    );
    out += "| idle sessions | resident MiB | KiB per session | CPU ms in 5 s | login ms per session |\n";
    out += "|---|---|---|---|---|\n";
    for sessions in IDLE {
        let argv = [
            bins.path("scst-load"),
            target.url.clone(),
            "--idle".to_owned(),
            "--sessions".to_owned(),
            sessions.to_string(),
        ];
        let start = Instant::now();
        let mut load = Proc::start(&argv, &[], Stdio::piped())?;
        load.lines_to("{\"ready\"")?;
        let login = start.elapsed().as_secs_f64() * 1000.0 / f64::from(sessions);
        std::thread::sleep(Duration::from_millis(500));
        let cpu = procs::cpu_secs(target.pid)?;
        std::thread::sleep(WATCH);
        let cpu = (procs::cpu_secs(target.pid)? - cpu) * 1000.0;
        let resident = procs::resident_kib(target.pid)?;
        load.close()?;
        out += &format!(
            "| {sessions} | {:.1} | {:.1} | {cpu:.0} | {login:.2} |\n",
            resident as f64 / 1024.0,
            (resident as f64 - before as f64) / f64::from(sessions)
        );
    }
    std::thread::sleep(AGING);
    let after = procs::resident_kib(target.pid)?;
    server.stop();
    out += &format!(
        "\n{} s after the last logout: {:.1} MiB.\n",
        AGING.as_secs(),
        after as f64 / 1024.0
    );
    Ok(out)
}
