//! What is under way: `trace_cmds` and `trace_mcmds` of the management tree.
//!
//! C source: `scst_trace_cmds`, `scst_trace_mcmds` of `scst/src/scst_lib.c`

use super::Core;
use crate::cmd::shared::ABORTED;
use crate::session::Session;
use std::fmt::Write;
use std::sync::Weak;
use std::sync::atomic::Ordering;

/// Adds a line unless the text gets longer than `max`; false then.
fn add(text: &mut String, max: usize, line: std::fmt::Arguments<'_>) -> bool {
    let before = text.len();
    // Writing to a String does not fail.
    let _ = text.write_fmt(line);
    if text.len() > max {
        text.truncate(before);
        return false;
    }
    true
}

impl Core {
    /// A line for each command under way, as many as fit into `max` bytes. Context: any; takes long with many commands.
    #[doc(alias = "scst_trace_cmds")]
    pub fn trace_cmds(&self, max: usize) -> String {
        let tgts: Vec<_> = {
            let list = self.tgt_list.lock();
            list.iter().filter_map(Weak::upgrade).collect()
        };
        let mut text = String::new();
        let sessions = tgts.iter().flat_map(|t| t.sessions());
        for sess in sessions {
            if !sess.trace_cmds(&mut text, max) {
                break;
            }
        }
        text
    }

    /// A line for each task management request under way, as many as fit into `max` bytes. Context: any.
    #[doc(alias = "scst_trace_mcmds")]
    pub fn trace_mcmds(&self, max: usize) -> String {
        let mut text = String::new();
        for m in self.tm.active() {
            let (p, sess) = (m.params(), m.session());
            let fits = add(
                &mut text,
                max,
                format_args!(
                    "mcmd: tgtt {}; tgt {}; session {}; fn {:?}; LUN {}; tag {}; cmd_done_wait_count {}\n",
                    sess.tgt().template().name(),
                    sess.tgt().name(),
                    sess.initiator_name(),
                    p.function,
                    p.lun,
                    p.tag,
                    m.waits_for(),
                ),
            );
            if !fits {
                break;
            }
        }
        text
    }
}

impl Session {
    fn trace_cmds(&self, text: &mut String, max: usize) -> bool {
        let cmds = self.cmds.lock();
        for c in cmds.iter() {
            let Some(stage) = c.stage() else { continue };
            let fits = add(
                text,
                max,
                format_args!(
                    "cmd: state {stage}{}; op {:02x}; tgtt {}; tgt {}; session {}; LUN {}; tag {}\n",
                    if c.flags() & ABORTED != 0 {
                        " aborted"
                    } else {
                        ""
                    },
                    c.opcode.load(Ordering::Relaxed),
                    self.tgt().template().name(),
                    self.tgt().name(),
                    self.initiator_name(),
                    c.lun.load(Ordering::Relaxed),
                    c.tag.load(Ordering::Relaxed),
                ),
            );
            if !fits {
                return false;
            }
        }
        true
    }
}
