//! Tables, and where they go.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result};

use super::{CLIENT_CPU, Options, Run, Work, targets::Targets};
use crate::sh;

/// The document that keeps the tables.
const DOC: &str = "docs/performance.md";

/// All runs by workload and target.
#[derive(Default)]
pub(super) struct Results(BTreeMap<(String, String), Vec<Run>>);

/// The middle of several runs.
pub(super) struct Middle {
    pub(super) run: Run,
    pub(super) range: (f64, f64),
    pub(super) runs: usize,
    pub(super) clean: usize,
}

impl Results {
    pub(super) fn add(&mut self, work: &str, target: &str, run: Run) {
        let key = (work.to_owned(), target.to_owned());
        self.0.entry(key).or_default().push(run);
    }

    /// Medians of the clean runs where there are two, else of all.
    pub(super) fn middle(&self, work: &str, target: &str, max_foreign: f64) -> Option<Middle> {
        let all = self.0.get(&(work.to_owned(), target.to_owned()))?;
        let clean: Vec<&Run> = all.iter().filter(|r| r.foreign <= max_foreign).collect();
        let used = if clean.len() >= 2 {
            clean.clone()
        } else {
            all.iter().collect()
        };
        let of = |f: fn(&Run) -> f64| median(used.iter().map(|r| f(r)).collect());
        let iops = || used.iter().map(|r| r.iops);
        Some(Middle {
            run: Run {
                iops: of(|r| r.iops),
                mbps: of(|r| r.mbps),
                p50: of(|r| r.p50),
                p99: of(|r| r.p99),
                errors: used.iter().map(|r| r.errors).sum(),
                target_busy: of(|r| r.target_busy),
                client_busy: of(|r| r.client_busy),
                target_us: of(|r| r.target_us),
                foreign: of(|r| r.foreign),
            },
            range: (iops().fold(f64::MAX, f64::min), iops().fold(0.0, f64::max)),
            runs: all.len(),
            clean: clean.len(),
        })
    }
}

/// The middle value.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match (values.len(), values.get(values.len() / 2)) {
        (n, Some(upper)) if n % 2 == 0 => (values[n / 2 - 1] + upper) / 2.0,
        (_, middle) => middle.copied().unwrap_or(f64::NAN),
    }
}

/// Where and when this was measured.
pub(super) fn circumstances(o: &Options) -> Result<String> {
    Ok(format!(
        "{}; target on CPU {}, client on CPU {CLIENT_CPU}, loopback; \
         {} rounds of {} s, nice {}; a run is clean if others took at most {} % of a core of the two.",
        machine()?,
        o.target_cpus
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" and "),
        o.rounds,
        o.secs,
        o.nice,
        o.max_foreign
    ))
}

/// When, what and on what.
pub(super) fn machine() -> Result<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpuinfo
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown CPU", |(_, name)| name);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let date = sh::output(&["date", "-u", "+%Y-%m-%d %H:%M UTC"])?;
    let head = sh::output(&["git", "rev-parse", "--short", "HEAD"]).unwrap_or_default();
    let cpus = cpuinfo
        .lines()
        .filter(|l| l.starts_with("processor"))
        .count();
    Ok(format!(
        "{}, commit {}: {cpus} x {cpu}, Linux {}",
        date.trim(),
        head.trim(),
        kernel.trim()
    ))
}

/// The table of all workloads and targets in Markdown.
pub(super) fn table(
    o: &Options,
    works: &[&Work],
    targets: &Targets,
    results: &Results,
) -> Result<String> {
    let mut out = circumstances(o)?;
    out += "\n\n| workload | target | IOPS | min..max | MB/s | ratio | of | target CPU us/IO | CPU ratio | target busy | client busy | p50/p99 us | clean runs |\n";
    out += "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";
    for work in works {
        for target in targets.iter() {
            let middle = |name| results.middle(work.0, name, o.max_foreign);
            let m = middle(&target.name).context("no result")?;
            let base = middle(target.base());
            let ratio = |f: fn(&Run) -> f64| {
                base.as_ref().map_or_else(
                    || "-".to_owned(),
                    |b| format!("{:.2}", f(&m.run) / f(&b.run)),
                )
            };
            let mark = match (m.run.errors > 0.0, m.clean < 2.min(m.runs)) {
                (true, _) => " ERRORS",
                (_, true) => " noisy",
                _ => "",
            };
            writeln!(
                out,
                "| {} | {} | {:.0} | {:.0}..{:.0} | {:.0} | {} | {} | {:.2} | {} | {:.0} % | {:.0} % | {:.0}/{:.0} | {}/{}{mark} |",
                work.0,
                target.name,
                m.run.iops,
                m.range.0,
                m.range.1,
                m.run.mbps,
                ratio(|r| r.iops),
                target.base(),
                m.run.target_us,
                ratio(|r| r.target_us),
                m.run.target_busy * 100.0,
                m.run.client_busy * 100.0,
                m.run.p50,
                m.run.p99,
                m.clean,
                m.runs,
            )?;
        }
    }
    Ok(out)
}

/// Replaces what stands between the markers of `section` in the document.
pub(super) fn write(section: &str, text: &str) -> Result<()> {
    let path = sh::top().join(DOC);
    let old = fs::read_to_string(&path).with_context(|| DOC.to_owned())?;
    let new =
        replaced(&old, section, text).with_context(|| format!("{DOC}: no marks of {section}"))?;
    fs::write(&path, new)?;
    println!("== written to {DOC}");
    Ok(())
}

fn replaced(old: &str, section: &str, text: &str) -> Option<String> {
    let (from, to) = (
        format!("<!-- bench:{section} -->\n"),
        format!("<!-- end:{section} -->"),
    );
    let (head, rest) = old.split_once(&from)?;
    let (_, tail) = rest.split_once(&to)?;
    Some(format!("{head}{from}\n{}\n\n{to}{tail}", text.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_section_is_replaced() {
        let old = "a\n<!-- bench:x -->\nold\n<!-- end:x -->\nb\n<!-- bench:y -->\n<!-- end:y -->\n";
        let new = replaced(old, "x", "new\n").unwrap();
        assert_eq!(
            new,
            "a\n<!-- bench:x -->\n\nnew\n\n<!-- end:x -->\nb\n<!-- bench:y -->\n<!-- end:y -->\n"
        );
        assert!(replaced(old, "z", "").is_none());
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }
}
