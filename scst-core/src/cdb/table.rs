//! The opcode table: one row per (operation code, set of device types).
//!
//! C source: `scst/src/scst_lib.c` (`scst_scsi_op_table`), whose 177 rows this table mirrors, so that the same
//! commands are known, serialised, refused on read-only LUNs and let through reservations as in kernel SCST.
//! Columns: code, device types (hexadecimal peripheral device types, `*` = all sixteen), name, direction,
//! flags, (offset, length) of the LBA, (offset, length) of the transfer length, log2 of the greatest data
//! buffer (0 = no limit), and the shape that tells how the fields are read.
#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    clippy::panic,
    reason = "only const evaluation happens here: a mistake fails the build"
)]

use super::{CdbFlags, Form, OpDesc};
use crate::consts::DataDirection;

/// Number of rows of the table: those of SCST, and ORWRITE(16).
pub const NR_OPS: usize = 178;
/// Number of rows for variable-length (7Fh) service actions, which start at READ(32).
pub const NR_OPS32: usize = 5;
/// Mark of "no such operation code for this device type" in [`INDEX`].
pub(super) const NO_OP: u8 = u8::MAX;

const SHORT: CdbFlags = CdbFlags::SMALL_TIMEOUT;
const LONG: CdbFlags = CdbFlags::LONG_TIMEOUT;
const HQ: CdbFlags = CdbFlags::IMPLICIT_HQ;
const NOUA: CdbFlags = CdbFlags::SKIP_UA;
const LOCAL: CdbFlags = CdbFlags::LOCAL_CMD;
const FULL: CdbFlags = CdbFlags::FULLY_LOCAL_CMD;
const WMED: CdbFlags = CdbFlags::WRITE_MEDIUM;
const SER: CdbFlags = CdbFlags::SERIALIZED;
const SSER: CdbFlags = CdbFlags::STRICTLY_SERIALIZED;
const RR: CdbFlags = CdbFlags::REG_RESERVE_ALLOWED;
const WE: CdbFlags = CdbFlags::WRITE_EXCL_ALLOWED;
const EA: CdbFlags = CdbFlags::EXCL_ACCESS_ALLOWED;
const ATOMIC: CdbFlags = CdbFlags::SCSI_ATOMIC;
const DESC: CdbFlags = CdbFlags::DESCRIPTORS_IN_DATA;
const P3: CdbFlags = CdbFlags::CAN_GEN_3PARTY_COMMANDS;
const FIX: CdbFlags = CdbFlags::TRANSFER_LEN_TYPE_FIXED;
const UNKLEN: CdbFlags = CdbFlags::UNKNOWN_LENGTH;

/// Turns `"0457"` into a bit set of device types; `"*"` is all of them.
const fn types(s: &str) -> u16 {
    let b = s.as_bytes();
    let mut set = 0u16;
    let mut i = 0;
    while i < b.len() {
        set |= match b[i] {
            c @ b'0'..=b'9' => 1 << (c - b'0'),
            c @ b'A'..=b'F' => 1 << (c - b'A' + 10),
            b'*' => u16::MAX,
            _ => panic!("a device type is a hexadecimal digit"),
        };
        i += 1;
    }
    set
}

macro_rules! ops {
    ($($code:literal $types:literal $name:literal $dir:ident [$($flag:ident)*]
       ($lba_off:literal, $lba_len:literal) ($len_off:literal, $len_len:literal) $max:literal $form:ident;)*) => {
        [$(OpDesc {
            code: $code,
            dev_types: types($types),
            name: $name,
            direction: DataDirection::$dir,
            flags: CdbFlags::empty()$(.union($flag))*,
            lba_off: $lba_off,
            lba_len: $lba_len,
            len_off: $len_off,
            len_len: $len_len,
            log2_max_buf_len: $max,
            form: Form::$form,
        }),*]
    };
}

