//! The configuration file of `scstd run`: applied at the start, and what differs again on SIGHUP.

use std::path::PathBuf;

use crate::conf::{self, ConfError, Options};
use anyhow::{Result, anyhow, bail};
use kshim::error::code;
use kshim::kobject::tree::TreeOps;

use crate::cli::RunArgs;

/// Applied if none is named and it is there.
const DEFAULT: &str = "/etc/scst.conf";

/// The configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConfigFile {
    path: PathBuf,
    /// By `--config`: it has to be there.
    named: bool,
    /// What can be applied is, whatever else fails.
    cont_on_err: bool,
}

impl ConfigFile {
    /// The one that is meant; `None`: there is to be none.
    pub(super) fn of(args: &RunArgs) -> Option<ConfigFile> {
        if args.no_config {
            return None;
        }
        Some(ConfigFile {
            path: args.config.clone().unwrap_or_else(|| DEFAULT.into()),
            named: args.config.is_some(),
            cont_on_err: args.cont_on_err,
        })
    }

    /// Makes the server what the file says; what the server has and the file has not stays.
    ///
    /// # Errors
    ///
    /// Why nothing was changed. What was done before a failure has been taken back.
    pub(super) fn apply(&self, tree: &dyn TreeOps) -> Result<()> {
        let options = Options {
            cont_on_err: self.cont_on_err,
            ..Options::default()
        };
        let name = self.path.display();
        let (mut told, mut reasons) = (Vec::new(), Vec::new());
        let applied = conf::apply_file_telling(tree, &self.path, &options, &mut told, &mut reasons);
        let told = String::from_utf8_lossy(&told).into_owned();
        for line in told.lines().filter_map(|l| tagged(l, "WARNING: ")) {
            if !line.is_empty() && !line.starts_with("Received the following") {
                log::warn!("{name}: {line}");
            }
        }
        let report = match applied {
            Ok(report) => report,
            Err(ConfError::Unreadable(_, code::ENOENT)) if !self.named => {
                log::info!("{name}: not there, nothing to apply");
                return Ok(());
            }
            Err(ConfError::Empty) => {
                log::warn!("{name}: empty, nothing to apply");
                return Ok(());
            }
            Err(ConfError::Check(_)) => {
                let fatal: Vec<&str> = told.lines().filter_map(|l| tagged(l, "FATAL: ")).collect();
                bail!("{name}: {}", fatal.join("; "));
            }
            Err(ConfError::Wrong(lines)) => bail!("{}", lines.join("; ")),
            Err(e) => return Err(anyhow!(e)),
        };
        // That a file does not name the copy manager's target is no news.
        let news = |l: &&String| !l.contains("WARNING: ") && !l.contains("'copy_manager_tgt'");
        for line in report.remarks.iter().filter(news) {
            log::info!("{name}: {}", line.trim_start_matches("-> "));
        }
        if report.fatal.is_some() {
            let left = match report.applied.len() {
                0 => String::new(),
                n => format!(" ({n} changes made before it stay)"),
            };
            bail!("{}{left}", report.failed.join("; "));
        }
        for line in &report.failed {
            log::error!("{line}");
        }
        log::info!("{name}: {} changes made", report.applied.len());
        Ok(())
    }
}

/// What follows a mark in a line of progress.
fn tagged<'a>(line: &'a str, tag: &str) -> Option<&'a str> {
    let (before, text) = line.split_once(tag)?;
    matches!(before.trim(), "" | "->").then_some(text.trim())
}
