//! House tasks: `cargo xtask ci`, `cargo xtask tidy`, `cargo xtask nightly`, `cargo xtask prepush`,
//! `cargo xtask bench`.
//!
//! `ci` is what `.ci/run` calls after it has installed the tools; `tidy` is the house checks alone;
//! `nightly` is the second test tier: the same tests with larger numbers.
#![forbid(unsafe_code)]

mod api_map;
mod bench;
mod codegen;
mod conformance;
mod lex;
mod licences;
mod man;
mod nightly;
mod sh;
mod tidy;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask <task>

  ci               fmt, clippy, rustdoc (warnings are errors), tidy, licences, tests
  prepush          the same without the integration tests
  tidy [--bless]   house checks; --bless rewrites docs/unsafe.tsv from the tree
  licences         hold the licences and sources of all crates against deny.toml
  api-map [--check] make (or compare) docs/kernel-api-map.md from the doc aliases of kshim
  codegen [--check] make (or compare) the Rust side of backstores/abi/tcmu-runner.h; needs bindgen
  nightly [--budget MINUTES] [PART..]
                   second test tier, with limits of time and a summary; default: all parts, which are
                   {parts}
  man [DIR]        manual pages and completions for shells, in target/generated or DIR
  conformance      all of iscsi-test-cu on each kind of LUN; writes docs/conformance.md
  bench [OPTION..] measure against the floor and peers; `bench --help` tells more";

fn main() -> ExitCode {
    match run(&std::env::args().skip(1).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("xtask: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["ci"] => ci(),
        ["prepush"] => prepush(),
        ["tidy"] => tidy::check(tidy::Ledger::Check),
        ["tidy", "--bless"] => tidy::check(tidy::Ledger::Rewrite),
        ["licences"] => licences::check(),
        ["codegen"] => codegen::run(codegen::Mode::Write),
        ["codegen", "--check"] => codegen::run(codegen::Mode::Check),
        ["api-map"] => api_map::run(api_map::Mode::Write),
        ["api-map", "--check"] => api_map::run(api_map::Mode::Check),
        ["nightly", parts @ ..] => nightly::run(parts),
        ["man"] => man::run(None),
        ["man", dir] => man::run(Some(dir)),
        ["conformance"] => conformance::run(),
        ["bench", options @ ..] => bench::run(options),
        [] | ["help" | "-h" | "--help"] => {
            println!("{}", usage());
            Ok(())
        }
        other => bail!("unknown task {:?}\n{}", other.join(" "), usage()),
    }
}

fn usage() -> String {
    USAGE.replace("{parts}", &nightly::names())
}

/// All that a change must pass.
fn ci() -> Result<()> {
    house()?;
    // The README's test command, word for word; properties are tried with the same values each time, nightly with others.
    let fixed = [("PROPTEST_RNG_SEED", "1")];
    sh::step("tests", &["cargo", "test", "--workspace"], &fixed)?;
    fuzz_a_minute()?;
    bench::instructions_for_information();
    Ok(())
}

/// A minute of fuzzing, of which whole connections get most.
fn fuzz_a_minute() -> Result<()> {
    for (entry, seconds) in [
        ("pdus", "5"),
        ("login", "10"),
        ("text", "5"),
        ("conf", "5"),
        ("connection", "40"),
    ] {
        let argv = [
            "cargo",
            "run",
            "-q",
            "-p",
            "scst-fuzz",
            "--",
            entry,
            seconds,
        ];
        sh::step("fuzz", &argv, &[])?;
    }
    Ok(())
}

fn prepush() -> Result<()> {
    house()?;
    let fast = ["cargo", "test", "--workspace", "--exclude", "scst-tests"];
    sh::step("fast tests", &fast, &[])
}

fn house() -> Result<()> {
    sh::step("rustfmt", &["cargo", "fmt", "--all", "--check"], &[])?;
    tidy::check(tidy::Ledger::Check)?;
    api_map::run(api_map::Mode::Check)?;
    licences::check()?;
    let clippy = [
        "cargo",
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ];
    sh::step("clippy", &clippy, &[])?;
    let doc = [
        "cargo",
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ];
    sh::step("rustdoc", &doc, &[("RUSTDOCFLAGS", "-D warnings")])
}
