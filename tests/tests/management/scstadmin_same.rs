//! Our scstadmin and SCST's own, in Perl, side by side: two servers, the same command lines, the same output and exit codes.
//!
//! SCST's is not ours: `SCST_TEST_SOURCE` names a directory with a checkout of SCST; without it there is nothing to run.
//! `tests/data/scstadmin/commands` are the command lines, one after the other on the same server; `known.tsv` says which of them
//! differ, and why.

use std::fs;
use std::path::{Path, PathBuf};

use scst_tests::run_server::{As, RunOptions, RunServer, fuse_works};
use scst_tests::server::scstadmin;

use crate::output;

const COMMANDS: &str = include_str!("../../data/scstadmin/commands");
const KNOWN: &str = include_str!("../../data/scstadmin/known.tsv");
const CONFIGS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/data/scstadmin");

/// Runs all command lines on a new server; what each printed, with its exit code, and the file that it saved.
fn run(program: &str) -> Vec<String> {
    let server = RunServer::start(&RunOptions::default());
    let dir = server.dir.display().to_string();
    for image in ["a.img", "b.img", "c.img"] {
        fs::File::create(server.dir.join(image))
            .and_then(|f| f.set_len(1 << 20))
            .expect("image");
    }
    for entry in fs::read_dir(CONFIGS).expect("configurations") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|e| e == "conf") {
            let text = fs::read_to_string(&path)
                .expect("text")
                .replace("DIR", &dir);
            let name = path.file_name().expect("a name");
            fs::write(server.dir.join(name), text).expect("configuration");
        }
    }
    let mut script = format!(
        "cd {dir}; set -f\nrun() {{ n=$1; shift; {program} \"$@\" > out.$n 2> /dev/null < /dev/null; echo \"rc $?\" >> out.$n; }}\n"
    );
    for (n, line) in COMMANDS.lines().enumerate() {
        script += &format!("run {n} {}\n", line.replace("DIR", &dir));
        if line.contains("DIR/out.conf") {
            script += &format!("cat out.conf >> out.{n}\n");
        }
    }
    // Too long for an argument.
    fs::write(server.dir.join("script"), script).expect("script");
    let done = output(server.exec(&format!("sh {dir}/script")));
    assert!(done.status.success());
    let text = |n| fs::read_to_string(server.dir.join(format!("out.{n}"))).expect("output");
    let all = (0..COMMANDS.lines().count()).map(|n| clean(&text(n), &dir));
    all.collect()
}

/// Lines in order, as SCST's come in that of a Perl hash; without addresses and places of this run.
fn clean(text: &str, dir: &str) -> String {
    let text = text.replace(dir, "DIR");
    let mut lines: Vec<String> = text.lines().map(without_address).collect();
    lines.sort();
    lines.join("\n")
}

/// `HASH(0x...)` is what Perl prints of a table.
fn without_address(line: &str) -> String {
    match line.split_once("(0x") {
        Some((head, tail)) if head.ends_with("HASH") || head.ends_with("ARRAY") => {
            let tail = tail.split_once(')').map_or("", |(_, t)| t);
            format!("{head}(){tail}")
        }
        _ => line.to_owned(),
    }
}

fn perl(source: &Path) -> String {
    let dir = source.join("scstadmin/scstadmin.sysfs");
    let dir = dir.display();
    format!("perl -I{dir}/scst-1.0.0/lib {dir}/scstadmin")
}

#[test]
fn our_scstadmin_prints_what_scsts_prints() {
    let Some(source) = std::env::var_os("SCST_TEST_SOURCE").map(PathBuf::from) else {
        eprintln!("*** TEST NOT RUN: SCST_TEST_SOURCE names no checkout of SCST ***");
        return;
    };
    if !fuse_works(As::Me) {
        return;
    }
    let theirs = run(&perl(&source));
    let ours = run(&scstadmin().display().to_string());
    let known = |line: &str| KNOWN.lines().any(|k| k.split('\t').next() == Some(line));
    let mut wrong = Vec::new();
    let mut same = 0;
    for (line, (theirs, ours)) in COMMANDS.lines().zip(theirs.iter().zip(&ours)) {
        if theirs == ours && known(line) {
            wrong.push(format!("{line}: the same now, take it out of known.tsv"));
        } else if theirs == ours {
            same += 1;
        } else if !known(line) {
            wrong.push(format!("{line}\n  SCST:\n{theirs}\n  here:\n{ours}"));
        }
    }
    println!("{same} of {} command lines as SCST's scstadmin", ours.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
