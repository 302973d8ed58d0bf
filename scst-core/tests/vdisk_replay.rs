//! Replays what kernel SCST answered on virtual disks, byte for byte.

mod common;
#[path = "common/ram.rs"]
mod ram;
#[path = "common/reference.rs"]
mod reference;

use common::{Rig, hex};
use kshim::block::register_disk;
use reference::{MIB, data, reference_disks};
use scst_core::dev_handlers::rsoc::NOT_EXECUTED;
use scst_core::sense;

const CONVERSATIONS: &str = include_str!("data/kernel_scst_vdisk.txt");

/// Command descriptors of a REPORT SUPPORTED OPERATION CODES list.
fn descriptors(list: &[u8], cdb: &[u8]) -> Vec<Vec<u8>> {
    let each = if cdb[2] & 0x80 != 0 { 20 } else { 8 };
    list.get(4..)
        .unwrap_or_default()
        .chunks(each)
        .map(<[u8]>::to_vec)
        .collect()
}

/// Whether a command descriptor is of a command that kernel SCST lacks: operation code and service action.
fn is_added(descriptor: &[u8]) -> bool {
    let sa = u16::from_be_bytes([descriptor[2], descriptor[3]]);
    matches!(
        (descriptor[0], sa),
        (0x34 | 0x37 | 0x3B | 0x3C | 0x8B | 0x90 | 0xB7, 0) | (0x9E, 0x12) | (0xA3 | 0xA4, 0x0F)
    )
}

#[derive(Default)]
struct Score {
    same: usize,
    wrong: Vec<String>,
}

/// Runs one line of the file.
fn step(rig: &mut Rig, case: &str, line: &str, score: &mut Score) {
    let f: Vec<&str> = line.split(' ').collect();
    let [
        lun,
        cdb,
        expect_in,
        out,
        status,
        want_sense,
        want_data,
        resid,
        mask,
        flags,
    ] = f[..]
    else {
        panic!("malformed line: {line}");
    };
    let cdb = hex(cdb);
    if case == "report-opcodes/one-9e-12" {
        // DIFFERS: GET LBA STATUS is there.
        return;
    }
    let not_executed = NOT_EXECUTED.contains(&cdb[0]);
    let a = rig.send(
        lun.parse().expect("LUN"),
        &cdb,
        expect_in.parse().ok(),
        &data(out),
    );
    if not_executed {
        let refused =
            matches!(a.sense(), Some(s) if s == sense::INVALID_OPCODE || s == sense::DATA_PROTECT);
        assert!(
            refused,
            "{case}: {line}: {a:?}: executed now? then it belongs in this test"
        );
        return;
    }
    let (mut got, mut want) = (a.data.clone(), data(want_data));
    for (i, m) in data(mask).into_iter().enumerate() {
        for d in [&mut got, &mut want] {
            if let Some(b) = d.get_mut(i) {
                *b &= m;
            }
        }
    }
    let data_ok = if flags.contains('d') {
        true
    } else if flags.contains('P') {
        want[4..].iter().all(|page| got[4..].contains(page))
    } else if cdb[0] == 0xA3 && cdb[1] & 0x1F == 0x0C && cdb[2] & 7 == 0 {
        // Every recorded descriptor of what we execute, and others only of commands that SCST does not have.
        let ours = descriptors(&got, &cdb);
        let theirs = descriptors(&want, &cdb);
        theirs
            .iter()
            .all(|d| ours.contains(d) || NOT_EXECUTED.contains(&d[0]))
            && ours.iter().all(|d| theirs.contains(d) || is_added(d))
    } else if cdb[0] == 0xA3 && cdb[1] & 0x1F == 0x0C && NOT_EXECUTED.contains(&cdb[3]) {
        score.same += usize::from(got == [0; 4] || !a.is_good());
        return;
    } else {
        got == want
    };
    let resid_ok = a.resid.to_string() == resid || cdb[0] == 0xA3;
    let sense_ok = flags.contains('s') || a.sense == data(want_sense);
    if format!("{:02x}", a.status) == status && sense_ok && data_ok && resid_ok {
        score.same += 1;
    } else {
        score
            .wrong
            .push(format!("{case}: {line}\n    got {a:02x?}"));
    }
}

#[test]
fn answers_are_those_of_kernel_scst() {
    let ram = register_disk("/dev/ram/replay", ram::Ram::new(128 * MIB as usize, true))
        .expect("new name");
    let dir = tempfile::tempdir().expect("scratch directory");
    let mut score = Score::default();
    {
        let mut rig = Rig::new(&reference_disks(dir.path(), "/dev/ram/replay"));
        let mut case = "";
        for line in CONVERSATIONS.lines().filter(|l| !l.starts_with('#')) {
            match line.strip_prefix("= ") {
                Some(name) => case = name,
                None => step(&mut rig, case, line, &mut score),
            }
        }
    }
    drop(ram);
    assert!(
        score.wrong.is_empty(),
        "{} same; wrong:\n{}",
        score.same,
        score.wrong.join("\n")
    );
    assert!(score.same > 600, "{}", score.same);
}
