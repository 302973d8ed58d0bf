//! What is measured: the floor, the server, peers.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::procs::{self, Proc};
use super::{Bins, Options, TARGET_CPU};
use crate::sh;

/// Size of each LUN.
const MIB: u64 = 256;
/// Control port of our tgtd, so that it cannot meet another one.
const TGT_CONTROL: &str = "117";

/// One LUN of one process.
pub(super) struct Target {
    pub(super) name: String,
    pub(super) url: String,
    pub(super) pid: u32,
}

impl Target {
    /// The floor that this one's ratios are taken to.
    pub(super) fn base(&self) -> &'static str {
        if self.name.contains("null") || self.name == "floor" {
            "floor"
        } else {
            "floor-mem"
        }
    }
}

/// All targets; those that were started end with this value.
pub(super) struct Targets {
    list: Vec<Target>,
    procs: Vec<Proc>,
    cpus: Vec<usize>,
    scratch: PathBuf,
}

impl Targets {
    fn new(o: &Options, bins: &Bins) -> Result<Self> {
        let dir = o.dir.clone().unwrap_or_else(|| bins.0.clone());
        let scratch = dir.join(format!("bench-{}", std::process::id()));
        std::fs::create_dir_all(&scratch)?;
        Ok(Self {
            list: Vec::new(),
            procs: Vec::new(),
            cpus: o.target_cpus.clone(),
            scratch,
        })
    }

    /// Starts a server with a file for each of `engines`, with more `options`.
    pub(super) fn engines(
        o: &Options,
        bins: &Bins,
        engines: &[&str],
        options: &[&str],
    ) -> Result<Self> {
        let mut t = Self::new(o, bins)?;
        let exe = bins.path("scstd");
        for engine in engines {
            let file = t.file(&format!("{engine}.img"))?.display().to_string();
            let mut argv = vec![exe.as_str(), "-qq", "serve", &file, "--engine", engine];
            argv.extend(["--portal", "127.0.0.1:0", "--cpus", "1"]);
            argv.extend(options);
            t.serve(&[engine], &argv)?;
        }
        t.fill(bins)?;
        Ok(t)
    }

