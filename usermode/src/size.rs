//! Sizes as people write them.

use anyhow::{Result, bail};

/// Length of a logical block of what `serve` serves.
pub(crate) const BLOCK_BYTES: u64 = 512;
/// No file is longer (off_t).
const MAX_BYTES: u64 = i64::MAX as u64;

/// Reads `N`, `NK`, `NM`, `NG` or `NT`: bytes, with powers of 1024, upper or lower case.
///
/// # Errors
///
/// What is wrong with it, as one sentence with the text in it.
pub(crate) fn parse(text: &str) -> Result<u64> {
    let (digits, shift) = match text.char_indices().next_back() {
        Some((at, unit)) if !unit.is_ascii_digit() => {
            let shift = match unit.to_ascii_uppercase() {
                'K' => 10,
                'M' => 20,
                'G' => 30,
                'T' => 40,
                _ => bail!("{text:?} is no size (want a number, or one with K, M, G or T)"),
            };
            (&text[..at], shift)
        }
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        bail!("{text:?} is no size (want a number, or one with K, M, G or T)");
    }
    let bytes = digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes <= MAX_BYTES => Ok(bytes),
        _ => bail!("{text:?} is too large (at most 8 EiB - 1)"),
    }
}

/// Checks that a disk can have this size.
///
/// # Errors
///
/// It is 0 or no multiple of the block length.
pub(crate) fn check_disk(bytes: u64) -> Result<()> {
    if bytes == 0 {
        bail!("the size is 0");
    }
    if !bytes.is_multiple_of(BLOCK_BYTES) {
        bail!("the size, {bytes} bytes, is no multiple of the block size of {BLOCK_BYTES} bytes");
    }
    Ok(())
}

/// A size for people: whole units where they fit, else one decimal.
pub(crate) fn human(bytes: u64) -> String {
    const UNITS: [(&str, u64); 4] = [
        ("TiB", 1 << 40),
        ("GiB", 1 << 30),
        ("MiB", 1 << 20),
        ("KiB", 1 << 10),
    ];
    for (name, unit) in UNITS {
        if bytes >= unit {
            let tenths = (u128::from(bytes) * 10 / u128::from(unit)) as u64;
            return match tenths % 10 {
                0 => format!("{} {name}", tenths / 10),
                rest => format!("{}.{rest} {name}", tenths / 10),
            };
        }
    }
    format!("{bytes} bytes")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("1K", 1024),
            ("3m", 3 << 20),
            ("1G", 1 << 30),
            ("2T", 2 << 40),
            ("9223372036854775807", MAX_BYTES),
        ] {
            assert_eq!(parse(text).unwrap(), bytes, "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "+1G",
            "1.5G",
            "1GB",
            "1 G",
            "0x10",
            "1Gi",
            "½G",
            "1é",
            "8388608T",
            "99999999999999999999",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn disks_are_whole_blocks() {
        assert!(check_disk(512).is_ok());
        for bytes in [0, 1, 511, 513] {
            assert!(check_disk(bytes).is_err(), "{bytes}");
        }
    }

    #[test]
    fn for_people() {
        assert_eq!(human(512), "512 bytes");
        assert_eq!(human(1 << 30), "1 GiB");
        assert_eq!(human(3 << 29), "1.5 GiB");
        assert_eq!(human(100 << 20), "100 MiB");
    }
}
