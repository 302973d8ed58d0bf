use super::*;
use proptest::prelude::*;

fn hex(s: &str) -> Vec<u8> {
    (0..s.len() / 2)
        .map(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).unwrap())
        .collect()
}

fn disk(cdb: &str) -> Result<CdbInfo, CdbError> {
    get_cdb_info(opcodes::TYPE_DISK, 9, &hex(cdb))
}

fn field(byte: u16, bit: impl Into<Option<u8>>) -> CdbError {
    CdbError::InvalidField {
        byte,
        bit: bit.into(),
    }
}

#[test]
fn the_table_is_complete_and_ordered() {
    assert_eq!(OPS.len(), 177 + 1);
    assert!(OPS.windows(2).all(|w| w[0].code <= w[1].code));
    for op in &OPS {
        assert_ne!(op.dev_types, 0, "{}", op.name);
    }
    // Rows per device type, counted in SCST's table, and ORWRITE(16).
    let per_type: Vec<usize> = (0..16)
        .map(|t| OPS.iter().filter(|o| o.dev_types & (1 << t) != 0).count())
        .collect();
    assert_eq!(
        per_type,
        [
            79 + 1,
            56,
            42,
            34,
            74,
            104,
            35,
            69,
            45,
            34,
            18,
            18,
            29,
            20,
            20,
            20
        ]
    );
}

/// No two rows may claim one (code, type) pair, but for those where SCST's first row wins.
#[test]
fn rows_that_lose_are_known() {
    let mut lost = Vec::new();
    for t in 0..16u8 {
        for op in OPS.iter().filter(|o| o.dev_types & (1 << t) != 0) {
            let row = table::INDEX[usize::from(t)][usize::from(op.code)];
            if !std::ptr::eq(&OPS[usize::from(row)], op) {
                lost.push((op.code, t));
            }
        }
    }
    assert_eq!(lost, [(0x0A, 4), (0xA1, 5), (0x07, 8)]);
}

#[test]
fn reads_and_writes_of_a_disk() {
    let rows: &[(&str, u64, u32, DataDirection)] = &[
        ("080000050200", 5, 1024, DataDirection::Read),
        ("081fffff0000", 0x1F_FFFF, 256 * 512, DataDirection::Read),
        ("08ffffff0000", 0x1F_FFFF, 256 * 512, DataDirection::Read),
        ("0a0000050200", 5, 1024, DataDirection::Write),
        ("28000000001000000800", 16, 4096, DataDirection::Read),
        ("2a08000000ff00000000", 0xFF, 0, DataDirection::Write),
        ("a80000000001000000020000", 1, 1024, DataDirection::Read),
        ("aa0000000001000000020000", 1, 1024, DataDirection::Write),
        (
            "88000000000100000000000000010000",
            1 << 32,
            512,
            DataDirection::Read,
        ),
        (
            "8a000000000100000000000000010000",
            1 << 32,
            512,
            DataDirection::Write,
        ),
    ];
    for &(cdb, lba, bytes, dir) in rows {
        let i = disk(cdb).unwrap();
        assert_eq!(
            (i.lba, i.bufflen, i.data_len, i.direction),
            (lba, bytes, u64::from(bytes), dir)
        );
        assert_eq!(
            i.flags.contains(CdbFlags::WRITE_MEDIUM),
            dir == DataDirection::Write
        );
        assert!(!i.flags.contains(CdbFlags::LBA_NOT_VALID));
    }
    let i = get_cdb_info(0, 12, &hex("28000000001000000800")).unwrap();
    assert_eq!((i.lba, i.bufflen), (16, 32768));
}

#[test]
fn lengths_that_cannot_be_are_refused_by_parse() {
    let i = disk("88007fffffffffffffffffffffff0000").unwrap();
    assert_eq!(i.bufflen, u32::MAX);
    assert_eq!(sbc_generic_parse(&i, 9), Err(sense::BLOCK_OUT_RANGE));
    // One block at an LBA whose byte offset does not fit.
    let i = disk("8800ffffffffffffffff000000010000").unwrap();
    assert_eq!(sbc_generic_parse(&i, 9), Err(sense::BLOCK_OUT_RANGE));
    let i = disk("8800003fffffffffffff000000010000").unwrap();
    assert_eq!(sbc_generic_parse(&i, 9), Ok(()));
    let i = disk("88000000000000000000003fffff0000").unwrap();
    assert_eq!(sbc_generic_parse(&i, 9), Ok(()));
    let i = disk("8800000000000000000000400000ffff").unwrap();
    assert_eq!(sbc_generic_parse(&i, 9), Err(sense::BLOCK_OUT_RANGE));
}

