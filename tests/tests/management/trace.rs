//! `trace_level`: what the server logs changes while it runs.

use kshim::kobject::control::Client;
use kshim::kobject::tree::TreeOps as _;
use scst_tests::run_server::{RunOptions, RunServer};
use scst_tests::{Command, OpenOptions, Session, scsi};

const IQN: &str = "iqn.2026-01.org.example:trace";

/// A session that does one command and logs out. The number of its initiator shows in the log.
fn visit(server: &RunServer, n: u32) {
    let options = OpenOptions::normal(IQN).initiator(n);
    let mut s = Session::open(server.portal(), &options).unwrap();
    s.clear_ua(0).unwrap();
    let read = Command::read(0, scsi::read10(0x1234, 1), 512);
    assert!(s.scsi(&read).unwrap().is_good());
    s.close().unwrap();
}

fn set(tree: &Client, path: &str, value: &str) {
    let written = tree.write(path, value.as_bytes());
    written.unwrap_or_else(|e| panic!("{value:?} to {path}: {e}"));
}

#[test]
fn trace_levels_change_the_log_of_a_running_server() {
    let mut server = RunServer::start(&RunOptions::default());
    let tree = Client::connect(&server.control()).unwrap();
    set(&tree, "handlers/vdisk_nullio/mgmt", "add_device n0");
    set(&tree, "targets/iscsi/mgmt", &format!("add_target {IQN}"));
    set(&tree, &format!("targets/iscsi/{IQN}/luns/mgmt"), "add n0 0");
    set(&tree, &format!("targets/iscsi/{IQN}/enabled"), "1");
    set(&tree, "targets/iscsi/enabled", "1");

    let levels = ["trace_level", "targets/iscsi/trace_level"];
    visit(&server, 1);
    set(&tree, levels[0], "add scsi");
    visit(&server, 2);
    set(&tree, levels[0], "del scsi");
    visit(&server, 3);
    set(&tree, levels[1], "add debug");
    visit(&server, 4);
    set(&tree, levels[1], "default");
    set(&tree, levels[0], "all");
    visit(&server, 5);
    set(&tree, levels[0], "none");
    visit(&server, 6);

    let first = |path: &str| {
        let text = String::from_utf8(tree.read(path).unwrap()).unwrap();
        text.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(first(levels[0]), "");
    assert!(first(levels[1]).contains("mgmt | mgmt_dbg"));
    assert!(tree.write(levels[0], b"add nonsense").is_err());

    let log = server.stop_and_log();
    // Each visit begins with its session.
    let visits: Vec<&str> = log.split("Session registered: initiator").skip(1).collect();
    assert_eq!(visits.len(), 6, "{log}");
    let commands = visits.map_lines("CDB [28, 00, 00, 00, 12, 34,");
    assert_eq!(commands, [0, 1, 0, 0, 1, 0], "{log}");
    let trace = visits.map_lines("TRACE");
    assert_eq!(
        trace.map(|n| n > 0),
        [false, true, false, false, true, false]
    );
    assert!(
        log.contains("Changed trace level for \"iscsi-scst\""),
        "{log}"
    );
    let accepted = log.matches("accepted").count();
    assert_eq!(accepted, 1, "connections of the fourth: {log}");
}

trait Lines {
    /// Lines with this text, of each.
    fn map_lines(&self, what: &str) -> [usize; 6];
}

impl Lines for Vec<&str> {
    fn map_lines(&self, what: &str) -> [usize; 6] {
        let mut found = [0; 6];
        for (n, part) in found.iter_mut().zip(self) {
            *n = part.lines().filter(|line| line.contains(what)).count();
        }
        found
    }
}
