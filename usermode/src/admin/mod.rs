//! `scstadmin`: the management of a running server from the command line, with the options, the output and the exit codes of
//! SCST's scstadmin.
//!
//! [`run`] is the whole program on any tree; the binary gives it the tree behind a control socket.
#![doc(alias = "scstadmin")]

mod change;
mod generate;
mod getopt;
mod list;
mod options;
mod rules;
mod table;

#[cfg(test)]
mod tests;

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};

use kshim::kobject::tree::TreeOps;
use serde_json::{Value, json};

use crate::conf::live::Live;
use crate::conf::object::{Object, Tgt};
use crate::conf::op::{Failed, Op};
use crate::conf::writer::{self};
use crate::conf::{self, ConfError, Options, Removals, Stores, Tell};
use getopt::Parsed;

/// The configuration file when none is named.
pub const DEFAULT_CONFIG: &str = "/etc/scst.conf";

/// The end of the program before its end, with this exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exit(i32);

/// The exit code of an operation.
type Done = Result<i32, Exit>;

/// Standard streams.
pub struct Streams<'a> {
    /// Where answers are asked for.
    pub input: &'a mut dyn BufRead,
    /// Standard output.
    pub out: &'a mut dyn Write,
    /// Standard error.
    pub err: &'a mut dyn Write,
}

/// A command line that was read.
pub struct CommandLine {
    opts: Parsed,
}

impl CommandLine {
    /// Reads it; tells what is wrong, or the help.
    ///
    /// # Errors
    ///
    /// The exit code with which the program ends here.
    pub fn read(args: &[String], streams: &mut Streams<'_>) -> Result<CommandLine, i32> {
        // A reader that has gone away is no reason to fail, here and below.
        let opts = getopt::parse(args).map_err(|lines| {
            let _ = writeln!(streams.err, "{}", lines.join("\n"));
            1
        })?;
        if opts.has("h") || opts.has("help") {
            let _ = streams.out.write_all(generate::help().as_bytes());
            return Err(0);
        }
        if let Some(kind) = opts.get("generate") {
            let Some(text) = generate::text(kind) else {
                let _ = writeln!(
                    streams.err,
                    "scstadmin: -generate takes man, bash, zsh or fish"
                );
                return Err(1);
            };
            let _ = streams.out.write_all(text.as_bytes());
            return Err(0);
        }
        if opts.has("events") {
            return Ok(CommandLine { opts });
        }
        rules::check(&opts).map_err(|line| {
            let _ = writeln!(streams.out, "{line}");
            1
        })?;
        Ok(CommandLine { opts })
    }

    /// The events that it wants to follow, if it wants to; none stands for all.
    pub fn events(&self) -> Option<Vec<String>> {
        let names = self.opts.get("events").unwrap_or_default().split(',');
        let names = names.filter(|n| !n.is_empty()).map(str::to_owned);
        self.opts.has("events").then(|| names.collect())
    }

    /// The control socket that it names.
    pub fn control(&self) -> Option<PathBuf> {
        self.opts.get("control").map(PathBuf::from)
    }

    /// The directory with the tree that it names.
    pub fn sysfs(&self) -> Option<PathBuf> {
        self.opts.get("sysfs").map(PathBuf::from)
    }
}

/// Does what a command line says; returns the exit code.
///
/// Context: may sleep.
pub fn run(line: CommandLine, tree: &dyn TreeOps, streams: &mut Streams<'_>) -> i32 {
    let json = line.opts.has("json");
    let mut admin = Admin {
        json,
        stores: if line.opts.has("debug") {
            Stores::Show
        } else {
            Stores::Make
        },
        opts: line.opts,
        tree,
        live: Live::default(),
        input: streams.input,
        out: streams.out,
        err: streams.err,
    };
    match admin.main() {
        Ok(code) | Err(Exit(code)) => code,
    }
}

struct Admin<'a> {
    opts: Parsed,
    json: bool,
    stores: Stores,
    tree: &'a dyn TreeOps,
    live: Live,
    input: &'a mut dyn BufRead,
    out: &'a mut dyn Write,
    err: &'a mut dyn Write,
}

