//! Checksums.

mod crc32c;

pub use self::crc32c::{crc32c, crc32c_append};
