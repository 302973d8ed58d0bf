//! INQUIRY: standard data and vital product data pages 00h, 80h, 83h, 86h, B0h, B1h and B2h.
//!
//! C source: `vdisk_exec_inquiry` and neighbours of `scst/src/dev_handlers/scst_vdisk.c`

use super::reply::{Fault, Reply};
use super::{Features, Identity, Limits};
use crate::cdb::bytes::u8_at;
use crate::consts::TYPE_DISK;
use kshim::page::PAGE_SIZE;

const EVPD: u8 = 0x01;
const CMDDT: u8 = 0x02;
/// Version descriptors: SAM-4 (no version claimed beyond revision 14), SPC-4 revision 23.
const VERSION_SAM4: u16 = 0x008B;
const VERSION_SPC4: u16 = 0x0463;
/// VERSION: SPC-4.
const SPC4: u8 = 6;
/// Greatest transfer in one command, announced in VPD page B0h.
const MAX_TRANSFER: u32 = 8 * 1024 * 1024;
/// MEDIUM ROTATION RATE of rotating devices.
const RPM_15K: u16 = 15_000;
/// MEDIUM ROTATION RATE of devices that do not rotate.
const NON_ROTATING: u16 = 1;
/// Vendor-specific bytes up to this many go to byte 36 on of standard INQUIRY data, more to byte 96 on.
const VEND_SPECIFIC_SHORT: usize = 20;
/// Peripheral qualifier 001b: capable, but not connected.
const NOT_CONNECTED: u8 = 0x20;
/// Length of VPD pages 86h, B0h and B1h behind the header.
const PAGE_LEN_3C: u8 = 0x3C;

/// What INQUIRY tells of the port that the command came by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortInfo {
    /// Relative target port identifier.
    pub rel_tgt_id: u16,
    /// Identifier of its target port group; 0 for none.
    pub tg_id: u16,
    /// TPGS bits.
    pub tpgs: u8,
    /// The logical unit cannot be reached by it: the port group's state is unavailable or offline.
    pub not_connected: bool,
    /// Version descriptor of the transport protocol (0960h for iSCSI); 0 for none.
    pub scsi_transport_version: u16,
    /// Version descriptor of the physical transport; 0 for none.
    pub phys_transport_version: u16,
}

/// Builds INQUIRY data.
///
/// # Errors
/// INVALID FIELD IN CDB: CMDDT set, or a page that does not exist.
pub(super) fn inquiry(
    f: &Features,
    lim: &Limits,
    id: &Identity,
    port: &PortInfo,
    cdb: &[u8],
    out: &mut Reply,
) -> Result<(), Fault> {
    let (flags, page) = (u8_at(cdb, 1), u8_at(cdb, 2));
    if flags & CMDDT != 0 {
        return Err(Fault::cdb(1, Some(1)));
    }
    // A dummy device is told as "capable, but nothing connected" of unknown type.
    let type_byte = match (port.not_connected, f.dummy) {
        (true, _) => NOT_CONNECTED | f.type_code,
        (false, true) => NOT_CONNECTED | 0x1F,
        (false, false) => f.type_code,
    };
    out.put8(0, type_byte);
    if flags & EVPD == 0 {
        if page != 0 {
            return Err(Fault::cdb(2, None));
        }
        standard(f, id, port, out);
        return Ok(());
    }
    out.put8(1, page);
    let disk = f.type_code == TYPE_DISK;
    match page {
        0x00 => supported_pages(f, out),
        0x80 => {
            out.put16(2, len16(id.usn.len()));
            out.put(4, id.usn.as_bytes());
        }
        0x83 => device_identification(id, port, out),
        0x86 => extended_inquiry(f, out),
        0xB0 if disk => block_limits(f, lim, out),
        0xB1 if disk => {
            out.put8(3, PAGE_LEN_3C);
            out.put16(4, if f.rotational { RPM_15K } else { NON_ROTATING });
            out.set_len(64);
        }
        0xB2 if disk && f.thin_provisioned => {
            // LBPU, LBPWS, LBPWS10; thin provisioned.
            out.put(
                2,
                &[
                    0,
                    4,
                    0,
                    0xE0 | if f.discard_zeroes_data { 4 } else { 0 },
                    2,
                    0,
                ],
            );
        }
        _ => return Err(Fault::cdb(2, None)),
    }
    Ok(())
}

fn len16(n: usize) -> u16 {
    u16::try_from(n).unwrap_or(u16::MAX)
}

fn len8(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}

