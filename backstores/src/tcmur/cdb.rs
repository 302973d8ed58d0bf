//! What a plug-in's helpers read from a CDB, and how much data commands on the medium move.

/// Length of a CDB by its operation code; `None` for vendor-specific and reserved groups.
pub(super) fn len(cdb: &[u8]) -> Option<usize> {
    match cdb.first()? >> 5 {
        0 => Some(6),
        1 | 2 => Some(10),
        3 if cdb.first() == Some(&0x7F) => cdb.get(7).map(|n| 8 + usize::from(*n)),
        4 => Some(16),
        5 => Some(12),
        _ => None,
    }
}

fn be(cdb: &[u8], at: usize, n: usize) -> u64 {
    let field = cdb.get(at..at + n).unwrap_or_default();
    field.iter().fold(0, |v, b| v << 8 | u64::from(*b))
}

/// First logical block, where the CDB's length says that it stands; 0 where there is none.
pub(super) fn lba(cdb: &[u8]) -> u64 {
    match len(cdb) {
        Some(6) => be(cdb, 1, 3) & 0x1F_FFFF,
        Some(10 | 12) => be(cdb, 2, 4),
        Some(16) => be(cdb, 2, 8),
        _ => 0,
    }
}

/// Transfer length, where the CDB's length says that it stands.
pub(super) fn transfer_length(cdb: &[u8]) -> u32 {
    let n = match len(cdb) {
        Some(6) => be(cdb, 4, 1),
        Some(10) => be(cdb, 7, 2),
        Some(12) => be(cdb, 6, 4),
        Some(16) => be(cdb, 10, 4),
        _ => 0,
    };
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Data of a command on the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Media {
    /// Reads so many blocks.
    Read(u64),
    /// Takes so many blocks.
    Write(u64),
}

/// How many blocks of data a handler expects with a command, whatever the initiator sent: it takes the number from the
/// CDB. `None`: no command of that kind.
pub(super) fn media(cdb: &[u8]) -> Option<Media> {
    let blocks = u64::from(transfer_length(cdb));
    let six = if blocks == 0 { 256 } else { blocks };
    let bytchk = cdb.get(1).map_or(0, |b| b >> 1 & 3);
    match cdb.first()? {
        0x08 => Some(Media::Read(six)),
        0x0A => Some(Media::Write(six)),
        0x28 | 0x88 | 0xA8 => Some(Media::Read(blocks)),
        0x2A | 0x8A | 0xAA | 0x2E | 0x8E | 0xAE | 0x8B => Some(Media::Write(blocks)),
        0x2F | 0x8F | 0xAF => match bytchk {
            0 => None,
            3 => Some(Media::Write(1)),
            _ => Some(Media::Write(blocks)),
        },
        0x41 | 0x93 => Some(Media::Write(1)),
        0x89 => Some(Media::Write(2 * be(cdb, 13, 1))),
        _ => None,
    }
}

/// Whether a command makes durable what was written before: SYNCHRONIZE CACHE(10) and (16).
pub(super) fn is_flush(cdb: &[u8]) -> bool {
    matches!(cdb.first(), Some(0x35 | 0x91))
}

/// The same for all blocks.
pub(super) fn flushes_all(cdb: &[u8]) -> bool {
    is_flush(cdb) && lba(cdb) == 0 && transfer_length(cdb) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_length_says() {
        assert_eq!(lba(&[0x08, 0xFF, 1, 2, 9, 0]), 0x1F_0102);
        assert_eq!(transfer_length(&[0x08, 0, 0, 0, 9, 0]), 9);
        let read10 = [0x28, 0, 0, 0, 1, 0, 0, 1, 2, 0];
        assert_eq!((lba(&read10), transfer_length(&read10)), (256, 258));
        let read12 = [0xA8, 0, 0, 0, 1, 0, 0, 0, 1, 2, 0, 0];
        assert_eq!((lba(&read12), transfer_length(&read12)), (256, 258));
        assert_eq!((lba(&[0xE0; 16]), lba(&[])), (0, 0));
        assert_eq!(len(&[0x7F, 0, 0, 0, 0, 0, 0, 24]), Some(32));
        assert_eq!(len(&[0x7F]), None);
    }

    #[test]
    fn data_of_commands_on_the_medium() {
        assert_eq!(media(&[0x08, 0, 0, 0, 0, 0]), Some(Media::Read(256)));
        assert_eq!(
            media(&[0x2A, 0, 0, 0, 0, 0, 0, 0, 5, 0]),
            Some(Media::Write(5))
        );
        assert_eq!(media(&[0x2F, 0, 0, 0, 0, 0, 0, 0, 5, 0]), None);
        assert_eq!(
            media(&[0x2F, 2, 0, 0, 0, 0, 0, 0, 5, 0]),
            Some(Media::Write(5))
        );
        assert_eq!(media(&[0x12, 0, 0, 0, 5, 0]), None);
        assert_eq!(media(&[]), None);
        assert!(flushes_all(&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
        assert!(!flushes_all(&[0x35, 0, 0, 0, 0, 0, 0, 0, 1, 0]));
        assert!(!flushes_all(&[
            0x91, 0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0
        ]));
    }
}
