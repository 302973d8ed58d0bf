//! CHAP, one-way and mutual (RFC 7143 12.1.3, RFC 1994).
//!
//! ```text
//!   initiator                          target
//!   CHAP_A=list                  -->
//!                                <--   CHAP_A, CHAP_I, CHAP_C
//!   CHAP_N, CHAP_R               -->                                  one-way: done
//!   with CHAP_I, CHAP_C as well  -->
//!                                <--   CHAP_N, CHAP_R                 mutual: done
//! ```
//!
//! [`Chap`] is the exchange; accounts, hashes and randomness come from a [`ChapHost`].
//!
//! C source: `iscsi-scst/usr/chap.c`.

use base64::engine::{GeneralPurpose, GeneralPurposeConfig};
use base64::{Engine as _, alphabet};
use subtle::ConstantTimeEq as _;

use super::auth::{AuthStep, Authenticator};
use crate::text::{self, TextBuf, TextError, TextFull};

/// Fewest bytes of a challenge that we send.
const CHALLENGE_MIN: usize = 25;

/// Most bytes of a challenge that we send.
#[doc(alias = "CHAP_CHALLENGE_MAX")]
const CHALLENGE_MAX: usize = 49;

/// Longest challenge that we answer (RFC 7143 12.1.3).
const PEER_CHALLENGE_MAX: usize = 1024;

/// Hash algorithms by their number in CHAP_A (IANA "PPP Authentication Algorithms").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    /// 5.
    #[doc(alias = "CHAP_DIGEST_ALG_MD5")]
    Md5,
    /// 6.
    #[doc(alias = "CHAP_DIGEST_ALG_SHA1")]
    Sha1,
    /// 7.
    #[doc(alias = "CHAP_DIGEST_ALG_SHA256")]
    Sha256,
    /// 8.
    #[doc(alias = "CHAP_DIGEST_ALG_SHA3_256")]
    Sha3_256,
}

impl Algorithm {
    /// The algorithm of an item of CHAP_A.
    #[must_use]
    pub fn from_item(item: &str) -> Option<Self> {
        match item {
            "5" => Some(Self::Md5),
            "6" => Some(Self::Sha1),
            "7" => Some(Self::Sha256),
            "8" => Some(Self::Sha3_256),
            _ => None,
        }
    }
}

/// What a CHAP exchange needs. Methods answer at once: they run on a reactor.
pub trait ChapHost: Send {
    /// Whether the algorithm is to be had.
    fn supports(&self, algorithm: Algorithm) -> bool;

    /// The hash of the concatenated parts; `None` when it cannot be computed.
    fn hash(&self, algorithm: Algorithm, parts: [&[u8]; 3]) -> Option<Vec<u8>>;

    /// Fills a buffer with bytes fit for a challenge.
    fn random(&self, buf: &mut [u8]);

    /// Secret of the IncomingUser account `user`.
    #[doc(alias = "config_account_query")]
    fn incoming_secret(&self, user: &str) -> Option<Vec<u8>>;

    /// Name and secret of the OutgoingUser account.
    #[doc(alias = "account_get_first")]
    fn outgoing_account(&self) -> Option<(String, Vec<u8>)>;
}

/// How a number is written (RFC 7143 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Hex,
    Base64,
}

/// How far the exchange is.
#[derive(Debug)]
enum State {
    Start,
    Challenged {
        algorithm: Algorithm,
        id: u8,
        challenge: Vec<u8>,
    },
    Over,
}

/// One CHAP exchange.
#[derive(Debug)]
pub struct Chap<H> {
    host: H,
    state: State,
}

impl<H: ChapHost> Chap<H> {
    /// An exchange that waits for CHAP_A.
    #[must_use]
    pub const fn new(host: H) -> Self {
        Self {
            host,
            state: State::Start,
        }
    }

    #[doc(alias = "chap_initiator_auth_create_challenge")]
    fn challenge(&mut self, request: &[u8], answer: &mut TextBuf) -> Result<AuthStep, AuthStep> {
        let list = find(request, "CHAP_A")?;
        let (item, algorithm) = list
            .split(',')
            .find_map(|item| {
                let algorithm = Algorithm::from_item(item)?;
                self.host.supports(algorithm).then_some((item, algorithm))
            })
            .ok_or(AuthStep::InitiatorError)?;
        let mut random = [0u8; 2 + CHALLENGE_MAX];
        self.host.random(&mut random);
        let [id, length, bytes @ ..] = random;
        let len = CHALLENGE_MIN.saturating_add(usize::from(length) % CHALLENGE_MIN);
        let challenge = bytes.get(..len).unwrap_or(&bytes).to_vec();
        answer.push("CHAP_A", item)?;
        answer.push("CHAP_I", &id.to_string())?;
        answer.push("CHAP_C", &encode(&challenge, Encoding::Hex))?;
        self.state = State::Challenged {
            algorithm,
            id,
            challenge,
        };
        Ok(AuthStep::Continue)
    }

