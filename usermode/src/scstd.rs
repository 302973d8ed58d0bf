//! `scstd`: `scstd serve FILE|SIZE...` serves files and RAM disks as the LUNs of one iSCSI target, `scstd run`
//! is the full server with SCST's management tree, `scstd exec` runs a program that sees this tree where the kernel has it,
//! `scstd events` tells what happens in it, `scstd stpgd` carries out SET TARGET PORT GROUPS.
//!
//! Key types: [`cli::Cli`] is the command line, [`config::ServeConfig`](crate::config::ServeConfig) what was asked for after
//! everything was checked, [`server::Server`](crate::server::Server) the running target. Below: `iscsi-scst`, `backstores`,
//! `scst-core`.
//!
//! What was wrong with a command line or a file is one line on stderr, exit code 2 for a wrong command line, 1 for all
//! else; nothing is created before all of it was found right.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::{Driver, cli, control_path, events, exec, logger, ports, run, serve, stpgd};

/// Exit code for a command line that cannot be understood.
const EXIT_USAGE: u8 = 2;

/// The whole server.
pub(crate) fn main(drivers: &[Driver]) -> ExitCode {
    ports::add(drivers);
    let cli = match cli::Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    let result = match &cli.command {
        cli::Command::Serve(args) => logger::init(&cli.log).and_then(|()| serve::run(args)),
        cli::Command::Run(args) => logger::init(&cli.log).and_then(|()| run::run(args)),
        cli::Command::Exec(args) => logger::init(&cli.log).and_then(|()| exec::run(args)),
        cli::Command::Events(args) => logger::init(&cli.log).and_then(|()| follow(args)),
        cli::Command::Stpgd(args) => logger::init(&cli.log).and_then(|()| stpgd::run(args)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&format!("{e:#}"));
            ExitCode::FAILURE
        }
    }
}

/// `scstd events`.
fn follow(args: &cli::EventsArgs) -> anyhow::Result<()> {
    let filters = events::filters(&args.names)?;
    let control = args.control.clone();
    let control = control.unwrap_or_else(control_path);
    let ready = || log::debug!("{}: following", control.display());
    events::follow_events(&control, &filters, &mut std::io::stdout(), ready)
}

/// Help and version go to stdout in full; an error becomes one line.
fn usage(e: &clap::Error) -> ExitCode {
    if !e.use_stderr() {
        // A reader that has gone away is no reason to fail.
        let _ = e.print();
        return ExitCode::SUCCESS;
    }
    let text = e.render().to_string();
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty())
        .collect();
    let line = lines.join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    // The subcommand, if it is known: its own help says more.
    let args = std::env::args_os().skip(1);
    let mut args = args.map(|a| a.to_string_lossy().into_owned());
    let sub = match args.find(|a| !a.starts_with('-')) {
        Some(sub) if ["run", "exec", "events", "stpgd"].contains(&sub.as_str()) => sub + " ",
        Some(sub) if sub != "serve" => String::new(),
        _ => "serve ".to_owned(),
    };
    complain(&format!("{line} (see scstd {sub}--help)"));
    ExitCode::from(EXIT_USAGE)
}

/// The one line on stderr that says why there is no server.
fn complain(what: &str) {
    let line = format!("scstd: {}\n", what.replace('\n', " "));
    // With stderr gone there is nobody left to tell.
    let _ = std::io::stderr().write_all(line.as_bytes());
}
