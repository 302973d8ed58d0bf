use super::report::report_target_port_groups;
use super::*;
use crate::sense::{ALUA_STANDBY, ALUA_TRANSITIONING, ALUA_UNAV};
use filter::check;

fn verdicts(cdb: &[u8]) -> [Verdict; 4] {
    [
        TgState::Standby,
        TgState::Unavailable,
        TgState::Offline,
        TgState::Transitioning,
    ]
    .map(|s| check(s.filter(), cdb))
}

/// Operation code and service action; what each state makes of it.
#[test]
fn what_the_states_let_through() {
    const GO: Verdict = Verdict::Go;
    const STANDBY: Verdict = Verdict::Fail(ALUA_STANDBY);
    const UNAV: Verdict = Verdict::Fail(ALUA_UNAV);
    const LATER: Verdict = Verdict::Delay(ALUA_TRANSITIONING);
    let everywhere = [0x12, 0x25, 0xA0, 0x03, 0x3C, 0x3B];
    for code in everywhere {
        assert_eq!(verdicts(&[code, 0]), [GO; 4], "{code:02X}");
    }
    assert_eq!(verdicts(&[0x9E, 0x10]), [GO; 4]);
    assert_eq!(
        verdicts(&[0xA3, 0x2A]),
        [GO; 4],
        "REPORT TARGET PORT GROUPS"
    );
    assert_eq!(verdicts(&[0xA4, 0x0A]), [GO, GO, GO, LATER], "SET");
    let standby = [
        0x1A, 0x5A, 0x15, 0x55, 0x16, 0x56, 0x17, 0x57, 0x4C, 0x4D, 0x1C, 0x1D, 0x5E, 0x5F,
    ];
    for code in standby {
        assert_eq!(verdicts(&[code, 0]), [GO, UNAV, UNAV, LATER], "{code:02X}");
    }
    let nowhere: [&[u8]; 7] = [
        &[0x00],
        &[0x28, 0],
        &[0x2A, 0],
        &[0xA3, 0x0C],
        &[0xA4, 0x0F],
        &[0x9E, 0x12],
        &[],
    ];
    for cdb in nowhere {
        let cdb = if cdb.is_empty() { &[0x35] } else { cdb };
        assert_eq!(verdicts(cdb), [STANDBY, UNAV, UNAV, LATER], "{cdb:02X?}");
    }
    for s in [TgState::Optimized, TgState::NonOptimized] {
        assert_eq!(s.filter(), 0);
    }
}

#[test]
fn names_and_requests() {
    for s in TgState::ALL {
        assert_eq!(TgState::from_name(s.name()), Some(s));
        let asked = TgState::from_request(s as u8);
        assert_eq!(asked, (s != TgState::Transitioning).then_some(s));
    }
    assert_eq!(TgState::from_name("lba_dependent"), None);
    assert_eq!(TgState::from_request(4), None, "LBA dependent");
}

/// As recorded from kernel SCST: two groups, the second one with a remote port.
#[test]
fn reports_as_kernel_scst() {
    let port = |name: &str, rel_tgt_id| PortView {
        name: name.to_owned(),
        tgt: None,
        rel_tgt_id,
    };
    let group = |id, state, ports| TgView {
        id,
        state,
        preferred: false,
        ports,
    };
    let mut view = DgView {
        groups: vec![
            group(11, TgState::Optimized, vec![port("here", 1)]),
            group(22, TgState::NonOptimized, vec![port("remote", 300)]),
        ],
    };
    view.groups[0].preferred = true;
    let want = "0000001880cf000b000200010000000101cf0016000200010000012c";
    let hex = |d: Vec<u8>| d.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let data = report_target_port_groups(Some(&view), 0, false).unwrap();
    assert_eq!(hex(data), want);
    let data = report_target_port_groups(Some(&view), 1, false).unwrap();
    assert_eq!(hex(data), format!("0000001c10000000{}", &want[8..]));
    assert_eq!(report_target_port_groups(Some(&view), 2, false), None);
    let none = report_target_port_groups(None, 1, false).unwrap();
    assert_eq!(none, [0, 0, 0, 4, 0x10, 0, 0, 0]);
    assert_eq!(view.port("here").tg_id, 11);
    let at = view.port("remote");
    assert_eq!((at.tg_id, at.state), (22, TgState::NonOptimized));
    let elsewhere = view.port("elsewhere");
    assert_eq!((elsewhere.configured, elsewhere.tg_id), (true, 0));
}
