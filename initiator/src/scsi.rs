//! Command descriptor blocks, LUN fields and sense data, as far as the tests need them.

/// SAM status codes.
#[expect(missing_docs, reason = "names of SAM-5 5.3.1")]
pub mod status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const CONDITION_MET: u8 = 0x04;
    pub const BUSY: u8 = 0x08;
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    pub const TASK_SET_FULL: u8 = 0x28;
    pub const TASK_ABORTED: u8 = 0x40;
}

/// An 8-byte LUN field: peripheral addressing below 256, flat above.
pub fn lun_field(lun: u16) -> [u8; 8] {
    let mut f = [0; 8];
    let [high, low] = lun.to_be_bytes();
    f[0] = if lun < 256 { 0 } else { 0x40 | (high & 0x3f) };
    f[1] = low;
    f
}

/// TEST UNIT READY.
pub fn test_unit_ready() -> Vec<u8> {
    vec![0; 6]
}

/// Standard INQUIRY.
pub fn inquiry(len: u16) -> Vec<u8> {
    let [h, l] = len.to_be_bytes();
    vec![0x12, 0, 0, h, l, 0]
}

/// INQUIRY of a vital product data page.
pub fn inquiry_vpd(page: u8, len: u16) -> Vec<u8> {
    let [h, l] = len.to_be_bytes();
    vec![0x12, 1, page, h, l, 0]
}

/// READ CAPACITY(16).
pub fn read_capacity16() -> Vec<u8> {
    let mut c = vec![0; 16];
    c[0] = 0x9e;
    c[1] = 0x10;
    c[13] = 32;
    c
}

/// REPORT LUNS.
pub fn report_luns(len: u32) -> Vec<u8> {
    let mut c = vec![0; 12];
    c[0] = 0xa0;
    c[6..10].copy_from_slice(&len.to_be_bytes());
    c
}

fn rw10(opcode: u8, flags: u8, lba: u32, blocks: u16) -> Vec<u8> {
    let mut c = vec![opcode, flags];
    c.extend_from_slice(&lba.to_be_bytes());
    c.push(0);
    c.extend_from_slice(&blocks.to_be_bytes());
    c.push(0);
    c
}

fn rw16(opcode: u8, flags: u8, lba: u64, blocks: u32) -> Vec<u8> {
    let mut c = vec![opcode, flags];
    c.extend_from_slice(&lba.to_be_bytes());
    c.extend_from_slice(&blocks.to_be_bytes());
    c.extend_from_slice(&[0, 0]);
    c
}

/// READ(10).
pub fn read10(lba: u32, blocks: u16) -> Vec<u8> {
    rw10(0x28, 0, lba, blocks)
}

/// WRITE(10).
pub fn write10(lba: u32, blocks: u16) -> Vec<u8> {
    rw10(0x2a, 0, lba, blocks)
}

/// READ(16).
pub fn read16(lba: u64, blocks: u32) -> Vec<u8> {
    rw16(0x88, 0, lba, blocks)
}

/// WRITE(16).
pub fn write16(lba: u64, blocks: u32) -> Vec<u8> {
    rw16(0x8a, 0, lba, blocks)
}

/// WRITE(16) with force unit access.
pub fn write16_fua(lba: u64, blocks: u32) -> Vec<u8> {
    rw16(0x8a, 0x08, lba, blocks)
}

/// SYNCHRONIZE CACHE(10) of the whole medium.
pub fn synchronize_cache10() -> Vec<u8> {
    rw10(0x35, 0, 0, 0)
}

/// WRITE SAME(16).
pub fn write_same16(lba: u64, blocks: u32) -> Vec<u8> {
    rw16(0x93, 0, lba, blocks)
}

/// Sense key and additional sense code, from fixed or descriptor sense data; zeros when there is none.
pub fn sense_code(sense: &[u8]) -> (u8, u8, u8) {
    let at = |i: usize| sense.get(i).copied().unwrap_or(0);
    match at(0) & 0x7f {
        0x70 | 0x71 => (at(2) & 0x0f, at(12), at(13)),
        0x72 | 0x73 => (at(1) & 0x0f, at(2), at(3)),
        _ => (0, 0, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cdb_lengths() {
        assert_eq!(read10(1, 2).len(), 10);
        assert_eq!(write16(1, 2).len(), 16);
        assert_eq!(report_luns(8).len(), 12);
    }

    #[test]
    fn sense_of_both_formats() {
        let mut fixed = vec![0u8; 18];
        fixed[0] = 0x70;
        fixed[2] = 5;
        fixed[12] = 0x24;
        assert_eq!(sense_code(&fixed), (5, 0x24, 0));
        assert_eq!(sense_code(&[0x72, 6, 0x29, 1]), (6, 0x29, 1));
        assert_eq!(sense_code(&[]), (0, 0, 0));
    }
}
