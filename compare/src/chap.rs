//! A login with CHAP, algorithm 5 (RFC 7143 12.1.3).

use md5::{Digest as _, Md5};
use scst_initiator::session::{Login, LoginReply, TRANSIT, stage};
use scst_initiator::{LoginError, OpenOptions, Session};
use std::net::SocketAddr;

use crate::transcript::Open;

/// Identifier and challenge that we send for mutual authentication.
const OUR_ID: u8 = 0x5a;
const OUR_CHALLENGE: [u8; 16] = *b"scst-compare/16b";

/// Opens a session; also says whether the target proved that it knows the mutual secret, where one is given.
pub(crate) fn open(
    addr: SocketAddr,
    options: &OpenOptions,
    open: &Open,
) -> Result<(Session, Option<bool>), LoginError> {
    let Some((user, secret, mutual)) = &open.chap else {
        return Ok((Session::open(addr, options)?, None));
    };
    let mut login = Login::connect(addr, options.isid)?;
    login.wire.timeout = options.timeout;
    let keys = [
        ("InitiatorName", options.initiator.as_str()),
        ("TargetName", options.target.as_deref().unwrap_or_default()),
        ("SessionType", "Normal"),
        ("AuthMethod", "CHAP"),
    ];
    exchange(&mut login, 0, &keys)?;
    let reply = exchange(&mut login, 0, &[("CHAP_A", "5")])?;
    let id = reply.value("CHAP_I").and_then(|v| v.parse::<u8>().ok());
    let challenge = reply.value("CHAP_C").and_then(binary);
    let (Some(id), Some(challenge)) = (id, challenge) else {
        return Err(LoginError::Protocol("no challenge".into()));
    };
    let response = format!("0x{}", hex::encode(answer(id, secret, &challenge)));
    let our_id = OUR_ID.to_string();
    let our_challenge = format!("0x{}", hex::encode(OUR_CHALLENGE));
    let mut keys = vec![("CHAP_N", user.as_str()), ("CHAP_R", &response)];
    if mutual.is_some() {
        keys.extend([("CHAP_I", our_id.as_str()), ("CHAP_C", &our_challenge)]);
    }
    let reply = exchange(&mut login, TRANSIT, &keys)?;
    let proved = mutual.as_ref().map(|secret| {
        let right = answer(OUR_ID, secret, &OUR_CHALLENGE);
        reply.value("CHAP_R").and_then(binary).as_deref() == Some(&right[..])
    });
    let offered = options.operational_keys();
    let reply = login.stage(stage::OPERATIONAL, stage::FULL_FEATURE, &offered)?;
    Ok((Session::from_login(login, &offered, reply), proved))
}

fn exchange(login: &mut Login, flags: u8, keys: &[(&str, &str)]) -> Result<LoginReply, LoginError> {
    let next = if flags & TRANSIT != 0 {
        stage::OPERATIONAL
    } else {
        stage::SECURITY
    };
    let request = login.request(stage::SECURITY, next, flags, keys);
    let reply = login.exchange(&request)?;
    if reply.class != 0 {
        return Err(LoginError::Status(reply.class, reply.detail));
    }
    Ok(reply)
}

fn answer(id: u8, secret: &str, challenge: &[u8]) -> [u8; 16] {
    Md5::digest([&[id], secret.as_bytes(), challenge].concat()).into()
}

/// A binary value in the hexadecimal notation of RFC 7143 6.1.
fn binary(value: &str) -> Option<Vec<u8>> {
    hex::decode(value.strip_prefix("0x").or(value.strip_prefix("0X"))?).ok()
}
