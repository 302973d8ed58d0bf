//! The text of `pr_state`, to look at and to carry a state to another server.
//!
//! C source: `scst_pr_state_show`, `scst_pr_state_store` of `scst/src/scst_pres.c`

use super::state::{PrState, PrType};
use super::{MAX_REGISTRANTS, TransportId, tid::MAX_TRANSPORT_ID_LEN};
use kshim::error::{Result, code};
use std::fmt::Write as _;

impl PrState {
    /// The state as the attribute `pr_state` shows it. Context: any.
    #[doc(alias = "scst_pr_state_show")]
    pub fn to_text(&self) -> String {
        let mut s = format!("version 1\ngeneration {}\n", self.generation);
        // Writing to a string cannot fail.
        if let Some(r) = &self.reservation {
            let _ = writeln!(s, "reservation {:02x} {:02x}", r.ty.code(), r.scope);
        }
        for reg in &self.registrants {
            let tid = reg.transport_id.as_bytes();
            let holder = u8::from(self.is_holder(reg));
            let (port, key, len) = (reg.rel_tgt_id, reg.key, tid.len());
            let _ = write!(s, "registrant {port} {key:016x} {holder} {len} ");
            for b in tid {
                let _ = write!(s, "{b:02x}");
            }
            s.push('\n');
        }
        s
    }

    /// The state of such a text. Lines that it does not know are skipped. Context: any.
    ///
    /// # Errors
    ///
    /// `EINVAL`: another version, a bad TransportID, a registration twice, or a reservation without a holder.
    #[doc(alias = "scst_pr_state_store")]
    pub fn from_text(text: &str) -> Result<Self> {
        let mut lines = text.lines();
        if lines.next().map(str::trim_end) != Some("version 1") {
            return Err(code::EINVAL);
        }
        let mut state = Self::default();
        let (mut reservation, mut holder) = (None, None);
        for line in lines {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            match words[..] {
                [] => {}
                ["generation", n] => state.generation = number(n)?,
                ["reservation", ty, scope] => {
                    let ty = PrType::from_code(hex_byte(ty)?).ok_or(code::EINVAL)?;
                    reservation = Some((ty, hex_byte(scope)?));
                }
                ["registrant", port, key, holds, len, tid] => {
                    let tid = transport_id(tid, number(len)?)?;
                    let key = u64::from_str_radix(key, 16).map_err(|_| code::EINVAL)?;
                    let id = state.add(tid, number(port)?, key);
                    let id = id.filter(|_| key != 0).ok_or(code::EINVAL)?;
                    if holds != "0" {
                        holder = Some(id);
                    }
                    if state.registrants.len() > MAX_REGISTRANTS {
                        return Err(code::EINVAL);
                    }
                }
                _ => kshim::pr_warn!("pr_state: unrecognized line: {line:.80}"),
            }
        }
        if let Some((ty, scope)) = reservation {
            let holder = holder.or_else(|| {
                let first = state.registrants.first().filter(|_| ty.is_all_reg());
                first.map(|r| r.id)
            });
            state.reserve(holder.ok_or(code::EINVAL)?, ty, scope);
        }
        Ok(state)
    }
}

fn number<T: std::str::FromStr>(s: &str) -> Result<T> {
    s.parse().map_err(|_| code::EINVAL)
}

fn hex_byte(s: &str) -> Result<u8> {
    u8::from_str_radix(s, 16).map_err(|_| code::EINVAL)
}

fn transport_id(hex: &str, len: usize) -> Result<TransportId> {
    if len == 0 || len > MAX_TRANSPORT_ID_LEN || !hex.is_ascii() {
        return Err(code::EINVAL);
    }
    let mut bytes = Vec::with_capacity(len);
    for pair in hex.as_bytes().chunks(2).take(len) {
        bytes.push(hex_byte(
            std::str::from_utf8(pair).map_err(|_| code::EINVAL)?,
        )?);
    }
    let tid = TransportId::parse(&bytes).ok_or(code::EINVAL)?;
    if tid.as_bytes().len() == len {
        Ok(tid)
    } else {
        Err(code::EINVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORDED: &str = "version 1\ngeneration 1\nreservation 05 00\nregistrant 1 00000000000000d1 1 56 \
         4500003469716e2e323032362d30312e6f72672e6578616d706c653a70726f62652d612c692c307831303030303030303030383000000000\n";

    #[test]
    fn the_recorded_text_comes_back() {
        assert_eq!(PrState::from_text(RECORDED).unwrap().to_text(), RECORDED);
        let all = RECORDED.replace("05 00", "08 00");
        assert_eq!(PrState::from_text(&all).unwrap().to_text(), all);
    }

    #[test]
    fn bad_texts_are_refused() {
        for (from, to) in [
            ("version 1", "version 2"),
            ("generation 1", "generation x"),
            ("05 00", "02 00"),
            (" 1 56 ", " 0 56 "),
            (" 56 ", " 57 "),
            (" 56 ", " 55 "),
            ("56 45", "56 4x"),
            ("d1 1", "g1 1"),
        ] {
            let text = RECORDED.replacen(from, to, 1);
            assert_ne!(text, RECORDED);
            assert!(PrState::from_text(&text).is_err(), "{from} -> {to}");
        }
        assert!(PrState::from_text("").is_err());
        assert!(PrState::from_text("version 1\nwhat is this\n").is_ok());
    }
}
