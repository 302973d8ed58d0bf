//! Total big-endian readers over bytes that came from the wire.
//!
//! A field outside of the slice reads as zero, exactly as if the CDB had been padded: the transports hand
//! over CDBs without their trailing zeros, and nothing that an initiator sends may panic us.

/// The byte at `off`, or 0 past the end.
#[inline]
#[must_use]
pub fn u8_at(b: &[u8], off: usize) -> u8 {
    b.get(off).copied().unwrap_or(0)
}

#[inline]
fn take<const N: usize>(b: &[u8], off: usize) -> [u8; N] {
    if let Some(Some(a)) = b.get(off..).map(<[u8]>::first_chunk::<N>) {
        return *a;
    }
    let mut a = [0; N];
    for (d, s) in a.iter_mut().zip(b.iter().skip(off)) {
        *d = *s;
    }
    a
}

/// Big-endian 16-bit field at `off`.
#[inline]
#[must_use]
pub fn be16_at(b: &[u8], off: usize) -> u16 {
    u16::from_be_bytes(take(b, off))
}

/// Big-endian 24-bit field at `off`.
#[inline]
#[must_use]
pub fn be24_at(b: &[u8], off: usize) -> u32 {
    let [x, y, z] = take(b, off);
    u32::from_be_bytes([0, x, y, z])
}

/// Big-endian 32-bit field at `off`.
#[inline]
#[must_use]
pub fn be32_at(b: &[u8], off: usize) -> u32 {
    u32::from_be_bytes(take(b, off))
}

/// Big-endian 64-bit field at `off`.
#[inline]
#[must_use]
pub fn be64_at(b: &[u8], off: usize) -> u64 {
    u64::from_be_bytes(take(b, off))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_past_the_end_read_as_zero() {
        let b = [1u8, 2, 3, 4, 5];
        assert_eq!(u8_at(&b, 4), 5);
        assert_eq!(u8_at(&b, 5), 0);
        assert_eq!(be16_at(&b, 3), 0x0405);
        assert_eq!(be16_at(&b, 4), 0x0500);
        assert_eq!(be24_at(&b, 1), 0x02_0304);
        assert_eq!(be32_at(&b, 2), 0x0304_0500);
        assert_eq!(be64_at(&b, 0), 0x0102_0304_0500_0000);
        assert_eq!(be64_at(&b, usize::MAX), 0);
    }
}
