//! What management says about portals, as logins and discovery meet it.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "an initiator uses the host's sockets and clock"
)]

mod wire;

use iscsi_scst::accounts::{Accounts, Secret};
use kshim::error::code;
use scst_core::core::LunParams;
use wire::{Bed, F, IQN, Ini, NO_TAG, POLLERS, Pdu, R, TEXT, TEXT_RESPONSE, read10};

const ASYNC: u8 = 0x32;

const NOT_FOUND: Result<(), Option<u16>> = Err(Some(0x0203));

fn login(bed: &Bed) -> Result<(), Option<u16>> {
    let mut ini = Ini::connect(bed.addr);
    ini.try_login(1, 0, &[]).map(|()| ini.logout())
}

/// What SendTargets=All answers.
fn discover(bed: &Bed) -> String {
    let mut ini = Ini::connect(bed.addr);
    let text = "InitiatorName=iqn.2026-01.org.example:ini1\0SessionType=Discovery\0";
    let mut pdu = Pdu::new(0x43, 0x87, 0).data(text.as_bytes());
    pdu.bhs[8..14].copy_from_slice(&[0x80, 0, 0, 0, 0, 9]);
    pdu.set(24, 1);
    ini.send(&pdu);
    assert_eq!(ini.recv().expect("an answer").bhs[36..38], [0, 0]);
    let mut pdu = Pdu::new(TEXT, F, 1).data(b"SendTargets=All\0");
    pdu.set(20, NO_TAG);
    pdu.set(24, 1);
    ini.send(&pdu);
    let answer = ini.recv().expect("a list");
    assert_eq!(answer.opcode(), TEXT_RESPONSE);
    String::from_utf8(answer.data).unwrap().replace('\0', " ")
}

#[test]
fn a_target_is_reached_by_allowed_portals_only() {
    let bed = Bed::new(POLLERS[0]);
    let listed = format!("TargetName={IQN} TargetAddress={},1 ", bed.addr);
    assert_eq!(discover(&bed), listed);
    let edit = |pattern: &str| {
        bed.target.edit_allowed_portals(|f| {
            for old in f.patterns().to_vec() {
                f.remove(&old).unwrap();
            }
            f.add(pattern).unwrap();
        });
    };
    edit("192.0.2.*");
    assert_eq!(login(&bed), NOT_FOUND);
    assert_eq!(discover(&bed), "");
    edit("!127.*");
    assert_eq!(login(&bed), NOT_FOUND);
    edit("127.0.0.?");
    assert_eq!(login(&bed), Ok(()));
    assert_eq!(discover(&bed), listed);
    bed.settle();
    bed.stop();
}

#[test]
fn a_target_that_moved_says_where() {
    let bed = Bed::new(POLLERS[0]);
    for (text, status) in [
        ("192.0.2.1:3261 temp", 0x0101),
        ("192.0.2.1:3261 perm", 0x0102),
    ] {
        bed.target.set_redirect(Some(text.parse().unwrap()));
        let mut ini = Ini::connect(bed.addr);
        ini.send(&Ini::login_pdu(1, 0, &[]));
        let reply = ini.recv().expect("an answer");
        assert_eq!(u16::from_be_bytes([reply.bhs[36], reply.bhs[37]]), status);
        assert_eq!(reply.data, b"TargetAddress=192.0.2.1:3261\0");
        assert!(ini.recv().is_none(), "the connection stays open");
    }
    // Nobody is sent to where it is.
    bed.target
        .set_redirect(Some("127.0.0.1 temp".parse().unwrap()));
    assert_eq!(login(&bed), Ok(()));
    bed.target.set_redirect(None);
    assert_eq!(login(&bed), Ok(()));
    bed.settle();
    bed.stop();
}

#[test]
fn access_groups_see_the_portal_where_they_should() {
    let bed = Bed::new(POLLERS[0]);
    let (core, tgt) = (&bed.core, bed.target.tgt());
    let name = "iqn.2026-01.org.example:ini1#127.0.0.1";
    let group = core.add_acg(tgt, "group").unwrap();
    core.add_acn(tgt, group, name).unwrap();
    assert_eq!(
        login(&bed),
        Ok(()),
        "by its own name it is in the default group"
    );
    bed.target.set_per_portal_acl(true);
    assert_eq!(login(&bed), NOT_FOUND, "the group has no LUNs");
    assert_eq!(discover(&bed), "");
    let dev = tgt.default_acg().luns[&0].dev.clone();
    core.add_lun(tgt, group, &dev, 0, LunParams::default())
        .unwrap();
    drop(dev);
    let mut ini = Ini::connect(bed.addr);
    assert_eq!(ini.try_login(1, 0, &[]), Ok(()));
    let sess = tgt.sessions().pop().expect("a session");
    assert_eq!(sess.initiator_name(), name);
    let info = bed.target.session(sess.tgt_priv).expect("a session");
    assert_eq!(info.initiator_name, "iqn.2026-01.org.example:ini1");
    assert_eq!((info.portal, info.cid.0), (bed.addr, 0));
    drop(sess);
    ini.logout();
    bed.settle();
    bed.stop();
}

