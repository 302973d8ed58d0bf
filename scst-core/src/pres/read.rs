//! PERSISTENT RESERVE IN (SPC-4 6.15): what each service action answers.
//!
//! C source: `scst_pr_read_keys` to `scst_pr_read_full_status` of `scst/src/scst_pres.c`

use super::state::PrState;

/// Service actions (SPC-4 table 196).
pub mod action {
    /// READ KEYS.
    pub const READ_KEYS: u8 = 0;
    /// READ RESERVATION.
    pub const READ_RESERVATION: u8 = 1;
    /// REPORT CAPABILITIES.
    pub const REPORT_CAPABILITIES: u8 = 2;
    /// READ FULL STATUS.
    pub const READ_FULL_STATUS: u8 = 3;
}

/// Shortest allocation length that is answered.
const HEADER_LEN: usize = 8;
/// Length of a full status descriptor without its TransportID.
const DESCRIPTOR_LEN: usize = 24;
/// REPORT CAPABILITIES byte 2: compatible reservation handling, SPEC_I_PT, ALL_TG_PT, and APTPL.
const CRH: u8 = 0x10;
const SIP_C: u8 = 0x08;
const ATP_C: u8 = 0x04;
const PTPL_C: u8 = 0x01;
/// Byte 3: the type mask is valid; TEST UNIT READY, MODE SENSE and others are allowed as ALLOW COMMANDS code 4 says.
const TMV: u8 = 0x80;
const ALLOW_COMMANDS: u8 = 4 << 4;
const PTPL_A: u8 = 0x01;
/// All six types.
const TYPE_MASK: [u8; 2] = [0xEA, 0x01];
/// R_HOLDER of a full status descriptor.
const R_HOLDER: u8 = 1;

fn len32(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_be_bytes()
}

impl PrState {
    /// Executes PERSISTENT RESERVE IN: the data for an allocation length, `None` for an unknown service action.
    /// `can_persist` as for PERSISTENT RESERVE OUT. Context: any.
    pub fn read(&self, service_action: u8, alloc_len: usize, can_persist: bool) -> Option<Vec<u8>> {
        let short = alloc_len < HEADER_LEN;
        let data = match service_action {
            action::READ_KEYS..=action::READ_FULL_STATUS if short => Vec::new(),
            action::READ_KEYS => self.read_keys(alloc_len),
            action::READ_RESERVATION => self.read_reservation(),
            action::REPORT_CAPABILITIES => self.report_capabilities(can_persist),
            action::READ_FULL_STATUS => self.read_full_status(alloc_len),
            _ => return None,
        };
        Some(data)
    }

    fn header(&self, additional: usize) -> Vec<u8> {
        let mut data = self.generation.to_be_bytes().to_vec();
        data.extend_from_slice(&len32(additional));
        data
    }

    /// All keys, of which only whole ones are sent.
    fn read_keys(&self, alloc_len: usize) -> Vec<u8> {
        const KEY_LEN: usize = size_of::<u64>();
        let all = self.registrants.len().saturating_mul(KEY_LEN);
        let room = alloc_len.saturating_sub(HEADER_LEN) / KEY_LEN;
        let mut data = self.header(all);
        for reg in self.registrants.iter().take(room) {
            data.extend_from_slice(&reg.key.to_be_bytes());
        }
        data
    }

    fn read_reservation(&self) -> Vec<u8> {
        let Some(r) = &self.reservation else {
            return self.header(0);
        };
        let mut data = self.header(0x10);
        let key = self.holder().map_or(0, |h| h.key);
        data.extend_from_slice(&key.to_be_bytes());
        data.extend_from_slice(&[0; 5]);
        data.push(r.scope << 4 | r.ty.code());
        data.extend_from_slice(&[0; 2]);
        data
    }

    fn report_capabilities(&self, can_persist: bool) -> Vec<u8> {
        let ptpl_c = if can_persist { PTPL_C } else { 0 };
        let ptpl_a = if self.aptpl { PTPL_A } else { 0 };
        let [mask, mask2] = TYPE_MASK;
        vec![
            0,
            8,
            CRH | SIP_C | ATP_C | ptpl_c,
            TMV | ALLOW_COMMANDS | ptpl_a,
            mask,
            mask2,
            0,
            0,
        ]
    }

    /// All descriptors, of which those are sent that leave room behind them, as SCST has it. DIFFERS: once one did not
    /// fit, SCST may write the third behind its buffer.
    fn read_full_status(&self, alloc_len: usize) -> Vec<u8> {
        let mut all: usize = 0;
        let mut descriptors = Vec::new();
        let room = alloc_len.saturating_sub(HEADER_LEN);
        for reg in &self.registrants {
            let tid = reg.transport_id.as_bytes();
            let len = DESCRIPTOR_LEN.saturating_add(tid.len());
            if room.saturating_sub(all) > len {
                descriptors.extend_from_slice(&reg.key.to_be_bytes());
                let (holder, scope_type) = match &self.reservation {
                    Some(r) if self.is_holder(reg) => (R_HOLDER, r.scope << 4 | r.ty.code()),
                    _ => (0, 0),
                };
                descriptors.extend_from_slice(&[0, 0, 0, 0, holder, scope_type, 0, 0, 0, 0]);
                descriptors.extend_from_slice(&reg.rel_tgt_id.to_be_bytes());
                descriptors.extend_from_slice(&len32(tid.len()));
                descriptors.extend_from_slice(tid);
            }
            all = all.saturating_add(len);
        }
        let mut data = self.header(all);
        data.append(&mut descriptors);
        data
    }
}
