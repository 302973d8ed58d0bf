//! `cargo xtask conformance`: all of iscsi-test-cu on each kind of LUN, and `docs/conformance.md` from the results.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::sh;

const OUT: &str = "target/conformance";
const DOC: &str = "docs/conformance.md";

/// Heading, file below the repository.
const COLUMNS: [(&str, &str); 8] = [
    ("file", "target/conformance/scst-usermode-file.tsv"),
    ("block", "target/conformance/scst-usermode-block.tsv"),
    ("RAM", "target/conformance/scst-usermode-ram.tsv"),
    ("digests", "target/conformance/scst-usermode-digests.tsv"),
    ("kernel SCST", "tests/data/conformance/scst-kernel.tsv"),
    ("LIO", "tests/data/conformance/lio.tsv"),
    ("tgt", "tests/data/conformance/tgt.tsv"),
    ("istgt", "tests/data/conformance/istgt.tsv"),
];

/// Columns that are ours.
const OURS: usize = 4;

const HEAD: &str = "# Conformance

libiscsi's `iscsi-test-cu` 1.19, all 230 tests, made by `cargo xtask conformance`. The first four columns are ours: vdisk_fileio on
a file, vdisk_blockio on a loop device, vdisk_blockio on a RAM disk, the same with header and data digests, 100 MiB each, as
`scstd serve` sets them up. The others were recorded with the same tool: kernel SCST 3.11 and LIO (kernel 6.1) with a file of
100 MB, tgt 1.0.85, istgt 0.4.

A test that prints [SKIPPED] once counts as skipped: most of these ask for tapes, changers, removable or protected media, or
for what the target does not have.
";

type Table = BTreeMap<String, (String, String)>;

/// Runs the tests and writes the document.
pub(crate) fn run() -> Result<()> {
    let out = std::env::current_dir()?.join(OUT);
    fs::create_dir_all(&out)?;
    for (_, file) in COLUMNS.iter().filter(|(_, f)| f.starts_with(OUT)) {
        let _ = fs::remove_file(file);
    }
    let out = out.to_string_lossy().into_owned();
    let tests = [
        "cargo",
        "test",
        "--release",
        "-p",
        "scst-tests",
        "--test",
        "conformance",
        "--",
        "--nocapture",
        "--test-threads=1",
    ];
    let env = [
        ("SCST_CONFORMANCE", "all"),
        ("SCST_CONFORMANCE_OUT", out.as_str()),
    ];
    let result = sh::step("conformance", &tests, &env);
    fs::write(DOC, document()?).context(DOC)?;
    println!("== written to {DOC}");
    result
}

fn read(file: &str) -> Result<Table> {
    if !Path::new(file).exists() {
        println!("{file} is not there: its column stays empty");
        return Ok(Table::new());
    }
    let text = fs::read_to_string(file).with_context(|| file.to_owned())?;
    let mut table = Table::new();
    for line in text.lines().skip(1) {
        let columns: Vec<&str> = line.splitn(3, '\t').collect();
        let [name, result, rest @ ..] = columns.as_slice() else {
            bail!("{file}: {line:?} has no two columns");
        };
        let why = rest.first().copied().unwrap_or_default();
        table.insert((*name).to_owned(), ((*result).to_owned(), why.to_owned()));
    }
    Ok(table)
}

fn document() -> Result<String> {
    let tables = COLUMNS
        .iter()
        .map(|(_, file)| read(file))
        .collect::<Result<Vec<_>>>()?;
    let mut text = HEAD.to_owned();
    let heads: Vec<&str> = COLUMNS.iter().map(|(head, _)| *head).collect();
    let rule = "|---".repeat(COLUMNS.len() + 1);
    write!(text, "\n| | {} |\n{rule}|\n", heads.join(" | "))?;
    for verdict in ["pass", "fail", "skip"] {
        let counts: Vec<String> = tables
            .iter()
            .map(|t| t.values().filter(|(v, _)| v == verdict).count().to_string())
            .collect();
        writeln!(text, "| {verdict} | {} |", counts.join(" | "))?;
    }
    text += "\n## Our failures\n\nWhy each of them is accepted stands in `tests/tests/conformance.rs`.\n\n| test | LUN | first line |\n|---|---|---|\n";
    for ((head, _), table) in COLUMNS.iter().zip(&tables).take(OURS) {
        for (name, (_, why)) in table.iter().filter(|(_, (v, _))| v == "fail") {
            writeln!(text, "| {name} | {head} | {} |", why.replace('|', "\\|"))?;
        }
    }
    let names: BTreeSet<&String> = tables.iter().flat_map(BTreeMap::keys).collect();
    write!(
        text,
        "\n## All tests\n\n| test | {} |\n{rule}|\n",
        heads.join(" | ")
    )?;
    for name in names {
        let cells: Vec<&str> = tables
            .iter()
            .map(|t| t.get(name).map_or("", |(v, _)| v.as_str()))
            .collect();
        writeln!(text, "| {name} | {} |", cells.join(" | "))?;
    }
    Ok(text)
}
