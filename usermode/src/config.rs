//! What `serve` was asked for, checked as a whole before anything is touched.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use backstores::ram::{self, MMAP_PREFIX};
use backstores::spdk::{self, SPDK_PREFIX};
use backstores::tcmur::{self, TCMUR_PREFIX};
use iscsi_scst::accounts::Accounts;
use kshim::error::code;
use kshim::fs::{self, Engine, File, FileKind, OpenOptions, Stat};
use kshim::host;

use crate::cli::{EngineArg, Poller, ServeArgs};
use crate::spdk::Spdk;
use crate::{chap, iqn, ports, size};

/// Most reactors that can be asked for.
const MAX_CPUS: usize = 64;
/// Most reactors that are taken by default.
const DEFAULT_MAX_CPUS: usize = 4;
/// Most LUNs with one-byte peripheral addressing.
const MAX_LUNS: usize = 256;

/// A server to be started.
#[derive(Clone, Debug)]
pub(crate) struct ServeConfig {
    /// LUN 0, LUN 1, ...
    pub(crate) luns: Vec<LunSpec>,
    /// Addresses to listen on; port 0 takes a free one.
    pub(crate) portals: Vec<SocketAddr>,
    /// Target name.
    pub(crate) iqn: String,
    /// Number of reactors.
    pub(crate) cpus: usize,
    /// Microseconds that reactors poll before they sleep.
    pub(crate) poll_us: u32,
    /// How reactors wait.
    pub(crate) poller: Poller,
    /// CRC32C is among the digests that the target has.
    pub(crate) digests: bool,
    /// Who may log in; anyone if nobody is named.
    pub(crate) accounts: Accounts,
}

/// One LUN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LunSpec {
    /// Device name as in SCST's configuration.
    pub(crate) name: String,
    /// Where its data is.
    pub(crate) backing: Backing,
    /// Size in bytes, a multiple of [`size::BLOCK_BYTES`]; 0: what it is opened from knows.
    pub(crate) bytes: u64,
    /// Refuse writes.
    pub(crate) read_only: bool,
    /// Bypass the page cache.
    pub(crate) direct: bool,
    /// What the serial number and the device identifier are made of. SCST takes a device's name, by which two hosts
    /// that serve "disk0" look like two paths to one disk; this differs by host and file.
    pub(crate) serial: u64,
}

/// Where a LUN's data is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Memory that is gone with the process.
    Ram,
    /// Nothing: reads give zeroes.
    Null,
    /// A file with this absolute path.
    File(PathBuf),
    /// A host block device, or a mapped file below [`MMAP_PREFIX`], with this absolute path.
    BlockDevice(PathBuf),
    /// A disk that a driver of `ports/` makes when this path is opened.
    Port(String),
    /// A disk of a tcmu-runner handler.
    Tcmur {
        /// Its path, below [`TCMUR_PREFIX`].
        path: String,
        /// The handler takes SCSI commands, not blocks.
        passthrough: bool,
    },
}

/// Files that must be created before the server can start.
pub(crate) type ToCreate = Vec<(PathBuf, u64)>;

impl ServeConfig {
    /// Checks the arguments. Creates nothing.
    ///
    /// # Errors
    ///
    /// The first thing that is wrong.
    pub(crate) fn check(args: &ServeArgs) -> Result<(Self, ToCreate)> {
        let size = args
            .size
            .as_deref()
            .map(size::parse)
            .transpose()
            .context("--size")?;
        if let Some(bytes) = size {
            size::check_disk(bytes).context("--size")?;
        }
        let portals = portals(&args.portals)?;
        let iqn = match &args.iqn {
            Some(name) => name.clone(),
            None => iqn::default_name(&host::hostname()),
        };
        iqn::check(&iqn)?;
        let cpus = cpus(args.cpus.as_deref())?;
        let luns = args.luns.len() + usize::from(args.nullio.is_some());
        if luns > MAX_LUNS {
            bail!("{luns} LUNs, more than {MAX_LUNS}");
        }
        args.engine.apply(args.poller)?;
        ram::init().context("RAM disks")?;
        spdk::init().context("SPDK")?;
        Spdk::check(&args.spdk)?;
        tcmur::init(args.handler_dir.as_deref()).context("--handler-dir")?;
        ports::init().context("block drivers")?;
        let mut planner = Planner {
            size,
            read_only: args.read_only,
            direct: args.direct,
            ..Planner::default()
        };
        // RAM disks of two servers on one host differ by where they listen.
        planner.ram_identity = format!(
            "{iqn} {}",
            portals.first().map_or_else(String::new, |p| p.to_string())
        );
        for (n, argument) in args.luns.iter().enumerate() {
            planner
                .lun(n, argument)
                .with_context(|| argument.to_string_lossy().into_owned())?;
        }
        if let Some(text) = &args.nullio {
            let bytes = size::parse(text).context("--nullio")?;
            size::check_disk(bytes).context("--nullio")?;
            planner.add(args.luns.len(), Backing::Null, bytes);
        }
        let config = Self {
            luns: planner.luns,
            portals,
            iqn,
            cpus,
            poll_us: args.poll_us,
            poller: args.poller,
            digests: args.digests,
            accounts: args
                .chap
                .as_deref()
                .map_or(Ok(Accounts::default()), chap::accounts)?,
        };
        Ok((config, planner.to_create))
    }
}

