//! Login and text, without a connection.

use iscsi_scst::login::auth::Authenticator;
use iscsi_scst::login::chap::{Algorithm, Chap, ChapHost};
use iscsi_scst::login::{
    DiscoveredTarget, Login, LoginEnv, Next, SessionState, TargetInfo, TextExchange, TextScope,
};
use iscsi_scst::param::{KeyValues, Negotiation};
use iscsi_scst::pdu::hdr::TextReqHdr;
use iscsi_scst::pdu::{Bhs, Cid, Isid, Tsih};
use iscsi_scst::text::{self, pairs};

/// The target of the logins.
const TARGET: &str = "iqn.t:t";

/// A server with one target, and accounts if `chap`.
struct Env {
    chap: bool,
    state: SessionState,
}

impl LoginEnv for Env {
    type Target = ();

    fn find_target(&self, name: &str, _: &str) -> Option<TargetInfo<()>> {
        name.eq_ignore_ascii_case(TARGET).then(|| TargetInfo {
            target: (),
            enabled: true,
            allowed: true,
            redirect: None,
            alias: Some("alias".to_owned()),
            params: KeyValues::default(),
            is_full: false,
        })
    }

    fn session_state(&self, (): &(), _: &str, _: Isid, _: Cid) -> SessionState {
        self.state
    }

    fn list_targets(&self, name: Option<&str>, _: &str) -> Vec<DiscoveredTarget> {
        let portals = vec![([192, 0, 2, 1], 3260).into(); 3];
        let list = [TARGET, "iqn.t:u"].map(|name| DiscoveredTarget {
            name: name.to_owned(),
            portals: portals.clone(),
        });
        list.into_iter()
            .filter(|t| name.is_none_or(|n| n == t.name))
            .collect()
    }

    fn requires_auth(&self, _: Option<&()>) -> bool {
        self.chap
    }

    fn start_chap(&self, _: Option<&()>, _: &str) -> Option<Box<dyn Authenticator>> {
        Some(Box::new(Chap::new(Accounts)))
    }
}

/// A hash that can be guessed, so that a fuzzer gets past it.
struct Accounts;

impl ChapHost for Accounts {
    fn supports(&self, _: Algorithm) -> bool {
        true
    }

    fn hash(&self, _: Algorithm, _: [&[u8]; 3]) -> Option<Vec<u8>> {
        Some(vec![1, 2, 3, 4])
    }

    fn random(&self, buf: &mut [u8]) {
        buf.fill(0x5a);
    }

    fn incoming_secret(&self, user: &str) -> Option<Vec<u8>> {
        (user == "u").then(|| b"twelve bytes".to_vec())
    }

    fn outgoing_account(&self) -> Option<(String, Vec<u8>)> {
        Some(("out".to_owned(), b"other secret".to_vec()))
    }
}

/// Feeds a login. The first byte says what the server is like; then come PDUs, whose lengths are made to fit.
///
/// # Panics
///
/// If the machine answers with more than its peer takes, or goes on after its end.
pub fn login(data: &[u8]) {
    let Some((mode, mut stream)) = data.split_first() else {
        return;
    };
    let env = Env {
        chap: mode & 1 != 0,
        state: match mode & 6 {
            2 => SessionState::Exists {
                tsih: Tsih(7),
                has_connection: true,
            },
            4 => SessionState::Exists {
                tsih: Tsih(7),
                has_connection: false,
            },
            _ => SessionState::None,
        },
    };
    let mut login = Login::new();
    while let Some((bhs, rest)) = Bhs::split(stream) {
        let Ok(len) = login.pdu_len(bhs) else {
            return;
        };
        let body = rest.get(..len).unwrap_or(rest);
        let data = body.get(bhs.ahs_len()..).unwrap_or_default();
        let data_len = usize::try_from(bhs.data_len()).unwrap_or(usize::MAX);
        let data = data.get(..data_len).unwrap_or(data);
        let outcome = login.receive(&env, bhs, data);
        if let Some(response) = &outcome.response {
            let announced =
                u32::from_be_bytes([0, response.bhs[5], response.bhs[6], response.bhs[7]]);
            assert_eq!(usize::try_from(announced), Ok(response.data.len()));
        }
        match outcome.next {
            Next::Continue => {}
            Next::CreateSession => {
                assert!(outcome.response.is_none() && login.result().is_some());
                let made = login.session_created(Ok(Tsih(3)));
                assert!(matches!(made.next, Next::FullFeature(_)) && made.response.is_some());
                return;
            }
            Next::FullFeature(_) => panic!("full feature phase without a session"),
            Next::Close => return,
        }
        stream = rest.get(len..).unwrap_or_default();
    }
}

/// Reads keys and values in every place that takes them.
///
/// # Panics
///
/// If what was read is not what is there.
pub fn text(data: &[u8]) {
    for pair in pairs(data).map_while(Result::ok) {
        let _ = pair.check_limits();
        assert!(!pair.key.contains('\0') && !pair.value.contains('\0'));
        let found = text::find(data, pair.key);
        assert!(!matches!(found, Ok(None)), "{} is there", pair.key);
    }
    let mut negotiation = Negotiation::new(KeyValues::default());
    for pair in pairs(data).map_while(Result::ok) {
        if negotiation.negotiate(pair.key, pair.value).is_err() {
            break;
        }
    }
    let params = negotiation.finish();
    assert!(params.max_xmit_data_segment_length >= 512);
    assert!(params.max_burst_length >= 512 && params.first_burst_length >= 512);
    assert!(params.max_outstanding_r2t >= 1);
    let env = Env {
        chap: false,
        state: SessionState::None,
    };
    let list = |name: Option<&str>| env.list_targets(name, "");
    for scope in [TextScope::Discovery, TextScope::Normal { target: TARGET }] {
        let mut exchange = TextExchange::new(512);
        let answer = exchange.receive(&TextReqHdr::new(), data, scope, list);
        let len = answer.map_or(0, |(_, text)| text.len());
        assert!(u32::try_from(len).is_ok_and(|len| len <= exchange.max_xmit()));
    }
}
