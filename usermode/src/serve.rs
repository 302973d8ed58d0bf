//! `scstd serve`: checks, creates what must be created, starts, tells that it is ready, waits, stops.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use kshim::fs::{self, File, OpenOptions};
use kshim::host;
use kshim::net::TcpListener;
use kshim::page::PagePool;

use crate::cli::ServeArgs;
use crate::config::{Backing, LunSpec, ServeConfig, ToCreate};
use crate::server::{self, Server};
use crate::spdk::Spdk;
use crate::{logger, signals, size};

/// Runs the server until it is asked to stop.
///
/// # Errors
///
/// Why it could not start or not stop cleanly. After a failed start nothing that it created is left.
pub(crate) fn run(args: &ServeArgs) -> Result<()> {
    // Before anything is opened: they have fixed numbers.
    let inherited = TcpListener::inherited().context("sockets of the service manager")?;
    let (config, to_create) = ServeConfig::check(args)?;
    // Before the first thread: all threads inherit the mask, and the signals wait for `wait_termination`.
    let signals = signals::Signals::block()?;
    // One descriptor a connection: what the hard limit permits is what an operator meant.
    match host::raise_fd_limit() {
        Some(n) => log::debug!("up to {n} descriptors"),
        None => log::warn!("the limit on descriptors cannot be raised"),
    }
    PagePool::start_aging();
    // Ends after everything that is declared below.
    let _spdk = Spdk::start(&args.spdk)?;
    let created = Created::all(&to_create)?;
    let server = server::start(&config, inherited)?;
    created.keep();
    // Before anybody can know that it is ready.
    logger::started();
    ready(&config, &server);
    let why = signals.wait()?;
    log::info!("{why}: stopping");
    signals.exit_on_next()?;
    server.stop()
}

/// Tells on stdout what is served where.
fn ready(config: &ServeConfig, server: &Server) {
    let mut text = String::new();
    for portal in server.portals() {
        text += &format!("portal {portal}\n");
    }
    text += &format!("target {}\n", config.iqn);
    if let Some(portal) = server.portals().first() {
        for (n, lun) in config.luns.iter().enumerate() {
            text += &format!(
                "lun {n}: {}, iscsi://{portal}/{}/{n}\n",
                describe(lun),
                config.iqn
            );
        }
    }
    text += "ready\n";
    let mut stdout = std::io::stdout();
    if let Err(e) = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        log::warn!("cannot tell on stdout that the server is ready: {e}");
    }
}

fn describe(lun: &LunSpec) -> String {
    let what = match &lun.backing {
        Backing::Ram => "RAM disk".to_owned(),
        Backing::Null => "nothing".to_owned(),
        Backing::File(path) => format!("file {}", path.display()),
        Backing::BlockDevice(path) => format!("block device {}", path.display()),
        Backing::Tcmur { path, .. } => format!("handler {path}"),
        Backing::Port(path) => format!("disk {path}"),
    };
    let size = match lun.bytes {
        0 => String::new(),
        bytes => format!(", {}", size::human(bytes)),
    };
    let mode = if lun.read_only { ", read-only" } else { "" };
    format!("{what}{size}{mode}")
}

/// Files that this start created; removed again unless the start succeeds.
struct Created(Vec<PathBuf>);

impl Created {
    fn all(files: &ToCreate) -> Result<Self> {
        let mut created = Self(Vec::new());
        for (path, bytes) in files {
            let what = || format!("{}: cannot be created", path.display());
            let file = File::open(path, &OpenOptions::new().create_new(true)).with_context(what)?;
            created.0.push(path.clone());
            file.set_size(*bytes).with_context(what)?;
        }
        Ok(created)
    }

    fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(e) = fs::unlink(path) {
                log::error!("{}: cannot be removed again: {e}", path.display());
            }
        }
    }
}