/// Errors and their field pointers as recorded from kernel SCST.
#[test]
fn refused_cdbs_get_the_recorded_field_pointer() {
    let rows = [
        ("28200000000000000100", field(1, 5)),
        ("2a200000000000000100", field(1, 5)),
        ("2f200000000000000100", field(1, 5)),
        ("2f060000006000000200", field(1, 2)),
        (
            "7f00000000000018000b00000000000000000050000000000000000000000004",
            CdbError::UnknownOpcode,
        ),
        (
            "7f00000000000018000900000000000000000050000000000000000000000004",
            CdbError::UnknownOpcode,
        ),
        ("7f000000000000180008", CdbError::UnknownOpcode),
        ("7f000000000000180020", CdbError::UnknownOpcode),
        ("7f000000000000170009", field(7, None)),
        ("93100000000000000080000000080000", field(1, 4)),
        ("93010000000000000080000000080000", field(1, 0)),
        ("83010000000000000000000000080000", field(1, 0)),
        ("9e100000000000000000000000810000", field(0, None)),
        ("c0", CdbError::UnknownOpcode),
        ("ff", CdbError::UnknownOpcode),
    ];
    for (cdb, want) in rows {
        assert_eq!(disk(cdb).err(), Some(want), "{cdb}");
    }
    assert_eq!(
        get_cdb_info(5, 11, &hex("9e100000000000000000000000200000")).err(),
        Some(CdbError::UnknownOpcode)
    );
}

/// Kernel SCST computes the residual of these from the unscaled length: 512 - 1, 2048 - 4 (recorded).
#[test]
fn refused_cdbs_keep_their_length_in_blocks() {
    let part = |cdb: &str| get_invalid_cdb_info(0, 9, &hex(cdb));
    let i = part("2a200000000000000100").unwrap();
    assert_eq!((i.bufflen, i.direction), (1, DataDirection::Write));
    let i = part("7f00000000000018000b00000000000000000050000000000000000000000004").unwrap();
    assert_eq!(
        (i.bufflen, i.direction, i.name),
        (4, DataDirection::Write, "WRITE(32)")
    );
    let i = part("2f060000006000000204").unwrap();
    assert_eq!((i.bufflen, i.naca), (0, true));
    assert!(part("ff").is_none());
    assert!(part("28000000000000000100").is_none());
    assert!(part("7f000000000000170009").is_some());
    assert!(part("7f000000000000180008").is_none());
}

#[test]
fn verify_has_data_only_with_bytchk() {
    for (cdb, lba) in [
        ("2f020000006000000200", 0x60),
        ("af0200000060000000020000", 0x60),
        ("8f020000000000000060000000020000", 0x60),
    ] {
        let i = disk(cdb).unwrap();
        assert_eq!((i.lba, i.bufflen, i.data_len), (lba, 1024, 1024));
        assert_eq!(i.direction, DataDirection::Write);
        let mut c = hex(cdb);
        c[1] = 0;
        let i = get_cdb_info(0, 9, &c).unwrap();
        assert_eq!((i.lba, i.bufflen, i.data_len), (lba, 0, 1024));
        assert_eq!(i.direction, DataDirection::None);
    }
}

#[test]
fn write_same_and_compare_and_write_differ_in_buffer_and_medium_length() {
    let i = disk("93000000000000000080000000080000").unwrap();
    assert_eq!((i.lba, i.bufflen, i.data_len), (0x80, 512, 4096));
    let i = disk("93090000000000000080000000080000").unwrap();
    assert_eq!(
        (i.bufflen, i.data_len, i.direction),
        (0, 4096, DataDirection::None)
    );
    let i = disk("41080000008800000400").unwrap();
    assert_eq!((i.lba, i.bufflen, i.data_len), (0x88, 512, 2048));
    let i = disk("89000000000000000200000000ff0000").unwrap();
    assert_eq!(
        (i.lba, i.bufflen, i.data_len),
        (0x200, 255 * 1024, 255 * 512)
    );
    assert!(
        i.flags
            .contains(CdbFlags::LOCAL_CMD | CdbFlags::SCSI_ATOMIC)
    );
}

