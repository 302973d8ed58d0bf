//! Log lines to stderr: with a time on a terminal or in a file, with a priority for journald.
//!
//! The level is `info`; `-v`/`-q` move it, and `SCST_LOG` sets it, as a whole and by module:
//! `SCST_LOG=warn,iscsi_scst=debug`. Levels mean what docs/logging.md says.

use std::fmt::Write as _;
use std::io::Write as _;

use anyhow::{Result, anyhow, bail};
use log::{LevelFilter, Log, Metadata, Record};

use kshim::host;

use crate::cli::LogArgs;

/// Environment variable with the levels.
const VARIABLE: &str = "SCST_LOG";

/// Which levels of which modules are logged.
#[derive(Debug, PartialEq, Eq)]
struct Filter {
    default: LevelFilter,
    /// Module path and level; the longest match wins.
    modules: Vec<(String, LevelFilter)>,
}

impl Filter {
    fn parse(text: &str) -> Result<Self> {
        let mut filter = Self {
            default: LevelFilter::Info,
            modules: Vec::new(),
        };
        for part in text.split(',').map(str::trim).filter(|p| !p.is_empty()) {
            let (module, level) = match part.split_once('=') {
                Some((module, level)) => (Some(module.trim()), level.trim()),
                None => (None, part),
            };
            let Ok(level) = level.parse::<LevelFilter>() else {
                bail!("{VARIABLE}: {level:?} is no level (off, error, warn, info, debug, trace)");
            };
            match module {
                // A crate may be written as in Cargo.toml.
                Some(module) => filter.modules.push((module.replace('-', "_"), level)),
                None => filter.default = level,
            }
        }
        filter
            .modules
            .sort_by_key(|(module, _)| std::cmp::Reverse(module.len()));
        Ok(filter)
    }

    /// With -v and -q applied: they set the default level.
    fn with_flags(mut self, args: &LogArgs) -> Self {
        self.default = match (args.verbose, args.quiet) {
            (0, 0) => self.default,
            (1, _) => LevelFilter::Debug,
            (2.., _) => LevelFilter::Trace,
            (_, 1) => LevelFilter::Warn,
            (_, _) => LevelFilter::Error,
        };
        self
    }

    fn level(&self, target: &str) -> LevelFilter {
        let matches = |module: &str| {
            target
                .strip_prefix(module)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        self.modules
            .iter()
            .find(|(module, _)| matches(module))
            .map_or(self.default, |(_, l)| *l)
    }

    fn max(&self) -> LevelFilter {
        self.modules
            .iter()
            .map(|(_, l)| *l)
            .fold(self.default, Ord::max)
    }
}

/// How a line begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// `<3>`: sd-daemon(3) priorities; journald adds the time.
    Journal,
    /// Time of day (UTC) and level.
    Plain,
}

struct Logger {
    filter: Filter,
    style: Style,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // What `trace_level` says counts more than how the server was started.
        let target = metadata.target();
        let level = kshim::print::module_level(target);
        metadata.level() <= level.unwrap_or_else(|| self.filter.level(target))
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let line = format_line(self.style, record, host::wall_clock_ms());
        // One call for the whole line, so that lines of several threads do not mix. With stderr gone (a full disk, a
        // closed pipe) the server goes on.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}

fn format_line(style: Style, record: &Record<'_>, now_ms: u64) -> String {
    use log::Level::{Debug, Error, Info, Trace, Warn};
    let mut line = String::with_capacity(128);
    let level = record.level();
    // Writing to a String does not fail.
    let _ = match style {
        Style::Journal => {
            let priority = match level {
                Error => 3,
                Warn => 4,
                Info => 6,
                Debug | Trace => 7,
            };
            write!(line, "<{priority}>")
        }
        Style::Plain => {
            let (s, ms) = (now_ms / 1000 % 86400, now_ms % 1000);
            let (hour, minute, second) = (s / 3600, s / 60 % 60, s % 60);
            write!(
                line,
                "{hour:02}:{minute:02}:{second:02}.{ms:03} {level:<5} "
            )
        }
    };
    let text = record.args().to_string();
    // A message of several lines would lose its prefix on all but the first, and a peer could forge lines.
    let _ = writeln!(
        line,
        "{}: {}",
        record.target(),
        text.trim_end().replace('\n', "\\n")
    );
    line
}

/// Installs the logger. Unless more was asked for, what is below a warning stays out until [`started`]: a start that
/// fails says why in one line, and one that succeeds says on stdout what it has set up.
///
/// # Errors
///
/// The environment variable cannot be understood.
pub(crate) fn init(args: &LogArgs) -> Result<()> {
    let text = std::env::var(VARIABLE).unwrap_or_default();
    let filter = Filter::parse(&text)?.with_flags(args);
    let style = if host::stderr_is_journal() {
        Style::Journal
    } else {
        Style::Plain
    };
    let max = filter.max();
    log::set_max_level(if max == LevelFilter::Info {
        LevelFilter::Warn
    } else {
        max
    });
    // One logger for the life of the process.
    let logger = Box::leak(Box::new(Logger { filter, style }));
    log::set_logger(logger).map_err(|e| anyhow!("logger: {e}"))?;
    Ok(())
}

/// The server is ready: from now on everything is logged that was asked for.
pub(crate) fn started() {
    if log::max_level() == LevelFilter::Warn {
        // The filter of the logger decides for each line.
        log::set_max_level(LevelFilter::Info);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_by_module() {
        let f = Filter::parse("warn, iscsi-scst=debug,iscsi_scst::pdu=off").unwrap();
        assert_eq!(f.level("scst_core::cmd"), LevelFilter::Warn);
        assert_eq!(f.level("iscsi_scst"), LevelFilter::Debug);
        assert_eq!(f.level("iscsi_scst::conn"), LevelFilter::Debug);
        assert_eq!(f.level("iscsi_scst::pdu::hdr"), LevelFilter::Off);
        assert_eq!(f.level("iscsi_scstx"), LevelFilter::Warn);
        assert_eq!(f.max(), LevelFilter::Debug);
        assert!(Filter::parse("loud").is_err());
        assert!(Filter::parse("x=").is_err());
    }

    #[test]
    fn flags_move_the_default() {
        let with = |verbose, quiet| {
            Filter::parse("")
                .unwrap()
                .with_flags(&LogArgs { verbose, quiet })
                .default
        };
        assert_eq!(with(0, 0), LevelFilter::Info);
        assert_eq!(with(1, 0), LevelFilter::Debug);
        assert_eq!(with(3, 0), LevelFilter::Trace);
        assert_eq!(with(0, 1), LevelFilter::Warn);
        assert_eq!(with(0, 2), LevelFilter::Error);
    }

    #[test]
    fn lines_of_both_styles() {
        let line = |style| {
            let args = format_args!("a\nb");
            let record = Record::builder()
                .level(log::Level::Warn)
                .target("scst")
                .args(args)
                .build();
            format_line(style, &record, 3_661_002)
        };
        assert_eq!(line(Style::Journal), "<4>scst: a\\nb\n");
        assert_eq!(line(Style::Plain), "01:01:01.002 WARN  scst: a\\nb\n");
    }
}
