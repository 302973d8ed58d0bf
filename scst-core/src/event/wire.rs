//! Events on the control socket: what follows the head of a request or a reply. See `docs/control-protocol.md`.

use super::{Delivered, Event, Filter};
use kshim::error::{Result, code};
use std::sync::Arc;

/// Operation: the client wants to hear of events.
#[doc(alias = "SCST_EVENT_ALLOW_EVENT")]
pub const OP_ALLOW: u8 = 16;
/// Operation: it does not want to any more.
#[doc(alias = "SCST_EVENT_DISALLOW_EVENT")]
pub const OP_DISALLOW: u8 = 17;
/// Operation: it answers an event.
#[doc(alias = "SCST_EVENT_NOTIFY_DONE")]
pub const OP_DONE: u8 = 18;
/// What the server sends: an event.
#[doc(alias = "SCST_EVENT_GET_NEXT_EVENT")]
pub const OP_EVENT: u8 = 19;

/// Bit of the flags of a filter: [`Filter::looks_on`].
const LOOKS_ON: u8 = 1;

/// Body of [`OP_ALLOW`] and [`OP_DISALLOW`]. Errors: `EINVAL`: too long.
pub fn filter(f: &Filter) -> Result<Vec<u8>> {
    let mut out = f.code.to_le_bytes().to_vec();
    out.push(if f.looks_on { LOOKS_ON } else { 0 });
    out.push(u8::try_from(f.issuer.len()).map_err(|_| code::EINVAL)?);
    out.extend(f.issuer.as_bytes());
    out.extend(&f.payload);
    Ok(out)
}

/// The filter in such a body. Errors: `EPROTO`; `EINVAL`: the issuer is no text, or flags are set that there are not.
pub fn parse_filter(body: &[u8]) -> Result<Filter> {
    let (head, rest) = body.split_first_chunk::<6>().ok_or(code::EPROTO)?;
    let [a, b, c, d, flags, len] = *head;
    let (issuer, payload) = rest
        .split_at_checked(usize::from(len))
        .ok_or(code::EPROTO)?;
    if flags & !LOOKS_ON != 0 {
        return Err(code::EINVAL);
    }
    let issuer = std::str::from_utf8(issuer).map_err(|_| code::EINVAL)?;
    Ok(Filter {
        code: u32::from_le_bytes([a, b, c, d]),
        issuer: issuer.to_owned(),
        payload: payload.to_vec(),
        looks_on: flags & LOOKS_ON != 0,
    })
}

/// Body of [`OP_DONE`].
pub fn answer(id: u32, status: i32) -> Vec<u8> {
    let mut out = id.to_le_bytes().to_vec();
    out.extend(status.to_le_bytes());
    out
}

/// Number and status in such a body. Errors: `EPROTO`.
pub fn parse_answer(body: &[u8]) -> Result<(u32, i32)> {
    let body: &[u8; 8] = body.try_into().map_err(|_| code::EPROTO)?;
    let [a, b, c, d, e, f, g, h] = *body;
    let id = u32::from_le_bytes([a, b, c, d]);
    Ok((id, i32::from_le_bytes([e, f, g, h])))
}

/// Body of [`OP_EVENT`].
pub fn event(d: &Delivered) -> Vec<u8> {
    let e = &d.event;
    let mut out = e.code.to_le_bytes().to_vec();
    out.extend(d.id.to_le_bytes());
    out.extend(d.lost.to_le_bytes());
    let issuer = e.issuer.as_bytes();
    // Longer ones there are not.
    let issuer = issuer.get(..super::MAX_ISSUER).unwrap_or(issuer);
    out.push(u8::try_from(issuer.len()).unwrap_or(0));
    out.extend(issuer);
    out.extend(&e.payload);
    out
}

/// The event in such a body. Errors: `EPROTO`.
pub fn parse_event(body: &[u8]) -> Result<Delivered> {
    let (head, rest) = body.split_first_chunk::<13>().ok_or(code::EPROTO)?;
    let [a, b, c, d, e, f, g, h, i, j, k, l, len] = *head;
    let (issuer, payload) = rest
        .split_at_checked(usize::from(len))
        .ok_or(code::EPROTO)?;
    Ok(Delivered {
        event: Arc::new(Event {
            code: u32::from_le_bytes([a, b, c, d]),
            issuer: String::from_utf8_lossy(issuer).into_owned(),
            payload: payload.to_vec(),
        }),
        id: u32::from_le_bytes([e, f, g, h]),
        lost: u32::from_le_bytes([i, j, k, l]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bodies_come_back(
            (code, id, lost, status) in any::<(u32, u32, u32, i32)>(),
            issuer in "[ -~]{0,49}",
            payload in proptest::collection::vec(any::<u8>(), 0..100),
            looks_on in any::<bool>(),
        ) {
            let f = Filter { code, issuer: issuer.clone(), payload: payload.clone(), looks_on };
            prop_assert_eq!(parse_filter(&filter(&f).unwrap()).unwrap(), f);
            let d = Delivered { event: Arc::new(Event { code, issuer, payload }), id, lost };
            prop_assert_eq!(parse_event(&event(&d)).unwrap(), d);
            prop_assert_eq!(parse_answer(&answer(id, status)).unwrap(), (id, status));
        }

        #[test]
        fn no_bytes_hurt(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _: Result<Filter> = parse_filter(&bytes);
            let _: Result<Delivered> = parse_event(&bytes);
            let _: Result<(u32, i32)> = parse_answer(&bytes);
        }
    }
}