impl Admin<'_> {
    /// Prints, unless the answer is to be JSON.
    fn print(&mut self, text: &str) {
        if !self.json {
            let _ = self.out.write_all(text.as_bytes());
            let _ = self.out.flush();
        }
    }

    fn answer(&mut self, value: &Value) -> Done {
        let _ = writeln!(self.out, "{value}");
        Ok(0)
    }

    /// The value of an option, empty when it was not given.
    fn opt(&self, name: &str) -> String {
        self.opts.get(name).unwrap_or_default().to_owned()
    }

    fn complain(&mut self, text: &str) {
        if self.json {
            let _ = self.err.write_all(text.trim_start().as_bytes());
        }
        self.print(text);
    }

    fn warning(&mut self, text: &str) -> Done {
        self.complain(&format!(
            "\n\nWARNING: Received the following error:\n\n\t{text}\n\n"
        ));
        Ok(1)
    }

    fn fatal<T>(&mut self, text: &str) -> Result<T, Exit> {
        self.complain(&format!(
            "\n\nFATAL: Received the following error:\n\n\t{text}\n\n"
        ));
        Err(Exit(1))
    }

    fn fatal_unless_going_on(&mut self, text: &str) -> Result<(), Exit> {
        if self.opts.has("cont_on_err") {
            self.print(&format!("{text}\n"));
            return Ok(());
        }
        self.fatal(text)
    }

    /// The failure as a warning, and its number as the exit code.
    fn fail_code(&mut self, failed: Failed) -> Done {
        self.print("\t-> Done.\n");
        let text = conf::sentence(failed);
        self.warning(&text)?;
        self.print("\nAll done.\n");
        Err(Exit(i32::from(failed.failure.code)))
    }

    /// One operation, told.
    fn run(&mut self, op: &Op) -> Result<(), Failed> {
        let mut nowhere = std::io::sink();
        let out: &mut dyn Write = if self.json { &mut nowhere } else { self.out };
        let mut tell = Tell { out, err: self.err };
        let done = conf::run_op(op, self.tree, self.stores, &mut tell);
        if let Err(failed) = &done
            && let Some(why) = conf::reason(op, *failed)
        {
            tell.err(&format!("{why}\n"));
        }
        done
    }

    /// Asks whether a change is wanted.
    fn agreed(&mut self) -> bool {
        if self.opts.has("noprompt") {
            return true;
        }
        self.print(
            "Performing this action may result in lost or corrupt data, are you sure you wish to continue \
             (y/[n]) ? ",
        );
        let mut answer = String::new();
        let read = self.input.read_line(&mut answer).is_ok();
        if read && matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            return true;
        }
        self.print("Aborting action.\n");
        false
    }

    /// The objects that options of one verb name: `list_dev_attr` and its kin.
    fn objects_of(&self, verb: &str) -> Vec<Object> {
        let tgt = || Tgt::new(&self.opt("driver"), &self.opt("target"));
        let mut objects = Vec::new();
        for kind in [
            "scst", "hnd", "dev", "drv", "tgt", "grp", "lun", "init", "dgrp", "tgrp", "ttgt",
        ] {
            let Some(name) = self.opts.get(&format!("{verb}_{kind}_attr")) else {
                continue;
            };
            let name = name.to_owned();
            let group = Some(self.opt("group")).filter(|g| !g.is_empty());
            objects.push(match kind {
                "scst" => Object::Scst,
                "hnd" => Object::Handler(name),
                "dev" => Object::Device(name),
                "drv" => Object::Driver(name),
                "tgt" => Object::Target(Tgt::new(&self.opt("driver"), &name)),
                "grp" => Object::Group(tgt(), name),
                "lun" => Object::Lun(tgt(), group, name),
                "init" => Object::Initiator(tgt(), self.opt("group"), name),
                "dgrp" => Object::DeviceGroup(name),
                "tgrp" => Object::TargetGroup(self.opt("dev_group"), name),
                _ => Object::TargetGroupTarget(self.opt("dev_group"), self.opt("tgt_group"), name),
            });
        }
        objects
    }

    fn main(&mut self) -> Done {
        self.print("\nCollecting current configuration: ");
        self.live = match Live::read(self.tree) {
            Ok(live) => live,
            Err(text) => return self.fatal(&text),
        };
        self.print("done.\n\n");
        if let Some((initiator, driver)) = self.live.ambiguous_initiator()
            && !self.opts.has("force")
        {
            self.print(&format!(
                "\t-> FATAL: Initiator '{initiator}' belongs to more than one groups for driver/target \
                 '{driver}/target', aborting. Use -force to override.\n"
            ));
            return Err(Exit(1));
        }
        let done = self
            .configuration()
            .or_else(|| self.queries())
            .or_else(|| self.changes());
        let code = match done {
            Some(done) => done?,
            None if self.opts.has("dumpAttrs") => self.dump(),
            None => {
                self.print("No valid operations specified.\n");
                return Err(Exit(1));
            }
        };
        self.print("\nAll done.\n");
        Ok(code)
    }

    /// Operations on configuration files.
    fn configuration(&mut self) -> Option<Done> {
        let named = |name: &str| match self.opts.get(name) {
            Some("") => Some(DEFAULT_CONFIG.to_owned()),
            other => other.map(str::to_owned),
        };
        if let Some(path) = named("config") {
            return Some(self.apply(Path::new(&path)));
        }
        if let Some(path) = named("check_config") {
            return Some(self.check(Path::new(&path)));
        }
        if let Some(path) = named("write_config") {
            return Some(self.save(Path::new(&path)));
        }
        if self.opts.has("clear_config") {
            return Some(if self.agreed() { self.clear() } else { Ok(0) });
        }
        None
    }

    fn options(&self) -> Options {
        Options {
            removals: if self.opts.has("force") {
                Removals::Remove
            } else {
                Removals::Remark
            },
            cont_on_err: self.opts.has("cont_on_err"),
            dry_run: self.opts.has("dry-run"),
            stores: self.stores,
        }
    }

    fn prepare(&mut self, path: &Path) -> Result<conf::Prepared, Exit> {
        let options = self.options();
        let mut nowhere = std::io::sink();
        let out: &mut dyn Write = if self.json { &mut nowhere } else { self.out };
        match conf::prepare(self.tree, &self.live, path, &options, out) {
            Ok(prepared) => Ok(prepared),
            Err(ConfError::Empty) => Err(Exit(0)),
            Err(ConfError::Check(_)) => self.fatal("Configuration has errors, aborting."),
            Err(e) => self.fatal(&e.to_string()),
        }
    }

    fn apply(&mut self, path: &Path) -> Done {
        let options = self.options();
        let prepared = self.prepare(path)?;
        if prepared.errors > 0 {
            self.print("Configuration has errors, aborting.\n");
        }
        let asks = options.removals == Removals::Remove && !options.dry_run;
        if asks && !self.agreed() {
            return Ok(i32::from(prepared.errors > 0));
        }
        let mut nowhere = std::io::sink();
        let out: &mut dyn Write = if self.json { &mut nowhere } else { self.out };
        let report = conf::apply_prepared(self.tree, &prepared, &options, out, self.err);
        if self.json {
            self.answer(&json!({
                "applied": report.applied,
                "failed": report.failed,
                "not_applied": report.not_applied,
                "remarks": report.remarks,
            }))?;
        }
        if let Some(text) = report.fatal {
            let _ = self.fatal::<()>(&text);
            if report.undone > 0 {
                self.print(&format!("{} change(s) were undone.\n", report.undone));
            }
            self.print(&format!("{} change(s) were made.\n", report.applied.len()));
            if !report.not_applied.is_empty() {
                self.print(&format!(
                    "Not made:\n\t{}\n",
                    report.not_applied.join("\n\t")
                ));
            }
            return Err(Exit(1));
        }
        Ok(i32::from(prepared.errors > 0))
    }

    fn check(&mut self, path: &Path) -> Done {
        let options = self.options();
        let mut nowhere = std::io::sink();
        let out: &mut dyn Write = if self.json { &mut nowhere } else { self.out };
        match conf::prepare(self.tree, &self.live, path, &options, out) {
            Ok(prepared) => Ok(i32::from(prepared.errors > 0)),
            Err(ConfError::Empty) => Err(Exit(0)),
            Err(ConfError::Check(_)) => Ok(1),
            Err(e) => self.fatal(&e.to_string()),
        }
    }

    fn save(&mut self, path: &Path) -> Done {
        let nonkey = if self.opts.has("nonkey") {
            conf::NonKey::Include
        } else {
            conf::NonKey::Omit
        };
        let config = match conf::live::Saver::new(self.tree, nonkey).config(&self.live) {
            Ok(config) => config,
            Err(text) => return self.fatal(&text),
        };
        let name = path.display().to_string();
        let text = writer::write(&config);
        if let Err(e) = kshim::fs::save(path, text.as_bytes()) {
            let why = conf::strerror(e);
            self.complain(&format!(
                "Failed to save configuration to file '{name}': {why}\n"
            ));
            return Ok(1);
        }
        self.print(&format!(
            "Writing current configuration to file '{name}'.. "
        ));
        Ok(0)
    }

    fn dump(&mut self) -> i32 {
        let mut text = String::new();
        let devices = self
            .live
            .handlers
            .values()
            .flatten()
            .cloned()
            .map(Object::Device);
        for object in [Object::Scst].into_iter().chain(devices) {
            text += &format!("{} attributes:\n", object.what());
            let all = conf::attr::Attributes::read(self.tree, &object).unwrap_or_default();
            text += &table::attributes(&all, conf::NonKey::Include);
        }
        self.print(&text);
        0
    }
}