#[test]
fn a_disabled_driver_and_a_disabled_target_close_without_a_word() {
    let bed = Bed::new(POLLERS[0]);
    bed.driver.set_enabled(false);
    assert_eq!(login(&bed), Err(None));
    bed.driver.set_enabled(true);
    bed.core.enable_target(bed.target.tgt(), false).unwrap();
    assert_eq!(login(&bed), Err(None));
    assert_eq!(discover(&bed), "");
    bed.core.enable_target(bed.target.tgt(), true).unwrap();
    assert_eq!(login(&bed), Ok(()));
    bed.settle();
    bed.stop();
}

#[test]
fn authentication_may_be_left_out_on_internal_portals() {
    let bed = Bed::new(POLLERS[0]);
    let mut accounts = Accounts::default();
    let secret = Secret::new(b"alice has one").unwrap();
    accounts.add_incoming("alice", secret).unwrap();
    bed.target.set_accounts(accounts);
    assert_eq!(login(&bed), Err(Some(0x0201)));
    bed.driver
        .set_internal_portals(vec!["127.0.0.1".parse().unwrap()]);
    assert_eq!(login(&bed), Ok(()));
    bed.settle();
    bed.stop();
}

#[test]
fn attributes_are_checked() {
    let bed = Bed::new(POLLERS[0]);
    let target = &bed.target;
    assert_eq!(
        target.set_param("NopInInterval", "65536"),
        Err(code::EINVAL)
    );
    assert_eq!(target.set_param("NopInInterval", "7"), Ok(()));
    assert_eq!(target.params().nop_in_interval, 7);
    target.set_alias(Some("one".to_owned()));
    assert_eq!(target.alias().as_deref(), Some("one"));
    assert_eq!(target.tid(), 1);
    bed.stop();
}

#[test]
fn portals_may_be_of_ipv6() {
    let mut bed = Bed::new(POLLERS[0]);
    let addr = match bed.driver.add_portal("[::1]:0".parse().unwrap()) {
        Err(e) if e == code::EADDRNOTAVAIL || e == code::EAFNOSUPPORT => return bed.stop(),
        addr => addr.unwrap(),
    };
    let mut ini = Ini::connect(addr);
    assert_eq!(ini.try_login(1, 0, &[]), Ok(()));
    ini.logout();
    bed.addr = addr;
    let listed = format!("TargetName={IQN} TargetAddress={addr},1 ");
    assert_eq!(discover(&bed), listed, "only portals of the same family");
    bed.settle();
    bed.stop();
}

#[test]
fn a_stop_asks_initiators_to_log_out_and_waits_for_them() {
    for poller in POLLERS {
        let bed = Bed::new(poller);
        let (mut polite, mut deaf) = (bed.login_as(1001, &[]), bed.login_as(1002, &[]));
        let mut discovery = Ini::connect(bed.addr);
        let driver = bed.driver.clone();
        let stopping = std::thread::spawn(move || driver.stop());
        for ini in [&mut polite, &mut deaf] {
            let asked = ini.recv().expect("a request to log out");
            assert_eq!((asked.opcode(), asked.bhs[36]), (ASYNC, 1));
            assert_eq!(
                u16::from_be_bytes([asked.bhs[42], asked.bhs[43]]),
                2,
                "seconds"
            );
        }
        assert!(discovery.recv().is_none(), "a login under way is cut off");
        // It is served until it goes.
        let unit_attention = polite.command(0, F | R, 8192, read10(0, 16));
        assert_eq!(polite.run(&unit_attention).status, 2);
        let read = polite.command(0, F | R, 8192, read10(0, 16));
        assert_eq!(polite.run(&read).data.len(), 8192);
        polite.logout();
        assert!(deaf.recv().is_none(), "who does not go is closed");
        assert!(stopping.join().expect("the stop"));
        bed.stop();
    }
}

#[test]
fn a_target_that_is_removed_takes_its_sessions_along() {
    let bed = Bed::new(POLLERS[0]);
    let mut ini = bed.login();
    let other = (bed.driver)
        .add_target(
            "iqn.2026-01.org.example:other",
            None,
            Default::default(),
            Default::default(),
        )
        .unwrap();
    assert_eq!(other.tid(), 2);
    bed.driver.remove_target(&bed.target).unwrap();
    assert!(ini.recv().is_none());
    assert_eq!(bed.target.session_count(), 0);
    assert_eq!(login(&bed), NOT_FOUND);
    assert_eq!(bed.driver.targets().len(), 1);
    bed.driver.remove_target(&other).unwrap();
    bed.stop();
}