pub(crate) fn portals(texts: &[String]) -> Result<Vec<SocketAddr>> {
    let mut portals = Vec::new();
    for text in texts {
        let portal: SocketAddr = text.parse().map_err(|_| {
            anyhow!("portal {text:?}: want ADDR:PORT, as 127.0.0.1:3260 or [::1]:3260")
        })?;
        if portal.port() != 0 && portals.contains(&portal) {
            bail!("portal {text} is given twice");
        }
        portals.push(portal);
    }
    Ok(portals)
}

pub(crate) fn cpus(text: Option<&str>) -> Result<usize> {
    let Some(text) = text else {
        return Ok(host::cpus().clamp(1, DEFAULT_MAX_CPUS));
    };
    match text.parse() {
        Ok(n) if (1..=MAX_CPUS).contains(&n) => Ok(n),
        _ => bail!("--cpus {text:?}: want a number from 1 to {MAX_CPUS}"),
    }
}

/// Whether a path is a disk that a driver makes when it is opened.
fn is_driver_disk(path: &str) -> bool {
    ports::has(path) || path.starts_with(SPDK_PREFIX)
}

/// Turns LUN arguments into specifications, remembering what was named before.
#[derive(Default)]
struct Planner {
    size: Option<u64>,
    read_only: bool,
    direct: bool,
    ram_identity: String,
    luns: Vec<LunSpec>,
    to_create: ToCreate,
    /// Device and inode (or device number) of files that exist, by LUN.
    known: HashMap<(u64, u64), usize>,
    /// Absolute paths of files that do not exist yet, by LUN.
    planned: HashMap<PathBuf, usize>,
}

impl Planner {
    fn lun(&mut self, n: usize, argument: &OsStr) -> Result<()> {
        if argument.is_empty() {
            bail!("an empty name is neither a file nor a size");
        }
        if let Some(path) = argument.to_str().filter(|p| p.starts_with(TCMUR_PREFIX)) {
            return self.tcmur(n, path);
        }
        if argument
            .to_str()
            .is_some_and(|p| p.starts_with(SPDK_PREFIX) && !spdk::BUILT_IN)
        {
            bail!("{}", spdk::WITHOUT);
        }
        if let Some(path) = argument.to_str().filter(|p| is_driver_disk(p)) {
            if let Some(first) = self.planned.insert(PathBuf::from(path), n) {
                bail!("is LUN {first} already; a disk can be one LUN only");
            }
            self.add(n, Backing::Port(path.to_owned()), 0);
            return Ok(());
        }
        if let Some(path) = argument.to_str().filter(|p| p.starts_with(MMAP_PREFIX)) {
            return self.mapped(n, path);
        }
        let path = Path::new(argument);
        let has_slash = argument.as_encoded_bytes().contains(&b'/');
        let stat = match fs::stat(path) {
            Ok(stat) => Some(stat),
            Err(code::ENOENT) => None,
            Err(e) => return Err(e).context("cannot be used"),
        };
        let (backing, bytes) = match stat {
            Some(stat) => self.existing(n, path, &stat)?,
            None if has_slash || self.size.is_some() => self.missing(n, path)?,
            None => (Backing::Ram, ram_size(argument)?),
        };
        self.add(n, backing, bytes);
        Ok(())
    }

    /// A file that is mapped into memory: its size comes out when it is opened.
    fn mapped(&mut self, n: usize, path: &str) -> Result<()> {
        if let Some(first) = self.planned.insert(PathBuf::from(path), n) {
            bail!("is LUN {first} already; a file can be one LUN only");
        }
        self.add(n, Backing::BlockDevice(PathBuf::from(path)), 0);
        Ok(())
    }

