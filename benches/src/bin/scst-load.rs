//! `scst-load`: one thread of a lean iSCSI initiator. Prints one line of JSON.
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Parser;
use scst_bench::initiator::Url;
use scst_bench::load::{Job, Load, Pattern, Report};

/// A load generator for iSCSI targets: raw sockets, many commands per system call, data not looked at
#[derive(Debug, Parser)]
struct Cli {
    /// ADDR:PORT/IQN/LUN
    url: Url,
    /// randread, randwrite, read, write, mixed (random, 70 % reads); verify, unmap (random, without data)
    #[arg(short, long, default_value = "randread")]
    work: Pattern,
    /// Bytes of a command
    #[arg(short, long, default_value_t = 4096)]
    block: u32,
    /// Commands in flight on each session
    #[arg(short = 'q', long, default_value_t = 32)]
    depth: u32,
    /// Seconds
    #[arg(short = 't', long, default_value_t = 3.0)]
    secs: f64,
    /// Stop after so many commands
    #[arg(long)]
    count: Option<u64>,
    /// Bytes of each LUN to touch; 0: all
    #[arg(long, default_value_t = 256 << 20)]
    region: u64,
    /// Sessions, all on this thread
    #[arg(short, long, default_value_t = 1)]
    sessions: u32,
    /// LUNs from the URL's on, chosen at random for each command
    #[arg(short, long, default_value_t = 1)]
    luns: u16,
    /// CRC32C of headers and data
    #[arg(long)]
    digests: bool,
    /// Each write is to be durable (FUA)
    #[arg(long)]
    fua: bool,
    /// A SYNCHRONIZE CACHE after so many commands; 0: never
    #[arg(long, default_value_t = 0)]
    sync: u32,
    /// A full queue at once, then nothing until all of it is done: the same batches in each run
    #[arg(long)]
    lockstep: bool,
    /// Only log in: print {"ready":N}, wait for the end of stdin, log out
    #[arg(long)]
    idle: bool,
    /// CPU to run on
    #[arg(long)]
    pin: Option<usize>,
    /// Seed of the choice of blocks
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(errors) => {
            eprintln!("scst-load: {errors} commands failed");
            ExitCode::from(3)
        }
        Err(e) => {
            eprintln!("scst-load: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> Result<u64> {
    if let Some(cpu) = cli.pin {
        scst_bench::pin(cpu).context("--pin")?;
    }
    let job = Job {
        url: cli.url,
        pattern: cli.work,
        block: cli.block,
        depth: cli.depth,
        time: Duration::from_secs_f64(cli.secs),
        count: cli.count,
        region: cli.region,
        sessions: cli.sessions,
        luns: cli.luns,
        digests: cli.digests,
        fua: cli.fua,
        sync: cli.sync,
        lockstep: cli.lockstep,
        seed: cli.seed,
    };
    let block = job.block;
    let load = Load::login(job)?;
    if cli.idle {
        let conns = load.into_conns();
        println!("{{\"ready\":{}}}", conns.len());
        std::io::stdout().flush()?;
        std::io::stdin().read_to_end(&mut Vec::new())?;
        conns.into_iter().for_each(|c| c.logout());
        return Ok(0);
    }
    let params = load.params();
    let (report, conns) = load.run()?;
    conns.into_iter().for_each(|c| c.logout());
    let Report { ios, secs, .. } = report;
    let iops = ios as f64 / secs;
    println!(
        "{{\"iops\":{iops:.1},\"mbps\":{:.2},\"ios\":{ios},\"secs\":{secs:.4},\"p50_us\":{:.1},\"p99_us\":{:.1},\
         \"client_cpu\":{:.4},\"errors\":{},\"window_stalls\":{},\"sends\":{},\"recvs\":{},\"segment\":{},\
         \"first_burst\":{},\"immediate\":{},\"initial_r2t\":{},\"digests\":{}}}",
        iops * f64::from(block) / 1e6,
        report.hist.percentile_us(0.5),
        report.hist.percentile_us(0.99),
        report.cpu,
        report.errors,
        report.stalls,
        report.calls.0,
        report.calls.1,
        params.segment,
        params.first_burst,
        params.immediate,
        params.initial_r2t,
        params.digests,
    );
    Ok(report.errors)
}
