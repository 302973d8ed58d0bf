//! The parameter list of MODE SELECT(6) and (10).
//!
//! C source: `vdisk_exec_mode_select`, `vdisk_ctrl_m_pg_select`, `vdisk_caching_m_pg_select` of
//! `scst/src/dev_handlers/scst_vdisk.c`

use super::Features;
use super::mode::ControlBits;
use super::reply::Fault;
use crate::cdb::bytes::{be16_at, u8_at};
use crate::cdb::opcodes as op;
use crate::consts::TYPE_ROM;
use crate::sense;

/// Page format, in byte 1 of the CDB.
const PF: u8 = 0x10;
/// Save pages, in byte 1 of the CDB.
const SP: u8 = 0x01;
/// Parameters saveable, in a page's first byte: reserved in MODE SELECT.
const PS: u8 = 0x80;
/// Subpage format, in a page's first byte.
const SPF: u8 = 0x40;
const PAGE_CODE: u8 = 0x3F;
const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0A;
/// PAGE LENGTH of the two pages that can be changed.
const CACHING_LEN: u8 = 0x12;
const CONTROL_LEN: u8 = 0x0A;
/// Write cache enable, in byte 2 of the caching page.
const WCE: u8 = 0x04;
/// Length of a block descriptor.
const BLOCK_DESCRIPTOR_LEN: u16 = 8;
/// Bytes before the parameters of a page.
const PAGE_HEADER_LEN: usize = 2;
/// The greatest QUEUE ALGORITHM MODIFIER: unrestricted reordering.
const MAX_QUEUE_ALG: u8 = 1;
/// A reserved value of QERR.
const QERR_RESERVED: u8 = 2;

/// What a MODE SELECT asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// The new control page.
    pub(super) control: Option<ControlBits>,
    /// WCE of the new caching page.
    pub(super) write_cache: Option<bool>,
}

/// Whether the CDB asks to save the pages.
pub(super) fn wants_save(cdb: &[u8]) -> bool {
    u8_at(cdb, 1) & SP != 0
}

/// Reads the parameter list. Nothing has been changed when this fails.
///
/// As in SCST, block descriptors and the fields that MODE SENSE tells not to be changeable are not looked at, but for TST.
///
/// DIFFERS: SCST takes the next page's start two bytes before the end of a control page, and stops after a caching page.
/// Here all pages are read. One thing is kept, because it was recorded (`mode-select/second-page-bad`): what follows a
/// caching page and is not acceptable is left out without an error.
///
/// # Errors
/// INVALID FIELD IN CDB: PF=0, or SP=1 where pages cannot be saved. INVALID FIELD IN PARAMETER LIST: a page or a value
/// that is not acceptable. PARAMETER LIST LENGTH ERROR: a page or block descriptor that is cut off.
pub(super) fn parse(
    f: &Features,
    current: &ControlBits,
    can_save: bool,
    cdb: &[u8],
    list: &[u8],
) -> Result<Changes, Fault> {
    let mut changes = Changes::default();
    if u8_at(cdb, 1) & PF == 0 {
        return Err(Fault::cdb(1, None));
    }
    let (header, descriptors) = if u8_at(cdb, 0) == op::MODE_SELECT {
        (4_u16, u16::from(u8_at(list, 3)))
    } else {
        (8, be16_at(list, 6))
    };
    // DIFFERS: SCST reads what has not been sent from old memory.
    if list.len() < usize::from(header) {
        return Err(sense::PARAMETER_LIST_LENGTH_INVALID.into());
    }
    if descriptors != 0 && descriptors != BLOCK_DESCRIPTOR_LEN {
        return Err(Fault::parms(header.saturating_sub(1), None));
    }
    let mut at = usize::from(header.saturating_add(descriptors));
    if list.len() < at {
        return Err(sense::PARAMETER_LIST_LENGTH_INVALID.into());
    }
    // As in SCST, two bytes or less behind the last page are not a page.
    while list.len() > at.saturating_add(PAGE_HEADER_LEN) {
        let page = list.get(at..).unwrap_or_default();
        let before = changes;
        match read_page(f, current, can_save, cdb, page, at, &mut changes) {
            Ok(len) => at = at.saturating_add(len),
            Err(_) if before.write_cache.is_some() => {
                changes = before;
                break;
            }
            Err(fault) => return Err(fault),
        }
    }
    Ok(changes)
}