    /// What a handler has: its size comes out when it is opened.
    fn tcmur(&mut self, n: usize, path: &str) -> Result<()> {
        let absolute = PathBuf::from(path);
        if let Some(first) = self.planned.insert(absolute, n) {
            bail!("is LUN {first} already; a disk can be one LUN only");
        }
        let rest = path.strip_prefix(TCMUR_PREFIX).unwrap_or_default();
        let Some((subtype, what)) = rest
            .split_once('/')
            .filter(|(k, w)| !k.is_empty() && !w.is_empty())
        else {
            bail!("want {TCMUR_PREFIX}KIND/WHAT, as {TCMUR_PREFIX}qcow//images/a.qcow2");
        };
        let known = tcmur::handlers();
        let Some(handler) = known.iter().find(|h| h.subtype == subtype) else {
            let names: Vec<_> = known.iter().map(|h| h.subtype.as_str()).collect();
            if names.is_empty() {
                bail!(
                    "there are no tcmu-runner handlers (Debian package tcmu-runner, --handler-dir)"
                );
            }
            bail!(
                "no tcmu-runner handler {subtype:?}, only {}",
                names.join(", ")
            );
        };
        let backing = Backing::Tcmur {
            path: path.to_owned(),
            passthrough: handler.passthrough,
        };
        log::debug!("{what} by {}", handler.name);
        self.add(n, backing, 0);
        Ok(())
    }

    fn add(&mut self, n: usize, backing: Backing, bytes: u64) {
        let identity = match &backing {
            Backing::Ram | Backing::Null => format!("ram {} {n}", self.ram_identity),
            Backing::File(path) | Backing::BlockDevice(path) => path.to_string_lossy().into_owned(),
            Backing::Tcmur { path, .. } | Backing::Port(path) => {
                path.split('?').next().unwrap_or(path).to_owned()
            }
        };
        self.luns.push(LunSpec {
            name: format!("disk{n}"),
            backing,
            bytes,
            read_only: self.read_only,
            direct: self.direct,
            serial: serial(&host::machine_id(), &identity),
        });
    }

    fn existing(&mut self, n: usize, path: &Path, stat: &Stat) -> Result<(Backing, u64)> {
        let absolute = fs::canonicalize(path).context("cannot be used")?;
        let backing = match stat.kind {
            FileKind::Regular => Backing::File(absolute),
            FileKind::BlockDevice => Backing::BlockDevice(absolute),
            FileKind::Directory => bail!("is a directory"),
            FileKind::Other => bail!("is neither a file nor a block device"),
        };
        if let Some(first) = self.known.insert(stat.identity, n) {
            bail!("is LUN {first} already; a file can be one LUN only");
        }
        let options = OpenOptions::new().read_only(self.read_only);
        let bytes = File::open(path, &options)
            .and_then(|f| f.size())
            .with_context(|| {
                let mode = if self.read_only {
                    "read"
                } else {
                    "read and written"
                };
                format!("cannot be {mode}")
            })?;
        if let Some(wanted) = self.size
            && wanted != bytes
        {
            bail!("has {bytes} bytes, not the {wanted} that --size asks for");
        }
        size::check_disk(bytes)?;
        Ok((backing, bytes))
    }

    fn missing(&mut self, n: usize, path: &Path) -> Result<(Backing, u64)> {
        let Some(bytes) = self.size else {
            bail!("no such file (--size N creates it)");
        };
        let Some(name) = path
            .file_name()
            .filter(|_| !path.as_os_str().as_encoded_bytes().ends_with(b"/"))
        else {
            bail!("no such directory");
        };
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let parent = fs::canonicalize(parent).context("cannot be created")?;
        let absolute = parent.join(name);
        if let Some(first) = self.planned.insert(absolute.clone(), n) {
            bail!("is LUN {first} already; a file can be one LUN only");
        }
        self.to_create.push((absolute.clone(), bytes));
        Ok((Backing::File(absolute), bytes))
    }
}

fn ram_size(argument: &OsStr) -> Result<u64> {
    let text = argument.to_str().unwrap_or_default();
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        bail!("no such file (--size N creates it)");
    }
    let bytes = size::parse(text).map_err(|e| anyhow!("no such file, and {e}"))?;
    size::check_disk(bytes)?;
    Ok(bytes)
}

