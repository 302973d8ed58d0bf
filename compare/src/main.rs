//! `scst-compare`: do two targets behave the same, or does one behave as recorded?
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use scst_compare::{
    Answers, BATTERY, Case, Options, Runner, Target, Verdict, judge, recorded, without_identity,
};

/// Compare two iSCSI targets, or one with recorded conversations, byte for byte.
///
/// The conversations write to LUNs 0 to 5 of the targets, reserve and reset them: use targets whose data may be lost.
///
/// A TARGET is iscsi://HOST[:PORT]/IQN. Exit status: 0 no differences, 1 differences, 2 it could not be tried.
#[derive(Debug, Parser)]
#[command(name = "scst-compare", version)]
struct Args {
    /// Two targets to compare with each other; with --replay, one
    #[arg(value_name = "TARGET", required = true, num_args = 1..=2)]
    targets: Vec<Target>,
    /// Compare with what these files recorded; without it the built-in battery is run on both targets
    #[arg(long, value_name = "FILE", num_args = 1)]
    replay: Vec<PathBuf>,
    /// Only cases whose name contains this; repeatable
    #[arg(long, value_name = "TEXT")]
    case: Vec<String>,
    /// Compare serial numbers and identifiers of the logical units, too, which two targets hardly share
    #[arg(long, conflicts_with = "replay")]
    identity: bool,
    /// Print every case, not only those that differ
    #[arg(long, short)]
    verbose: bool,
    /// Seconds to wait for an answer
    #[arg(long, value_name = "S", default_value_t = 10.0)]
    timeout: f64,
    /// Milliseconds between cases, for the target to tear down
    #[arg(long, value_name = "MS", default_value_t = 300)]
    pause: u64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("scst-compare: {e:#}");
            ExitCode::from(2)
        }
    }
}

/// True if nothing differs.
fn run(args: &Args) -> Result<bool> {
    let options = Options {
        timeout: Duration::try_from_secs_f64(args.timeout).context("--timeout")?,
        pause: Duration::from_millis(args.pause),
        ..Options::default()
    };
    let cases = cases(args)?;
    let mut runners = args
        .targets
        .iter()
        .map(|t| Runner::new(t.clone(), options, None));
    let (first, second) = match (runners.next(), runners.next(), args.replay.is_empty()) {
        (Some(target), None, false) => (target, None),
        (Some(a), Some(b), true) => (a, Some(b)),
        (_, _, true) => bail!("two targets are wanted, or --replay FILE and one"),
        (_, _, false) => bail!("--replay wants one target"),
    };
    let (mut first, mut second) = (first, second);
    for runner in [Some(&first), second.as_ref()].into_iter().flatten() {
        runner.probe().map_err(anyhow::Error::msg)?;
    }
    let (mut identical, mut different, mut not_run) = (0, 0, 0);
    for case in &cases {
        let (expected, actual): (Answers, Answers) = match &mut second {
            None => (recorded(case), first.run(case)),
            Some(second) if args.identity => (first.run(case), second.run(case)),
            Some(second) => (
                without_identity(case, first.run(case)),
                without_identity(case, second.run(case)),
            ),
        };
        let verdict = judge(case, &expected, &actual);
        match &verdict {
            Verdict::Identical => identical += 1,
            Verdict::Different(_) => different += 1,
            Verdict::NotRun(_) => not_run += 1,
        }
        if args.verbose || verdict != Verdict::Identical {
            println!("{}: {verdict}", case.name);
        }
    }
    println!(
        "{identical} of {} cases identical, {different} different, {not_run} not run",
        cases.len()
    );
    Ok(different == 0)
}

fn cases(args: &Args) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for path in &args.replay {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("{}: cannot be read", path.display()))?;
        let file = Case::parse_all(&text).with_context(|| path.display().to_string())?;
        cases.extend(file);
    }
    if args.replay.is_empty() {
        cases = Case::parse_all(BATTERY).context("the built-in battery")?;
    }
    if !args.case.is_empty() {
        cases.retain(|c| args.case.iter().any(|part| c.name.contains(part)));
    }
    if cases.is_empty() {
        bail!("no case to run");
    }
    Ok(cases)
}
