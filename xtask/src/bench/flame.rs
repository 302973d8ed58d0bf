//! `--flame`: where the target's time goes, by `perf record` on it while the load runs; folded stacks and a picture for each run.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::report;
use super::targets::{Target, Targets};
use super::{Bins, Options, WORKS, Work, one};
use crate::sh;

/// Samples a second.
const RATE: &str = "997";
/// Width of the picture, and height of a frame, in pixels.
const WIDTH: f64 = 1200.0;
const ROW: usize = 16;
/// Frames narrower than this are left out.
const MIN_WIDTH: f64 = 0.5;
/// Pixels that a letter takes.
const LETTER: f64 = 6.5;
/// Functions in the table.
const TOP: usize = 25;

/// Profiles each target under each workload.
pub(super) fn run(o: &Options, bins: &Bins) -> Result<()> {
    let targets = Targets::start(o, bins)?;
    let dir = bins.0.join("flame");
    std::fs::create_dir_all(&dir)?;
    for work in o.works(&WORKS)? {
        for target in targets.iter() {
            let _frozen = targets.freeze_others(&o.freeze, target)?;
            let data = dir.join(format!("{}-{}", work.0, target.name));
            let script = record(o, bins, target, work, &data.with_extension("perf"))?;
            let stacks = fold(&script);
            ensure!(!stacks.is_empty(), "perf took no samples");
            let folded: String = stacks.iter().map(|(s, n)| format!("{s} {n}\n")).collect();
            std::fs::write(data.with_extension("folded"), folded)?;
            let svg = data.with_extension("svg");
            let title = format!("{}, {}", work.0, target.name);
            std::fs::write(&svg, picture(&title, &stacks))?;
            println!("{title}: {}\n\n{}", svg.display(), top(&stacks));
        }
    }
    println!("{}", report::machine()?);
    Ok(())
}

/// Runs the load with `perf` on the target; its samples as text.
fn record(
    o: &Options,
    bins: &Bins,
    target: &Target,
    work: &Work,
    data: &std::path::Path,
) -> Result<String> {
    let (pid, data) = (target.pid.to_string(), data.display().to_string());
    let secs = o.secs.to_string();
    let mut perf = Command::new("perf")
        .args(["record", "-q", "-F", RATE, "--call-graph", "dwarf,16384"])
        .args(["-p", &pid, "-o", &data, "--", "sleep", &secs])
        .stdout(Stdio::null())
        .spawn()
        .context("perf cannot be started")?;
    let mut args = work.1.to_vec();
    args.extend(["-t", &secs]);
    let run = one(o, bins, target, &args);
    perf.wait()?;
    println!(
        "  {} {}: {} (perf runs beside it)",
        work.0, target.name, run?
    );
    let script = [
        "perf",
        "script",
        "--no-inline",
        "-F",
        "comm,ip,sym",
        "-i",
        &data,
    ];
    let text = sh::output(&script);
    // Large, and of no use to anybody else.
    std::fs::remove_file(&data)?;
    text
}

/// Stacks of `perf script`, outermost function first, with how often each was seen.
fn fold(script: &str) -> BTreeMap<String, u64> {
    let mut stacks = BTreeMap::new();
    for sample in script.split("\n\n") {
        let mut lines = sample.lines().filter(|l| !l.trim().is_empty());
        let Some(thread) = lines.next() else { continue };
        let mut frames: Vec<String> = lines.map(name).collect();
        frames.push(thread.trim().trim_end_matches(':').trim().to_owned());
        frames.reverse();
        *stacks.entry(frames.join(";")).or_insert(0) += 1;
    }
    stacks
}

/// The function of a line "ADDRESS NAME", without the hash and what would be taken for a separator.
fn name(line: &str) -> String {
    let line = line.trim();
    let sym = line.split_once(' ').map_or(line, |(_, sym)| sym);
    let sym = sym.split_once("+0x").map_or(sym, |(sym, _)| sym);
    let hash = |h: &str| h.len() == 16 && h.bytes().all(|b| b.is_ascii_hexdigit());
    let sym = match sym.rsplit_once("::h") {
        Some((sym, h)) if hash(h) => sym,
        _ => sym,
    };
    sym.replace(';', ":")
}

