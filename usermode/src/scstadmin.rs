//! `scstadmin`: manages a running server from the command line, as SCST's scstadmin does.
//!
//! The server is found by its control socket; where there is none, by the tree at `/sys/kernel/scst_tgt`. All else is in
//! [`scst_usermode::admin`].
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::ExitCode;

use kshim::error::{Error, code};
use kshim::kobject::control::Client;
use kshim::kobject::mounted::Mounted;
use kshim::kobject::tree::TreeOps;
use scst_usermode::admin::{self, CommandLine, Streams};
use scst_usermode::conf::SYSFS_ROOT;
use scst_usermode::events;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os()
        .skip(1)
        .map(|arg| arg.to_string_lossy().into_owned())
        .collect();
    let (mut input, mut out) = (std::io::stdin().lock(), std::io::stdout().lock());
    let mut err = std::io::stderr().lock();
    let mut streams = Streams {
        input: &mut input,
        out: &mut out,
        err: &mut err,
    };
    let code = match CommandLine::read(&args, &mut streams) {
        Err(code) => code,
        Ok(line) if line.events().is_some() => follow(&line, &mut streams),
        Ok(line) => match connect(&line) {
            Ok(tree) => admin::run(line, tree.as_ref(), &mut streams),
            Err(why) => {
                // With stderr gone there is nobody left to tell.
                let _ = writeln!(streams.err, "scstadmin: {why}");
                1
            }
        },
    };
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}

/// Tells what happens until the server ends; the exit code.
fn follow(line: &CommandLine, streams: &mut Streams<'_>) -> i32 {
    let control = line.control().unwrap_or_else(scst_usermode::control_path);
    let followed = events::filters(&line.events().unwrap_or_default())
        .and_then(|filters| events::follow_events(&control, &filters, streams.out, || ()));
    match followed {
        Ok(()) => 0,
        Err(why) => {
            // With stderr gone there is nobody left to tell.
            let _ = writeln!(streams.err, "scstadmin: {why:#}");
            1
        }
    }
}

/// The tree that is meant.
fn connect(line: &CommandLine) -> Result<Box<dyn TreeOps>, String> {
    if let Some(dir) = line.sysfs() {
        let tree = Mounted::at(&dir).map_err(|e| format!("{}: {e}", dir.display()))?;
        return Ok(Box::new(tree));
    }
    let path = line.control().unwrap_or_else(scst_usermode::control_path);
    match Client::connect(&path) {
        Ok(client) => Ok(Box::new(client)),
        Err(code::ENOENT | code::ECONNREFUSED) if line.control().is_none() => {
            let kernel = Mounted::at(SYSFS_ROOT.as_ref());
            kernel
                .map(|tree| Box::new(tree) as Box<dyn TreeOps>)
                .map_err(|_| no_server(&path, code::ENOENT))
        }
        Err(e) => Err(no_server(&path, e)),
    }
}

fn no_server(path: &Path, e: Error) -> String {
    let path = path.display();
    match e {
        code::ENOENT | code::ECONNREFUSED => {
            format!("no server at {path} (scstd run; see -control and -sysfs)")
        }
        code::EACCES | code::EPERM => format!("{path}: the server is another user's"),
        e => format!("{path}: {e}"),
    }
}