/// All rows, ordered by operation code.
pub static OPS: [OpDesc; NR_OPS] = ops! {
    0x00 "*" "TEST UNIT READY" None [SHORT HQ RR WE EA] (0,0) (0,0) 0 None;
    0x01 "1" "REWIND" None [LONG WE] (0,0) (0,0) 0 None;
    0x03 "*" "REQUEST SENSE" Read [SHORT NOUA LOCAL RR WE EA] (0,0) (4,1) 0 Len1;
    0x04 "057" "FORMAT UNIT" None [LONG WMED SSER] (0,0) (0,0) 0 Format;
    0x04 "1" "FORMAT MEDIUM" Write [LONG WMED SSER] (0,0) (3,0) 0 Len2;
    0x04 "2" "FORMAT" None [WMED SSER] (0,0) (0,0) 0 None;
    0x05 "0123458" "READ BLOCK LIMITS" Read [SHORT RR WE EA] (0,0) (0,0) 0 Fixed6;
    0x07 "8" "INITIALIZE ELEMENT STATUS" None [LONG] (0,0) (0,0) 0 None;
    0x07 "012478" "REASSIGN BLOCKS" Write [WMED] (0,0) (0,0) 0 None;
    0x08 "0" "READ(6)" Read [FIX WE] (1,3) (4,1) 0 Rw6;
    0x08 "12578" "READ(6)" Read [FIX WE] (0,0) (2,3) 0 Len3;
    0x08 "9" "GET MESSAGE(6)" Read [] (0,0) (2,3) 0 Len3;
    0x08 "4" "RECEIVE" Read [] (0,0) (2,3) 0 Len3;
    0x0A "0" "WRITE(6)" Write [FIX WMED] (1,3) (4,1) 0 Rw6;
    0x0A "1478" "WRITE(6)" Write [FIX WMED] (0,0) (2,3) 0 Len3;
    0x0A "2" "PRINT" None [] (0,0) (0,0) 0 None;
    0x0A "9" "SEND MESSAGE(6)" Write [] (0,0) (2,3) 0 Len3;
    0x0A "4" "SEND(6)" Write [] (0,0) (2,3) 0 Len3;
    0x0B "04578" "SEEK(6)" None [] (2,2) (0,0) 0 Lba2;
    0x0B "1" "SET CAPACITY" None [WMED SSER] (0,0) (0,0) 0 None;
    0x0B "2" "SLEW AND PRINT" None [] (0,0) (0,0) 0 None;
    0x0C "123458" "SEEK BLOCK" None [LONG] (0,0) (0,0) 0 None;
    0x0D "123458" "PARTITION" None [LONG WMED] (0,0) (0,0) 0 None;
    0x0F "123458" "READ REVERSE" Read [FIX WE] (0,0) (12,3) 0 Len3;
    0x10 "135" "WRITE FILEMARKS(6)" None [WMED] (0,0) (0,0) 0 None;
    0x10 "24" "SYNCHRONIZE BUFFER" None [] (0,0) (0,0) 0 None;
    0x11 "012345" "SPACE" None [LONG WE] (0,0) (0,0) 0 None;
    0x12 "*" "INQUIRY" Read [SHORT HQ NOUA RR WE EA] (0,0) (3,2) 0 Len2;
    0x13 "1" "VERIFY(6)" Unknown [FIX WE] (0,0) (2,3) 0 Verify6;
    0x14 "12345" "RECOVER BUFFERED DATA" Read [FIX WE] (0,0) (2,3) 0 Len3;
    0x15 "*" "MODE SELECT(6)" Write [SSER] (0,0) (4,1) 0 Len1;
    0x16 "*" "RESERVE(6)" None [SHORT LOCAL SER WE EA ATOMIC] (0,0) (0,0) 0 None;
    0x17 "*" "RELEASE(6)" None [SHORT LOCAL SER RR WE EA] (0,0) (0,0) 0 None;
    0x19 "12345" "ERASE" None [LONG WMED] (0,0) (0,0) 0 None;
    0x1A "*" "MODE SENSE(6)" Read [SHORT WE] (0,0) (4,1) 0 Len1;
    0x1B "6" "SCAN" None [] (0,0) (0,0) 0 None;
    0x1B "1" "LOAD UNLOAD" None [LONG] (0,0) (0,0) 0 None;
    0x1B "2" "STOP PRINT" None [] (0,0) (0,0) 0 None;
    0x1B "0457C" "START STOP UNIT" None [LONG] (0,0) (0,0) 0 StartStop;
    0x1C "*" "RECEIVE DIAGNOSTIC RESULTS" Read [WE] (0,0) (3,2) 0 Len2;
    0x1D "*" "SEND DIAGNOSTIC" Write [] (0,0) (3,2) 0 Len2;
    0x1E "*" "PREVENT ALLOW MEDIUM REMOVAL" None [LONG] (0,0) (0,0) 0 PreventAllow;
    0x1F "C" "PORT STATUS" None [] (0,0) (0,0) 0 None;
    0x23 "0457" "READ FORMAT CAPACITY" Read [] (0,0) (7,2) 0 Len2;
    0x24 "456" "SET WINDOW" Write [] (0,0) (6,3) 0 Len3;
    0x25 "0457" "READ CAPACITY" Read [HQ RR WE EA] (0,0) (0,0) 3 Fixed8;
    0x25 "6" "GET WINDOW" Read [] (0,0) (6,3) 0 Len3;
    0x28 "04567" "READ(10)" Read [FIX WE] (2,4) (7,2) 0 Lba4Len2Prot;
    0x28 "9" "GET MESSAGE(10)" Read [] (0,0) (7,2) 0 Len2;
    0x29 "0457" "READ GENERATION" Read [] (0,0) (8,1) 0 Len1;
    0x2A "0457" "WRITE(10)" Write [FIX WMED] (2,4) (7,2) 0 Lba4Len2Prot;
    0x2A "9" "SEND MESSAGE(10)" Write [] (0,0) (7,2) 0 Len2;
    0x2A "6" "SEND(10)" Write [] (0,0) (7,2) 0 Len2;
    0x2B "1" "LOCATE" None [LONG WE] (0,0) (0,0) 0 None;
    0x2B "8" "POSITION TO ELEMENT" None [LONG] (0,0) (0,0) 0 None;
    0x2B "0457" "SEEK(10)" None [] (2,4) (0,0) 0 Lba4;
    0x2C "057" "ERASE(10)" None [LONG WMED] (0,0) (0,0) 0 None;
    0x2D "047" "READ UPDATED BLOCK" Read [FIX] (0,0) (0,0) 0 OneBlock;
    0x2E "0457" "WRITE AND VERIFY(10)" Write [FIX WMED] (2,4) (7,2) 0 Lba4Len2Prot;
    0x2F "0457" "VERIFY(10)" Unknown [FIX WE] (2,4) (7,2) 0 Verify10;
    0x33 "457" "SET LIMITS(10)" None [] (0,0) (0,0) 0 None;
    0x34 "1" "READ POSITION" Read [SHORT WE] (0,0) (7,2) 0 ReadPosition;
    0x34 "6" "GET DATA BUFFER STATUS" Read [] (0,0) (7,2) 0 Len2;
    0x34 "0457" "PRE-FETCH" None [WE] (2,4) (7,2) 0 Lba4;
    0x35 "0457" "SYNCHRONIZE CACHE(10)" None [] (2,4) (7,2) 0 Lba4;
    0x36 "0457" "LOCK UNLOCK CACHE" None [WE] (0,0) (0,0) 0 None;
    0x37 "07" "READ DEFECT DATA(10)" Read [WE] (0,0) (7,2) 0 Len2;
    0x37 "8" "INIT ELEMENT STATUS WRANGE" None [LONG] (0,0) (0,0) 0 None;
    0x38 "47" "MEDIUM SCAN" Read [] (0,0) (8,1) 0 Len1;
    0x3B "*" "WRITE BUFFER" Write [SHORT] (0,0) (6,3) 0 Len3;
    0x3C "*" "READ BUFFER" Read [SHORT WE] (0,0) (6,3) 0 Len3;
    0x3D "47" "UPDATE BLOCK" Write [FIX] (0,0) (0,0) 0 OneBlock;
    0x3E "0457" "READ LONG" Read [] (2,4) (7,2) 0 Lba4Len2;
    0x3F "047" "WRITE LONG" Write [WMED] (2,4) (7,2) 0 Lba4Len2;
    0x40 "0123456789" "CHANGE DEFINITION" Write [SHORT] (0,0) (8,1) 0 Len1;
    0x41 "0" "WRITE SAME(10)" Write [FIX WMED] (2,4) (7,2) 0 WriteSame10;
    0x42 "5" "READ SUB-CHANNEL" Read [] (0,0) (7,2) 0 Len2;
    0x42 "0" "UNMAP" Write [WMED DESC] (0,0) (7,2) 0 Len2;
    0x43 "5" "READ TOC/PMA/ATIP" Read [] (0,0) (7,2) 0 Len2;
    0x44 "1" "REPORT DENSITY SUPPORT" Read [RR WE EA] (0,0) (7,2) 0 Len2;
    0x44 "5" "READ HEADER" Read [] (0,0) (7,2) 0 Len2;
    0x45 "5" "PLAY AUDIO(10)" None [] (0,0) (0,0) 0 None;
    0x46 "5" "GET CONFIGURATION" Read [] (0,0) (7,2) 0 Len2;
    0x47 "5" "PLAY AUDIO MSF" None [] (0,0) (0,0) 0 None;
    0x48 "5" "PLAY AUDIO TRACK INDEX" None [] (0,0) (0,0) 0 None;
    0x49 "5" "PLAY TRACK RELATIVE(10)" None [] (0,0) (0,0) 0 None;
    0x4A "5" "GET EVENT STATUS NOTIFICATION" Read [] (0,0) (7,2) 0 Len2;
    0x4B "5" "PAUSE/RESUME" None [] (0,0) (0,0) 0 None;
    0x4C "*" "LOG SELECT" Write [SSER] (0,0) (7,2) 0 Len2;
    0x4D "*" "LOG SENSE" Read [SHORT RR WE EA] (0,0) (7,2) 0 Len2;
    0x4E "5" "STOP PLAY/SCAN" None [] (0,0) (0,0) 0 None;
    0x50 "0" "XDWRITE(10)" Write [WMED] (2,4) (7,2) 0 Lba4Len2Prot;
    0x51 "5" "READ DISC INFORMATION" Read [] (0,0) (7,2) 0 Len2;
    0x51 "0" "XPWRITE" Write [WMED] (2,4) (7,2) 0 Lba4Len2;
    0x52 "5" "READ TRACK INFORMATION" Read [] (0,0) (7,2) 0 Len2;
    0x53 "0" "XDWRITEREAD(10)" Bidi [FIX WMED] (2,4) (7,2) 0 BidiLba4Len2;
    0x53 "5" "RESERVE TRACK" None [] (0,0) (0,0) 0 None;
    0x54 "5" "SEND OPC INFORMATION" Write [] (0,0) (7,2) 0 Len2;
    0x55 "*" "MODE SELECT(10)" Write [SSER] (0,0) (7,2) 0 Len2;
    0x56 "*" "RESERVE(10)" None [SHORT LOCAL SER WE EA ATOMIC] (0,0) (0,0) 0 None;
    0x57 "*" "RELEASE(10)" None [SHORT LOCAL SER RR WE EA] (0,0) (0,0) 0 None;
    0x58 "5" "REPAIR TRACK" None [WMED] (0,0) (0,0) 0 None;
    0x5A "*" "MODE SENSE(10)" Read [SHORT WE] (0,0) (7,2) 0 Len2;
    0x5B "5" "CLOSE TRACK/SESSION" None [] (0,0) (0,0) 0 None;
    0x5C "5" "READ BUFFER CAPACITY" Read [] (0,0) (7,2) 0 Len2;
    0x5D "5" "SEND CUE SHEET" Write [] (0,0) (6,3) 0 Len3;
    0x5E "012346789" "PERSISTENT RESERVE IN" Read [SHORT LOCAL SER WE EA] (0,0) (5,4) 0 Len4;
    0x5F "012346789" "PERSISTENT RESERVE OUT" Write [SHORT LOCAL SER WE EA] (0,0) (5,4) 0 Len4;
    0x7F "0" "VAR LEN CDB" Unknown [] (0,0) (0,0) 0 VarLen;
    0x80 "1" "WRITE FILEMARKS(16)" None [WMED] (0,0) (0,0) 0 None;
    0x81 "0457" "REBUILD" Write [WMED] (0,0) (10,4) 0 Len4;
    0x82 "0457" "REGENERATE" Write [WMED] (0,0) (10,4) 0 Len4;
    0x83 "0" "EXTENDED COPY" Write [WMED P3 LOCAL DESC] (0,0) (10,4) 0 ExtCopy;
    0x84 "0" "RECEIVE COPY RESULT" Read [LOCAL WE EA] (0,0) (10,4) 0 Len4;
    0x85 "05E" "ATA PASS-THROUGH(16)" None [] (7,6) (0,0) 0 AtaPassThrough;
    0x86 "0123456789" "ACCESS CONTROL IN" None [RR WE EA] (0,0) (0,0) 0 None;
    0x87 "0123456789" "ACCESS CONTROL OUT" None [RR WE EA] (0,0) (0,0) 0 None;
    0x88 "04567" "READ(16)" Read [FIX WE] (2,8) (10,4) 0 Lba8Len4Prot;
    0x89 "0" "COMPARE AND WRITE" Write [FIX LOCAL WMED ATOMIC] (2,8) (13,1) 0 CompareAndWrite;
    0x8A "0457" "WRITE(16)" Write [FIX WMED] (2,8) (10,4) 0 Lba8Len4Prot;
    0x8B "0" "ORWRITE(16)" Write [FIX WMED SSER] (2,8) (10,4) 0 Lba8Len4Prot;
    0x8C "123456789" "READ ATTRIBUTE" Read [WE] (0,0) (10,4) 0 Len4;
    0x8D "123456789" "WRITE ATTRIBUTE" Write [WMED] (0,0) (10,4) 0 Len4;
    0x8E "0457" "WRITE AND VERIFY(16)" Write [FIX WMED] (2,8) (10,4) 0 Lba8Len4Prot;
    0x8F "0457" "VERIFY(16)" Unknown [FIX WE] (2,8) (10,4) 0 Verify16;
    0x90 "0457" "PRE-FETCH(16)" None [WE] (2,8) (0,0) 0 Lba8;
    0x91 "0457" "SYNCHRONIZE CACHE(16)" None [] (2,8) (10,4) 0 Lba8;
    0x91 "1" "SPACE(16)" None [LONG WE] (0,0) (0,0) 0 None;
    0x92 "0457" "LOCK UNLOCK CACHE(16)" None [] (0,0) (0,0) 0 None;
    0x92 "1" "LOCATE(16)" None [LONG WE] (0,0) (0,0) 0 None;
    0x93 "0" "WRITE SAME(16)" Write [FIX WMED] (2,8) (10,4) 0 WriteSame16;
    0x93 "1" "ERASE(16)" None [LONG WMED] (0,0) (0,0) 0 None;
    0x9E "0" "SERVICE ACTION IN" Read [] (0,0) (0,0) 0 ServActIn;
    0xA0 "0123456789C" "REPORT LUNS" Read [SHORT HQ NOUA FULL LOCAL RR WE EA] (0,0) (6,4) 0 Len4;
    0xA1 "05E" "ATA PASS-THROUGH(12)" None [] (5,3) (0,0) 0 AtaPassThrough;
    0xA1 "5" "BLANK" None [LONG] (0,0) (0,0) 0 None;
    0xA2 "015" "SECURITY PROTOCOL IN" Read [RR WE] (0,0) (6,4) 0 Len4;
    0xA3 "5" "SEND KEY" Write [] (0,0) (8,2) 0 Len2;
    0xA3 "01246789CDF" "MAINTENANCE(IN)" Read [] (0,0) (6,4) 0 MaintIn;
    0xA4 "5" "REPORT KEY" Read [] (0,0) (8,2) 0 Len2;
    0xA4 "01246789CDF" "MAINTENANCE(OUT)" Write [] (0,0) (6,4) 0 MaintOut;
    0xA5 "8" "MOVE MEDIUM" None [LONG] (0,0) (0,0) 0 None;
    0xA5 "5" "PLAY AUDIO(12)" None [] (0,0) (0,0) 0 None;
    0xA6 "58" "EXCHANGE/LOAD/UNLOAD MEDIUM" None [LONG] (0,0) (0,0) 0 None;
    0xA7 "5" "SET READ AHEAD" None [] (0,0) (0,0) 0 None;
    0xA8 "9" "GET MESSAGE(12)" Read [] (0,0) (6,4) 0 Len4;
    0xA8 "0457" "READ(12)" Read [FIX WE] (2,4) (6,4) 0 Lba4Len4Prot;
    0xA9 "5" "PLAY TRACK RELATIVE(12)" None [] (0,0) (0,0) 0 None;
    0xAA "0457" "WRITE(12)" Write [FIX WMED] (2,4) (6,4) 0 Lba4Len4Prot;
    0xAA "9" "SEND MESSAGE(12)" Write [] (0,0) (6,4) 0 Len4;
    0xAB "1" "SERVICE ACTION IN(12)" Read [] (0,0) (6,4) 0 Len4;
    0xAC "7" "ERASE(12)" None [WMED] (0,0) (0,0) 0 None;
    0xAC "5" "GET PERFORMANCE" Read [UNKLEN] (0,0) (0,0) 0 None;
    0xAD "5" "READ DVD STRUCTURE" Read [] (0,0) (8,2) 0 Len2;
    0xAE "0457" "WRITE AND VERIFY(12)" Write [FIX WMED] (2,4) (6,4) 0 Lba4Len4Prot;
    0xAF "0457" "VERIFY(12)" Unknown [FIX WE] (2,4) (6,4) 0 Verify12;
    0xB3 "457" "SET LIMITS(12)" None [] (0,0) (0,0) 0 None;
    0xB5 "015" "SECURITY PROTOCOL OUT" Write [] (0,0) (6,4) 0 Len4;
    0xB5 "8" "REQUEST VOLUME ELEMENT ADDRESS" Read [] (0,0) (7,3) 0 Len3;
    0xB6 "8" "SEND VOLUME TAG" Write [] (0,0) (9,1) 0 Len1;
    0xB6 "5" "SET STREAMING" Write [] (0,0) (9,2) 0 Len2;
    0xB7 "07" "READ DEFECT DATA(12)" Read [WE] (0,0) (6,4) 0 Len4;
    0xB8 "8" "READ ELEMENT STATUS" Read [] (0,0) (7,3) 0 ReadElemStat;
    0xB9 "5" "READ CD MSF" Read [UNKLEN] (0,0) (0,0) 0 None;
    0xBA "5" "SCAN" None [LONG] (0,0) (0,0) 0 None;
    0xBA "C" "REDUNDANCY GROUP(IN)" Read [] (0,0) (6,4) 0 Len4;
    0xBB "5" "SET SPEED" None [] (0,0) (0,0) 0 None;
    0xBB "C" "REDUNDANCY GROUP(OUT)" Write [] (0,0) (6,4) 0 Len4;
    0xBC "C" "SPARE(IN)" Read [] (0,0) (6,4) 0 Len4;
    0xBD "5" "MECHANISM STATUS" Read [] (0,0) (8,2) 0 Len2;
    0xBD "C" "SPARE(OUT)" Write [] (0,0) (6,4) 0 Len4;
    0xBE "5" "READ CD" Read [FIX] (0,0) (6,3) 0 Len3;
    0xBE "C" "VOLUME SET(IN)" Read [] (0,0) (6,4) 0 Len4;
    0xBF "5" "SEND DVD STRUCTURE" Write [] (0,0) (8,4) 0 Len2;
    0xBF "C" "VOLUME SET(OUT)" Write [] (0,0) (6,4) 0 Len4;
    0xD1 "1" "READ DYN RUNTIME ATTR" Read [] (0,0) (6,4) 0 DynRuntimeAttr;
    0xD2 "1" "WRITE DYN RUNTIME ATTR" Write [] (0,0) (6,4) 0 DynRuntimeAttr;
    0xE7 "8" "INIT ELEMENT STATUS WRANGE" None [LONG] (0,0) (0,0) 0 VendorLen10;
};

