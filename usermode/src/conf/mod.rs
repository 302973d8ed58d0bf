//! `scst.conf`: reading it, comparing it with a running server, applying the difference, writing it.
//!
//! [`apply_file`] does all of it: parse ([`syntax`], [`model`]), check, plan, apply. Nothing is changed before the whole file
//! was found good, unless the caller wants to go on after errors. [`write_config`] is the other direction. Both work on any
//! [`TreeOps`]: the server's own, one behind a control socket, or a mounted one.
#![doc(alias = "scst.conf")]

pub(crate) mod access;
mod apply;
pub(crate) mod attr;
mod check;
mod diagnose;
pub mod failure;
mod known;
pub mod live;
pub mod model;
pub mod object;
mod old;
pub(crate) mod op;
mod place;
pub(crate) mod plan;
pub mod syntax;
mod undo;
pub mod writer;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io::Write;
use std::path::Path;

use kshim::error::Error;
use kshim::kobject::tree::TreeOps;

pub use access::SYSFS_ROOT;
pub use apply::Report;
pub(crate) use apply::{Tell, reason, run_op, sentence};
use live::Live;
pub use live::{NonKey, write_config};
use model::Config;
pub use op::Stores;
pub use plan::Removals;
use plan::{Plan, Step};
use syntax::Problem;

/// A longer configuration file is refused, in bytes.
const FILE_MAX: usize = 64 << 20;

/// How a configuration is applied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// What becomes of what is not in the file.
    pub removals: Removals,
    /// Go on after errors (`-cont_on_err`): what can be applied is.
    pub cont_on_err: bool,
    /// Plan, and change nothing.
    pub dry_run: bool,
    /// Whether stores are made.
    pub stores: Stores,
}

/// Why a configuration was not applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfError {
    /// The file cannot be read.
    Unreadable(String, Error),
    /// The text is wrong, or does not fit the server: each line names file, line and column.
    Wrong(Vec<String>),
    /// The check found errors, which were told.
    Check(usize),
    /// The server cannot be read.
    Server(String),
    /// The file says nothing.
    Empty,
}

impl fmt::Display for ConfError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfError::Unreadable(path, e) => {
                write!(
                    f,
                    "Unable to open configuration file '{path}': {}",
                    strerror(*e)
                )
            }
            ConfError::Wrong(lines) => f.write_str(&lines.join("\n\t")),
            ConfError::Check(n) => write!(f, "Configuration has errors, aborting. ({n})"),
            ConfError::Server(what) => f.write_str(what),
            ConfError::Empty => f.write_str("Configuration is empty"),
        }
    }
}

impl std::error::Error for ConfError {}

/// The host's sentence for an errno.
pub(crate) fn strerror(e: Error) -> String {
    let text = std::io::Error::from_raw_os_error(e.errno()).to_string();
    let end = text.find(" (os error").unwrap_or(text.len());
    text.get(..end).unwrap_or(&text).to_owned()
}

/// Reads a configuration file, of today's or the obsolete kind.
///
/// Context: may sleep.
///
/// # Errors
///
/// It cannot be read; everything that is wrong with its text.
pub(crate) fn read_file(
    tree: &dyn TreeOps,
    path: &Path,
    out: &mut dyn Write,
) -> Result<Config, ConfError> {
    let name = path.display().to_string();
    let bytes =
        kshim::fs::read_head(path, FILE_MAX).map_err(|e| ConfError::Unreadable(name.clone(), e))?;
    let wrong = |problems: Vec<Problem>| {
        ConfError::Wrong(problems.iter().map(|p| p.in_file(&name)).collect())
    };
    let text = String::from_utf8(bytes).map_err(|e| wrong(vec![not_utf8(&e)]))?;
    if old::is_old(&text) {
        // A reader that has gone away is no reason to fail.
        let _ = out.write_all(old::NOTE.as_bytes());
        return old::convert(&text, tree, out).map_err(ConfError::Server);
    }
    Config::parse(&text).map_err(wrong)
}

fn not_utf8(e: &std::string::FromUtf8Error) -> Problem {
    let good = e
        .as_bytes()
        .get(..e.utf8_error().valid_up_to())
        .unwrap_or_default();
    let good = String::from_utf8_lossy(good);
    let line = good.matches('\n').count() + 1;
    let col = good.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    let pos = syntax::Pos {
        line: u32::try_from(line).unwrap_or(u32::MAX),
        col: u32::try_from(col).unwrap_or(u32::MAX),
    };
    Problem::at(pos, "this is not UTF-8")
}