/// FNV-1a over both texts, with its bits mixed once more: the same host and file give the same number for ever.
fn serial(machine_id: &str, identity: &str) -> u64 {
    let mut h: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in machine_id.bytes().chain([0]).chain(identity.bytes()) {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h = (h ^ (h >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    h ^ (h >> 32)
}

impl EngineArg {
    /// Makes it the engine of all files for which none is named.
    ///
    /// # Errors
    ///
    /// This host does not have it.
    pub(crate) fn apply(self, poller: Poller) -> Result<()> {
        let named = host::env("KSHIM_ENGINE").is_some_and(|e| !e.is_empty());
        let engine = match self {
            // Who asks for epoll has a reason not to use io_uring.
            Self::Auto if poller == Poller::Epoll && !named => Some(Engine::Threads),
            Self::Auto => None,
            Self::Uring => Some(Engine::Uring),
            Self::Aio => Some(Engine::Aio),
            Self::Threads => Some(Engine::Threads),
        };
        if let Some(e) = engine
            && let Err(cause) = e.probe()
        {
            bail!("--engine {e}: not available on this host: {cause}");
        }
        Engine::set_default(engine).context("--engine")?;
        Engine::choose(None).context("KSHIM_ENGINE")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(luns: &[&str]) -> ServeArgs {
        ServeArgs {
            luns: luns.iter().map(Into::into).collect(),
            size: None,
            portals: vec!["127.0.0.1:0".into()],
            iqn: None,
            read_only: false,
            cpus: None,
            poll_us: 0,
            nullio: None,
            digests: false,
            handler_dir: None,
            spdk: crate::cli::SpdkArgs::default(),
            chap: None,
            poller: Poller::Auto,
            engine: EngineArg::Auto,
            direct: false,
        }
    }

    fn error(args: &ServeArgs) -> String {
        format!(
            "{:#}",
            ServeConfig::check(args).expect_err("must be refused")
        )
    }

    #[test]
    fn sizes_are_ram_disks() {
        let (config, to_create) = ServeConfig::check(&args(&["1G", "512"])).unwrap();
        assert!(to_create.is_empty());
        let luns: Vec<_> = config
            .luns
            .iter()
            .map(|l| (l.name.as_str(), l.bytes))
            .collect();
        assert_eq!(luns, [("disk0", 1 << 30), ("disk1", 512)]);
        assert!(config.luns.iter().all(|l| l.backing == Backing::Ram));
        assert_ne!(config.luns[0].serial, config.luns[1].serial);
        assert!((1..=DEFAULT_MAX_CPUS).contains(&config.cpus));
    }

    #[test]
    fn nullio_comes_last() {
        let mut a = args(&["1G"]);
        a.nullio = Some("2G".into());
        let (config, _) = ServeConfig::check(&a).unwrap();
        let last = config.luns.last().unwrap();
        assert_eq!((&last.backing, last.bytes), (&Backing::Null, 2 << 30));
        assert_eq!(last.name, "disk1");
        a.nullio = Some("1000".into());
        assert!(error(&a).starts_with("--nullio"));
    }

    #[test]
    fn what_is_neither_size_nor_file_is_refused() {
        assert_eq!(
            error(&args(&["no-such.img"])),
            "no-such.img: no such file (--size N creates it)"
        );
        assert_eq!(
            error(&args(&["./1G"])),
            "./1G: no such file (--size N creates it)"
        );
        assert!(error(&args(&["1X"])).contains("is no size"));
        assert!(error(&args(&["0"])).contains("the size is 0"));
        assert!(error(&args(&["1000"])).contains("multiple"));
        assert!(error(&args(&[""])).contains("empty"));
        assert!(error(&args(&["/"])).contains("is a directory"));
        assert!(error(&args(&["/dev/null"])).contains("neither"));
    }

    #[test]
    fn missing_files_are_planned_but_not_created() {
        let mut a = args(&["./scst-no-such-file.img"]);
        a.size = Some("10M".into());
        let (config, to_create) = ServeConfig::check(&a).unwrap();
        assert_eq!(to_create.len(), 1);
        assert!(to_create[0].0.is_absolute() && to_create[0].1 == 10 << 20);
        assert_eq!(
            config.luns[0].backing,
            Backing::File(to_create[0].0.clone())
        );
        assert!(fs::stat(&to_create[0].0).is_err());
        a.luns.push("scst-no-such-file.img".into());
        assert!(error(&a).contains("is LUN 0 already"));
        a.luns = vec!["/no/such/directory/x".into()];
        assert!(error(&a).contains("cannot be created"));
    }

    #[test]
    fn portals_names_and_cpus_are_checked() {
        for portal in [
            "",
            "3260",
            "127.0.0.1",
            "localhost:3260",
            "127.0.0.1:65536",
            "::1:3260",
        ] {
            let a = ServeArgs {
                portals: vec![portal.into()],
                ..args(&["1G"])
            };
            assert!(error(&a).contains("want ADDR:PORT"), "{portal}");
        }
        let twice = vec!["127.0.0.1:3260".into(), "127.0.0.1:3260".into()];
        assert!(
            error(&ServeArgs {
                portals: twice,
                ..args(&["1G"])
            })
            .contains("twice")
        );
        assert!(
            error(&ServeArgs {
                iqn: Some("x".into()),
                ..args(&["1G"])
            })
            .contains("target name")
        );
        for cpus in ["0", "65", "-1", "x", ""] {
            let a = ServeArgs {
                cpus: Some(cpus.into()),
                ..args(&["1G"])
            };
            assert!(error(&a).contains("--cpus"), "{cpus}");
        }
    }

    #[test]
    fn serials_differ_by_host_and_file() {
        assert_eq!(serial("a", "b"), serial("a", "b"));
        assert_ne!(serial("a", "b"), serial("ab", ""));
        assert_ne!(serial("host1", "/disk"), serial("host2", "/disk"));
    }
}