/// Reads the page that `page` begins with, which stands at `at` of the list. Answers its length.
fn read_page(
    f: &Features,
    current: &ControlBits,
    can_save: bool,
    cdb: &[u8],
    page: &[u8],
    at: usize,
    changes: &mut Changes,
) -> Result<usize, Fault> {
    let field = |byte: usize, bit: Option<u8>| {
        Fault::parms(
            u16::try_from(at.saturating_add(byte)).unwrap_or(u16::MAX),
            bit,
        )
    };
    let (code, len) = (u8_at(page, 0), u8_at(page, 1));
    if code & PS != 0 {
        return Err(field(0, Some(7)));
    }
    // DIFFERS: SCST takes a subpage for the page.
    if code & SPF != 0 {
        return Err(field(0, Some(6)));
    }
    let want = match code & PAGE_CODE {
        CACHING if f.type_code != TYPE_ROM => CACHING_LEN,
        CONTROL => CONTROL_LEN,
        _ => return Err(field(0, Some(0))),
    };
    if len != want {
        return Err(field(1, None));
    }
    let whole = PAGE_HEADER_LEN.saturating_add(usize::from(len));
    if page.len() < whole {
        return Err(sense::PARAMETER_LIST_LENGTH_INVALID.into());
    }
    if code & PAGE_CODE == CACHING {
        if wants_save(cdb) && (!can_save || f.nv_cache) {
            return Err(Fault::cdb(1, Some(0)));
        }
        changes.write_cache = Some(u8_at(page, 2) & WCE != 0);
    } else {
        if wants_save(cdb) && !can_save {
            return Err(Fault::cdb(2, Some(1)));
        }
        changes.control = Some(control(current, page, field)?);
    }
    Ok(whole)
}

