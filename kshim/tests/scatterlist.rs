//! `SGTable` against a `Vec<u8>`.

use kshim::crypto::{crc32c, crc32c_append};
use kshim::error::code;
use kshim::page::{LentMem, PageBuf, RxChunk};
use kshim::scatterlist::{SGTable, SharedTable};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Piece {
    Pages { pad: usize, len: usize },
    Shared { pad: usize, len: usize },
    Lent { len: usize },
    Zero { len: usize },
}

#[derive(Debug, Clone)]
enum Op {
    Write(usize, Vec<u8>),
    Fill(usize, usize, u8),
    Truncate(usize),
    FromLent(usize, usize),
    FromSelf(usize, usize, usize),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (0..100usize, 1..9000usize).prop_map(|(pad, len)| Piece::Pages { pad, len }),
        (0..100usize, 1..3000usize).prop_map(|(pad, len)| Piece::Shared { pad, len }),
        (1..9000usize).prop_map(|len| Piece::Lent { len }),
        (1..70_000usize).prop_map(|len| Piece::Zero { len }),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let at = 0..40_000usize;
    prop_oneof![
        4 => (at.clone(), prop::collection::vec(any::<u8>(), 0..6000))
            .prop_map(|(at, data)| Op::Write(at, data)),
        2 => (at.clone(), 0..12_000usize, any::<u8>()).prop_map(|(a, n, b)| Op::Fill(a, n, b)),
        1 => (0..80_000usize).prop_map(Op::Truncate),
        1 => (at.clone(), 0..9000usize).prop_map(|(a, n)| Op::FromLent(a, n)),
        1 => (at.clone(), at, 0..9000usize).prop_map(|(a, b, n)| Op::FromSelf(a, b, n)),
    ]
}

/// The table, its bytes, and which of them can be written (a zero byte into zeros can, by `fill`).
struct Model {
    sg: SGTable,
    bytes: Vec<u8>,
    writable: Vec<bool>,
    lent: LentMem,
}

impl Model {
    fn build(pieces: &[Piece]) -> Model {
        let lent = LentMem::anonymous(1 << 20).unwrap();
        lent.fill(0, 1 << 20, 0xc3).unwrap();
        let (mut sg, mut bytes, mut writable) = (SGTable::new(), Vec::new(), Vec::new());
        let mut lent_at = 0;
        for (i, p) in pieces.iter().enumerate() {
            let fresh: Vec<u8> = (0..20_000u32)
                .map(|j| (j as usize * 31 + i) as u8)
                .collect();
            let (len, can, content) = match *p {
                Piece::Pages { pad, len } => {
                    let mut b = PageBuf::alloc(pad + len).unwrap();
                    b[pad..].copy_from_slice(&fresh[..len]);
                    sg.push_pages(b, pad, len).unwrap();
                    (len, true, fresh[..len].to_vec())
                }
                Piece::Shared { pad, len } => {
                    let mut c = RxChunk::alloc(pad + len + 10).unwrap();
                    c.spare_mut()[pad..pad + len].copy_from_slice(&fresh[..len]);
                    c.advance(pad + len).unwrap();
                    sg.push_shared(c.slice(pad..pad + len).unwrap()).unwrap();
                    (len, false, fresh[..len].to_vec())
                }
                Piece::Lent { len } => {
                    sg.push_lent(lent.range(lent_at, len).unwrap()).unwrap();
                    lent_at += len;
                    (len, true, vec![0xc3; len])
                }
                Piece::Zero { len } => {
                    sg.push_zeroes(len).unwrap();
                    (len, false, vec![0; len])
                }
            };
            bytes.extend(content);
            writable.extend(std::iter::repeat_n(can, len));
        }
        Model {
            sg,
            bytes,
            writable,
            lent,
        }
    }

    fn inside(&self, at: usize, len: usize) -> bool {
        at + len <= self.bytes.len()
    }