    #[doc(alias = "chap_initiator_auth_check_response")]
    fn check_response(
        &mut self,
        request: &[u8],
        answer: &mut TextBuf,
    ) -> Result<AuthStep, AuthStep> {
        let State::Challenged {
            algorithm,
            id,
            challenge,
        } = std::mem::replace(&mut self.state, State::Over)
        else {
            return Err(AuthStep::TargetError);
        };
        let user = find(request, "CHAP_N")?.to_owned();
        let secret = self.host.incoming_secret(&user).ok_or(AuthStep::Failed)?;
        let (encoding, digits) = split_number(find(request, "CHAP_R")?)?;
        let expected = self
            .host
            .hash(algorithm, [&[id], &secret, &challenge])
            .ok_or(AuthStep::TargetError)?;
        // A response that cannot be read is a wrong one; one that is too long makes no sense.
        let response = decode(digits, encoding).ok_or(AuthStep::Failed)?;
        if response.len() > expected.len() {
            return Err(AuthStep::InitiatorError);
        }
        if !bool::from(response.ct_eq(&expected)) {
            return Err(AuthStep::Failed);
        }
        self.respond(request, answer, algorithm, &challenge)?;
        Ok(AuthStep::Done { user })
    }

    /// Answers the initiator's own challenge, if it sent one.
    #[doc(alias = "chap_target_auth_create_response")]
    fn respond(
        &self,
        request: &[u8],
        answer: &mut TextBuf,
        algorithm: Algorithm,
        our_challenge: &[u8],
    ) -> Result<(), AuthStep> {
        let Ok(id) = find(request, "CHAP_I") else {
            return Ok(());
        };
        let id: u8 = id.parse().map_err(|_| AuthStep::InitiatorError)?;
        let (name, secret) = self.host.outgoing_account().ok_or(AuthStep::Failed)?;
        let (encoding, digits) = split_number(find(request, "CHAP_C")?)?;
        let challenge = decode(digits, encoding)
            .filter(|bytes| !bytes.is_empty() && bytes.len() <= PEER_CHALLENGE_MAX)
            // A reflected challenge would have us compute the initiator's answer (RFC 7143 9.2.1).
            .filter(|bytes| bytes != our_challenge)
            .ok_or(AuthStep::InitiatorError)?;
        let response = self
            .host
            .hash(algorithm, [&[id], &secret, &challenge])
            .ok_or(AuthStep::TargetError)?;
        answer.push("CHAP_N", &name)?;
        answer.push("CHAP_R", &encode(&response, encoding))?;
        Ok(())
    }
}

impl<H: ChapHost> Authenticator for Chap<H> {
    fn step(&mut self, request: &[u8], answer: &mut TextBuf) -> AuthStep {
        let step = match self.state {
            State::Start => self.challenge(request, answer),
            State::Challenged { .. } => self.check_response(request, answer),
            State::Over => Err(AuthStep::TargetError),
        };
        step.unwrap_or_else(|step| step)
    }
}

impl From<TextError> for AuthStep {
    fn from(_: TextError) -> Self {
        Self::InitiatorError
    }
}

impl From<TextFull> for AuthStep {
    fn from(_: TextFull) -> Self {
        Self::TargetError
    }
}

fn find<'a>(request: &'a [u8], key: &str) -> Result<&'a str, AuthStep> {
    text::find(request, key)?.ok_or(AuthStep::InitiatorError)
}

#[doc(alias = "chap_check_encoding_format")]
fn split_number(number: &str) -> Result<(Encoding, &str), AuthStep> {
    let split = match number.split_at_checked(2) {
        Some(("0x" | "0X", digits)) => Some((Encoding::Hex, digits)),
        Some(("0b" | "0B", digits)) => Some((Encoding::Base64, digits)),
        _ => None,
    };
    split
        .filter(|(_, digits)| !digits.is_empty())
        .ok_or(AuthStep::InitiatorError)
}

