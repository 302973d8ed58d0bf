//! Which characters an iSCSI name may have.
//!
//! A name is at most 223 bytes of UTF-8 (RFC 7143 4.2.7.1). After preparation only lower-case ASCII letters,
//! digits, `-`, `.` and `:` are left of ASCII (RFC 3722 6.1), and nothing of what the stringprep profile prohibits
//! (RFC 3722 6, tables C.1.1 to C.9 of RFC 3454). SCST checks this of InitiatorName and nothing about the name's
//! form (`iqn.`, `eui.`, `naa.`).
//!
//! C source: `iscsi-scst/usr/iscsid.c` (`name_chars_are_valid`).

use core::ops::RangeInclusive;

/// Longest iSCSI name in bytes.
#[doc(alias = "ISCSI_NAME_CHECK_LEN")]
pub const MAX_NAME_LEN: usize = 223;

/// What the profile prohibits beyond ASCII, by code point; the last two code points of each plane are prohibited as
/// well.
const PROHIBITED: &[RangeInclusive<u32>] = &[
    0x0080..=0x009f,       // C.2.2 controls
    0x00a0..=0x00a0,       // C.1.2 spaces
    0x0340..=0x0341,       // C.8 deprecated
    0x06dd..=0x06dd,       // C.2.2
    0x070f..=0x070f,       // C.2.2
    0x1680..=0x1680,       // C.1.2
    0x180e..=0x180e,       // C.2.2
    0x2000..=0x200f,       // C.1.2, C.2.2, C.8
    0x2028..=0x202f,       // C.2.2, C.8, C.1.2
    0x205f..=0x2063,       // C.1.2, C.2.2
    0x206a..=0x206f,       // C.2.2, C.8
    0x2ff0..=0x2ffb,       // C.7 ideographic description
    0x3000..=0x3000,       // C.1.2
    0xe000..=0xf8ff,       // C.3 private use
    0xfdd0..=0xfdef,       // C.4 non-characters
    0xfeff..=0xfeff,       // C.2.2
    0xfff9..=0xfffd,       // C.2.2, C.6
    0x1_d173..=0x1_d17a,   // C.2.2
    0xe_0001..=0xe_0001,   // C.9 tagging
    0xe_0020..=0xe_007f,   // C.9
    0xf_0000..=0xf_fffd,   // C.3
    0x10_0000..=0x10_fffd, // C.3
];

/// Whether `name` has the length and the characters of an iSCSI name.
///
/// ```
/// use iscsi_scst::login::name::is_valid;
///
/// assert!(is_valid("iqn.2026-01.org.example:disk"));
/// assert!(!is_valid("iqn.2026-01.org.example:Disk 1"));
/// ```
#[must_use]
pub fn is_valid(name: &str) -> bool {
    !name.is_empty() && name.len() <= MAX_NAME_LEN && name.chars().all(is_valid_char)
}

fn is_valid_char(c: char) -> bool {
    if c.is_ascii() {
        return c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | ':');
    }
    let code = u32::from(c);
    code & 0xfffe != 0xfffe && !PROHIBITED.iter().any(|range| range.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ascii_is_lower_case_and_three_marks() {
        assert!(is_valid("eui.0123456789abcdef"));
        assert!(is_valid("anything:goes-here.99"));
        for bad in [
            "", "A", "a b", "a_b", "a/b", "a\u{7f}", "a\tb", "#", "iqn.x:Y",
        ] {
            assert!(!is_valid(bad), "{bad:?}");
        }
        assert!(is_valid(&"a".repeat(MAX_NAME_LEN)));
        assert!(!is_valid(&"a".repeat(MAX_NAME_LEN + 1)));
    }

    #[test]
    fn beyond_ascii_letters_pass_and_the_tables_do_not() {
        for good in [
            "\u{e9}",
            "\u{4e2d}\u{6587}",
            "\u{1f4be}",
            "\u{fffd}x".get(3..).unwrap_or(""),
        ] {
            assert!(is_valid(good), "{good:?}");
        }
        for bad in [
            0x80, 0xa0, 0x340, 0x2003, 0x200d, 0x202e, 0x2060, 0x2ff5, 0x3000, 0xe123, 0xfdd7,
            0xfeff, 0xfffd, 0xfffe, 0x1_d175, 0x2_ffff, 0xe_0041, 0xf_1234, 0x10_ffff,
        ] {
            let name = char::from_u32(bad).map(String::from).unwrap_or_default();
            assert!(!is_valid(&name), "{bad:#x}");
        }
    }
}
