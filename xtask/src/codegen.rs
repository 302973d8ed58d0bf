//! `cargo xtask codegen`: makes `backstores/src/tcmur/abi.rs` from `backstores/abi/tcmu-runner.h` with the program
//! `bindgen` (Debian package of that name). The result is committed: building needs neither bindgen nor libclang.

use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// What it is made from.
const HEADER: &str = "backstores/abi/tcmu-runner.h";
/// What is made.
const OUTPUT: &str = "backstores/src/tcmur/abi.rs";
/// Above what bindgen writes.
const PREFACE: &str = "\
//! The C interface to handler plug-ins of tcmu-runner 1.5.4, made from `backstores/abi/tcmu-runner.h` by
//! `cargo xtask codegen`. Do not edit.
#![allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    unreachable_pub,
    clippy::all,
    reason = \"names and shape are those of the C header\"
)]

";

/// What to do with the result.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Write it.
    Write,
    /// Fail when it is not what is committed.
    Check,
}

/// Makes or checks the bindings.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let types = "tcmu_status|tcmulib_cmd|tcmur_cmd|tcmur_handler|tcmur_device|tcmur_lock_state|tcmulib_cfg_type|iovec";
    let made = sh::output(&[
        "bindgen",
        HEADER,
        "--no-layout-tests",
        "--no-doc-comments",
        "--ctypes-prefix=std::ffi",
        "--default-enum-style=consts",
        "--no-prepend-enum-name",
        "--allowlist-type",
        types,
        "--allowlist-var",
        "TCMU_SENSE_LEN",
    ])
    .context(
        "bindgen (Debian: bindgen, libclang1-14; LIBCLANG_PATH may have to name its folder)",
    )?;
    // The first line names bindgen's version.
    let body = made
        .split_once("\n\n")
        .map_or(made.as_str(), |(_, body)| body);
    let path = sh::top().join(OUTPUT);
    let old = fs::read_to_string(&path).unwrap_or_default();
    fs::write(&path, format!("{PREFACE}{body}"))?;
    sh::output(&["rustfmt", "--edition", "2024", OUTPUT])?;
    let new = fs::read_to_string(&path)?;
    if mode == Mode::Check && new != old {
        fs::write(&path, old)?;
        bail!("{OUTPUT} is not what {HEADER} gives: run `cargo xtask codegen`");
    }
    Ok(())
}
