//! Gathering what is to be sent.

use crate::error::Result;
use crate::scatterlist::SGTable;
use crate::sys::net::SendList;

/// Pieces that one [`Socket::send_iter`](super::Socket::send_iter) can carry.
pub const MAX_IOV: usize = crate::sys::net::MAX_IOV;

/// A part of a message to send.
#[derive(Clone, Copy)]
pub enum IoPart<'a> {
    /// These bytes.
    Bytes(&'a [u8]),
    /// The bytes of a table: offset and length.
    Sg(&'a SGTable, usize, usize),
}

impl core::fmt::Debug for IoPart<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            IoPart::Bytes(b) => f.debug_tuple("Bytes").field(&b.len()).finish(),
            IoPart::Sg(_, at, len) => f.debug_tuple("Sg").field(at).field(len).finish(),
        }
    }
}

impl IoPart<'_> {
    /// How many bytes it stands for.
    pub fn len(&self) -> usize {
        match self {
            IoPart::Bytes(b) => b.len(),
            IoPart::Sg(_, _, len) => *len,
        }
    }

    /// Whether it stands for none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Lists the parts without their first `skip` bytes, as far as one call takes them.
pub(super) fn gather<'a>(
    parts: &mut dyn Iterator<Item = IoPart<'a>>,
    skip: usize,
) -> Result<SendList<'a>> {
    let mut list = SendList::new();
    let mut skip = skip;
    for part in parts {
        if let Some(rest) = skip.checked_sub(part.len()) {
            skip = rest;
            continue;
        }
        let room = match part {
            IoPart::Bytes(b) => list.push(b.get(skip..).unwrap_or_default()),
            IoPart::Sg(sg, at, len) => {
                list.push_sg(sg, at.saturating_add(skip), len.saturating_sub(skip))?
            }
        };
        skip = 0;
        if !room {
            break;
        }
    }
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::super::Socket;
    use super::*;
    use crate::error::code;
    use crate::page::{LentMem, PageBuf};

    fn received(s: &Socket, n: usize) -> Vec<u8> {
        let mut v = vec![0; n];
        let mut at = 0;
        while at < n {
            at += s.recv_bytes(&mut v[at..]).unwrap();
        }
        v
    }

    fn table() -> (SGTable, Vec<u8>) {
        let mut sg = SGTable::new();
        let mut page = PageBuf::alloc(4096).unwrap();
        page.as_mut_slice().fill(b'p');
        sg.push_pages(page, 100, 300).unwrap();
        let lent = LentMem::anonymous(8192).unwrap();
        lent.fill(0, 8192, b'l').unwrap();
        sg.push_lent(lent.range(4000, 200).unwrap()).unwrap();
        sg.push_zeroes(50).unwrap();
        let mut all = vec![b'p'; 300];
        all.resize(500, b'l');
        all.resize(550, 0);
        (sg, all)
    }

    #[test]
    fn tables_of_all_kinds_are_sent_from_any_offset() {
        let (a, b) = Socket::pair().unwrap();
        let (sg, all) = table();
        let mut model = b"head".to_vec();
        model.extend_from_slice(&all[20..540]);
        model.extend_from_slice(b"tail");
        for skip in [0, 1, 4, 5, 290, 300, 490, 500, 524, 527] {
            let mut parts = [
                IoPart::Bytes(b"head"),
                IoPart::Sg(&sg, 20, 520),
                IoPart::Bytes(b"tail"),
            ]
            .into_iter();
            let n = a.send_iter(&mut parts, skip, false).unwrap();
            assert_eq!(received(&b, n), model[skip..]);
        }
    }

    #[test]
    fn a_part_beyond_its_table_is_refused() {
        let (a, _b) = Socket::pair().unwrap();
        let (sg, _) = table();
        for (at, len) in [(0, 551), (550, 1), (usize::MAX, 2)] {
            let mut parts = core::iter::once(IoPart::Sg(&sg, at, len));
            assert_eq!(a.send_iter(&mut parts, 0, false), Err(code::EINVAL));
        }
    }

    #[test]
    fn more_parts_than_fit_go_in_part() {
        let (a, b) = Socket::pair().unwrap();
        let mut parts = (0..MAX_IOV + 10).map(|_| IoPart::Bytes(b"ab"));
        let n = a.send_iter(&mut parts, 1, false).unwrap();
        assert_eq!(n, 2 * MAX_IOV - 1);
        assert_eq!(received(&b, n)[..3], *b"bab");
    }

    #[test]
    fn nothing_to_send_is_no_error() {
        let (a, _b) = Socket::pair().unwrap();
        assert_eq!(a.send_iter(&mut core::iter::empty(), 0, false), Ok(0));
        assert_eq!(
            a.send_iter(&mut core::iter::once(IoPart::Bytes(b"x")), 1, false),
            Ok(0)
        );
    }

    #[test]
    fn receives_into_pages_and_the_buffer_behind() {
        let (a, b) = Socket::pair().unwrap();
        let mut sg = SGTable::alloc_zeroed(1000).unwrap();
        let mut buf = super::super::RxBuf::new(8192);
        let all: Vec<u8> = (0..900u32).map(|i| i as u8).collect();
        a.send(&all).unwrap();
        assert_eq!(b.recv_into(&mut sg, 100, 500, Some(&mut buf)), Ok(900));
        let mut got = vec![0; 500];
        sg.copy_to_slice(100, &mut got).unwrap();
        assert_eq!(got, all[..500]);
        assert_eq!(buf.data(), &all[500..]);
        // Less than the table wants: nothing for the buffer.
        a.send(b"xyz").unwrap();
        assert_eq!(b.recv_into(&mut sg, 0, 500, Some(&mut buf)), Ok(3));
        assert_eq!(buf.len(), 400);
        assert_eq!(b.recv_into(&mut sg, 0, 500, None), Err(code::EAGAIN));
        assert_eq!(b.recv_into(&mut sg, 600, 500, None), Err(code::EINVAL));
        drop(a);
        assert_eq!(b.recv_into(&mut sg, 0, 500, None), Ok(0));
        let mut zeroes = SGTable::new();
        zeroes.push_zeroes(10).unwrap();
        assert_eq!(b.recv_into(&mut zeroes, 0, 10, None), Err(code::EFAULT));
    }
}