/// The service actions 0009h to 000Dh of the variable-length CDB, in order.
pub static OPS32: [OpDesc; NR_OPS32] = ops! {
    0x7F "0" "READ(32)" Read [FIX WE] (12,8) (28,4) 0 Lba8Len4Prot32;
    0x7F "0" "VERIFY(32)" Unknown [FIX WE] (12,8) (28,4) 0 Verify32;
    0x7F "0" "WRITE(32)" Write [FIX WMED] (12,8) (28,4) 0 Lba8Len4Prot32;
    0x7F "0" "WRITE AND VERIFY(32)" Write [FIX WMED] (12,8) (28,4) 0 Lba8Len4Prot32;
    0x7F "0" "WRITE SAME(32)" Write [FIX WMED] (12,8) (28,4) 0 WriteSame32;
};

/// Row numbers by device type and operation code, so that a command costs one load.
pub(super) static INDEX: [[u8; 256]; 16] = build_index(&OPS);

const fn build_index(ops: &[OpDesc; NR_OPS]) -> [[u8; 256]; 16] {
    assert!(NR_OPS < NO_OP as usize);
    let mut index = [[NO_OP; 256]; 16];
    let mut row = 0;
    while row < NR_OPS {
        let op = &ops[row];
        let mut t = 0;
        while t < 16 {
            let slot = &mut index[t][op.code as usize];
            if op.dev_types & (1 << t) != 0 && *slot == NO_OP {
                *slot = row as u8;
            }
            t += 1;
        }
        row += 1;
    }
    index
}
