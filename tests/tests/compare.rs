//! `scst-compare` as its user has it: two servers, the same and not the same.

use std::net::TcpListener;
use std::process::Command;
use std::time::Duration;

use scst_tests::server::{IQN, scst_compare};
use scst_tests::tools::{self, Output};
use scst_tests::{Server, ServerOptions};

/// Cases that take no time, of most kinds.
const CASES: [&str; 4] = ["inquiry", "mode-select", "rw/", "unmap"];

fn compare(args: &[&str]) -> Output {
    let mut command = Command::new(scst_compare());
    command.args(["--pause", "5"]);
    command.args(CASES.iter().flat_map(|c| ["--case", c]));
    tools::run_command(command.args(args), Duration::from_secs(120))
}

/// A server with the LUNs that the conversations want, but for their kinds.
fn server(more: &[&str]) -> Server {
    let sizes = ["128M", "1G", "64M", "100M", "2M"];
    let options = sizes
        .iter()
        .fold(ServerOptions::lun("100M"), |o, s| o.and(s));
    Server::start_own(&more.iter().fold(options, |o, a| o.arg(a)))
}

/// Of LUN 0's URL.
fn target(server: &Server) -> String {
    let url = server.url(0);
    url.strip_suffix("/0").expect("LUN 0").to_owned()
}

#[test]
fn two_servers_of_the_same_options_do_not_differ() {
    let (a, b) = (server(&[]), server(&[]));
    let out = compare(&[&target(&a), &target(&b)]);
    assert_eq!(out.code, Some(0), "{out:?}");
    let lines: Vec<&str> = out.stdout.lines().collect();
    let [summary] = lines[..] else {
        panic!("{out:?}");
    };
    assert!(
        summary.ends_with(" cases identical, 0 different, 0 not run"),
        "{summary}"
    );
}

#[test]
fn an_option_makes_differences() {
    let (a, b) = (server(&[]), server(&["--read-only"]));
    let out = compare(&[&target(&a), &target(&b)]);
    assert_eq!(out.code, Some(1), "{out:?}");
    // Whoever reads gets the same.
    assert!(!out.stdout.contains("inquiry/standard"), "{out:?}");
    // DATA PROTECT
    let denied = "expected \"\"";
    assert!(
        out.stdout
            .lines()
            .any(|l| l.contains("sense \"7000070000") && l.contains(denied)),
        "{out:?}"
    );
    let last = out.stdout.lines().last().expect("a summary");
    assert!(!last.contains(" 0 different"), "{last}");
}

#[test]
fn a_target_that_is_not_there_is_an_error() {
    let a = server(&[]);
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = nobody.local_addr().expect("an address").port();
    drop(nobody);
    for missing in [
        format!("iscsi://127.0.0.1:{port}/{IQN}"),
        format!("{}-not", target(&a)),
    ] {
        let out = compare(&[&target(&a), &missing]);
        assert_eq!(out.code, Some(2), "{out:?}");
        assert_eq!(out.stdout, "", "{out:?}");
        assert!(
            out.stderr.starts_with("scst-compare: 127.0.0.1:"),
            "{out:?}"
        );
    }
    let out = compare(&[&target(&a)]);
    assert_eq!(out.code, Some(2), "one target and no file: {out:?}");
}
