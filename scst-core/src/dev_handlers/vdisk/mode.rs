//! MODE SENSE(6) and (10), REQUEST SENSE, READ CAPACITY(10) and (16).
//!
//! C source: `vdisk_exec_mode_sense`, `vdisk_exec_read_capacity` and neighbours of
//! `scst/src/dev_handlers/scst_vdisk.c`

use super::reply::{Fault, Reply};
use super::{Features, Limits};
use crate::cdb::bytes::{be32_at, be64_at, u8_at};
use crate::cdb::opcodes as op;
use crate::consts::{TYPE_DISK, TYPE_ROM};
use crate::sense;

/// Disable block descriptors.
const DBD: u8 = 0x08;
/// Write protected, in the device-specific parameter.
const WP: u8 = 0x80;
/// DPO and FUA are supported, in the device-specific parameter.
const DPOFUA: u8 = 0x10;
/// Parameters saveable, in a page's first byte.
const PS: u8 = 0x80;
/// PAGE CONTROL of saved values.
const PC_SAVED: u8 = 3;
/// Write cache enable, in the caching page.
const WCE: u8 = 0x04;
/// Geometry of the format and rigid disk geometry pages.
const DEF_HEADS: u8 = 255;
const DEF_SECTORS: u16 = 56;

/// The bits of the Control mode page (SPC-4 7.5.8), as one set: current, changeable, default or saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControlBits {
    /// Task set type.
    pub tst: u8,
    /// Only task management ends an ACA.
    pub tmf_only: bool,
    /// Disable protection information check if PROTECT is zero.
    pub dpicz: bool,
    /// Descriptor format sense data.
    pub d_sense: bool,
    /// Queue algorithm modifier.
    pub queue_alg: u8,
    /// Queue error management.
    pub qerr: u8,
    /// Software write protect.
    pub swp: bool,
    /// Task aborted status.
    pub tas: bool,
}

impl Default for ControlBits {
    /// SCST's defaults: one task set per nexus, unrestricted reordering.
    fn default() -> Self {
        Self {
            tst: 1,
            tmf_only: false,
            dpicz: false,
            d_sense: false,
            queue_alg: 1,
            qerr: 0,
            swp: false,
            tas: false,
        }
    }
}

impl ControlBits {
    /// What MODE SELECT may change: all but TST.
    const CHANGEABLE: Self = Self {
        tst: 0,
        tmf_only: true,
        dpicz: true,
        d_sense: true,
        queue_alg: 0xF,
        qerr: 3,
        swp: true,
        tas: true,
    };

    /// Bytes 2 to 5 of the page.
    fn bytes(self) -> [u8; 4] {
        let bit = |on: bool, n: u8| if on { n } else { 0 };
        [
            (self.tst & 7) << 5
                | bit(self.tmf_only, 0x10)
                | bit(self.dpicz, 0x08)
                | bit(self.d_sense, 0x04),
            (self.queue_alg & 0xF) << 4 | (self.qerr & 3) << 1,
            bit(self.swp, 0x08),
            bit(self.tas, 0x40),
        ]
    }
}

/// Values that MODE SENSE reports beside the device's features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeState {
    /// Number of blocks.
    pub nblocks: u64,
    /// The nexus may not write.
    pub read_only: bool,
    /// Control page now.
    pub current: ControlBits,
    /// Control page at start.
    pub default: ControlBits,
    /// Values can be saved.
    pub can_save: bool,
    /// Control page as saved.
    pub saved: ControlBits,
    /// No volatile write cache, now.
    pub write_through: bool,
    /// No volatile write cache, as saved.
    pub write_through_saved: bool,
}

/// Builds MODE SENSE(6) or (10) data.
///
/// # Errors
/// INVALID FIELD IN CDB: a subpage, or a page that does not exist.
pub(super) fn mode_sense(
    f: &Features,
    st: &ModeState,
    cdb: &[u8],
    out: &mut Reply,
) -> Result<(), Fault> {
    let (b1, b2) = (u8_at(cdb, 1), u8_at(cdb, 2));
    let (pc, page) = (b2 >> 6, b2 & 0x3F);
    let short = u8_at(cdb, 0) == op::MODE_SENSE;
    let dev_spec =
        if st.read_only { WP } else { 0 } | if f.type_code == TYPE_ROM { 0 } else { DPOFUA };
    if pc == PC_SAVED && !st.can_save {
        return Err(sense::SAVING_PARAMS_UNSUP.into());
    }
    if u8_at(cdb, 3) != 0 {
        return Err(Fault::cdb(3, None));
    }
    let header = if short {
        out.put(0, &[0, f.type_code, dev_spec, 0]);
        4_usize
    } else {
        out.put(0, &[0, 0, f.type_code, dev_spec, 0, 0, 0, 0]);
        8
    };
    if b1 & DBD == 0 {
        out.put8(header.saturating_sub(1), 8);
        out.put32(header, u32::try_from(st.nblocks).unwrap_or(u32::MAX));
        out.extend(&f.block_size().to_be_bytes()); // density code (0) and a 24-bit block length
    }
    pages(f, st, pc, page, out).ok_or(Fault::cdb(2, Some(0)))?;
    let len = out.len();
    if short {
        out.put8(0, u8::try_from(len.saturating_sub(1)).unwrap_or(u8::MAX));
    } else {
        out.put16(0, u16::try_from(len.saturating_sub(2)).unwrap_or(u16::MAX));
    }
    Ok(())
}