/// A file that was read and checked against a server, with the plan to apply it.
pub(crate) struct Prepared {
    /// The file.
    pub(crate) name: String,
    pub(crate) config: Config,
    pub(crate) plan: Plan,
    /// Errors of the check and of the plan, when they do not stop it.
    pub(crate) errors: usize,
}

/// Reads, checks and plans; tells what SCST's scstadmin tells.
///
/// Context: may sleep.
///
/// # Errors
///
/// As [`apply_file`].
pub(crate) fn prepare(
    tree: &dyn TreeOps,
    live: &Live,
    path: &Path,
    options: &Options,
    out: &mut dyn Write,
) -> Result<Prepared, ConfError> {
    let name = path.display().to_string();
    // A reader that has gone away is no reason to fail, here and below.
    let _ = writeln!(out, "-> Checking configuration file '{name}' for errors.");
    let mut config = read_file(tree, path, out)?;
    if config.is_empty() {
        let _ = out.write_all(b"-> WARNING: Configuration is empty or unreadable, aborting.\n\n");
        return Err(ConfError::Empty);
    }
    let counts = check::check(&mut config, live, out);
    let mut plan = plan::plan(tree, live, &config, options.removals);
    plan.problems.truncate(model::PROBLEMS_MAX);
    for problem in &plan.problems {
        let _ = writeln!(out, "\t-> FATAL: {}", problem.in_file(&name));
    }
    let errors = counts.errors + plan.problems.len();
    if errors > 0 {
        let _ = writeln!(out, "\t-> Done, {errors} errors found.");
        if !options.cont_on_err {
            let lines: Vec<String> = plan.problems.iter().map(|p| p.in_file(&name)).collect();
            return Err(if lines.is_empty() {
                ConfError::Check(errors)
            } else {
                ConfError::Wrong(lines)
            });
        }
    } else {
        let _ = write!(out, "\t-> Done, {} warnings found.\n\n", counts.warnings);
    }
    Ok(Prepared {
        name,
        config,
        plan,
        errors,
    })
}

/// Makes a server what a configuration file says, telling on `out` and `err` what SCST's scstadmin tells.
///
/// Context: may sleep.
///
/// # Errors
///
/// Why nothing was changed. What fails midway is in the report.
pub fn apply_file_telling(
    tree: &dyn TreeOps,
    path: &Path,
    options: &Options,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Result<Report, ConfError> {
    let live = Live::read(tree).map_err(ConfError::Server)?;
    let prepared = prepare(tree, &live, path, options, out)?;
    Ok(apply_prepared(tree, &prepared, options, out, err))
}

/// Executes what [`prepare`] found; with `dry_run` only shows it.
pub(crate) fn apply_prepared(
    tree: &dyn TreeOps,
    prepared: &Prepared,
    options: &Options,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> Report {
    let plan = &prepared.plan;
    let mut tell = Tell { out, err };
    if options.dry_run {
        return show(plan, &mut tell);
    }
    tell.out("-> Applying configuration.\n");
    let report = apply::apply(prepared, tree, options, &mut tell);
    if report.fatal.is_none() {
        tell.out(&format!("\t-> Done, {} change(s) made.\n", report.counted));
    }
    report
}

fn show(plan: &Plan, tell: &mut Tell<'_>) -> Report {
    tell.out("-> Plan, nothing is changed.\n");
    let mut report = Report::default();
    for step in &plan.steps {
        match step {
            Step::Say(line) => {
                tell.out(line);
                report.remarks.extend(apply::remark(line));
            }
            Step::Do(op, _) => {
                tell.out(&format!("\t-> {}\n", op.describe()));
                report.not_applied.push(op.describe());
            }
        }
    }
    tell.out(&format!(
        "\t-> Done, {} change(s) to make.\n",
        report.not_applied.len()
    ));
    report
}

/// Makes a server what a configuration file says.
///
/// Context: may sleep.
///
/// # Errors
///
/// Why nothing was changed. What fails midway is in the report.
pub fn apply_file(tree: &dyn TreeOps, path: &Path, options: &Options) -> Result<Report, ConfError> {
    apply_file_telling(
        tree,
        path,
        options,
        &mut std::io::sink(),
        &mut std::io::sink(),
    )
}
