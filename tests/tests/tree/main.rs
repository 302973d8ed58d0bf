//! Builds the configurations of `tests/sysfs` by writing into the management tree, and compares the whole tree with what kernel
//! SCST showed (`tests/sysfs/tree.txt`): names, kinds, modes, contents, links.
//!
//! `tests/sysfs/known-tree.tsv` says what differs, and why: section, path with `*` for any characters, and the reason.

mod bench;
mod config;
mod effects;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, ensure};

use crate::bench::Bench;

const TREE: &str = include_str!("../../sysfs/tree.txt");
const KNOWN: &str = include_str!("../../sysfs/known-tree.tsv");
const ROOT: &str = "/sys/kernel/scst_tgt";

/// Kind, mode and content by path.
pub(crate) type Listing = BTreeMap<String, String>;

/// A section of the record.
fn recorded(section: &str) -> Listing {
    let head = format!("##### SECTION {section}");
    let lines = TREE.lines().skip_while(|l| *l != head).skip(1);
    let lines = lines.take_while(|l| !l.starts_with("##### "));
    let mut all = Listing::new();
    for line in lines.filter(|l| l.starts_with(ROOT)) {
        if let Some((path, rest)) = line.split_once('\t') {
            let path = path.trim_start_matches(ROOT).trim_start_matches('/');
            all.insert(path.to_owned(), rest.to_owned());
        }
    }
    all
}

/// A path against a pattern with `*`.
fn matches(pattern: &str, path: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == path,
        Some((head, tail)) => path.strip_prefix(head).is_some_and(|rest| {
            let mut ends = (0..=rest.len()).filter(|n| rest.is_char_boundary(*n));
            ends.any(|n| matches(tail, &rest[n..]))
        }),
    }
}

/// Compares a section; each pattern of the list has to be of use.
fn compare(section: &str, here: &Listing) -> Result<()> {
    let kernel = recorded(section);
    ensure!(!kernel.is_empty(), "no section {section}");
    let mut patterns: Vec<(&str, bool)> = Vec::new();
    for line in KNOWN.lines().filter(|l| !l.starts_with('#')) {
        let (sections, rest) = line.split_once('\t').context("three columns")?;
        let (pattern, reason) = rest.split_once('\t').context("three columns")?;
        ensure!(!reason.is_empty(), "{pattern}: why?");
        if sections.contains(section) {
            patterns.push((pattern, false));
        }
    }
    let mut wrong = Vec::new();
    let mut same = 0;
    for path in kernel
        .keys()
        .chain(here.keys().filter(|p| !kernel.contains_key(*p)))
    {
        let (want, got) = (kernel.get(path), here.get(path));
        if want == got {
            same += 1;
            continue;
        }
        let mut listed = false;
        for (_, used) in patterns.iter_mut().filter(|(p, _)| matches(p, path)) {
            (listed, *used) = (true, true);
        }
        if !listed {
            wrong.push(format!("{path}\n     kernel {want:?}\n     here   {got:?}"));
        }
    }
    for (pattern, _) in patterns.iter().filter(|(_, used)| !used) {
        wrong.push(format!("{pattern}: nothing differs there any more"));
    }
    println!(
        "section {section}: {same} of {} as in the kernel",
        kernel.len()
    );
    ensure!(wrong.is_empty(), "section {section}:\n{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn an_empty_configuration_looks_like_the_kernels() -> Result<()> {
    let bench = Bench::start("tree-a")?;
    let here = bench.listing()?;
    bench.stop()?;
    compare("A", &here)
}

#[test]
fn the_reference_configuration_looks_like_the_kernels() -> Result<()> {
    let bench = Bench::start("tree-b")?;
    bench.reference()?;
    let addr = bench.driver.add_portal("127.0.0.1:0".parse()?)?;
    let session = bench.login(addr, "init1")?;
    let here = bench.listing()?;
    session.close()?;
    bench.stop()?;
    compare("B", &here)
}

#[test]
fn groups_and_accounts_look_like_the_kernels() -> Result<()> {
    let bench = Bench::start("tree-c")?;
    bench.reference()?;
    let addr = bench.driver.add_portal("127.0.0.1:0".parse()?)?;
    let first = bench.login(addr, "init1")?;
    bench.extra()?;
    let second = bench.login(addr, "init2")?;
    let here = bench.listing()?;
    first.close()?;
    second.close()?;
    bench.stop()?;
    compare("C", &here)
}
