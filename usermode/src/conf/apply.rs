//! Doing what a plan says, and telling.

use std::io::Write;

use kshim::error::{Error, code};
use kshim::kobject::tree::TreeOps;

use super::object::{self, Object};
use super::op::{Failed, Op, Stores, value_is};
use super::place::place_of;
use super::plan::{Step, Unless};
use super::undo::{Inverse, inverse};
use super::{Options, Prepared};

/// What became of a plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Remarks and warnings.
    pub remarks: Vec<String>,
    /// What was done, and not taken back.
    pub applied: Vec<String>,
    /// What did not work, each with the place in the file and the reason.
    pub failed: Vec<String>,
    /// What was not tried any more.
    pub not_applied: Vec<String>,
    /// How many changes there are in SCST's scstadmin's count: LUNs of the copy manager that are there already are some,
    /// attributes of drivers are none.
    pub counted: usize,
    /// How many changes were taken back after a failure.
    pub undone: usize,
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
fn errno_tag(e: Error) -> String {
    format!(
        "({}) ",
        e.name()
            .map_or_else(|| e.errno().to_string(), str::to_owned)
    )
}

/// What sentences say whose reason is only in the errno.
const SEE_LOG: &str = "dmesg";

/// What is told on standard error where SCST's sentence sends the reader to the log of a kernel.
pub(crate) fn reason(op: &Op, failed: Failed) -> Option<String> {
    let told = matches!(op, Op::SetAttr { .. });
    let why = || format!("{}: {}", op.describe(), super::strerror(failed.errno));
    (!told && failed.failure.text.contains(SEE_LOG)).then(why)
}

/// One operation, told while it is done. Only where stores of attributes fail the errno is told too, on `err`.
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
    if let (Err(failed), Op::SetAttr { .. }) = (&result, op) {
        tell.err(&errno_tag(failed.errno));
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

    pub(crate) fn err(&mut self, text: &str) {
        let _ = self.err.write_all(text.as_bytes());
    }
}

/// Executes a plan. After a failure that ends it, all is taken back, if nothing was removed.
///
/// Context: may sleep.
pub(crate) fn apply(
    prepared: &Prepared,
    tree: &dyn TreeOps,
    options: &Options,
    tell: &mut Tell<'_>,
) -> Report {
    let mut run = Run {
        prepared,
        tree,
        options,
        report: Report::default(),
        back: Vec::new(),
    };
    for step in &prepared.plan.steps {
        match step {
            Step::Say(line) => {
                tell.out(line);
                run.report.remarks.extend(remark(line));
            }
            Step::Do(op, _) if run.report.fatal.is_some() => {
                run.report.not_applied.push(op.describe());
            }
            Step::Do(op, unless) if is_done(op, *unless, tree) => {
                run.report.counted += usize::from(*unless == Unless::LunExists);
            }
            Step::Do(op, unless) => run.step(op, *unless, tell),
        }
    }
    if run.report.fatal.is_some() {
        run.undo();
    }
    run.report
}

fn is_counted(op: &Op) -> bool {
    !matches!(op, Op::SetAttr { object: Object::Driver(_), attr, .. } if attr != "enabled")
}

/// What of a line of progress is a remark.
pub(crate) fn remark(line: &str) -> Option<String> {
    let line = line.trim();
    line.starts_with("->").then(|| line.to_owned())
}

struct Run<'a> {
    prepared: &'a Prepared,
    tree: &'a dyn TreeOps,
    options: &'a Options,
    report: Report,
    /// What takes back what was done, the first first.
    back: Vec<Inverse>,
}

impl Run<'_> {
    fn step(&mut self, op: &Op, unless: Unless, tell: &mut Tell<'_>) {
        let back = match self.options.cont_on_err {
            true => Inverse::None,
            false => inverse(op, self.tree),
        };
        match run_checked(op, unless, self.tree, self.options.stores, tell) {
            Ok(()) => {
                self.report.applied.push(op.describe());
                self.report.counted += usize::from(is_counted(op));
                self.back.push(back);
            }
            Err(failed) => self.failed(op, failed, tell),
        }
    }

    fn failed(&mut self, op: &Op, failed: Failed, tell: &mut Tell<'_>) {
        let what = sentence(failed);
        let place = match place_of(op, &self.prepared.config) {
            Some(pos) => format!("{}:{}:{}", self.prepared.name, pos.line, pos.col),
            None => self.prepared.name.clone(),
        };
        let why = super::strerror(failed.errno);
        let line = format!("{place}: {}: {why}", op.describe());
        if reason(op, failed).is_some() {
            tell.err(&format!("{line}\n"));
        }
        self.report.failed.push(line);
        if !op.is_fatal() {
            tell.out(&format!(
                "\n\nWARNING: Received the following error:\n\n\t{what}\n\n"
            ));
        } else if self.options.cont_on_err {
            tell.out(&format!("{what}\n"));
        } else {
            self.report.fatal = Some(what);
        }
    }

    /// Takes back what was done, the last first; nothing if something was removed.
    fn undo(&mut self) {
        if self.back.contains(&Inverse::None) {
            return;
        }
        while let Some(back) = self.back.pop() {
            let Inverse::Op(op) = back else {
                self.report.applied.pop();
                continue;
            };
            let done = op.run(self.tree, self.options.stores, &mut std::io::sink());
            match done {
                Ok(()) => self.report.undone += 1,
                // An attribute of something new goes with it.
                Err(_) if matches!(*op, Op::SetAttr { .. }) => {}
                Err(failed) => {
                    let why = super::strerror(failed.errno);
                    let line = format!("{}: {}: {why}", self.prepared.name, op.describe());
                    self.report.failed.push(line);
                    return;
                }
            }
            self.report.applied.pop();
        }
    }
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
