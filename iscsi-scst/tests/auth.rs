//! CHAP on the wire: every algorithm, one way and both, several accounts, targets and discovery.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "an initiator uses the host's sockets and clock"
)]

mod wire;

use iscsi_scst::accounts::{Accounts, Secret};
use sha2::Digest;
use wire::{Bed, IQN, Ini, POLLERS, Pdu, hex, unhex, value_of};

/// CHAP_A of MD5, SHA1, SHA-256, SHA3-256.
const ALGORITHMS: [u8; 4] = [5, 6, 7, 8];
const FAILED: u16 = 0x0201;
const INITIATOR_ERROR: u16 = 0x0200;
/// The initiator's own identifier and challenge.
const OWN_ID: u8 = 9;
const OWN_CHALLENGE: &[u8] = b"the initiator's own challenge";

fn secret(s: &[u8]) -> Secret {
    Secret::new(s).unwrap()
}

fn digest(algorithm: u8, id: u8, secret: &[u8], challenge: &[u8]) -> Vec<u8> {
    let all = [&[id], secret, challenge].concat();
    match algorithm {
        5 => md5::Md5::digest(all).to_vec(),
        6 => sha1::Sha1::digest(all).to_vec(),
        7 => sha2::Sha256::digest(all).to_vec(),
        _ => sha3::Sha3_256::digest(all).to_vec(),
    }
}

/// One CHAP exchange of an initiator.
struct Chap {
    ini: Ini,
    algorithm: u8,
    id: u8,
    challenge: Vec<u8>,
}

impl Chap {
    /// Sends the names and gets the challenge. `target`: none for a discovery session.
    fn begin(bed: &Bed, target: bool, offer: &str) -> Result<Self, u16> {
        let mut ini = Ini::connect(bed.addr);
        let session = if target {
            format!("TargetName={IQN}\0SessionType=Normal\0")
        } else {
            "SessionType=Discovery\0".to_owned()
        };
        let text =
            format!("InitiatorName=iqn.2026-01.org.example:chap\0{session}AuthMethod=CHAP,None\0");
        let first = ask(&mut ini, 0x81, &text);
        assert_eq!(value_of(&first, "AuthMethod").as_deref(), Some("CHAP"));
        let second = ask(&mut ini, 0, &format!("CHAP_A={offer}\0"));
        if status(&second) != 0 {
            return Err(status(&second));
        }
        let value = |key: &str| value_of(&second, key).expect("a value");
        Ok(Self {
            ini,
            algorithm: value("CHAP_A").parse().unwrap(),
            id: value("CHAP_I").parse().unwrap(),
            challenge: unhex(&value("CHAP_C")),
        })
    }

    fn response(&self, secret: &[u8]) -> String {
        hex(&digest(self.algorithm, self.id, secret, &self.challenge))
    }

    /// Answers the challenge; the target's answer.
    fn answer(&mut self, user: &str, response: &str, more: &str) -> Pdu {
        let text = format!("CHAP_N={user}\0CHAP_R={response}\0{more}");
        ask(&mut self.ini, 0x81, &text)
    }
}

fn ask(ini: &mut Ini, flags: u8, text: &str) -> Pdu {
    let mut pdu = Pdu::new(0x43, flags, 0).data(text.as_bytes());
    pdu.bhs[8..14].copy_from_slice(&[0x80, 0, 0, 0, 0, 3]);
    pdu.set(24, 1);
    ini.send(&pdu);
    ini.recv().expect("a login response")
}

fn status(pdu: &Pdu) -> u16 {
    u16::from_be_bytes([pdu.bhs[36], pdu.bhs[37]])
}

fn own_challenge() -> String {
    format!("CHAP_I={OWN_ID}\0CHAP_C={}\0", hex(OWN_CHALLENGE))
}

/// A login by SHA-256; the status it ends with.
fn one_way(bed: &Bed, user: &str, secret: &[u8]) -> u16 {
    let mut chap = Chap::begin(bed, true, "7").expect("a challenge");
    let response = chap.response(secret);
    status(&chap.answer(user, &response, ""))
}

fn two_users() -> Accounts {
    let mut accounts = Accounts::default();
    accounts
        .add_incoming("alice", secret(b"alice has one"))
        .unwrap();
    accounts
        .add_incoming("bob", secret(b"bob has another"))
        .unwrap();
    accounts
}

