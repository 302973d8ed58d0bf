//! `trace_level`: how much a part of the server logs, in SCST's words.
//!
//! SCST has a bit for each kind of message. Here messages have levels: with a bit for single commands (`scsi`, `buff`, `sg`,
//! `data_send`, `data_received`, `scsi_serializing`; `pdu`, `d_write`, `iov` of iSCSI), or all bits, the modules concerned log at
//! level trace, with another one that is not on from the start at level debug, and otherwise as the server was started.
//!
//! C source: `scst_trace_level_show`, `scst_write_trace` of `scst/src/scst_sysfs.c`

use super::text::{Lexems, parse_u64};
use kshim::error::{Result, code};
use kshim::kobject::Attr;
use kshim::print::{LevelFilter, set_module_level};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Kinds of messages and their bits.
pub type TraceTable = &'static [(u64, &'static str)];

const FUNCTION: u64 = 0x2;
const LINE: u64 = 0x4;
const PID: u64 = 0x8;
const OUT_OF_MEM: u64 = 0x100;
const MINOR: u64 = 0x200;
const MGMT: u64 = 0x400;
const MGMT_DEBUG: u64 = 0x800;
const SPECIAL: u64 = 0x2000;
const RETRY: u64 = 0x8000_0000;
const ALL: u64 = 0xffff_ffff;

/// What is on from the start.
#[doc(alias = "SCST_DEFAULT_LOG_FLAGS")]
pub const DEFAULT_FLAGS: u64 =
    OUT_OF_MEM | MINOR | PID | LINE | FUNCTION | SPECIAL | MGMT | MGMT_DEBUG;

/// ... in the core.
pub(super) const CORE_DEFAULT_FLAGS: u64 = DEFAULT_FLAGS | RETRY;

/// Bits that every part has.
#[doc(alias = "scst_trace_tbl")]
const COMMON: TraceTable = &[
    (OUT_OF_MEM, "out_of_mem"),
    (MINOR, "minor"),
    (0x80, "sg"),
    (0x40, "mem"),
    (0x20, "buff"),
    (0x10, "entryexit"),
    (PID, "pid"),
    (LINE, "line"),
    (FUNCTION, "function"),
    (0x1, "debug"),
    (SPECIAL, "special"),
    (0x1000, "scsi"),
    (MGMT, "mgmt"),
    (MGMT_DEBUG, "mgmt_dbg"),
    (0x4000, "flow_control"),
    (0x8000, "pr"),
];

/// Bits of the core.
#[doc(alias = "scst_local_trace_tbl")]
pub(super) const CORE_TABLE: TraceTable = &[
    (RETRY, "retry"),
    (0x4000_0000, "scsi_serializing"),
    (0x2000_0000, "data_send"),
    (0x0100_0000, "data_received"),
    (0x1_0000, "block"),
];

/// Kinds of messages that are about single commands.
const SINGLE_COMMANDS: [&str; 9] = [
    "scsi",
    "buff",
    "sg",
    "data_send",
    "data_received",
    "scsi_serializing",
    "pdu",
    "d_write",
    "iov",
];

/// How much a part of the server logs.
#[derive(Debug)]
pub struct TraceLog {
    name: &'static str,
    /// Whose messages it is about.
    modules: &'static [&'static str],
    local: TraceTable,
    /// Names of the local bits as the usage text ends: ", order".
    help: &'static str,
    default: u64,
    flags: AtomicU64,
}

