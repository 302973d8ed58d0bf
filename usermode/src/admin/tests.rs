//! Command lines on a server that is made of a recorded tree.

use super::*;
use crate::conf::fake::Fake;

/// Exit code, standard output, standard error.
fn admin(tree: &Fake, line: &str) -> (i32, String, String) {
    answered(tree, line, "")
}

fn answered(tree: &Fake, line: &str, answer: &str) -> (i32, String, String) {
    let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut input = answer.as_bytes();
    let mut streams = Streams {
        input: &mut input,
        out: &mut out,
        err: &mut err,
    };
    let code = match CommandLine::read(&args, &mut streams) {
        Ok(line) => run(line, tree, &mut streams),
        Err(code) => code,
    };
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (code, text(out), text(err))
}

const START: &str = "\nCollecting current configuration: done.\n\n";
const TARGET: &str = "-driver iscsi -target iqn.2026-01.org.example:scst";

#[test]
fn queries_print_tables() {
    let tree = Fake::recorded('C');
    let (code, out, _) = admin(&tree, "-list_driver");
    assert_eq!(code, 0);
    let table = "\tDriver\n\t------------\n\tcopy_manager\n\tiscsi\n\tscst_local\n";
    assert_eq!(out, format!("{START}{table}\nAll done.\n"));
    let (code, out, _) = admin(&tree, &format!("-list_group grp1 {TARGET}"));
    assert_eq!(code, 0);
    assert!(
        out.contains("Assigned LUNs:\n\n\tLUN  Device\n\t----------\n\t0    disk0\n\t7    disk3\n"),
        "{out}"
    );
    assert!(out.contains("\tiqn.2026-01.org.example:ini*\n"), "{out}");
    let (code, out, _) = admin(&tree, "-list_dev_attr nosuch");
    assert_eq!(code, 1);
    assert!(
        out.contains("deviceAttributes(): Device 'nosuch' is not open"),
        "{out}"
    );
}

#[test]
fn wrong_command_lines_are_told() {
    let tree = Fake::recorded('A');
    let (code, out, err) = admin(&tree, "-nosuch");
    assert_eq!(
        (code, out.as_str(), err.as_str()),
        (1, "", "Unknown option: nosuch\n")
    );
    let (code, out, _) = admin(&tree, "-open_dev x");
    assert_eq!(
        (code, out.as_str()),
        (1, "Please specify -handler with -open_dev/-close_dev.\n")
    );
    let (code, out, _) = admin(&tree, "-add_dgrp a -rem_dgrp b");
    assert_eq!(code, 1);
    assert!(out.starts_with("Please specify only one"), "{out}");
    let (code, out, _) = admin(&tree, "-noprompt");
    assert_eq!(
        (code, out),
        (1, format!("{START}No valid operations specified.\n"))
    );
    assert_eq!(admin(&tree, "-help").0, 0);
    assert_eq!(admin(&tree, "-generate man").0, 0);
    assert_eq!(admin(&tree, "-generate nothing").0, 1);
}

#[test]
fn changes_ask_first() {
    let tree = Fake::recorded('C');
    let line = format!("-rem_lun 5 {TARGET}");
    let (code, out, _) = admin(&tree, &line);
    assert_eq!(code, 0);
    assert!(
        out.ends_with("(y/[n]) ? Aborting action.\n\nAll done.\n"),
        "{out}"
    );
    assert!(tree.log.lock().is_empty());
    let (code, out, _) = answered(&tree, &line, "y\n");
    assert_eq!(code, 0);
    assert!(
        out.contains("\t-> Removing LUN 5 from driver/target 'iscsi/"),
        "{out}"
    );
    assert_eq!(tree.log.lock().len(), 1);
}

#[test]
fn what_is_used_is_removed_only_by_force() {
    let tree = Fake::recorded('C');
    let (code, out, _) = admin(&tree, "-close_dev disk0 -handler vdisk_fileio -noprompt");
    assert_eq!(code, 1);
    assert!(
        out.contains("Device 'disk0' is currently in use by the following:"),
        "{out}"
    );
    let force = "-close_dev disk0 -handler vdisk_fileio -noprompt -force";
    assert_eq!(admin(&tree, force).0, 0);
    assert_eq!(admin(&tree, "-rem_dgrp dg1").0, 1);
    assert_eq!(admin(&tree, "-rem_dgrp dg1 -force").0, 0);
}

#[test]
fn answers_in_json() {
    let tree = Fake::recorded('C');
    let (code, out, _) = admin(&tree, "-list_handler vcdrom -json");
    assert_eq!((code, out.as_str()), (0, "{\"vcdrom\":[\"cd5\"]}\n"));
    let (code, out, _) = admin(&tree, "-list_dev_attr disk4 -json");
    assert_eq!(code, 0);
    assert!(out.contains("\"blocksize\":{\"value\":[\"4096\"]"), "{out}");
}

#[test]
fn debug_shows_stores_and_makes_none() {
    let tree = Fake::recorded('A');
    let before = tree.dump();
    let (code, out, _) = admin(&tree, "-add_dgrp g -debug");
    assert_eq!(code, 0);
    assert!(
        out.contains("/sys/kernel/scst_tgt/device_groups/mgmt -> create g"),
        "{out}"
    );
    assert_eq!(tree.dump(), before);
}
