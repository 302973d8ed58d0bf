//! The recorded configurations as SCST's scstadmin saved them: applied, the tree is as the kernel's; saved, they are the same
//! bytes.

use anyhow::{Result, ensure};
use scst_usermode::conf::{NonKey, Options, Removals, Report, apply_file, write_config};

use crate::bench::Bench;
use crate::compare;

const SCST_CONF: &str = include_str!("../../sysfs/scst.conf");
/// Of the host that the record was made on, and of this one.
const PORTALS: [&str; 2] = ["10.0.2.15", "127.0.0.1"];
/// The record's block device was a disk, this one is memory: its saved form says so.
const BLOCK: [&str; 2] = [
    "\t\tfilename /dev/vdb\n",
    "\t\tfilename /dev/vdb\n\t\trotational 0\n",
];

/// The recorded file with groups, accounts and target groups, less what needs a SCSI device of the host.
fn extra() -> String {
    include_str!("../../sysfs/scst-extra.conf")
        .replace("HANDLER dev_disk {\n\tDEVICE 1:0:0:0\n}\n\n", "")
        .replace("\n\n\t\tLUN 0 1:0:0:0", "")
}

impl Bench {
    fn apply(&self, text: &str, options: &Options) -> Result<Report> {
        let path = self.places.dir.path().join("scst.conf");
        let text = text.replace(PORTALS[0], PORTALS[1]);
        let text = self.places.ours(&text.replace(BLOCK[0], BLOCK[1]));
        std::fs::write(&path, text)?;
        let report = apply_file(&self.view, &path, options)?;
        ensure!(report.is_complete(), "{report:#?}");
        Ok(report)
    }

    fn saved(&self) -> Result<String> {
        let text = write_config(&self.view, NonKey::Omit).map_err(anyhow::Error::msg)?;
        let text = text.replace(PORTALS[1], PORTALS[0]);
        Ok(self.places.theirs(&text).replace(BLOCK[1], BLOCK[0]))
    }
}

#[test]
fn the_reference_file_makes_the_kernels_tree_and_is_saved_the_same() -> Result<()> {
    let bench = Bench::start("conf-b")?;
    let report = bench.apply(SCST_CONF, &Options::default())?;
    assert!(report.applied.len() > 12, "{report:#?}");
    let addr = bench.driver.add_portal("127.0.0.1:0".parse()?)?;
    let session = bench.login(addr, "init1")?;
    let here = bench.listing()?;
    session.close()?;
    assert_eq!(bench.saved()?, SCST_CONF);
    let again = bench.apply(SCST_CONF, &Options::default())?;
    bench.stop()?;
    assert!(
        again.applied.is_empty() && again.remarks.is_empty(),
        "{again:#?}"
    );
    compare("B", &here)
}

#[test]
fn the_larger_file_is_the_difference_and_force_takes_it_away() -> Result<()> {
    let bench = Bench::start("conf-c")?;
    bench.apply(SCST_CONF, &Options::default())?;
    let addr = bench.driver.add_portal("127.0.0.1:0".parse()?)?;
    let first = bench.login(addr, "init1")?;
    bench.apply(&extra(), &Options::default())?;
    let second = bench.login(addr, "init2")?;
    let here = bench.listing()?;
    second.close()?;
    assert_eq!(bench.saved()?, extra());
    let remarked = bench.apply(SCST_CONF, &Options::default())?;
    assert!(remarked.applied.is_empty() && remarked.remarks.len() > 3);
    assert_eq!(bench.saved()?, extra());
    let force = Options {
        removals: Removals::Remove,
        ..Options::default()
    };
    bench.apply(SCST_CONF, &force)?;
    assert_eq!(bench.saved()?, SCST_CONF);
    // Nobody noticed.
    first.close()?;
    bench.stop()?;
    compare("C", &here)
}

#[test]
fn examples_can_be_applied_and_are_saved_as_they_are() -> Result<()> {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    let mut seen = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|e| e != "conf") {
            continue;
        }
        seen += 1;
        let name = format!("example-{seen}");
        let bench = Bench::start(&name)?;
        let text = example(&std::fs::read_to_string(&path)?, &bench)?;
        let report = bench.apply(&text, &Options::default())?;
        // They name no target that is there by itself.
        let known = |r: &String| r.contains("'copy_manager_tgt'") || r.contains("'scst_local_tgt'");
        let news = report.remarks.iter().any(|r| !known(r));
        assert!(!report.applied.is_empty() && !news, "{report:#?}");
        let saved = write_config(&bench.view, NonKey::Omit).map_err(anyhow::Error::msg)?;
        for line in text
            .lines()
            .map(|l| l.split('#').next().unwrap_or_default().trim())
        {
            let there = saved.lines().any(|s| s.trim() == line);
            ensure!(there, "{}: {line:?} is not in\n{saved}", path.display());
        }
        let again = bench.apply(&text, &Options::default())?;
        assert!(again.applied.is_empty(), "{again:#?}");
        bench.stop()?;
    }
    assert_eq!(seen, 5);
    Ok(())
}

/// An example with files that are here.
fn example(text: &str, bench: &Bench) -> Result<String> {
    let dir = bench.places.dir.path();
    let mut out = text.to_owned();
    for line in text.lines() {
        let Some(name) = line.trim().strip_prefix("filename ") else {
            continue;
        };
        let ours = if name.starts_with("/dev/drbd") {
            "/dev/vdb".to_owned()
        } else {
            let file = dir.join(name.trim_start_matches('/').replace('/', "-"));
            std::fs::File::create(&file)?.set_len(crate::bench::MIB)?;
            file.display().to_string()
        };
        out = out.replace(
            &format!("filename {name}\n"),
            &format!("filename {}\n", bench.places.ours(&ours)),
        );
    }
    Ok(out)
}
