//! `--engines`: the I/O engines side by side, through the page cache and with O_DIRECT.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};

use super::report::{self, Results};
use super::targets::{Target, Targets};
use super::{Bins, Options, Work, measure};

/// The engines, the one that the others are held against first.
const ENGINES: [&str; 3] = ["threads", "aio", "uring"];

const WORKS: [Work; 10] = [
    ("r4k_qd1", &["-w", "randread", "-q", "1"]),
    ("r4k_qd32", &["-w", "randread", "-q", "32"]),
    ("w4k_qd1", &["-w", "randwrite", "-q", "1"]),
    ("w4k_qd32", &["-w", "randwrite", "-q", "32"]),
    ("sr128k_qd8", &["-w", "read", "-b", "131072", "-q", "8"]),
    ("sw128k_qd8", &["-w", "write", "-b", "131072", "-q", "8"]),
    ("w4k_fua_qd8", &["-w", "randwrite", "-q", "8", "--fua"]),
    (
        "w4k_sync8_qd8",
        &["-w", "randwrite", "-q", "8", "--sync", "8"],
    ),
    ("verify64k_qd8", &["-w", "verify", "-b", "65536", "-q", "8"]),
    ("unmap64k_qd8", &["-w", "unmap", "-b", "65536", "-q", "8"]),
];

/// Whether the page cache is bypassed, by the name of the section and the server's option.
const WAYS: [(&str, &[&str]); 2] = [("page cache", &[]), ("O_DIRECT", &["--direct"])];

/// Measures all and writes the section.
pub(super) fn run(o: &Options, bins: &Bins) -> Result<()> {
    let works = o.works(&WORKS)?;
    let mut out = report::circumstances(o)?;
    out += "\n\n| workload | file | IOPS, threads | aio | uring | uring/threads | target CPU us/IO, threads | aio | uring | uring/threads |\n";
    out += "|---|---|---|---|---|---|---|---|---|---|\n";
    for (way, options) in WAYS {
        let targets = Targets::engines(o, bins, &ENGINES, options)?;
        println!("== bench: {way}: {}", targets.names());
        let results = measure(o, bins, &targets, &works)?;
        for work in &works {
            out += &row(o, way, work.0, &targets, &results)?;
        }
    }
    println!("{out}");
    if o.write {
        report::write("engines", &out)?;
    }
    Ok(())
}

fn row(o: &Options, way: &str, work: &str, targets: &Targets, results: &Results) -> Result<String> {
    let mut row = format!("| {work} | {way} |");
    for (digits, of) in [
        (0, (|r| r.iops) as fn(&super::Run) -> f64),
        (2, |r| r.target_us),
    ] {
        let value = |t: &Target| -> Result<f64> {
            let middle = results.middle(work, &t.name, o.max_foreign);
            Ok(of(&middle.context("no result")?.run))
        };
        let values = targets.iter().map(value).collect::<Result<Vec<_>>>()?;
        for v in &values {
            write!(row, " {v:.digits$} |")?;
        }
        let (first, last) = values.first().zip(values.last()).context("no engine")?;
        write!(row, " {:.2} |", last / first)?;
    }
    row.push('\n');
    Ok(row)
}
