//! Replays management operations that were recorded from kernel SCST (`tests/sysfs/operations.tsv`), in their order, on the
//! tree of a core with the iSCSI driver in this process.
//!
//! `tests/sysfs/known.tsv` lists what differs, and why: the number of an operation (its line in the record), tab, the
//! reason; or a path, for everything below it. A difference that is not listed fails the test, and so does a number
//! that does not differ any more.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use iscsi_scst::driver::IscsiDriver;
use kshim::kobject::tree::{EntryKind, Tree, TreeOps};
use kshim::reactor::{Reactor, ReactorConfig};
use scst_core::core::{Core, CoreParams};
use scst_core::scst_local::LocalDriver;
use scst_core::sysfs::ScstTree;

const OPERATIONS: &str = include_str!("../sysfs/operations.tsv");
const KNOWN: &str = include_str!("../sysfs/known.tsv");
const MIB: u64 = 1 << 20;
/// The record was made on two CPUs.
const THREADS: usize = 2;
/// Where the record's files were.
const DATA: &str = "/data/";
const STATE: &str = "/var/lib/scst/";

/// What an operation answers: an errno (0: success), and what was read.
type Answer = (i32, String);

struct Operation<'a> {
    line: usize,
    op: &'a str,
    path: &'a str,
    value: &'a str,
    want: Answer,
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, c == '\\') {
            (_, false) => out.push(c),
            _ => match chars.next() {
                Some('n') => out.push('\n'),
                Some('t') => out.push('\t'),
                Some(other) => out.push(other),
                None => out.push('\\'),
            },
        }
    }
    out
}

fn operations() -> Result<Vec<Operation<'static>>> {
    let lines = (1..).zip(OPERATIONS.lines());
    let real = lines.filter(|(_, l)| !l.starts_with('#'));
    real.map(|(line, text)| {
        let fields: Vec<&str> = text.split('\t').collect();
        let [op, path, value, errno, content] = fields[..] else {
            bail!("line {line}: five columns are needed");
        };
        let errno = errno.parse().with_context(|| format!("line {line}"))?;
        let want = (errno, unescape(content));
        Ok(Operation {
            line,
            op,
            path,
            value,
            want,
        })
    })
    .collect()
}

/// What is known to differ.
struct Known {
    lines: BTreeMap<usize, &'static str>,
    paths: Vec<&'static str>,
}

fn known() -> Result<Known> {
    let mut known = Known {
        lines: BTreeMap::new(),
        paths: Vec::new(),
    };
    for line in KNOWN.lines().filter(|l| !l.starts_with('#')) {
        let (what, reason) = line.split_once('\t').context("two columns are needed")?;
        ensure!(!reason.trim().is_empty(), "{what}: why?");
        match what.parse() {
            Ok(n) => drop(known.lines.insert(n, reason)),
            Err(_) => known.paths.push(what),
        }
    }
    Ok(known)
}

impl Known {
    fn covers(&self, o: &Operation<'_>) -> bool {
        let below = |p: &&'static str| {
            let rest = o.path.strip_prefix(*p);
            rest.is_some_and(|r| r.is_empty() || r.starts_with('/'))
        };
        self.lines.contains_key(&o.line) || self.paths.iter().any(below)
    }
}

/// The tree under test.
struct Bench {
    core: Arc<Core>,
    tree: Arc<ScstTree>,
    driver: Arc<IscsiDriver>,
    reactor: Reactor,
    view: Tree,
    dir: tempfile::TempDir,
}

impl Bench {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let data = dir.path().join("data");
        std::fs::create_dir(&data)?;
        for (name, mib) in [("m0.img", 16), ("m1.img", 8), ("cd.iso", 2)] {
            File::create(data.join(name))?.set_len(mib * MIB)?;
        }
        let state = dir.path().join("scst");
        let core = Core::new(CoreParams {
            threads: THREADS,
            pr_dir: Some(state.join("pr")),
            state_dir: Some(state),
            ..CoreParams::default()
        })?;
        let tree = ScstTree::publish(&core)?;
        let reactor = Reactor::spawn(ReactorConfig::new("reactor0".to_owned()))?;
        let driver = IscsiDriver::new(Arc::clone(&core), vec![reactor.handle()])?;
        driver.set_enabled(false);
        driver.publish(&tree)?;
        LocalDriver::new(&core).publish(&tree)?;
        Ok(Self {
            view: Tree::new(tree.root()),
            core,
            tree,
            driver,
            reactor,
            dir,
        })
    }

    fn place(&self, part: &str) -> String {
        format!("{}/{part}/", self.dir.path().display())
    }

    /// A value with our files in the place of the record's.
    fn ours(&self, text: &str) -> String {
        text.replace(DATA, &self.place("data"))
            .replace(STATE, &self.place("scst"))
    }

    fn theirs(&self, text: &str) -> String {
        text.replace(&self.place("data"), DATA)
            .replace(&self.place("scst"), STATE)
    }

    fn read(&self, path: &str) -> kshim::error::Result<String> {
        match self.view.stat(path)?.kind {
            EntryKind::Dir => Ok("dir".to_owned()),
            EntryKind::Link => Ok(format!("-> {}", self.view.readlink(path)?)),
            EntryKind::File => {
                let bytes = self.view.read(path)?;
                Ok(self.theirs(&String::from_utf8_lossy(&bytes)))
            }
        }
    }

    fn run(&self, o: &Operation<'_>) -> Answer {
        let r = match o.op {
            "R" => self.read(o.path),
            "W" => {
                let value = match o.value {
                    "" => "\n".to_owned(),
                    v => self.ours(v),
                };
                let done = self.view.write(o.path, value.as_bytes());
                done.map(|()| String::new())
            }
            _ => self.view.list(o.path).map(|entries| {
                let mut names: Vec<_> = entries.into_iter().map(|e| e.name).collect();
                names.sort();
                names.join(" ")
            }),
        };
        r.map_or_else(|e| (e.errno(), String::new()), |text| (0, text))
    }

    fn stop(self) -> Result<()> {
        self.tree.unpublish();
        self.driver.stop();
        for target in self.driver.targets() {
            self.core.unregister_target(target.tgt())?;
        }
        for dev in self.core.devices() {
            self.core.unregister_virtual_device(dev.name())?;
        }
        self.reactor.stop();
        self.core.shutdown();
        Ok(())
    }
}

#[test]
fn recorded_operations_answer_as_in_the_kernel() -> Result<()> {
    let bench = Bench::start()?;
    let known = known()?;
    let (mut same, mut listed, mut wrong) = (0, 0, Vec::new());
    for o in &operations()? {
        let got = bench.run(o);
        let differs = got != o.want;
        match (differs, known.covers(o)) {
            (false, _) if known.lines.contains_key(&o.line) => {
                let Operation { line, op, path, .. } = o;
                wrong.push(format!("{line}: {op} {path} does not differ any more"));
            }
            (false, _) => same += 1,
            (true, true) => listed += 1,
            (true, false) => wrong.push(format!(
                "{}: {} {} {:?}\n     kernel {:?}\n     here   {got:?}",
                o.line, o.op, o.path, o.value, o.want
            )),
        }
    }
    bench.stop()?;
    println!(
        "{same} operations as in the kernel, {listed} known to differ, {} wrong",
        wrong.len()
    );
    ensure!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn the_list_of_differences_is_in_order() -> Result<()> {
    let last = OPERATIONS.lines().count();
    let known = known()?;
    ensure!(known.lines.keys().all(|n| (1..=last).contains(n)));
    Ok(())
}
