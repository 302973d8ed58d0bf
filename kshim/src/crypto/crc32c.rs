//! CRC32C (Castagnoli), as file systems and network protocols use it; by the CPU's instruction where it has one.
//!
//! Unlike the kernel's function of the same name these take and return the finished value (start with 0, no
//! inversion by the caller), so that a CRC can be continued piece by piece.
//!
//! C header: `include/linux/crc32c.h`; RFC 3385

/// The CRC32C of a buffer.
///
/// Context: any.
///
/// ```
/// use kshim::crypto::{crc32c, crc32c_append};
///
/// assert_eq!(crc32c(b"123456789"), 0xe306_9283);
/// assert_eq!(crc32c_append(crc32c(b"12345"), b"6789"), 0xe306_9283);
/// ```
pub fn crc32c(data: &[u8]) -> u32 {
    ::crc32c::crc32c(data)
}

/// Continues a CRC32C: `crc` is that of the bytes before `data`; 0 when there are none.
///
/// ```
/// use kshim::crypto::{crc32c, crc32c_append};
///
/// assert_eq!(crc32c_append(crc32c(b"head"), b"tail"), crc32c(b"headtail"));
/// ```
///
/// Context: any.
pub fn crc32c_append(crc: u32, data: &[u8]) -> u32 {
    ::crc32c::crc32c_append(crc, data)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7143, A.4 (as values, not in wire order).
    #[test]
    fn vectors_of_the_rfc() {
        let up: Vec<u8> = (0..32).collect();
        let down: Vec<u8> = (0..32).rev().collect();
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&up), 0x46dd_794e);
        assert_eq!(crc32c(&down), 0x113f_db5c);
        assert_eq!(crc32c(&[]), 0);
    }

    #[test]
    fn pieces_equal_the_whole() {
        let data: Vec<u8> = (0..10_000u32).map(|i| (i * 7 + i / 255) as u8).collect();
        for cut in [0, 1, 7, 8, 511, 4096, 9_999] {
            let (a, b) = data.split_at(cut);
            assert_eq!(crc32c_append(crc32c(a), b), crc32c(&data));
        }
    }
}