#[test]
fn service_actions_change_name_and_flags() {
    let i = disk("9e100000000000000000000000200000").unwrap();
    assert_eq!((i.name, i.bufflen), ("READ CAPACITY(16)", 32));
    assert!(
        i.flags
            .contains(CdbFlags::IMPLICIT_HQ | CdbFlags::EXCL_ACCESS_ALLOWED)
    );
    let i = disk("9e120000000000000009000000200000").unwrap();
    assert_eq!((i.name, i.lba), ("GET LBA STATUS", 9));
    let i = disk("9e030000000000000009000000200000").unwrap();
    assert!(i.flags.contains(CdbFlags::UNKNOWN_LENGTH));
    let i = disk("a30c00000000000020000000").unwrap();
    assert_eq!(
        (i.name, i.bufflen),
        ("REPORT SUPPORTED OPERATION CODES", 0x2000)
    );
    assert!(i.flags.contains(CdbFlags::FULLY_LOCAL_CMD));
    let i = disk("a30a00000000000020000000").unwrap();
    assert!(!i.flags.contains(CdbFlags::FULLY_LOCAL_CMD) && i.flags.contains(CdbFlags::LOCAL_CMD));
    let i = disk("a40a00000000000020000000").unwrap();
    assert!(i.flags.contains(CdbFlags::STRICTLY_SERIALIZED));
    let i = disk("a40f00000000000020000000").unwrap();
    assert_eq!(i.name, "SET TIMESTAMP");
    let i = disk("a40e00000000000020000000").unwrap();
    assert_eq!(i.name, "MAINTENANCE(OUT)");
}

#[test]
fn control_bits_come_from_the_last_byte() {
    assert!(disk("000000000004").unwrap().naca);
    assert!(disk("000000000001").unwrap().linked);
    assert!(!disk("000000000000").unwrap().naca);
    assert!(disk("28000000000000000004").unwrap().naca);
    let mut c = hex("88000000000000000000000000000004");
    assert!(get_cdb_info(0, 9, &c).unwrap().naca);
    c.push(0);
    assert!(get_cdb_info(0, 9, &c).unwrap().naca);
}

#[test]
fn start_stop_and_prevent_allow_pass_reservations_only_when_harmless() {
    let ea = CdbFlags::EXCL_ACCESS_ALLOWED;
    assert!(disk("1b0000000100").unwrap().flags.contains(ea));
    assert!(!disk("1b0000000000").unwrap().flags.contains(ea));
    assert!(!disk("1b0000003100").unwrap().flags.contains(ea));
    assert!(disk("1e0000000000").unwrap().flags.contains(ea));
    assert!(!disk("1e0000000100").unwrap().flags.contains(ea));
}

#[test]
fn ata_pass_through_lengths() {
    // DMA in, T_LENGTH=2 (sector count), BYT_BLOK=1, T_TYPE=0, 8 sectors
    let i = disk("a10c0e000800000000000000").unwrap();
    assert_eq!((i.bufflen, i.direction), (8 * 512, DataDirection::Read));
    let i = get_cdb_info(0, 12, &hex("85ed16000000010000000000000000ff")).unwrap();
    assert_eq!(i.bufflen, 4096 * 128);
    assert_eq!(disk("a11e0e000800000000000000").unwrap().bufflen, 0);
}

proptest! {
    #[test]
    fn no_cdb_panics(t in 0u8..=255, shift in 0u8..=255, cdb in proptest::collection::vec(any::<u8>(), 0..40)) {
        if let Ok(i) = get_cdb_info(t, shift, &cdb) {
            let _ = sbc_generic_parse(&i, shift);
            prop_assert!(i.flags.contains(CdbFlags::INFO_VALID));
            prop_assert!(get_invalid_cdb_info(t, shift, &cdb).is_none());
        } else if let Some(i) = get_invalid_cdb_info(t, shift, &cdb) {
            prop_assert_eq!(i.op.code, cdb.first().copied().unwrap_or(0));
        }
    }
}
