//! `scstd exec`: runs a program where `/sys/kernel/scst_tgt` is the tree of a running server.
//!
//! The program gets a mount name space of its own, and where the caller is not root a user name space in which it is. There
//! `/sys/kernel` is what it was, plus `scst_tgt`: a FUSE file system whose device goes to the server over the control
//! socket. The program outlives neither its name space nor needs this process: it replaces it.
//!
//! Scripts that load SCST's modules find `modprobe`, `rmmod` and `lsmod` that do nothing and say that all is loaded.

use std::ffi::OsString;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use kshim::error::{Error, code};
use kshim::kobject::control::Client;
use kshim::{fs, host, ns};

use crate::events;

use crate::MOUNT_NAME;
use crate::cli::ExecArgs;

/// Where SCST's tree belongs.
const SYS_KERNEL: &str = "/sys/kernel";
const TREE_NAME: &str = "scst_tgt";
/// Programs that come first in `PATH`; in the same file system, so nothing is left behind.
const SHIM_DIR: &str = ".scstd-bin";

const QUIET: &str = "#!/bin/sh\n# scstd exec: SCST is a process here, there is no module to load or to unload.\nexit 0\n";
const LSMOD: &str = "#!/bin/sh\n# scstd exec: SCST is a process here; what scripts look for.\n\
    cat <<'END'\nModule                  Size  Used by\niscsi_scst                 0  0\n\
    scst_vdisk                 0  0\nscst                       0  2 iscsi_scst,scst_vdisk\nEND\n";
const SHIMS: [(&str, &str); 3] = [("modprobe", QUIET), ("rmmod", QUIET), ("lsmod", LSMOD)];

/// Becomes the program.
///
/// # Errors
///
/// Why it cannot.
pub(crate) fn run(args: &ExecArgs) -> Result<()> {
    let control = args.control.clone().unwrap_or_else(crate::control_path);
    let client = Client::connect(&control).map_err(|e| events::no_server(&control, e))?;
    let control = fs::canonicalize(&control)?;
    ns::own_mounts().map_err(no_namespace)?;
    let dir = Path::new(SYS_KERNEL);
    // Of the kernel's own SCST, or of an `exec` around this one.
    let old = [TREE_NAME, SHIM_DIR];
    ns::make_room(dir, &old).with_context(|| format!("{SYS_KERNEL}: cannot be mounted over"))?;
    let device = ns::mount_fuse(&dir.join(TREE_NAME), MOUNT_NAME).map_err(no_fuse)?;
    let served = client.serve_fuse(device.as_fd());
    served.context("the server cannot serve one more file system")?;
    drop((device, client));
    let bin = write_shims(dir)?;
    let path = host::env("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    let path = OsString::from(format!("{}:{path}", bin.display()));
    let env = [("PATH", path), ("SCST_CONTROL", control.into_os_string())];
    let e = ns::replace(&args.command, &env);
    let name = args.command.first().cloned().unwrap_or_default();
    Err(e).with_context(|| format!("{}: cannot be run", name.display()))
}

fn write_shims(dir: &Path) -> Result<PathBuf> {
    let bin = dir.join(SHIM_DIR);
    fs::create_dir_all(&bin)?;
    for (name, text) in SHIMS {
        ns::write_script(&bin.join(name), text).with_context(|| name.to_owned())?;
    }
    Ok(bin)
}

fn no_namespace(e: Error) -> anyhow::Error {
    anyhow!("this host permits no name spaces ({e}): use scstd run --sysfs DIR, or scstadmin")
}

fn no_fuse(e: Error) -> anyhow::Error {
    match e {
        code::ENODEV => anyhow!("this host has no FUSE: use scstadmin"),
        code::EACCES => anyhow!("/dev/fuse may not be opened: use scstadmin"),
        e => anyhow!("the tree cannot be mounted ({e}): use scstd run --sysfs DIR, or scstadmin"),
    }
}
