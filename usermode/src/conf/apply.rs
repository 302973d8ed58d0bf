//! Doing what a plan says, and telling.

use std::io::Write;

use kshim::error::{Error, code};
use kshim::kobject::tree::TreeOps;

use super::Options;
use super::object;
use super::op::{Failed, Op, Stores, value_is};
use super::plan::{Plan, Step, Unless};

/// What became of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Remarks and warnings.
    pub remarks: Vec<String>,
    /// What was done.
    pub applied: Vec<String>,
    /// What did not work, each with the reason.
    pub failed: Vec<String>,
    /// What was not tried any more.
    pub not_applied: Vec<String>,
    /// The sentence about the failure that ended it, if one did.
    pub fatal: Option<String>,
}

impl Report {
    /// True when all of it was done.
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.fatal.is_none()
    }
}

/// What a failed operation is called: SCST's sentence where it has one.
pub(crate) fn sentence(failed: Failed) -> String {
    let text = failed.failure.text;
    if text.is_empty() {
        return super::strerror(failed.errno);
    }
    text.to_owned()
}

/// The name of an errno in brackets, as it is told on standard error.
pub(crate) fn errno_tag(e: Error) -> String {
    format!(
        "({}) ",
        e.name()
            .map_or_else(|| e.errno().to_string(), str::to_owned)
    )
}

/// What sentences say whose reason is only in the errno.
const SEE_LOG: &str = "dmesg";

/// One operation, told while it is done. Why a store failed is told on `err`.
///
/// Context: may sleep.
pub(crate) fn run_op(
    op: &Op,
    tree: &dyn TreeOps,
    stores: Stores,
    tell: &mut Tell<'_>,
) -> Result<(), Failed> {
    tell.out(&format!("\t-> {}: ", op.describe()));
    let result = op.run(tree, stores, tell.out);
    match (&result, op) {
        (Ok(()), _) => {}
        (Err(failed), Op::SetAttr { .. }) => tell.err(&errno_tag(failed.errno)),
        // Here the log of a kernel has nothing to add.
        (Err(failed), _) if failed.failure.text.contains(SEE_LOG) => {
            let why = super::strerror(failed.errno);
            tell.err(&format!("scstadmin: {}: {why}\n", op.describe()));
        }
        (Err(_), _) => {}
    }
    tell.out("done.\n");
    result
}

/// Where progress is told.
pub(crate) struct Tell<'a> {
    pub(crate) out: &'a mut dyn Write,
    pub(crate) err: &'a mut dyn Write,
}

impl Tell<'_> {
    /// A reader that has gone away is no reason to fail.
    pub(crate) fn out(&mut self, text: &str) {
        let _ = self.out.write_all(text.as_bytes());
        let _ = self.out.flush();
    }

    fn err(&mut self, text: &str) {
        let _ = self.err.write_all(text.as_bytes());
    }
}

/// Executes a plan.
///
/// Context: may sleep.
pub(crate) fn apply(
    plan: &Plan,
    tree: &dyn TreeOps,
    options: &Options,
    tell: &mut Tell<'_>,
) -> Report {
    let mut report = Report::default();
    for step in &plan.steps {
        let (op, unless) = match step {
            Step::Say(line) => {
                tell.out(line);
                report.remarks.push(line.trim().to_owned());
                continue;
            }
            Step::Do(op, unless) => (op, *unless),
        };
        if report.fatal.is_some() {
            report.not_applied.push(op.describe());
            continue;
        }
        if is_done(op, unless, tree) {
            continue;
        }
        match run_checked(op, unless, tree, options.stores, tell) {
            Ok(()) => report.applied.push(op.describe()),
            Err(failed) => {
                let what = sentence(failed);
                report
                    .failed
                    .push(format!("{}: {what} ({})", op.describe(), failed.errno));
                if !op.is_fatal() {
                    tell.out(&format!(
                        "\n\nWARNING: Received the following error:\n\n\t{what}\n\n"
                    ));
                } else if options.cont_on_err {
                    tell.out(&format!("{what}\n"));
                } else {
                    report.fatal = Some(what);
                }
            }
        }
    }
    report
}

/// What a new object has is known only now, and so is what it lacks.
fn run_checked(
    op: &Op,
    unless: Unless,
    tree: &dyn TreeOps,
    stores: Stores,
    tell: &mut Tell<'_>,
) -> Result<(), Failed> {
    let result = run_op(op, tree, stores, tell);
    match (&result, op) {
        // Removed meanwhile, by a session or device that went: what was wanted is so.
        (Err(failed), Op::RemoveLun { tgt, group, lun }) if unless == Unless::Never => {
            let gone =
                failed.errno == code::ENOENT && !object::has_lun(tree, tgt, group.as_deref(), lun);
            if gone { Ok(()) } else { result }
        }
        _ => result,
    }
}

/// True when a planned change is not needed after all.
fn is_done(op: &Op, unless: Unless, tree: &dyn TreeOps) -> bool {
    match (unless, op) {
        (
            Unless::Equal,
            Op::SetAttr {
                object,
                attr,
                value,
            },
        ) => value_is(tree, object, attr, value),
        (
            Unless::LunExists,
            Op::AddLun {
                tgt, group, lun, ..
            },
        ) => object::has_lun(tree, tgt, group.as_deref(), lun),
        _ => false,
    }
}