impl TraceLog {
    /// For the messages of `modules` (paths as `scst_core::dev_handlers`). `help` is what the usage text adds to its list of
    /// tokens.
    pub fn new(
        name: &'static str,
        modules: &'static [&'static str],
        local: TraceTable,
        help: &'static str,
        default: u64,
    ) -> Arc<Self> {
        Arc::new(Self {
            name,
            modules,
            local,
            help,
            default,
            flags: AtomicU64::new(default),
        })
    }

    /// The attribute `trace_level`; several directories may have it.
    pub fn attr(self: &Arc<Self>) -> Attr {
        let (show, store) = (Arc::clone(self), Arc::clone(self));
        Attr::rw(
            "trace_level",
            move || Ok(show.text()),
            move |text| store.change(text),
        )
        .direct()
    }

    #[doc(alias = "scst_trace_level_show")]
    fn text(&self) -> String {
        let flags = self.flags.load(Ordering::Relaxed);
        let all = COMMON.iter().chain(self.local);
        let on: Vec<&str> = all
            .filter(|(b, _)| flags & b != 0)
            .map(|(_, n)| *n)
            .collect();
        format!(
            "{}\n\n\nUsage:\n\
             \techo \"all|none|default\" >trace_level\n\
             \techo \"value DEC|0xHEX|0OCT\" >trace_level\n\
             \techo \"add|del TOKEN\" >trace_level\n\
             \nwhere TOKEN is one of [debug, function, line, pid,\n\
             \t\t       entryexit, buff, mem, sg, out_of_mem,\n\
             \t\t       special, scsi, mgmt, minor,\n\
             \t\t       mgmt_dbg, scsi_serializing,\n\
             \t\t       retry, pr, block{}]\n",
            on.join(" | "),
            self.help
        )
    }

    fn token(&self, name: &str) -> Result<u64> {
        let mut all = self.local.iter().chain(COMMON);
        let found = all.find(|(_, n)| n.eq_ignore_ascii_case(name));
        found.map(|(bit, _)| *bit).ok_or(code::EINVAL)
    }

    #[doc(alias = "scst_write_trace")]
    fn change(&self, text: &str) -> Result {
        let mut words = Lexems::new(text);
        let action = words.next_lexem().to_ascii_lowercase();
        let arg = words.next_lexem();
        let old = self.flags.load(Ordering::Relaxed);
        let new = match action.as_str() {
            "all" => ALL,
            "none" | "null" => 0,
            "default" => self.default,
            "add" => old | self.token(arg)?,
            "del" => old & !self.token(arg)?,
            "value" => parse_u64(arg)?,
            _ => return Err(code::EINVAL),
        };
        self.flags.store(new, Ordering::Relaxed);
        let level = self.level(new);
        for module in self.modules {
            set_module_level(module, level);
        }
        kshim::pr_info!(
            "Changed trace level for \"{}\": old 0x{old:08x}, new 0x{new:08x}",
            self.name
        );
        Ok(())
    }

    /// What the bits are in the log's own terms; none is as the server was started.
    fn level(&self, flags: u64) -> Option<LevelFilter> {
        let single = |name: &&str| self.token(name).is_ok_and(|bit| flags & bit != 0);
        if flags & ALL == ALL || SINGLE_COMMANDS.iter().any(single) {
            Some(LevelFilter::Trace)
        } else if flags & !self.default != 0 {
            Some(LevelFilter::Debug)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_added_removed_and_reset() {
        let t = TraceLog::new("t", &[], CORE_TABLE, "", CORE_DEFAULT_FLAGS);
        let first = |t: &TraceLog| t.text().lines().next().unwrap_or_default().to_owned();
        let default =
            "out_of_mem | minor | pid | line | function | special | mgmt | mgmt_dbg | retry";
        assert_eq!(first(&t), default);
        t.change("add SCSI\n").expect("token");
        assert!(first(&t).contains(" | special | scsi | mgmt | "));
        t.change("del scsi").expect("token");
        assert_eq!(first(&t), default);
        for (text, want) in [("none", ""), ("value 0x11", "entryexit | debug")] {
            t.change(text).expect("valid");
            assert_eq!(first(&t), want);
        }
        for bad in ["", "\n", "nonsense", "add", "add order", "value x"] {
            assert_eq!(t.change(bad), Err(code::EINVAL), "{bad:?}");
        }
        t.change("default").expect("valid");
        assert_eq!(first(&t), default);
    }

    #[test]
    fn detail_raises_the_level() {
        let t = TraceLog::new("t", &[], CORE_TABLE, "", CORE_DEFAULT_FLAGS);
        assert_eq!(t.level(CORE_DEFAULT_FLAGS), None);
        assert_eq!(t.level(0), None);
        assert_eq!(t.level(0x1), Some(LevelFilter::Debug));
        assert_eq!(t.level(0x8000), Some(LevelFilter::Debug));
        assert_eq!(t.level(0x1000), Some(LevelFilter::Trace));
        assert_eq!(t.level(0x2000_0000), Some(LevelFilter::Trace));
        assert_eq!(t.level(ALL), Some(LevelFilter::Trace));
    }
}
