//! `targets/` and `device_groups/` of the management tree: the operations recorded on kernel SCST, one after the other.

use iscsi_scst::driver::IscsiDriver;
use kshim::kobject::tree::{EntryKind, Tree, TreeOps};
use kshim::reactor::{Reactor, ReactorConfig};
use scst_core::core::{Core, CoreParams};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::sysfs::ScstTree;
use std::sync::Arc;

/// Recorded with kernel SCST 3.11; columns as the file says.
const OPERATIONS: &str = include_str!("../../tests/sysfs/operations.tsv");

/// Lines that are not repeated, by their number, with the reason.
const DIFFERENT: [(usize, &str); 1] = [(
    438,
    "a second OutgoingUser is refused; in SCST the first one is lost by that, and cannot be deleted",
)];

/// From this line on devices are removed for good.
const LAST_DEVICE_TEST: usize = 500;

fn escaped(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.replace('\n', "\\n").replace('\t', "\\t")
}

fn run(tree: &Tree, op: &str, path: &str, value: &str) -> (i32, String) {
    let done = match op {
        "W" => {
            let value = if value.is_empty() { "\n" } else { value };
            tree.write(path, value.as_bytes()).map(|()| String::new())
        }
        "R" => match tree.stat(path).map(|e| e.kind) {
            Ok(EntryKind::Link) => tree.readlink(path).map(|to| format!("-> {to}")),
            Ok(EntryKind::Dir) => Ok("dir".to_owned()),
            _ => tree.read(path).map(|data| escaped(&data)),
        },
        _ => tree.list(path).map(|all| {
            let names: Vec<_> = all.into_iter().map(|e| e.name).collect();
            names.join(" ")
        }),
    };
    match done {
        Ok(text) => (0, text),
        Err(e) => (e.errno(), String::new()),
    }
}

#[test]
fn targets_and_groups_behave_as_recorded() {
    let core = Core::new(CoreParams::default()).unwrap();
    let tree = ScstTree::publish(&core).unwrap();
    let reactor = Reactor::spawn(ReactorConfig::new("tree")).unwrap();
    let driver = IscsiDriver::new(Arc::clone(&core), vec![reactor.handle()]).unwrap();
    driver.set_enabled(false);
    driver.publish(&tree).unwrap();
    for name in ["m0", "n0"] {
        let disk = Vdisk::new(name, &VdiskParams::new(VdiskKind::Nullio)).unwrap();
        core.register_virtual_device(name, disk).unwrap();
    }
    let view = Tree::new(tree.root());
    let (mut same, mut wrong) = (0, Vec::new());
    for (n, line) in OPERATIONS.lines().enumerate() {
        let columns: Vec<&str> = line.split('\t').collect();
        let [op, path, value, errno, content] = columns[..] else {
            continue;
        };
        if let (Some(name), true) = (value.strip_prefix("del_device "), n > LAST_DEVICE_TEST) {
            core.unregister_virtual_device(name).unwrap();
        }
        let ours = ["targets/iscsi/", "device_groups", "targets/copy_manager/"];
        if line.starts_with('#') || !ours.iter().any(|p| path.starts_with(p)) {
            continue;
        }
        let got = run(&view, op, path, value);
        if got == (errno.parse().unwrap(), content.to_owned()) {
            same += 1;
        } else if !DIFFERENT.iter().any(|(at, _)| *at == n + 1) {
            wrong.push(format!("{}: {line}\n    got {got:?}", n + 1));
        }
    }
    for line in &wrong {
        println!("{line}");
    }
    println!("{same} the same");
    tree.unpublish();
    driver.stop();
    core.shutdown();
    assert!(wrong.is_empty(), "{} differ", wrong.len());
}
