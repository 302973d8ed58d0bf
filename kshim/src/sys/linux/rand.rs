//! Random numbers of the host (`getrandom(2)`).
//!
//! Kernel counterpart: `include/linux/random.h` (`get_random_bytes`).

use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::error::Result;

/// Fills `buf` with random bytes fit for keys and challenges.
///
/// Context: may sleep, once, early at boot until the host's generator is seeded.
///
/// Errors: ENOSYS on kernels before 3.17 or under a filter.
///
/// ```
/// # fn main() -> kshim::error::Result {
/// let mut challenge = [0u8; 16];
/// kshim::sys::rand::fill(&mut challenge)?;
/// # Ok(()) }
/// ```
#[doc(alias = "get_random_bytes")]
pub fn fill(buf: &mut [u8]) -> Result {
    let mut at = 0;
    while let Some(rest) = buf.get_mut(at..).filter(|r| !r.is_empty()) {
        match getrandom(rest, GetRandomFlags::empty()) {
            Ok(n) => at += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// A random 64-bit number. See [`fill`].
#[doc(alias = "get_random_u64")]
pub fn random_u64() -> Result<u64> {
    let mut b = [0u8; 8];
    fill(&mut b)?;
    Ok(u64::from_ne_bytes(b))
}

/// A random 32-bit number. See [`fill`].
#[doc(alias = "get_random_u32")]
pub fn random_u32() -> Result<u32> {
    let mut b = [0u8; 4];
    fill(&mut b)?;
    Ok(u32::from_ne_bytes(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_fills_are_complete() {
        let mut b = vec![0u8; 1 << 16];
        fill(&mut b).unwrap();
        assert!(b.chunks(64).all(|c| c.iter().any(|&x| x != 0)));
        assert_ne!(random_u64().unwrap(), random_u64().unwrap());
    }

    #[test]
    fn an_empty_buffer_is_filled() {
        fill(&mut []).unwrap();
    }
}
