//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

/// SCST as an ordinary process: an iSCSI target for files and RAM disks.
#[derive(Debug, Parser)]
#[command(
    name = "scstd",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) log: LogArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How much is logged to stderr.
#[derive(Debug, Default, Args)]
pub(crate) struct LogArgs {
    /// Log more: -v debug, -vv trace (environment: SCST_LOG=LEVEL[,MODULE=LEVEL...])
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Log less: -q warnings and errors, -qq errors only
    #[arg(short, long, global = true, action = ArgAction::Count, conflicts_with = "verbose")]
    pub(crate) quiet: u8,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve files and RAM disks as the LUNs of one target
    Serve(ServeArgs),
    /// Run the full server, configured by its management tree
    Run(RunArgs),
    /// Run a program where /sys/kernel/scst_tgt is the tree of the running server
    Exec(ExecArgs),
    /// Tell what happens in the running server, a line for each event, until it ends
    Events(EventsArgs),
    /// Have a program carry out SET TARGET PORT GROUPS, as SCST's stpgd does
    Stpgd(StpgdArgs),
}

/// Arguments of `scstd run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The configuration to apply at the start, and again on SIGHUP: an scst.conf [default: /etc/scst.conf, if it is there]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Start empty, whether there is an /etc/scst.conf or not
    #[arg(long, conflicts_with = "config")]
    pub(crate) no_config: bool,

    /// Apply what can be applied of the configuration; otherwise an error in it is the end
    #[arg(long)]
    pub(crate) cont_on_err: bool,

    /// Address to listen on; may be given several times. Port 0 takes a free one [default: port 3260 of every IPv4 and IPv6 address]
    #[arg(long = "portal", value_name = "ADDR:PORT")]
    pub(crate) portals: Vec<String>,

    /// Mount the management tree at this directory, by FUSE: it then is what /sys/kernel/scst_tgt is in the kernel
    #[arg(long, value_name = "DIR")]
    pub(crate) sysfs: Option<PathBuf>,

    /// Mount the tree of block drivers (/dev/null_blk/..., /dev/nbd/..., ...) at this directory, by FUSE: what /sys/block is
    /// for the kernel's
    #[arg(long, value_name = "DIR")]
    pub(crate) block_sysfs: Option<PathBuf>,

    /// The control socket [default: $SCST_CONTROL, else scst/control.sock below $XDG_RUNTIME_DIR or /run]
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,

    /// Where persistent reservations and saved mode pages are kept [default: /var/lib/scst, or scst below $XDG_STATE_HOME
    /// or ~/.local/state]
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,

    /// Where tcmu-runner's handlers are (handler_*.so) [default: the distribution's folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) handler_dir: Option<PathBuf>,

    /// Number of reactor threads [default: one per CPU, at most 4]
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<String>,

    #[command(flatten)]
    pub(crate) spdk: SpdkArgs,

    /// How files and devices are read and written where that would wait
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    pub(crate) engine: EngineArg,

    /// How reactors wait for sockets; for tests, and for kernels or containers in which io_uring misbehaves: with epoll, files are
    /// read and written by threads unless an engine is named
    #[arg(long, value_enum, default_value_t = Poller::Auto)]
    pub(crate) poller: Poller,
}

/// Arguments of `scstd exec`.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    /// The server's control socket [default: $SCST_CONTROL, else scst/control.sock below $XDG_RUNTIME_DIR or /run]
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,

    /// The program and its arguments
    #[arg(
        value_name = "CMD",
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) command: Vec<OsString>,
}

/// Arguments of `scstd events`.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// The server's control socket [default: $SCST_CONTROL, else scst/control.sock below $XDG_RUNTIME_DIR or /run]
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,

    /// Only these: LUN_NOT_FOUND, NEGATIVE_LUNS_INQUIRY, EXT_BLOCKING_DONE, TM_FN_RECEIVED, STPG_USER_INVOKE,
    /// REG_VIRT_DEV, or numbers
    #[arg(value_name = "EVENT")]
    pub(crate) names: Vec<String>,
}

/// Arguments of `scstd stpgd`.
#[derive(Debug, Args)]
pub(crate) struct StpgdArgs {
    /// The server's control socket [default: $SCST_CONTROL, else scst/control.sock below $XDG_RUNTIME_DIR or /run]
    #[arg(long, value_name = "SOCKET")]
    pub(crate) control: Option<PathBuf>,

    /// The program. Its arguments: device, state, wanted state, device group, target group
    #[arg(
        short,
        long,
        value_name = "PROG",
        default_value = "/usr/local/bin/scst/scst_on_stpg"
    )]
    pub(crate) path: PathBuf,

    /// Seconds that it may take
    #[arg(short, long, value_name = "SECONDS", default_value_t = 17)]
    pub(crate) timeout: u16,
}