/// Appends a page, or all of them; `None` when there is no such page.
fn pages(f: &Features, st: &ModeState, pc: u8, page: u8, out: &mut Reply) -> Option<()> {
    let disk = f.type_code == TYPE_DISK;
    match page {
        0x01 => fixed(
            out,
            pc,
            &[0x01, 0x0A, 0xC0, 1, 0, 0, 0, 0, 1, 0, 0xFF, 0xFF],
        ),
        0x02 if disk => {
            fixed(
                out,
                pc,
                &[0x02, 0x0E, 128, 128, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            );
        }
        0x03 if disk => format_page(f, pc, out),
        0x04 if disk => geometry_page(st, pc, out),
        0x08 if disk => caching_page(f, st, pc, out),
        0x0A => control_page(st, pc, out),
        0x1C => fixed(out, pc, &[0x1C, 0x0A, 0x08, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        0x3F => {
            let all: &[u8] = if disk {
                &[1, 2, 3, 8, 0x0A, 0x1C, 4]
            } else {
                &[1, 0x0A, 0x1C]
            };
            for &p in all {
                pages(f, st, pc, p, out)?;
            }
        }
        _ => return None,
    }
    Some(())
}

/// A page that nobody changes: as it is, or zeros behind the header when the changeable bits are asked for.
fn fixed(out: &mut Reply, pc: u8, page: &[u8]) {
    let at = out.len();
    if pc == 1 {
        out.put(at, page.get(..2).unwrap_or_default());
        out.set_len(at.saturating_add(page.len()));
    } else {
        out.put(at, page);
    }
}

fn format_page(f: &Features, pc: u8, out: &mut Reply) {
    let mut p = [0u8; 24];
    p[0] = 0x03;
    p[1] = 0x16;
    [p[10], p[11]] = DEF_SECTORS.to_be_bytes();
    let [_, _, hi, lo] = f.block_size().to_be_bytes();
    [p[12], p[13]] = [hi, lo];
    p[20] = 0x40;
    fixed(out, pc, &p);
}

fn geometry_page(st: &ModeState, pc: u8, out: &mut Reply) {
    let per_cylinder = u64::from(DEF_HEADS)
        .saturating_mul(u64::from(DEF_SECTORS))
        .max(1);
    let cylinders = u32::try_from(st.nblocks.div_ceil(per_cylinder)).unwrap_or(u32::MAX);
    let mut p = [0u8; 24];
    p[0] = 0x04;
    p[1] = 0x16;
    let [_, a, b, c] = cylinders.to_be_bytes();
    [p[2], p[3], p[4]] = [a, b, c];
    p[5] = DEF_HEADS;
    [p[20], p[21]] = 15_000u16.to_be_bytes();
    fixed(out, pc, &p);
}

fn caching_page(f: &Features, st: &ModeState, pc: u8, out: &mut Reply) {
    let wce = |no_cache: bool| if no_cache || f.nv_cache { 0 } else { WCE };
    let mut p = [0u8; 20];
    p[0] = 0x08 | if st.can_save && !f.nv_cache { PS } else { 0 };
    p[1] = 0x12;
    if pc == 1 {
        p[2] = wce(false);
    } else {
        p[12] = 0x80; // FSW
        p[13] = 0x14; // number of cache segments
        p[2] = match pc {
            0 => wce(st.write_through),
            2 => wce(false),
            _ => wce(st.write_through_saved),
        };
    }
    out.extend(&p);
}

fn control_page(st: &ModeState, pc: u8, out: &mut Reply) {
    let bits = match pc {
        0 => st.current,
        1 => ControlBits::CHANGEABLE,
        2 => st.default,
        _ => st.saved,
    };
    out.extend(&[0x0A | if st.can_save { PS } else { 0 }, 0x0A]);
    out.extend(&bits.bytes());
    out.extend(&[0, 0, 0, 0]);
    // EXTENDED SELF-TEST COMPLETION TIME
    out.extend(if pc == 1 { &[0, 0] } else { &[0x02, 0x4B] });
}

/// READ CAPACITY(10).
///
/// # Errors
/// INVALID FIELD IN CDB: PMI=0 with an LBA.
pub(super) fn read_capacity(
    f: &Features,
    nblocks: u64,
    cdb: &[u8],
    out: &mut Reply,
) -> Result<(), Fault> {
    if u8_at(cdb, 8) & 1 == 0 && be32_at(cdb, 2) != 0 {
        return Err(Fault::cdb(2, None));
    }
    // The last block's address, or all ones for "ask READ CAPACITY(16)".
    out.put32(
        0,
        u32::try_from(nblocks.saturating_sub(1)).unwrap_or(u32::MAX),
    );
    out.put32(4, f.block_size());
    Ok(())
}

/// READ CAPACITY(16).
///
/// As kernel SCST (recorded: `capacity/16-lba-no-pmi`), this looks at the upper half of the LBA only, so an LBA below
/// 2^32 passes with PMI=0; both fields are obsolete in SBC-3.
///
/// # Errors
/// INVALID FIELD IN CDB: PMI=0 with an LBA of 2^32 or more.
pub(super) fn read_capacity16(
    f: &Features,
    lim: &Limits,
    nblocks: u64,
    cdb: &[u8],
    out: &mut Reply,
) -> Result<(), Fault> {
    if u8_at(cdb, 14) & 1 == 0 && be64_at(cdb, 2) >> 32 != 0 {
        return Err(Fault::cdb(2, None));
    }
    out.put64(0, nblocks.saturating_sub(1));
    out.put32(8, f.block_size());
    if lim.lb_per_pb_exp {
        let physical = lim.physical_block_size.max(1).ilog2();
        let exp = physical.saturating_sub(u32::from(f.block_shift)).min(0xF);
        out.put8(13, u8::try_from(exp).unwrap_or(0));
    }
    if f.thin_provisioned {
        out.or8(14, 0x80 | if f.discard_zeroes_data { 0x40 } else { 0 });
    }
    out.set_len(32);
    Ok(())
}