fn standard(f: &Features, id: &Identity, port: &PortInfo, out: &mut Reply) {
    if f.removable {
        out.put8(1, 0x80);
    }
    out.put8(2, SPC4);
    out.put8(3, 0x22); // NORMACA, response data format 2
    out.put8(5, 0x08 | port.tpgs); // 3PC
    out.put8(6, 0x10); // MULTIP
    out.put8(7, 0x02); // CMDQUE
    out.put_text(8, &id.t10_vend_id, 8);
    out.put_text(16, &id.prod_id, 16);
    out.put_text(32, &id.prod_rev_lvl, 4);
    let vs = &id.inq_vend_specific;
    if vs.len() <= VEND_SPECIFIC_SHORT {
        out.put(36, vs);
    }
    out.set_len(58);
    let scsi = [port.phys_transport_version, port.scsi_transport_version];
    let versions = [VERSION_SAM4]
        .into_iter()
        .chain(scsi.into_iter().filter(|v| *v != 0))
        .chain([VERSION_SPC4])
        .chain((f.command_set_version != 0).then_some(f.command_set_version));
    for v in versions {
        out.extend(&v.to_be_bytes());
    }
    if vs.len() > VEND_SPECIFIC_SHORT {
        out.put(96, vs);
    }
    let additional = len8(out.len().saturating_sub(5));
    out.put8(4, additional);
}

fn supported_pages(f: &Features, out: &mut Reply) {
    out.set_len(4);
    out.extend(&[0x00, 0x80, 0x83, 0x86]);
    if f.type_code == TYPE_DISK {
        out.extend(&[0xB0, 0xB1]);
        if f.thin_provisioned {
            out.extend(&[0xB2]);
        }
    }
    let n = len8(out.len().saturating_sub(4));
    out.put8(3, n);
}

/// One designator: header, then the bytes.
fn designator(out: &mut Reply, code_set: u8, kind: u8, id: &[u8]) {
    out.extend(&[code_set, kind, 0, len8(id.len())]);
    out.extend(id);
}

fn device_identification(id: &Identity, port: &PortInfo, out: &mut Reply) {
    out.set_len(4);
    if !id.scsi_device_name.is_empty() {
        // Zero-terminated and padded to a multiple of four.
        let mut name = id.scsi_device_name.clone().into_bytes();
        name.push(0);
        name.resize(name.len().next_multiple_of(4), 0);
        designator(out, 0x03, 0x28, &name);
    }
    let mut t10 = Vec::with_capacity(8_usize.saturating_add(id.vend_specific_id.len()));
    t10.extend(
        id.t10_vend_id
            .bytes()
            .chain(std::iter::repeat(b' '))
            .take(8),
    );
    t10.extend_from_slice(id.vend_specific_id.as_bytes());
    designator(out, 0x02, 0x01, &t10);
    let [hi, lo] = port.rel_tgt_id.to_be_bytes();
    designator(out, 0x01, 0x14, &[0, 0, hi, lo]);
    if port.tg_id != 0 {
        let [hi, lo] = port.tg_id.to_be_bytes();
        designator(out, 0x01, 0x15, &[0, 0, hi, lo]);
    }
    if let Some(eui) = id.eui64() {
        designator(out, 0x01, 0x02, &eui);
    }
    if !id.naa_id.is_empty() {
        designator(out, 0x01, 0x03, &id.naa_id);
    }
    let n = len16(out.len().saturating_sub(4));
    out.put16(2, n);
}

fn extended_inquiry(f: &Features, out: &mut Reply) {
    out.put8(3, PAGE_LEN_3C);
    out.put8(5, 0x07); // HEADSUP, ORDSUP, SIMPSUP
    out.put8(6, u8::from(f.volatile_cache)); // V_SUP
    out.put8(7, 0x01); // LUICLR
    out.set_len(64);
}

fn block_limits(f: &Features, lim: &Limits, out: &mut Reply) {
    let blocks = |bytes: u64| bytes.checked_shr(u32::from(f.block_shift)).unwrap_or(0);
    let blocks32 = |bytes: u64| u32::try_from(blocks(bytes)).unwrap_or(u32::MAX);
    out.put8(3, PAGE_LEN_3C);
    out.put8(4, 0x01); // WSNZ
    out.put8(5, 0xFF); // MAXIMUM COMPARE AND WRITE LENGTH
    let page = u64::try_from(PAGE_SIZE).unwrap_or(0);
    out.put16(6, u16::try_from(blocks(page).max(1)).unwrap_or(u16::MAX));
    let max = blocks32(u64::from(MAX_TRANSFER));
    out.put32(8, max);
    out.put32(12, max.min(blocks32(u64::from(lim.opt_trans_len))));
    if f.thin_provisioned {
        out.put32(20, lim.unmap_max_lba_cnt);
        out.put32(24, u32::MAX);
        out.put32(28, lim.unmap_opt_gran);
        if lim.unmap_align != 0 {
            out.put32(32, lim.unmap_align | 0x8000_0000);
        }
    }
    out.put64(36, blocks(lim.max_write_same_len));
    out.set_len(64);
}