/// Arguments of `scstd serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    /// A size as 1G is a RAM disk (K, M, G, T: powers of 1024); anything with a "/", the name of an existing file, or
    /// any name if --size is given, is a file or block device. /dev/tcmur/KIND/WHAT is a disk of a tcmu-runner
    /// handler, as /dev/tcmur/qcow//images/a.qcow2; /dev/spdk/BDEV is a block device of SPDK; /dev/brd/...,
    /// /dev/null_blk/... and others are disks of drivers of our own. The first is LUN 0, the next LUN 1, ...
    #[arg(value_name = "FILE|SIZE", required = true)]
    pub(crate) luns: Vec<OsString>,

    /// Create missing files with this size (sparse); a file that exists must have it
    #[arg(long, value_name = "N")]
    pub(crate) size: Option<String>,

    /// Address to listen on; may be given several times. Port 0 takes a free one
    #[arg(
        long = "portal",
        value_name = "ADDR:PORT",
        default_value = "127.0.0.1:3260"
    )]
    pub(crate) portals: Vec<String>,

    /// Name of the target [default: iqn.2026-01.io.scst-usermode:HOSTNAME]
    #[arg(long, value_name = "NAME")]
    pub(crate) iqn: Option<String>,

    /// Refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,

    /// Bypass the page cache of this host (O_DIRECT)
    #[arg(long)]
    pub(crate) direct: bool,

    /// Initiators must authenticate themselves by CHAP, for discovery too. The secret (at least 12 bytes) is the first
    /// line of FILE, or of the standard input if FILE is "-"
    #[arg(long, value_name = "USER:@FILE")]
    pub(crate) chap: Option<String>,

    /// Number of reactor threads [default: one per CPU, at most 4]
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<String>,

    /// Microseconds that a reactor looks for more work before it sleeps: less delay where waking a CPU is slow (virtual machines),
    /// for CPU time while there is traffic; 50 to 200 pay
    #[arg(long, value_name = "US", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    pub(crate) poll_us: u32,

    /// One more LUN, the last: of this size, without memory behind it; reads give zeroes, writes vanish. For measuring
    #[arg(long, value_name = "SIZE", hide = true)]
    pub(crate) nullio: Option<String>,

    /// Let initiators have header and data digests. For measuring
    #[arg(long, hide = true)]
    pub(crate) digests: bool,

    /// Where tcmu-runner's handlers are (handler_*.so) [default: the distribution's folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) handler_dir: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) spdk: SpdkArgs,

    /// How files and devices are read and written where that would wait
    #[arg(long, value_enum, default_value_t = EngineArg::Auto)]
    pub(crate) engine: EngineArg,

    /// How reactors wait for sockets; for tests, and for kernels or containers in which io_uring misbehaves: with epoll, files are
    /// read and written by threads unless an engine is named
    #[arg(long, value_enum, default_value_t = Poller::Auto)]
    pub(crate) poller: Poller,
}

/// How SPDK is started.
#[derive(Debug, Default, Args)]
pub(crate) struct SpdkArgs {
    /// Start SPDK with this configuration, in its JSON format; its bdevs are /dev/spdk/BDEV. Only in a server that is built
    /// with SPDK, as all options of it
    #[arg(long, value_name = "FILE")]
    pub(crate) spdk_config: Option<PathBuf>,

    /// Start SPDK with its JSON-RPC server at this socket, by which bdevs are made and removed
    #[arg(long, value_name = "SOCKET")]
    pub(crate) spdk_rpc: Option<PathBuf>,

    /// Memory for SPDK, without hugepages [default: 512]
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(64..))]
    pub(crate) spdk_mem: Option<u32>,

    /// SPDK takes hugepages and PCI devices (NVMe)
    #[arg(long, conflicts_with = "spdk_mem")]
    pub(crate) spdk_huge: bool,
}

/// How files are read and written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum EngineArg {
    /// What the environment variable KSHIM_ENGINE says, else the first of these that the host has
    #[default]
    Auto,
    /// io_uring, or fail
    Uring,
    /// Linux AIO, which is for --direct; else threads
    Aio,
    /// Threads
    Threads,
}

/// How reactors wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Poller {
    /// io_uring where the kernel permits it, else epoll
    #[default]
    Auto,
    /// io_uring, or fail
    Uring,
    /// epoll
    Epoll,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<ServeArgs, clap::Error> {
        let args = ["scstd", "serve"].iter().chain(args);
        Cli::try_parse_from(args).map(|cli| match cli.command {
            Command::Serve(args) => args,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn defaults() {
        let args = parse(&["1G"]).unwrap();
        assert_eq!(args.portals, ["127.0.0.1:3260"]);
        assert_eq!(args.poller, Poller::Auto);
        assert_eq!(args.engine, EngineArg::Auto);
        assert!(!args.direct && !args.read_only && args.size.is_none() && args.iqn.is_none());
    }

    #[test]
    fn a_given_portal_replaces_the_default_one() {
        let args = parse(&["1G", "--portal", "[::1]:0", "--portal", "10.0.0.1:3261"]).unwrap();
        assert_eq!(args.portals, ["[::1]:0", "10.0.0.1:3261"]);
    }

    #[test]
    fn unknown_flags_and_missing_luns_are_refused() {
        assert!(parse(&[]).is_err());
        assert!(parse(&["1G", "--nonsense"]).is_err());
        assert!(parse(&["1G", "--poller", "select"]).is_err());
        assert!(parse(&["1G", "--engine", "libaio"]).is_err());
    }
}
