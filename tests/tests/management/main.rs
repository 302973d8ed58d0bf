//! `scstd run` and its tree: the mount, the control socket, `scstd exec`, as root and as an ordinary user.

mod aptpl;
mod config;
mod events;
mod exec;
mod failover;
mod scst_crate;
mod scstadmin_suite;
mod trace;
mod under_load;
mod views;

use std::process::{Command, Output};

/// Runs a program to its end.
#[track_caller]
fn output(mut command: Command) -> Output {
    let out = command.output().expect("the program starts");
    println!("{command:?}: {}", out.status);
    println!("{}", String::from_utf8_lossy(&out.stdout));
    println!("{}", String::from_utf8_lossy(&out.stderr));
    out
}

/// The same, and it succeeds; what it wrote to stdout.
#[track_caller]
fn text(command: Command) -> String {
    let out = output(command);
    assert!(out.status.success());
    String::from_utf8(out.stdout).expect("text")
}