    /// Starts what `o` asks for and what is installed.
    pub(super) fn start(o: &Options, bins: &Bins) -> Result<Self> {
        let mut t = Self::new(o, bins)?;
        let wanted = |name: &str| {
            o.targets
                .as_ref()
                .is_none_or(|l| l.iter().any(|n| n == name))
        };
        let floor = bins.path("scst-floor");
        let mib = MIB.to_string();
        if wanted("floor") {
            t.serve(&["floor"], &[&floor, "--mib", &mib])?;
        }
        if wanted("floor-mem") {
            t.serve(&["floor-mem"], &[&floor, "-m", "--mib", &mib])?;
        }
        if ["ram", "file", "null", "null_blk"].into_iter().any(wanted) {
            t.scstd(bins)?;
            t.list.retain(|x| wanted(&x.name));
        }
        if wanted("tgt-null") || wanted("tgt-rdwr") {
            // A peer: it is no fault of ours if it does not start.
            if let Err(e) = t.tgtd() {
                println!("bench: without tgt: {e:#}");
            }
            t.list.retain(|x| wanted(&x.name));
        }
        for (name, url) in &o.peers {
            t.peer(name, url)?;
        }
        t.fill(bins)?;
        if let Some(name) = o
            .freeze
            .iter()
            .find(|n| t.list.iter().all(|x| x.name != **n))
        {
            bail!("--freeze {name}: no such target");
        }
        Ok(t)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Target> {
        self.list.iter()
    }

    pub(super) fn names(&self) -> String {
        self.list
            .iter()
            .map(|t| t.name.as_str())
            .collect::<Vec<_>>()
            .join(" ")
    }

    /// Starts `argv` on the targets' CPUs; its LUNs get `names`.
    fn serve(&mut self, names: &[&str], argv: &[&str]) -> Result<()> {
        let argv: Vec<String> = argv.iter().map(|s| (*s).to_owned()).collect();
        let (server, urls) = start_server(&argv, &self.cpus)?;
        for (name, url) in names.iter().zip(urls) {
            self.list.push(Target {
                name: (*name).to_owned(),
                url,
                pid: server.pid(),
            });
        }
        self.procs.push(server);
        Ok(())
    }

    fn scstd(&mut self, bins: &Bins) -> Result<()> {
        let file = self.file("scstd.img")?;
        let (exe, ram, file) = (
            bins.path("scstd"),
            format!("{MIB}M"),
            file.display().to_string(),
        );
        let null_blk = format!("/dev/null_blk/bench?size={MIB}M&queue_mode=bio");
        let base = [
            &exe,
            "-qq",
            "serve",
            &ram,
            &file,
            &null_blk,
            "--portal",
            "127.0.0.1:0",
            "--cpus",
            "1",
        ];
        let mut argv = base.to_vec();
        argv.extend(["--nullio", &ram]);
        self.serve(&["ram", "file", "null_blk", "null"], &argv)
    }

    /// A file whose blocks are all there, and in the page cache.
    fn file(&self, name: &str) -> Result<PathBuf> {
        let path = self.scratch.join(name);
        let bytes: Vec<u8> = (0..1_u32 << 20)
            .map(|n| (n.wrapping_mul(31) >> 3) as u8)
            .collect();
        let mut file = std::fs::File::create(&path)?;
        for _ in 0..MIB {
            std::io::Write::write_all(&mut file, &bytes)?;
        }
        // So that no write-back runs into the measurement.
        file.sync_all()?;
        Ok(path)
    }

    fn tgtd(&mut self) -> Result<()> {
        let find = |name| {
            ["/usr/sbin", "/sbin", "/usr/local/sbin"]
                .map(|dir| Path::new(dir).join(name))
                .into_iter()
                .find(|p| p.exists())
                .with_context(|| format!("{name} is not installed"))
        };
        let (tgtd, tgtadm) = (find("tgtd")?, find("tgtadm")?);
        let (tgtd, tgtadm) = (tgtd.display().to_string(), tgtadm.display().to_string());
        let port = free_port()?;
        let portal = format!("portal=127.0.0.1:{port}");
        let argv = [&tgtd, "-f", "-C", TGT_CONTROL, "--iscsi", &portal];
        let argv: Vec<String> = argv.iter().map(|s| (*s).to_owned()).collect();
        let server = Proc::start(&argv, &[TARGET_CPU], Stdio::null())?;
        let pid = server.pid();
        self.procs.push(server);
        let iqn = "iqn.2026-01.io.scst-usermode:tgt";
        let file = self.file("tgt.img")?.display().to_string();
        let admin = |args: &[&str]| {
            let mut argv = vec![tgtadm.as_str(), "-C", TGT_CONTROL, "--lld", "iscsi"];
            argv.extend(args);
            sh::output(&argv)
        };
        let target = ["--op", "new", "--mode", "target", "--tid", "1", "-T", iqn];
        for tries in 0.. {
            match admin(&target) {
                Ok(_) => break,
                Err(e) if tries == 20 => return Err(e),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
        let lun = ["--op", "new", "--mode", "logicalunit", "--tid", "1"];
        admin(&[&lun[..], &["--lun", "1", "--bstype", "null", "-b", &file]].concat())?;
        admin(&[&lun[..], &["--lun", "2", "--bstype", "rdwr", "-b", &file]].concat())?;
        admin(&[
            "--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL",
        ])?;
        for (name, lun) in [("tgt-null", 1), ("tgt-rdwr", 2)] {
            self.list.push(Target {
                name: name.to_owned(),
                url: format!("127.0.0.1:{port}/{iqn}/{lun}"),
                pid,
            });
        }
        Ok(())
    }

    /// Writes every block once. Memory that was never written reads from one page of zeroes, which is always in the
    /// cache, and its first write pays for clearing it: neither is what is to be measured.
    fn fill(&self, bins: &Bins) -> Result<()> {
        let (load, region) = (bins.path("scst-load"), (MIB << 20).to_string());
        let count = (MIB * 8).to_string();
        for target in &self.list {
            let argv = [
                &load,
                &target.url,
                "-w",
                "write",
                "-b",
                "131072",
                "-q",
                "8",
                "-t",
                "120",
                "--region",
                &region,
                "--count",
                &count,
            ];
            sh::output(&argv).with_context(|| format!("filling {}", target.name))?;
        }
        Ok(())
    }

    fn peer(&mut self, name: &str, url: &str) -> Result<()> {
        let addr = url.trim_start_matches("iscsi://").split('/').next();
        let port = addr.and_then(|a| a.rsplit(':').next()?.parse().ok());
        let pid = procs::listener(port.with_context(|| format!("{url}: no port"))?)?;
        procs::pin_all(pid, &[TARGET_CPU])?;
        self.list.push(Target {
            name: name.to_owned(),
            url: url.to_owned(),
            pid,
        });
        Ok(())
    }

    /// Stops those of `names` that do not belong to `target`'s process until the value is dropped; wakes `target`.
    pub(super) fn freeze_others(&self, names: &[String], target: &Target) -> Result<Frozen> {
        let mut frozen = Frozen(Vec::new());
        for t in &self.list {
            if names.contains(&t.name) && t.pid != target.pid {
                let pid = i32::try_from(t.pid).ok().and_then(Pid::from_raw);
                let pid = pid.context("no such process")?;
                kill_process(pid, Signal::STOP)?;
                frozen.0.push(pid);
            }
        }
        Ok(frozen)
    }
}

impl Drop for Targets {
    fn drop(&mut self) {
        self.procs.clear();
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// Processes that sleep until dropped.
pub(super) struct Frozen(Vec<Pid>);

impl Drop for Frozen {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill_process(*pid, Signal::CONT);
        }
    }
}

/// Starts a server that prints its URLs and then "ready".
pub(super) fn start_server(argv: &[String], cpus: &[usize]) -> Result<(Proc, Vec<String>)> {
    let mut server = Proc::start(argv, cpus, Stdio::null())?;
    let lines = server.lines_to("ready").with_context(|| argv.join(" "))?;
    let urls = procs::urls(&lines);
    if urls.is_empty() {
        bail!("{} tells no URL", argv.join(" "));
    }
    Ok((server, urls))
}

fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}