#[test]
fn every_algorithm_proves_both_sides_to_targets_and_discovery() {
    let bed = Bed::new(POLLERS[0]);
    let mut accounts = two_users();
    accounts
        .set_outgoing("target", secret(b"the target's"))
        .unwrap();
    bed.target.set_accounts(accounts.clone());
    bed.driver.set_discovery_accounts(accounts);
    for algorithm in ALGORITHMS {
        for (user, secret) in [
            ("alice", &b"alice has one"[..]),
            ("bob", b"bob has another"),
        ] {
            for target in [true, false] {
                let mut chap = Chap::begin(&bed, target, &algorithm.to_string()).unwrap();
                assert_eq!(chap.algorithm, algorithm);
                let response = chap.response(secret);
                let answer = chap.answer(user, &response, "");
                assert_eq!(status(&answer), 0, "{algorithm} {user} {target}");
                assert_eq!(value_of(&answer, "CHAP_R"), None, "it was not asked");

                let mut chap = Chap::begin(&bed, target, &algorithm.to_string()).unwrap();
                let response = chap.response(secret);
                let answer = chap.answer(user, &response, &own_challenge());
                assert_eq!(status(&answer), 0, "{algorithm} {user} {target}");
                assert_eq!(value_of(&answer, "CHAP_N").as_deref(), Some("target"));
                let expected = digest(algorithm, OWN_ID, b"the target's", OWN_CHALLENGE);
                let theirs = value_of(&answer, "CHAP_R").map(|r| unhex(&r));
                assert_eq!(theirs, Some(expected));
            }
        }
    }
    bed.settle();
    bed.stop();
}

#[test]
fn the_first_algorithm_of_the_list_that_is_known_is_taken() {
    let bed = Bed::new(POLLERS[0]);
    bed.target.set_accounts(two_users());
    for (offer, taken) in [("99,7", 7), ("8,5", 8), ("5,8", 5), ("6", 6)] {
        let chap = Chap::begin(&bed, true, offer).expect("a challenge");
        assert_eq!(chap.algorithm, taken, "{offer}");
        assert!((25..50).contains(&chap.challenge.len()));
    }
    let refused = Chap::begin(&bed, true, "99").map(|_| ()).unwrap_err();
    assert_eq!(refused, INITIATOR_ERROR);
    bed.settle();
    bed.stop();
}

#[test]
fn accounts_are_asked_for_and_checked() {
    let bed = Bed::new(POLLERS[0]);
    let mut accounts = two_users();
    bed.target.set_accounts(accounts.clone());
    let plain = Ini::connect(bed.addr).try_login(1, 0, &[]);
    assert_eq!(plain, Err(Some(FAILED)));
    assert_eq!(one_way(&bed, "alice", b"alice has one"), 0);
    assert_eq!(one_way(&bed, "bob", b"bob has another"), 0);
    assert_eq!(one_way(&bed, "bob", b"alice has one"), FAILED);
    assert_eq!(one_way(&bed, "mallory", b"alice has one"), FAILED);
    assert_eq!(one_way(&bed, "alice", b""), FAILED);
    // There is no account for the other direction yet.
    let mut chap = Chap::begin(&bed, true, "7").unwrap();
    let response = chap.response(b"alice has one");
    let answer = chap.answer("alice", &response, &own_challenge());
    assert_ne!(status(&answer), 0);
    accounts
        .set_outgoing("target", secret(b"the target's"))
        .unwrap();
    bed.target.set_accounts(accounts);
    // Who does not prove itself is told nothing of the target's secret.
    let mut chap = Chap::begin(&bed, true, "7").unwrap();
    let response = chap.response(b"a wrong secret");
    let answer = chap.answer("alice", &response, &own_challenge());
    assert_eq!((status(&answer), answer.data.len()), (FAILED, 0));
    bed.target.set_accounts(Accounts::default());
    bed.login().logout();
    bed.settle();
    bed.stop();
}

#[test]
fn reflected_and_replayed_words_open_nothing() {
    let bed = Bed::new(POLLERS[0]);
    let mut accounts = two_users();
    accounts
        .set_outgoing("target", secret(b"the target's"))
        .unwrap();
    bed.target.set_accounts(accounts);
    // Our own challenge comes back.
    let mut chap = Chap::begin(&bed, true, "7").unwrap();
    let response = chap.response(b"alice has one");
    let reflected = format!("CHAP_I={OWN_ID}\0CHAP_C={}\0", hex(&chap.challenge));
    let answer = chap.answer("alice", &response, &reflected);
    assert_eq!(
        (status(&answer), value_of(&answer, "CHAP_R")),
        (INITIATOR_ERROR, None)
    );
    // What was right in one login is wrong in the next.
    let mut first = Chap::begin(&bed, true, "7").unwrap();
    let response = first.response(b"alice has one");
    let mut second = Chap::begin(&bed, true, "7").unwrap();
    assert_ne!(first.challenge, second.challenge);
    assert_eq!(status(&second.answer("alice", &response, "")), FAILED);
    assert_eq!(status(&first.answer("alice", &response, "")), 0);
    // One challenge is good for one answer.
    let mut chap = Chap::begin(&bed, true, "7").unwrap();
    assert_eq!(status(&chap.answer("alice", "0x00", "")), FAILED);
    assert!(chap.ini.recv().is_none(), "the connection stays open");
    drop((first, second, chap));
    bed.settle();
    bed.stop();
}