fn decode(digits: &str, encoding: Encoding) -> Option<Vec<u8>> {
    match encoding {
        Encoding::Hex => decode_hex(digits),
        Encoding::Base64 => BASE64.decode(digits).ok(),
    }
}

fn encode(bytes: &[u8], encoding: Encoding) -> String {
    match encoding {
        Encoding::Hex => format!("0x{}", hex::encode(bytes)),
        Encoding::Base64 => format!("0b{}", BASE64.encode(bytes)),
    }
}

/// An odd number of digits counts as with a zero before it.
#[doc(alias = "decode_hex_string")]
fn decode_hex(digits: &str) -> Option<Vec<u8>> {
    if digits.len().is_multiple_of(2) {
        return hex::decode(digits).ok();
    }
    hex::decode(format!("0{digits}")).ok()
}

/// RFC 4648 4, padded; bits beyond the last byte are not looked at.
#[doc(alias = "decode_base64_string")]
#[doc(alias = "encode_base64_string")]
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Hashes to the concatenation's byte sums: enough to tell secrets apart.
    struct Host;

    fn toy_hash(parts: [&[u8]; 3]) -> Vec<u8> {
        let all = parts.concat();
        (0..16u8)
            .map(|i| all.iter().fold(i, |h, b| h.rotate_left(3) ^ b))
            .collect()
    }

    impl ChapHost for Host {
        fn supports(&self, algorithm: Algorithm) -> bool {
            algorithm != Algorithm::Sha3_256
        }
        fn hash(&self, _: Algorithm, parts: [&[u8]; 3]) -> Option<Vec<u8>> {
            Some(toy_hash(parts))
        }
        fn random(&self, buf: &mut [u8]) {
            buf.iter_mut()
                .enumerate()
                .for_each(|(i, b)| *b = i as u8 + 7);
        }
        fn incoming_secret(&self, user: &str) -> Option<Vec<u8>> {
            (user == "joe").then(|| b"secretsecret12".to_vec())
        }
        fn outgoing_account(&self) -> Option<(String, Vec<u8>)> {
            Some(("tgt".to_owned(), b"mutualsecret56".to_vec()))
        }
    }

    fn text(pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut buf = TextBuf::with_limit(8192);
        for (key, value) in pairs {
            buf.push(key, value).unwrap();
        }
        buf.into_bytes()
    }

    /// Runs the exchange up to the challenge: the exchange, id and challenge.
    fn challenged() -> (Chap<Host>, u8, Vec<u8>) {
        let mut chap = Chap::new(Host);
        let mut answer = TextBuf::with_limit(8192);
        assert_eq!(
            chap.step(&text(&[("CHAP_A", "8,99,5")]), &mut answer),
            AuthStep::Continue
        );
        assert_eq!(text::find(answer.as_bytes(), "CHAP_A"), Ok(Some("5")));
        let id = text::find(answer.as_bytes(), "CHAP_I")
            .unwrap()
            .unwrap()
            .parse()
            .unwrap();
        let challenge = text::find(answer.as_bytes(), "CHAP_C")
            .unwrap()
            .unwrap()
            .to_owned();
        let challenge = decode(&challenge[2..], Encoding::Hex).unwrap();
        assert!((CHALLENGE_MIN..=CHALLENGE_MAX).contains(&challenge.len()));
        (chap, id, challenge)
    }

    fn response(id: u8, secret: &str, challenge: &[u8], encoding: Encoding) -> String {
        encode(&toy_hash([&[id], secret.as_bytes(), challenge]), encoding)
    }

    #[test]
    fn one_way_accepts_the_secret_in_both_encodings() {
        for encoding in [Encoding::Hex, Encoding::Base64] {
            let (mut chap, id, challenge) = challenged();
            let r = response(id, "secretsecret12", &challenge, encoding);
            let mut answer = TextBuf::with_limit(8192);
            assert_eq!(
                chap.step(&text(&[("CHAP_N", "joe"), ("CHAP_R", &r)]), &mut answer),
                AuthStep::Done {
                    user: "joe".to_owned()
                }
            );
            assert!(answer.is_empty());
        }
    }

    #[test]
    fn wrong_answers_end_the_exchange() {
        let (_, id, challenge) = challenged();
        let wrong = response(id, "secretsecret99", &challenge, Encoding::Hex);
        let long = format!("{wrong}00");
        for (name, r, step) in [
            ("joe", wrong.as_str(), AuthStep::Failed),
            ("eve", wrong.as_str(), AuthStep::Failed),
            ("joe", "0x00", AuthStep::Failed),
            ("joe", "0xzz", AuthStep::Failed),
            ("joe", "0b?", AuthStep::Failed),
            ("joe", "0x", AuthStep::InitiatorError),
            ("joe", "12345", AuthStep::InitiatorError),
            ("joe", long.as_str(), AuthStep::InitiatorError),
        ] {
            let (mut chap, ..) = challenged();
            let mut answer = TextBuf::with_limit(8192);
            let request = text(&[("CHAP_N", name), ("CHAP_R", r)]);
            assert_eq!(chap.step(&request, &mut answer), step, "{name} {r}");
            assert_eq!(chap.step(&request, &mut answer), AuthStep::TargetError);
        }
        let mut answer = TextBuf::with_limit(8192);
        let (mut chap, ..) = challenged();
        assert_eq!(
            chap.step(&text(&[("CHAP_N", "joe")]), &mut answer),
            AuthStep::InitiatorError
        );
        for list in ["8", "x", "", "05", "5 ,6 "] {
            let step = Chap::new(Host).step(&text(&[("CHAP_A", list)]), &mut answer);
            assert_eq!(step, AuthStep::InitiatorError, "{list:?}");
        }
    }

    #[test]
    fn mutual_answers_and_refuses_reflection() {
        let (mut chap, id, challenge) = challenged();
        let r = response(id, "secretsecret12", &challenge, Encoding::Hex);
        let mut answer = TextBuf::with_limit(8192);
        let request = [
            ("CHAP_N", "joe"),
            ("CHAP_R", &r),
            ("CHAP_I", "9"),
            ("CHAP_C", "0bAQIDBA=="),
        ];
        assert_eq!(
            chap.step(&text(&request), &mut answer),
            AuthStep::Done {
                user: "joe".to_owned()
            }
        );
        let expected = response(9, "mutualsecret56", &[1, 2, 3, 4], Encoding::Base64);
        assert_eq!(
            answer.into_bytes(),
            text(&[("CHAP_N", "tgt"), ("CHAP_R", &expected)])
        );

        let (mut chap, id, challenge) = challenged();
        let r = response(id, "secretsecret12", &challenge, Encoding::Hex);
        let ours = encode(&challenge, Encoding::Hex);
        let request = [
            ("CHAP_N", "joe"),
            ("CHAP_R", &r),
            ("CHAP_I", "9"),
            ("CHAP_C", &ours),
        ];
        let mut answer = TextBuf::with_limit(8192);
        assert_eq!(
            chap.step(&text(&request), &mut answer),
            AuthStep::InitiatorError
        );
    }

    #[test]
    fn base64_is_the_rfc_4648_one() {
        for (plain, coded) in [
            ("", "0b"),
            ("f", "0bZg=="),
            ("fo", "0bZm8="),
            ("foo", "0bZm9v"),
            ("foobar", "0bZm9vYmFy"),
        ] {
            assert_eq!(encode(plain.as_bytes(), Encoding::Base64), coded);
            let decoded = decode(&coded[2..], Encoding::Base64);
            assert_eq!(decoded.as_deref(), Some(plain.as_bytes()));
        }
        for wrong in ["Zg=", "Zg", "====", "Zg==Zg==", "Z"] {
            assert_eq!(decode(wrong, Encoding::Base64), None, "{wrong}");
        }
        assert_eq!(decode_hex("abc"), Some(vec![0x0a, 0xbc]));
    }

    proptest! {
        #[test]
        fn numbers_survive_the_round_trip(bytes in proptest::collection::vec(any::<u8>(), 1..64)) {
            for encoding in [Encoding::Hex, Encoding::Base64] {
                let text = encode(&bytes, encoding);
                let (found, digits) = split_number(&text).unwrap();
                prop_assert_eq!(found, encoding);
                prop_assert_eq!(decode(digits, encoding), Some(bytes.clone()));
            }
        }

        #[test]
        fn random_text_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), number in "0[xb]\\PC{0,20}") {
            let mut answer = TextBuf::with_limit(8192);
            let _ = Chap::new(Host).step(&bytes, &mut answer);
            let (mut chap, ..) = challenged();
            let _ = chap.step(&bytes, &mut answer);
            let (mut chap, ..) = challenged();
            let _ = chap.step(&text(&[("CHAP_N", "joe"), ("CHAP_R", &number), ("CHAP_I", "1"), ("CHAP_C", &number)]), &mut answer);
        }
    }
}
