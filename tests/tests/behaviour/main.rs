//! Replays the recorded conversations with kernel SCST (`tests/behaviour/*.jsonl`) on the reference configuration.
//!
//! `tests/behaviour/known.tsv` lists the cases that do not match yet, with the reason. A case that is not listed and
//! differs fails the test, and so does one that is listed and matches: take it out of the list then.
//!
//! `SCST_CASES=part,part` runs only cases whose name contains one of the parts, and prints every difference in full.

mod manage;
mod reference;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use reference::ReferenceServer;
use scst_compare::{Case, Options, Runner, Target, Verdict, judge, recorded};

const KERNEL: &str = include_str!("../../behaviour/kernel-scst.jsonl");
const MANAGED: &str = include_str!("../../behaviour/managed.jsonl");
const KNOWN: &str = include_str!("../../behaviour/known.tsv");
/// Our teardown follows the logout at once; the recorded kernel needed 0.3 s.
const PAUSE: Duration = Duration::from_millis(30);

/// What is said of a listed case that matches.
const MATCHES: &str = "matches now; take it out of known.tsv";

/// The listed cases with their reasons.
fn known() -> BTreeMap<&'static str, &'static str> {
    let lines = KNOWN.lines().skip(1).filter(|l| !l.trim().is_empty());
    lines
        .map(|line| {
            let (case, reason) = line.split_once('\t').expect("case, tab, reason");
            assert!(!reason.trim().is_empty(), "{case}: no reason");
            (case, reason)
        })
        .collect()
}

/// Takes cases out of the list.
fn unlist(matched: &[&str]) {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/behaviour/known.tsv");
    let text = std::fs::read_to_string(path).expect("known.tsv");
    let keep = |line: &&str| {
        let case = line.split_once('\t').map_or(*line, |(case, _)| case);
        !matched.contains(&case)
    };
    let kept: String = text
        .lines()
        .filter(keep)
        .map(|l| format!("{l}\n"))
        .collect();
    std::fs::write(path, kept).expect("known.tsv");
}

#[test]
fn answers_as_kernel_scst_did() {
    let only = std::env::var("SCST_CASES").unwrap_or_default();
    let parts: Vec<&str> = only.split(',').filter(|p| !p.is_empty()).collect();
    let mut cases = Case::parse_all(KERNEL).expect("kernel-scst.jsonl");
    cases.extend(Case::parse_all(MANAGED).expect("managed.jsonl"));
    let known = known();
    for name in known.keys() {
        let exists = cases.iter().any(|c| c.name == *name);
        assert!(exists, "known.tsv lists {name}, which is no case");
    }
    if !parts.is_empty() {
        cases.retain(|c| parts.iter().any(|p| c.name.contains(p)));
    }
    let server = ReferenceServer::start().expect("the reference configuration starts");
    let target = Target {
        addr: server.addr(),
        iqn: reference::IQN.to_owned(),
    };
    let options = Options {
        pause: PAUSE,
        ..Options::default()
    };
    let start = Instant::now();
    let mut manage = server.manage().expect("files of the managed cases");
    let mut runner = Runner::new(target, options, Some(&mut manage));
    let (mut identical, mut not_run) = (0, 0);
    let (mut wrong, mut matched) = (Vec::new(), Vec::new());
    for case in &cases {
        let verdict = judge(case, &recorded(case), &runner.run(case));
        let listed = known.get(case.name.as_str());
        match (&verdict, listed) {
            (Verdict::Identical, None) => identical += 1,
            (Verdict::Identical, Some(_)) => {
                identical += 1;
                matched.push(case.name.as_str());
                wrong.push(format!("{}: {MATCHES}", case.name));
            }
            (Verdict::NotRun(why), _) => {
                not_run += 1;
                println!("{}: not run: {why}", case.name);
            }
            (Verdict::Different(_), Some(reason)) => println!("{}: known: {reason}", case.name),
            (Verdict::Different(_), None) => wrong.push(format!("{}: {verdict}", case.name)),
        }
        if !parts.is_empty() {
            println!("{}: {verdict}", case.name);
        }
    }
    drop(runner);
    server.stop().expect("a clean stop");
    let total = cases.len();
    println!(
        "{identical} of {total} cases identical, {not_run} not run, {:.1} s",
        start.elapsed().as_secs_f64()
    );
    if std::env::var("SCST_BLESS").is_ok_and(|v| v == "1") {
        unlist(&matched);
        wrong.retain(|line| !line.ends_with(MATCHES));
    }
    for line in &wrong {
        println!("{line}");
    }
    assert!(wrong.is_empty(), "{} cases are not as listed", wrong.len());
}
