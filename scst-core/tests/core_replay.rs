//! Replays what kernel SCST answered about LUNs, unit attentions, task management, reservations and ACA, with as many
//! sessions as it takes.

mod mock;
#[path = "common/ram.rs"]
mod ram;
#[path = "common/reference.rs"]
mod reference;

use kshim::block::register_disk;
use mock::{Ini, Rig, Spec};
use reference::{MIB, data, reference_disks};
use scst_core::consts::{DataDirection, QueueType};
use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use scst_core::dev_type::DevHandler;
use scst_core::mgmt::{TmFunction, TmStatus};
use scst_core::sense;
use std::collections::BTreeMap;
use std::sync::Arc;

const CONVERSATIONS: &str = concat!(
    include_str!("data/kernel_scst_core.txt"),
    include_str!("data/kernel_scst_pr.txt")
);
/// Response codes of RFC 7143 11.6.1.
const REJECTED: u8 = 255;

fn queue_type(attr: u8) -> QueueType {
    match attr {
        0 => QueueType::Untagged,
        2 => QueueType::Ordered,
        3 => QueueType::HeadOfQueue,
        4 => QueueType::Aca,
        _ => QueueType::Simple,
    }
}

struct Player {
    rig: Rig,
    open: BTreeMap<String, Ini>,
    wrong: Vec<String>,
    same: usize,
}

impl Player {
    fn step(&mut self, case: &str, line: &str) {
        let f: Vec<&str> = line.split(' ').collect();
        match f[..] {
            ["open", s, clear, luns] => {
                let mut ini = self.rig.fresh_ini(s);
                for lun in luns.split(',').filter(|_| clear == "1") {
                    ini.clear_ua(lun.parse().expect("LUN"));
                }
                self.open.insert(s.to_owned(), ini);
            }
            ["close", s] => self.open.remove(s).expect("open").close(),
            ["drain"] => {
                for ini in self.open.values_mut() {
                    ini.clear_ua(0);
                }
            }
            ["sleep"] => {}
            ["tmf", s, function, lun, want] => {
                let got = self.tmf(s, function, lun.parse().expect("LUN"));
                self.note(got.to_string() == want, case, line, &got);
            }
            ["cmd", s, lun, attr, cdb, expect_in, out, "|", ..] => {
                let spec = Spec {
                    queue_type: queue_type(attr.parse().expect("attribute")),
                    raw_lun: Some(data(lun).try_into().expect("8 bytes")),
                    out: data(out),
                    expected: Some(match expect_in.parse() {
                        Ok(len) => (DataDirection::Read, len),
                        Err(_) if out == "-" => (DataDirection::None, 0),
                        Err(_) => (DataDirection::Write, data(out).len() as u32),
                    }),
                    ..Spec::new(0, &data(cdb))
                };
                self.command(case, line, s, &spec, &f[8..]);
            }
            _ => panic!("malformed line: {line}"),
        }
    }

    fn command(&mut self, case: &str, line: &str, s: &str, spec: &Spec, want: &[&str]) {
        let [status, want_sense, want_data, resid, mask, flags] = *want else {
            panic!("malformed line: {line}");
        };
        let a = self.open.get_mut(s).expect("open").ask(spec);
        let (mut got, mut want) = (a.data.clone(), data(want_data));
        for (i, m) in data(mask).into_iter().enumerate() {
            for d in [&mut got, &mut want] {
                if let Some(b) = d.get_mut(i) {
                    *b &= m;
                }
            }
        }
        let is29 = |s: &[u8]| sense::parse(s).is_some_and(|s| s.asc == 0x29);
        let want_sense = data(want_sense);
        let sense_ok = a.sense == want_sense
            || flags.contains('s')
            || (flags.contains('9') && is29(&a.sense) && is29(&want_sense));
        let ok = format!("{:02x}", a.status as u8) == status
            && sense_ok
            && (got == want || flags.contains('d'))
            && a.resid.to_string() == resid;
        self.note(ok, case, line, &a);
    }

    /// The code that an iSCSI target answers with.
    fn tmf(&mut self, s: &str, function: &str, lun: u64) -> u8 {
        let function = match function {
            "2" => TmFunction::AbortTaskSet,
            "3" => TmFunction::ClearAca,
            "4" => TmFunction::ClearTaskSet,
            "5" => TmFunction::LunReset,
            "6" | "7" => TmFunction::TargetReset,
            // Not for the core.
            "8" => return 4,
            _ => return REJECTED,
        };
        let ini = self.open.get_mut(s).expect("open");
        let id = ini.tm(function, lun, 0);
        match ini.wait_tm(id) {
            TmStatus::Success => 0,
            TmStatus::TaskNotExist => 1,
            TmStatus::LunNotExist => 2,
            TmStatus::FnNotSupported => 5,
            TmStatus::Succeeded => 7,
            TmStatus::Rejected | TmStatus::Failed => REJECTED,
        }
    }

    fn note(&mut self, ok: bool, case: &str, line: &str, got: &dyn std::fmt::Debug) {
        if ok {
            self.same += 1;
        } else {
            self.wrong
                .push(format!("{case}: {line}\n    got {got:02x?}"));
        }
    }

    fn end_of_case(&mut self) {
        std::mem::take(&mut self.open)
            .into_values()
            .for_each(Ini::close);
    }
}

#[test]
fn answers_are_those_of_kernel_scst() {
    let path = "/dev/ram/core_replay";
    let ram = register_disk(path, ram::Ram::new(128 * MIB as usize, true)).expect("new name");
    let dir = tempfile::tempdir().expect("scratch directory");
    let handler = |(d, read_only): (Arc<Vdisk>, bool)| -> (String, Arc<dyn DevHandler>, bool) {
        (d.name().to_owned(), d, read_only)
    };
    let mut disks: Vec<_> = reference_disks(dir.path(), path)
        .into_iter()
        .map(handler)
        .collect();
    // In the place of the CD-ROM, to which no command here goes.
    let cd = VdiskParams::parse(VdiskKind::Nullio, &[("size_mb", "2")]).expect("known");
    let cd: Arc<dyn DevHandler> = Vdisk::new("cd5", &cd).expect("device");
    disks.push(("cd5".to_owned(), cd, false));
    let mut player = Player {
        rig: Rig::of_dir(disks, Some(dir.path().join("pr"))),
        open: BTreeMap::new(),
        wrong: Vec::new(),
        same: 0,
    };
    let mut case = "";
    for line in CONVERSATIONS.lines().filter(|l| !l.starts_with('#')) {
        match line.strip_prefix("= ") {
            Some(name) => {
                player.end_of_case();
                case = name;
            }
            None => player.step(case, line),
        }
    }
    player.end_of_case();
    let Player {
        rig, wrong, same, ..
    } = player;
    rig.teardown();
    drop(ram);
    assert!(
        wrong.is_empty(),
        "{same} same; wrong:\n{}",
        wrong.join("\n")
    );
    assert!(same >= 700, "{same}");
}
