//! What the login tests share: a server with one target, an initiator, and what it got.
#![allow(dead_code, reason = "each test program uses its part")]

use iscsi_scst::login::auth::Authenticator;
use iscsi_scst::login::chap::{Algorithm, Chap, ChapHost};
use iscsi_scst::login::{
    DiscoveredTarget, Login, LoginEnv, Next, Outcome, Redirect, Response, SessionState, TargetInfo,
};
use iscsi_scst::param::KeyValues;
use iscsi_scst::pdu::hdr::{LoginReqHdr, LoginRspHdr, TextReqHdr, TextRspHdr};
use iscsi_scst::pdu::{Bhs, Cid, Header, Isid, Tsih, Ttt, flags, opcode};
use iscsi_scst::sn::{CmdSn, StatSn};
use iscsi_scst::text::{TextBuf, pairs};

pub(crate) const IQN: &str = "iqn.2026-01.org.example:scst";
pub(crate) const INITIATOR: &str = "iqn.2026-01.org.example:probe-l";

pub(crate) type Keys = Vec<(String, String)>;

/// A server with one target.
#[derive(Clone)]
pub(crate) struct Server {
    pub(crate) enabled: bool,
    pub(crate) allowed: bool,
    pub(crate) full: bool,
    pub(crate) chap: bool,
    pub(crate) alias: Option<String>,
    pub(crate) redirect: Option<Redirect>,
    pub(crate) params: KeyValues,
    pub(crate) session: SessionState,
    pub(crate) targets: usize,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            enabled: true,
            allowed: true,
            full: false,
            chap: false,
            alias: None,
            redirect: None,
            params: KeyValues::default(),
            session: SessionState::None,
            targets: 1,
        }
    }
}

impl LoginEnv for Server {
    type Target = &'static str;

    fn find_target(&self, name: &str, _: &str) -> Option<TargetInfo<&'static str>> {
        name.eq_ignore_ascii_case(IQN).then(|| TargetInfo {
            target: IQN,
            enabled: self.enabled,
            allowed: self.allowed,
            redirect: self.redirect.clone(),
            alias: self.alias.clone(),
            params: self.params.clone(),
            is_full: self.full,
        })
    }

    fn session_state(&self, _: &&'static str, initiator: &str, _: Isid, _: Cid) -> SessionState {
        assert!(iscsi_scst::login::name::is_valid(initiator));
        self.session
    }

    fn list_targets(&self, name: Option<&str>, _: &str) -> Vec<DiscoveredTarget> {
        let names = (0..self.targets).map(|i| {
            if i == 0 {
                IQN.to_owned()
            } else {
                format!("{IQN}-{i}")
            }
        });
        names
            .filter(|target| self.enabled && name.is_none_or(|name| name == target))
            .map(|name| DiscoveredTarget {
                name,
                portals: vec![
                    "192.0.2.1:3260".parse().unwrap(),
                    "[2001:db8::1]:3261".parse().unwrap(),
                ],
            })
            .collect()
    }

    fn requires_auth(&self, target: Option<&&'static str>) -> bool {
        self.chap && target.is_some()
    }

    fn start_chap(&self, _: Option<&&'static str>, _: &str) -> Option<Box<dyn Authenticator>> {
        Some(Box::new(Chap::new(Accounts)))
    }
}

/// Accounts with a hash that is none: how responses are computed is tested elsewhere.
pub(crate) struct Accounts;

impl ChapHost for Accounts {
    fn supports(&self, algorithm: Algorithm) -> bool {
        matches!(algorithm, Algorithm::Md5 | Algorithm::Sha1)
    }
    fn hash(&self, _: Algorithm, parts: [&[u8]; 3]) -> Option<Vec<u8>> {
        Some(parts[1].to_vec())
    }
    fn random(&self, buf: &mut [u8]) {
        buf.fill(0x5a);
    }
    fn incoming_secret(&self, user: &str) -> Option<Vec<u8>> {
        (user == "joe").then(|| vec![1, 2, 3])
    }
    fn outgoing_account(&self) -> Option<(String, Vec<u8>)> {
        None
    }
}

pub(crate) fn encode(keys: &[(String, String)]) -> Vec<u8> {
    let mut buf = TextBuf::with_limit(usize::MAX);
    for (key, value) in keys {
        buf.push(key, value).unwrap();
    }
    buf.into_bytes()
}