/// Reads a control page.
fn control(
    current: &ControlBits,
    page: &[u8],
    field: impl Fn(usize, Option<u8>) -> Fault,
) -> Result<ControlBits, Fault> {
    let (b2, b3, b4, b5) = (
        u8_at(page, 2),
        u8_at(page, 3),
        u8_at(page, 4),
        u8_at(page, 5),
    );
    if b2 >> 5 != current.tst {
        return Err(field(2, Some(5)));
    }
    let queue_alg = b3 >> 4;
    if queue_alg > MAX_QUEUE_ALG {
        return Err(field(3, Some(4)));
    }
    let qerr = b3 >> 1 & 3;
    if qerr == QERR_RESERVED {
        return Err(field(3, Some(1)));
    }
    Ok(ControlBits {
        tst: current.tst,
        tmf_only: b2 & 0x10 != 0,
        dpicz: b2 & 0x08 != 0,
        d_sense: b2 & 0x04 != 0,
        queue_alg,
        qerr,
        swp: b4 & 0x08 != 0,
        tas: b5 & 0x40 != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn features() -> Features {
        Features {
            type_code: 0,
            block_shift: 9,
            removable: false,
            dummy: false,
            rotational: true,
            thin_provisioned: false,
            discard_zeroes_data: false,
            volatile_cache: true,
            nv_cache: false,
            command_set_version: 0,
        }
    }

    fn hex(s: &str) -> Vec<u8> {
        (0..s.len() / 2)
            .map(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).expect("hex"))
            .collect()
    }

    fn select(cdb: &str, list: &str) -> Result<Changes, Fault> {
        parse(
            &features(),
            &ControlBits::default(),
            true,
            &hex(cdb),
            &hex(list),
        )
    }

    fn control_page(f: impl FnOnce(&mut ControlBits)) -> Result<Changes, Fault> {
        let mut bits = ControlBits::default();
        f(&mut bits);
        Ok(Changes {
            control: Some(bits),
            write_cache: None,
        })
    }

    /// The cases `mode-select/*` of the recorded conversations.
    #[test]
    fn lists_are_taken_and_refused_as_by_kernel_scst() {
        let six = "151000001000";
        let ok = |list| select(six, list);
        assert_eq!(
            ok("000000000a0a24100000000000000000"),
            control_page(|c| c.d_sense = true)
        );
        assert_eq!(
            ok("000000000a0a20100800000000000000"),
            control_page(|c| c.swp = true)
        );
        assert_eq!(
            ok("000000000a0a20120000000000000000"),
            control_page(|c| c.qerr = 1)
        );
        assert_eq!(
            ok("000000000a0a20100040000000000000"),
            control_page(|c| c.tas = true)
        );
        assert_eq!(ok("000000000a0a20100000000000ff0000"), control_page(|_| ()));
        assert_eq!(
            ok("000000000a0a20f00000000000000000"),
            Err(Fault::parms(7, Some(4)))
        );
        assert_eq!(
            ok("00000000250a00000000000000000000"),
            Err(Fault::parms(4, Some(0)))
        );
        assert_eq!(
            ok("000000001c0a08000000000000000000"),
            Err(Fault::parms(4, Some(0)))
        );
        assert_eq!(
            ok("000000000a0400000000000000000000"),
            Err(Fault::parms(5, None))
        );
        assert_eq!(
            select("150000001000", "000000000a0a20100000000000000000"),
            Err(Fault::cdb(1, None))
        );
        assert_eq!(
            select(
                "55100000000000001400",
                "00000000000000000a0a20100000000000000000"
            ),
            control_page(|_| ())
        );
        assert_eq!(
            select("151000000c00", "000000080000000000001000"),
            Ok(Changes::default())
        );
        let both = Changes {
            control: Some(ControlBits::default()),
            write_cache: Some(true),
        };
        let list = "0000000008120400000000000000000080140000000000000a0a20100000000000000000";
        assert_eq!(select("151000002400", list), Ok(both));
        let list = "0000000008120000000000000000000080140000000000000a0a20f00000000000000000";
        let caching = Changes {
            control: None,
            write_cache: Some(false),
        };
        assert_eq!(select("151000002400", list), Ok(caching));
    }

    /// Bug 8 of SCST: the second page is looked for two bytes too early, or not at all.
    #[test]
    fn every_page_of_a_list_counts() {
        let control = "0a0a24100000000000000000";
        let caching = "0812000000000000000000008014000000000000";
        let want = Changes {
            control: Some(ControlBits {
                d_sense: true,
                ..ControlBits::default()
            }),
            write_cache: Some(false),
        };
        for pages in [[control, caching], [caching, control]] {
            let list = format!("00000000{}", pages.concat());
            assert_eq!(select("151000002400", &list), Ok(want));
        }
        let list = format!("00000000{control}0a0a20f00000000000000000");
        assert_eq!(
            select("151000001c00", &list),
            Err(Fault::parms(19, Some(4)))
        );
    }

    #[test]
    fn what_is_cut_off_is_refused() {
        let cut = Err(sense::PARAMETER_LIST_LENGTH_INVALID.into());
        assert_eq!(select("151000000300", "000000"), cut);
        assert_eq!(select("151000000a00", "000000000a0a24100000"), cut);
        assert_eq!(select("55100000000000000600", "000000000000"), cut);
        // The block descriptor.
        assert_eq!(select("151000000400", "00000008"), cut);
        assert_eq!(select("151000000b00", "0000000800000000000002"), cut);
        assert_eq!(
            select("55100000000000000f00", "000000000000000800000000000002"),
            cut
        );
        assert_eq!(
            select("151000000c00", "000000070000000000000200"),
            Err(Fault::parms(3, None))
        );
        assert_eq!(
            select("55100000000000000800", "0000000000000100"),
            Err(Fault::parms(7, None))
        );
        // A page that begins with a reserved bit, or names a subpage.
        assert_eq!(
            select("151000001000", "000000008a0a20100000000000000000"),
            Err(Fault::parms(4, Some(7)))
        );
        assert_eq!(
            select("151000001000", "000000004a0a20100000000000000000"),
            Err(Fault::parms(4, Some(6)))
        );
    }

    #[test]
    fn saving_needs_a_place() {
        let list = hex("000000000a0a20100000000000000000");
        let (f, bits) = (features(), ControlBits::default());
        let r = parse(&f, &bits, false, &hex("151100001000"), &list);
        assert_eq!(r, Err(Fault::cdb(2, Some(1))));
        let list = hex("000000000812040000000000000000008014000000000000");
        let r = parse(&f, &bits, false, &hex("151100001800"), &list);
        assert_eq!(r, Err(Fault::cdb(1, Some(0))));
        assert!(parse(&f, &bits, true, &hex("151100001800"), &list).is_ok());
    }

    proptest! {
        /// Whatever comes, no panic; and what is taken are values that the control page can have.
        #[test]
        fn any_list_is_survived(cdb in proptest::collection::vec(any::<u8>(), 0..16),
                                list in proptest::collection::vec(any::<u8>(), 0..80)) {
            let r = parse(&features(), &ControlBits::default(), true, &cdb, &list);
            if let Ok(Changes { control: Some(c), .. }) = r {
                prop_assert!(c.tst == 1 && c.queue_alg <= 1 && c.qerr != 2);
            }
        }
    }
}