    fn can_write(&self, at: usize, len: usize) -> bool {
        self.writable[at..at + len].iter().all(|&w| w)
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Write(at, data) => {
                let inside = self.inside(*at, data.len());
                let want = if !inside {
                    Err(code::EINVAL)
                } else if self.can_write(*at, data.len()) {
                    self.bytes[*at..at + data.len()].copy_from_slice(data);
                    Ok(())
                } else {
                    self.resync_after_partial(*at, data);
                    Err(code::EFAULT)
                };
                assert_eq!(self.sg.copy_from_slice(*at, data), want);
            }
            Op::Fill(at, len, byte) => {
                let data = vec![*byte; *len];
                if !self.inside(*at, *len) {
                    assert_eq!(self.sg.fill(*at, *len, *byte), Err(code::EINVAL));
                } else if self.can_write(*at, *len) {
                    self.bytes[*at..at + len].copy_from_slice(&data);
                    self.sg.fill(*at, *len, *byte).unwrap();
                }
            }
            Op::Truncate(len) => {
                self.sg.truncate(*len);
                self.bytes.truncate(*len);
                self.writable.truncate(*len);
            }
            Op::FromLent(at, len) => {
                if self.inside(*at, *len) && self.can_write(*at, *len) {
                    // Far from what the pieces have.
                    let off = (1 << 20) - 10_000;
                    self.sg.copy_from_lent(*at, &self.lent, off, *len).unwrap();
                    self.bytes[*at..at + len].fill(0xc3);
                }
            }
            Op::FromSelf(at, from, len) => {
                if !self.inside(*at, *len)
                    || !self.inside(*from, *len)
                    || !self.can_write(*at, *len)
                {
                    return;
                }
                let mut copy = SGTable::alloc(*len).unwrap();
                copy.copy_from_sg(0, &self.sg, *from, *len).unwrap();
                assert_eq!(copy.compare_sg(0, &self.sg, *from, *len).unwrap(), None);
                self.sg.copy_from_sg(*at, &copy, 0, *len).unwrap();
                let data = self.bytes[*from..from + len].to_vec();
                self.bytes[*at..at + len].copy_from_slice(&data);
            }
        }
    }

    /// A refused write wrote what is before the first piece that cannot be written.
    fn resync_after_partial(&mut self, at: usize, data: &[u8]) {
        let n = self.writable[at..at + data.len()]
            .iter()
            .take_while(|&&w| w)
            .count();
        self.bytes[at..at + n].copy_from_slice(&data[..n]);
    }

    fn check(&self) {
        let n = self.bytes.len();
        assert_eq!(self.sg.len(), n);
        assert_eq!(self.sg.is_empty(), n == 0);
        let mut out = vec![0xa5; n];
        self.sg.copy_to_slice(0, &mut out).unwrap();
        assert!(out == self.bytes);
        let mut seen = Vec::new();
        self.sg
            .for_each(n / 3, n - n / 3, |b| seen.extend_from_slice(b))
            .unwrap();
        assert!(seen == self.bytes[n / 3..]);
        assert_eq!(self.sg.crc32c(0, n, 0).unwrap(), crc32c(&self.bytes));
        let seed = crc32c(b"x");
        assert_eq!(
            self.sg.crc32c(0, n, seed).unwrap(),
            crc32c_append(seed, &self.bytes)
        );
        assert_eq!(self.sg.compare(0, &self.bytes).unwrap(), None);
        if n > 0 {
            let i = n * 2 / 3;
            let mut other = self.bytes.clone();
            other[i] ^= 1;
            assert_eq!(self.sg.compare(0, &other).unwrap(), Some(i));
            if let Some(s) = self.sg.as_slice(i, 1) {
                assert_eq!(s[0], self.bytes[i]);
            }
        }
        assert_eq!(self.sg.copy_to_slice(n, &mut [0]), Err(code::EINVAL));
        assert_eq!(
            self.sg.copy_to_slice(usize::MAX, &mut [0]),
            Err(code::EINVAL)
        );
        let disk = LentMem::anonymous(n.max(1)).unwrap();
        self.sg.copy_to_lent(0, &disk, 0, n).unwrap();
        disk.copy_out(0, &mut out).unwrap();
        assert!(out == self.bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn behaves_like_a_vector(
        pieces in prop::collection::vec(piece(), 0..7),
        ops in prop::collection::vec(op(), 0..12),
    ) {
        let mut m = Model::build(&pieces);
        assert_eq!(m.sg.nents(), pieces.len());
        m.check();
        for op in &ops {
            m.apply(op);
            m.check();
        }
        // A table that stands for a table, and one for parts of it, read the same and cannot be written.
        let len = m.sg.len();
        let shared = SharedTable::new(std::mem::take(&mut m.sg));
        m.sg = shared.table().unwrap();
        m.check();
        let outer = SharedTable::new(std::mem::take(&mut m.sg));
        m.sg = outer.table().unwrap();
        m.check();
        assert!(len == 0 || m.sg.copy_from_slice(0, b"x") == Err(code::EFAULT));
        let mem = LentMem::anonymous(len.max(1)).unwrap();
        m.sg.copy_to_lent(0, &mem, 0, len).unwrap();
        let mut out = vec![0; len];
        mem.copy_out(0, &mut out).unwrap();
        assert!(out == m.bytes);
        m.sg.truncate(len / 2);
        m.bytes.truncate(len / 2);
        m.check();
        m.sg.clear();
        assert_eq!((m.sg.len(), m.sg.nents()), (0, 0));
        assert_eq!(shared.into_inner().is_err(), len != 0);
        assert_eq!(outer.into_inner().map(|t| t.len()).ok(), Some(len));
    }
}

#[test]
fn one_piece_takes_no_heap_and_slices() {
    let mut sg = SGTable::alloc_zeroed(5000).unwrap();
    assert_eq!(sg.nents(), 1);
    sg.as_mut_slice(10, 4).unwrap().copy_from_slice(b"abcd");
    assert_eq!(sg.as_slice(9, 6).unwrap(), b"\0abcd\0");
    assert!(sg.as_slice(4999, 2).is_none());
    sg.push_zeroes(10).unwrap();
    assert!(sg.as_mut_slice(5000, 1).is_none());
    assert_eq!(sg.as_slice(5000, 10).unwrap(), [0; 10]);
    assert!(sg.as_slice(4999, 2).is_none());
    assert_eq!(sg.fill(5000, 10, 1), Err(code::EFAULT));
    sg.fill(5000, 10, 0).unwrap();
}

#[test]
fn more_than_the_largest_buffer() {
    let len = PageBuf::MAX_LEN + 12345;
    let mut sg = SGTable::alloc(len).unwrap();
    assert_eq!(sg.nents(), 2);
    sg.fill(0, len, 9).unwrap();
    let mut tail = [0; 100];
    sg.copy_to_slice(PageBuf::MAX_LEN - 50, &mut tail).unwrap();
    assert_eq!(tail, [9; 100]);
}

#[test]
fn a_part_outside_its_buffer_is_refused() {
    let mut sg = SGTable::new();
    let buf = PageBuf::alloc(100).unwrap();
    assert_eq!(sg.push_pages(buf, 50, 51), Err(code::EINVAL));
    let buf = PageBuf::alloc(100).unwrap();
    assert_eq!(sg.push_pages(buf, usize::MAX, 2), Err(code::EINVAL));
    sg.push_zeroes(usize::MAX).unwrap();
    assert_eq!(sg.push_zeroes(1), Err(code::EOVERFLOW));
}