/// The functions that samples ended in.
fn top(stacks: &BTreeMap<String, u64>) -> String {
    let mut own: BTreeMap<&str, u64> = BTreeMap::new();
    for (stack, n) in stacks {
        let last = stack.rsplit(';').next().unwrap_or(stack);
        *own.entry(last).or_insert(0) += n;
    }
    let all: u64 = own.values().sum();
    let mut own: Vec<_> = own.into_iter().collect();
    own.sort_by_key(|&(_, n)| std::cmp::Reverse(n));
    let mut out = "| function | % |\n|---|---|\n".to_owned();
    for (f, n) in own.into_iter().take(TOP) {
        let share = 100.0 * n as f64 / all.max(1) as f64;
        // A String takes all that is written to it.
        let _ = writeln!(out, "| `{f}` | {share:.1} |");
    }
    out
}

#[derive(Default)]
struct Node {
    count: u64,
    below: BTreeMap<String, Node>,
}

impl Node {
    fn depth(&self) -> usize {
        1 + self.below.values().map(Node::depth).max().unwrap_or(0)
    }

    fn draw(&self, name: &str, x: f64, level: usize, scale: f64, bottom: usize, out: &mut String) {
        let width = self.count as f64 * scale;
        if width < MIN_WIDTH {
            return;
        }
        let y = bottom - level * ROW;
        let hue = name.bytes().map(usize::from).sum::<usize>() % 50;
        let title = escape(&format!("{name}: {:.2} %", 100.0 * width / WIDTH));
        let room = (width / LETTER) as usize;
        let label: String = name.chars().take(if room < 4 { 0 } else { room }).collect();
        let _ = writeln!(
            out,
            r#"<g><title>{title}</title><rect x="{x:.1}" y="{y}" width="{width:.1}" height="{}" fill="hsl({hue},80%,65%)"/><text x="{:.1}" y="{}">{}</text></g>"#,
            ROW - 1,
            x + 2.0,
            y + ROW - 5,
            escape(&label)
        );
        let mut x = x;
        for (name, node) in &self.below {
            node.draw(name, x, level + 1, scale, bottom, out);
            x += node.count as f64 * scale;
        }
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// A flame graph: each function as wide as the share of samples that it was in, over who called it.
fn picture(title: &str, stacks: &BTreeMap<String, u64>) -> String {
    let mut root = Node::default();
    for (stack, n) in stacks {
        root.count += n;
        let mut at = &mut root;
        for frame in stack.split(';') {
            at = at.below.entry(frame.to_owned()).or_default();
            at.count += n;
        }
    }
    let height = (root.depth() + 1) * ROW;
    let mut out = format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="monospace" font-size="11">"#
    );
    let scale = WIDTH / root.count.max(1) as f64;
    root.draw(title, 0.0, 1, scale, height, &mut out);
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "reactor0\n\tffff80 _copy_from_iter+0x1 ([kernel])\n\t55aa <a::B as c::D>::run::h0123456789abcdef\n\n\
                          reactor0\n\t55aa <a::B as c::D>::run::h0123456789abcdef\n\t55ab main\n\n\
                          reactor0\n\tffff80 _copy_from_iter+0x9 ([kernel])\n\t55aa <a::B as c::D>::run::h0123456789abcdef\n\n";

    #[test]
    fn stacks_are_counted_from_the_outside() {
        let stacks = fold(SCRIPT);
        assert_eq!(stacks["reactor0;<a::B as c::D>::run;_copy_from_iter"], 2);
        assert_eq!(stacks["reactor0;main;<a::B as c::D>::run"], 1);
        assert_eq!(stacks.len(), 2);
        assert!(top(&stacks).contains("| `_copy_from_iter` | 66.7 |"));
    }

    #[test]
    fn the_picture_has_each_function_as_wide_as_its_share() {
        let svg = picture("t", &fold(SCRIPT));
        assert!(svg.contains("_copy_from_iter: 66.67 %") && svg.contains(r#"width="800.0""#));
        assert!(svg.contains("&lt;a::B as c::D&gt;::run: 33.33 %") && svg.ends_with("</svg>\n"));
    }
}
