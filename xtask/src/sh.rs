//! Runs one command as a named step and reports how long it took.

use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

/// The workspace's top folder.
pub(crate) fn top() -> PathBuf {
    let mut p = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    p.pop();
    p
}

/// Runs `argv` in the workspace's top folder with `env` added; fails when it does not exit with 0.
pub(crate) fn step(name: &str, argv: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let (program, args) = argv.split_first().context("empty command")?;
    let shown: String = env.iter().map(|(k, v)| format!("{k}='{v}' ")).collect();
    println!("== {name}: {shown}{}", argv.join(" "));
    let start = Instant::now();
    let status = Command::new(program)
        .args(args)
        .envs(env.iter().copied())
        .current_dir(top())
        .status()
        .with_context(|| format!("{name}: cannot run {program}"))?;
    let took = start.elapsed().as_secs_f64();
    if !status.success() {
        bail!("{name} failed after {took:.1} s ({status})");
    }
    println!("== {name}: ok in {took:.1} s");
    Ok(())
}

/// Runs `argv` and returns its standard output.
pub(crate) fn output(argv: &[&str]) -> Result<String> {
    let (program, args) = argv.split_first().context("empty command")?;
    let out = Command::new(program)
        .args(args)
        .current_dir(top())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    if !out.status.success() {
        bail!(
            "{} failed: {}",
            argv.join(" "),
            String::from_utf8_lossy(&out.stderr).trim()
        );
    }
    Ok(String::from_utf8(out.stdout)?)
}