pub(crate) fn keys(list: &[(&str, &str)]) -> Keys {
    list.iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

pub(crate) fn decode(data: &[u8]) -> Keys {
    pairs(data)
        .map(|pair| {
            pair.map(|p| (p.key.to_owned(), p.value.to_owned()))
                .unwrap()
        })
        .collect()
}

/// Sends one login request, creates the session when asked to, and checks what every response must keep.
pub(crate) fn send(
    login: &mut Login<&'static str>,
    server: &Server,
    request: &LoginReqHdr,
    text: &[u8],
) -> Outcome<&'static str> {
    let mut request = *request;
    request.set_data_len(text.len().try_into().unwrap());
    let outcome = login.receive(server, request.as_bhs(), text);
    let outcome = match outcome.next {
        Next::CreateSession => {
            assert!(outcome.response.is_none());
            let result = login.result().unwrap();
            assert_eq!(result.target, IQN);
            login.session_created(Ok(Tsih(77)))
        }
        _ => outcome,
    };
    if let Some(Response { bhs, data }) = &outcome.response {
        assert_eq!(Bhs::of(bhs).data_len() as usize, data.len());
        assert_eq!(Bhs::of(bhs).itt(), request.itt.into());
    }
    outcome
}

pub(crate) fn login_rsp(response: &Response) -> &LoginRspHdr {
    assert_eq!(response.bhs[0], opcode::LOGIN_RSP);
    LoginRspHdr::of(Bhs::of(&response.bhs))
}

pub(crate) fn request(flags: u8) -> LoginReqHdr {
    let mut request = LoginReqHdr::new();
    request.flags = flags;
    request.isid = Isid([0x80, 0, 0, 0, 0, 0x10]);
    request.itt = 0x1234.into();
    request.cid = 3.into();
    request.cmd_sn = CmdSn(41).into();
    request.exp_stat_sn = StatSn(9).into();
    request
}

pub(crate) fn normal() -> Keys {
    keys(&[
        ("InitiatorName", INITIATOR),
        ("TargetName", IQN),
        ("SessionType", "Normal"),
    ])
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Got {
    Closed,
    Response {
        class: u8,
        detail: u8,
        flags: u8,
        opcode: u8,
        text: Keys,
    },
}

pub(crate) fn status(outcome: &Outcome<&'static str>, only: &[&str]) -> Got {
    let Some(response) = &outcome.response else {
        return Got::Closed;
    };
    let header = login_rsp(response);
    let mut text = decode(&response.data);
    text.retain(|(key, _)| only.is_empty() || only.contains(&key.as_str()));
    Got::Response {
        class: header.status_class,
        detail: header.status_detail,
        flags: header.flags,
        opcode: header.opcode,
        text,
    }
}

pub(crate) struct Discovery<'a> {
    pub(crate) login: Login<&'static str>,
    pub(crate) server: &'a Server,
}

impl<'a> Discovery<'a> {
    pub(crate) fn new(server: &'a Server) -> Self {
        Self::with(server, &[])
    }

    pub(crate) fn with(server: &'a Server, more: &[(&str, &str)]) -> Self {
        let mut login = Login::new();
        let mut text = keys(&[("InitiatorName", INITIATOR), ("SessionType", "Discovery")]);
        text.extend(keys(more));
        let outcome = send(&mut login, server, &request(0x87), &encode(&text));
        assert!(matches!(outcome.next, Next::Continue) && login.is_discovery());
        assert_eq!(
            Tsih::from(login_rsp(&outcome.response.unwrap()).tsih),
            Tsih(1)
        );
        Self { login, server }
    }

    pub(crate) fn send(&mut self, flags: u8, ttt: Ttt, text: &[u8]) -> Response {
        let mut header = TextReqHdr::new();
        header.flags = flags;
        header.ttt = ttt.into();
        header.itt = 7.into();
        header.cmd_sn = CmdSn(50).into();
        let outcome = self.login.receive(self.server, header.as_bhs(), text);
        assert!(matches!(outcome.next, Next::Continue));
        outcome.response.unwrap()
    }

    /// A whole exchange; asserts that no piece is longer than `max`.
    pub(crate) fn exchange(&mut self, asked: &Keys, max: usize) -> (Keys, usize) {
        let mut response = self.send(flags::FINAL, Ttt::RESERVED, &encode(asked));
        let mut all = Vec::new();
        for pieces in 1.. {
            assert_eq!(response.bhs[0], opcode::TEXT_RSP);
            assert!(response.data.len() <= max);
            let header = *TextRspHdr::of(Bhs::of(&response.bhs));
            assert_eq!(CmdSn::from(header.exp_cmd_sn), CmdSn(51));
            all.extend_from_slice(&response.data);
            let ttt = Ttt::from(header.ttt);
            if header.flags == flags::FINAL {
                assert_eq!(ttt, Ttt::RESERVED);
                return (decode(&all), pieces);
            }
            assert_eq!(header.flags, flags::CONTINUE);
            response = self.send(flags::FINAL, ttt, &[]);
        }
        unreachable!()
    }

    pub(crate) fn ask(&mut self, asked: &Keys) -> Keys {
        self.exchange(asked, 8192).0
    }
}
