//! Scatterlists: the data of a command as a list of pieces.
//!
//! An [`SGTable`] owns its pieces, of five kinds:
//!
//! | piece | made by | readable | writable |
//! |---|---|---|---|
//! | pages | [`SGTable::push_pages`], [`SGTable::push_alloc`] | as slices | yes |
//! | shared receive memory | [`SGTable::push_shared`] | as slices | no |
//! | lent memory of a disk | [`SGTable::push_lent`] | by copies only | yes, by copies only |
//! | zeros | [`SGTable::push_zeroes`] | as slices | no |
//! | a table that several share | [`SharedTable::table`] | as its own pieces | no |
//!
//! Bytes are addressed by their offset in the whole table, so that users rarely see pieces. The first piece is stored in the
//! table itself: a table of one piece allocates nothing. There are no atomic operations but the reference counts of shared
//! and lent pieces.
//!
//! ```
//! use kshim::page::PageBuf;
//! use kshim::scatterlist::SGTable;
//!
//! let mut sg = SGTable::new();
//! sg.push_pages(PageBuf::alloc_zeroed(4096)?, 0, 4096)?;
//! sg.push_zeroes(512)?;
//! assert_eq!((sg.len(), sg.nents()), (4608, 2));
//! sg.copy_from_slice(10, b"abc")?;
//! let mut out = [0; 5];
//! sg.copy_to_slice(9, &mut out)?;
//! assert_eq!(&out, b"\0abc\0");
//! # Ok::<(), kshim::error::Error>(())
//! ```
//!
//! C header: `include/linux/scatterlist.h`

use std::fmt;
use std::sync::Arc;

use crate::error::{Result, code};
use crate::page::{LentMem, LentRange, PageBuf, RxSlice, check_range};

/// The most that one zero or bounce piece shows at a time.
const ZEROES_LEN: usize = 64 << 10;
static ZEROES: [u8; ZEROES_LEN] = [0; ZEROES_LEN];

/// Lent memory is looked at through a private copy of so many bytes.
const BOUNCE_LEN: usize = 4096;

enum Piece {
    Pages(PageBuf),
    Shared(RxSlice),
    Lent(LentRange),
    Zero,
    Table(Arc<SGTable>),
}

/// A piece of memory and the part of it that counts.
///
/// # Invariants
///
/// `off + len` is inside the piece.
struct SGEntry {
    piece: Piece,
    off: usize,
    len: usize,
}

impl SGEntry {
    /// The bytes, unless they are lent. At most [`ZEROES_LEN`] of a zero piece.
    fn bytes(&self, at: usize, len: usize) -> Option<&[u8]> {
        let start = self.off + at;
        match &self.piece {
            Piece::Pages(p) => p.as_slice().get(start..start + len),
            Piece::Shared(s) => s.get(start..start + len),
            Piece::Zero => ZEROES.get(..len),
            Piece::Table(t) => t.as_slice(start, len),
            Piece::Lent(_) => None,
        }
    }

    /// Calls `f` with slices of the range, lent ones through a bounce buffer.
    fn for_each(&self, at: usize, len: usize, f: &mut impl FnMut(&[u8]) -> Result) -> Result {
        match &self.piece {
            Piece::Pages(_) | Piece::Shared(_) => match self.bytes(at, len) {
                Some(b) => f(b),
                None => Err(code::EFAULT),
            },
            Piece::Zero => {
                let mut left = len;
                while left > 0 {
                    let n = left.min(ZEROES_LEN);
                    f(&ZEROES[..n])?;
                    left -= n;
                }
                Ok(())
            }
            Piece::Table(t) => t.walk(self.off + at, len, |e, off, n| {
                e.for_each(off, n, f)?;
                Ok(true)
            }),
            Piece::Lent(r) => {
                let mut bounce = [0u8; BOUNCE_LEN];
                let mut done = 0;
                while done < len {
                    let n = BOUNCE_LEN.min(len - done);
                    r.copy_out(self.off + at + done, &mut bounce[..n])?;
                    f(&bounce[..n])?;
                    done += n;
                }
                Ok(())
            }
        }
    }
}

/// A list of pieces of memory; see the [module](self).
#[derive(Default)]
#[doc(alias = "sg_table")]
#[doc(alias = "scatterlist")]
pub struct SGTable {
    first: Option<SGEntry>,
    rest: Vec<SGEntry>,
    /// # Invariants
    ///
    /// The sum of the entries' lengths. `rest` is empty when `first` is `None`.
    len: usize,
}

impl SGTable {
    /// An empty table.
    pub const fn new() -> SGTable {
        SGTable {
            first: None,
            rest: Vec::new(),
            len: 0,
        }
    }

    /// A table of freshly allocated pages, which may carry old bytes: see [`PageBuf::alloc`].
    ///
    /// Context: any. Errors: `ENOMEM`.
    #[doc(alias = "sg_alloc_table")]
    pub fn alloc(len: usize) -> Result<SGTable> {
        let mut sg = SGTable::new();
        sg.push_alloc(len)?;
        Ok(sg)
    }

    /// A table of freshly allocated, zeroed pages.
    ///
    /// Context: any. Errors: `ENOMEM`.
    pub fn alloc_zeroed(len: usize) -> Result<SGTable> {
        let mut sg = SGTable::alloc(len)?;
        sg.fill(0, len, 0)?;
        Ok(sg)
    }

    /// Bytes in all pieces.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of pieces.
    pub fn nents(&self) -> usize {
        usize::from(self.first.is_some()) + self.rest.len()
    }

    /// Drops all pieces, keeps the table's own memory.
    pub fn clear(&mut self) {
        self.first = None;
        self.rest.clear();
        self.len = 0;
    }

    fn push(&mut self, e: SGEntry) -> Result {
        let len = self.len.checked_add(e.len).ok_or(code::EOVERFLOW)?;
        if e.len == 0 {
            return Ok(());
        }
        if self.first.is_none() {
            self.first = Some(e);
        } else {
            self.rest.try_reserve(1)?;
            self.rest.push(e);
        }
        self.len = len;
        Ok(())
    }

    /// Appends a part of a buffer.
    ///
    /// Context: any. Errors: `EINVAL`: the part is outside. `ENOMEM`.
    #[doc(alias = "sg_set_page")]
    pub fn push_pages(&mut self, buf: PageBuf, off: usize, len: usize) -> Result {
        check_range(off, len, buf.len())?;
        self.push(SGEntry {
            piece: Piece::Pages(buf),
            off,
            len,
        })
    }

    /// Appends freshly allocated pages, in as few pieces as can be. They may carry old bytes: see [`PageBuf::alloc`].
    ///
    /// Context: any. Errors: `ENOMEM`; the table may have grown by a part.
    pub fn push_alloc(&mut self, len: usize) -> Result {
        let mut left = len;
        while left > 0 {
            let n = left.min(PageBuf::MAX_LEN);
            self.push_pages(PageBuf::alloc(n)?, 0, n)?;
            left -= n;
        }
        Ok(())
    }

    /// Appends received bytes.
    ///
    /// Context: any. Errors: `ENOMEM`.
    pub fn push_shared(&mut self, slice: RxSlice) -> Result {
        let len = slice.len();
        self.push(SGEntry {
            piece: Piece::Shared(slice),
            off: 0,
            len,
        })
    }

    /// Appends lent memory.
    ///
    /// Context: any. Errors: `ENOMEM`.
    pub fn push_lent(&mut self, range: LentRange) -> Result {
        let len = range.len();
        self.push(SGEntry {
            piece: Piece::Lent(range),
            off: 0,
            len,
        })
    }

    /// Appends zeros, which take no memory.
    ///
    /// Context: any. Errors: `EOVERFLOW`, `ENOMEM`.
    pub fn push_zeroes(&mut self, len: usize) -> Result {
        self.push(SGEntry {
            piece: Piece::Zero,
            off: 0,
            len,
        })
    }

    /// Cuts the table to `len` bytes; a longer `len` changes nothing.
    pub fn truncate(&mut self, len: usize) {
        let mut left = len;
        let mut keep = 0;
        for e in self.first.iter_mut().chain(self.rest.iter_mut()) {
            if left == 0 {
                break;
            }
            e.len = e.len.min(left);
            left -= e.len;
            keep += 1;
        }
        self.rest.truncate(keep.max(1) - 1);
        if keep == 0 {
            self.first = None;
        }
        self.len = self.len.min(len);
    }

    /// Visits the entries of a range: `f(entry, offset in the entry, length)`.
    #[inline]
    fn walk(
        &self,
        at: usize,
        len: usize,
        mut f: impl FnMut(&SGEntry, usize, usize) -> Result<bool>,
    ) -> Result {
        check_range(at, len, self.len)?;
        let (mut skip, mut left) = (at, len);
        for e in self.first.iter().chain(self.rest.iter()) {
            if left == 0 {
                break;
            }
            if skip >= e.len {
                skip -= e.len;
                continue;
            }
            let n = left.min(e.len - skip);
            if !f(e, skip, n)? {
                break;
            }
            skip = 0;
            left -= n;
        }
        Ok(())
    }

    /// As [`SGTable::walk`], with the entries writable.
    #[inline]
    fn walk_mut(
        &mut self,
        at: usize,
        len: usize,
        mut f: impl FnMut(&mut SGEntry, usize, usize) -> Result<bool>,
    ) -> Result {
        check_range(at, len, self.len)?;
        let (mut skip, mut left) = (at, len);
        for e in self.first.iter_mut().chain(self.rest.iter_mut()) {
            if left == 0 {
                break;
            }
            if skip >= e.len {
                skip -= e.len;
                continue;
            }
            let n = left.min(e.len - skip);
            if !f(e, skip, n)? {
                break;
            }
            skip = 0;
            left -= n;
        }
        Ok(())
    }

    /// Copies bytes in.
    ///
    /// Context: any.
    ///
    /// # Errors
    ///
    /// `EINVAL`: out of range. `EFAULT`: a shared or zero piece; what is before it was written.
    #[doc(alias = "sg_copy_from_buffer")]
    pub fn copy_from_slice(&mut self, at: usize, src: &[u8]) -> Result {
        let mut src = src;
        self.walk_mut(at, src.len(), |e, off, n| {
            let (now, later) = src.split_at(n);
            src = later;
            e.write(off, now)?;
            Ok(true)
        })
    }

    /// Copies bytes out.
    ///
    /// Context: any. Errors: `EINVAL`: out of range.
    #[doc(alias = "sg_copy_to_buffer")]
    pub fn copy_to_slice(&self, at: usize, dst: &mut [u8]) -> Result {
        let mut done = 0;
        self.walk(at, dst.len(), |e, off, n| {
            let to = &mut dst[done..done + n];
            done += n;
            match &e.piece {
                Piece::Lent(r) => r.copy_out(e.off + off, to)?,
                Piece::Zero => to.fill(0),
                Piece::Table(t) => t.copy_to_slice(e.off + off, to)?,
                _ => to.copy_from_slice(e.bytes(off, n).ok_or(code::EFAULT)?),
            }
            Ok(true)
        })
    }

    /// Sets all bytes of a range.
    ///
    /// Context: any. Errors: as [`SGTable::copy_from_slice`].
    #[doc(alias = "sg_zero_buffer")]
    pub fn fill(&mut self, at: usize, len: usize, byte: u8) -> Result {
        self.walk_mut(at, len, |e, off, n| {
            let start = e.off + off;
            match &mut e.piece {
                Piece::Pages(p) => p.as_mut_slice()[start..start + n].fill(byte),
                Piece::Lent(r) => r.fill(start, n, byte)?,
                Piece::Zero if byte == 0 => {}
                Piece::Shared(_) | Piece::Zero | Piece::Table(_) => return Err(code::EFAULT),
            }
            Ok(true)
        })
    }

    /// Calls `f` with the bytes of a range, slice by slice; lent memory is shown as private copies of at most 4 KiB.
    ///
    /// Context: any. Errors: `EINVAL`: out of range.
    #[doc(alias = "for_each_sg")]
    pub fn for_each(&self, at: usize, len: usize, mut f: impl FnMut(&[u8])) -> Result {
        self.walk(at, len, |e, off, n| {
            e.for_each(off, n, &mut |b| {
                f(b);
                Ok(())
            })?;
            Ok(true)
        })
    }

    /// Compares with `other`. Returns the offset in `other` of the first byte that differs.
    ///
    /// Context: any. Errors: `EINVAL`: out of range.
    pub fn compare(&self, at: usize, other: &[u8]) -> Result<Option<usize>> {
        let mut done = 0;
        let mut found = None;
        self.walk(at, other.len(), |e, off, n| {
            e.for_each(off, n, &mut |b| {
                if found.is_none() {
                    let o = &other[done..done + b.len()];
                    if b != o {
                        found = b.iter().zip(o).position(|(x, y)| x != y).map(|i| done + i);
                    }
                }
                done += b.len();
                Ok(())
            })?;
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Compares with a range of another table. Returns the offset from the starts of the first byte that differs.
    ///
    /// Context: any. Errors: `EINVAL`: out of range.
    pub fn compare_sg(
        &self,
        at: usize,
        other: &SGTable,
        other_at: usize,
        len: usize,
    ) -> Result<Option<usize>> {
        check_range(at, len, self.len)?;
        let mut done = 0;
        let mut found = None;
        other.walk(other_at, len, |e, off, n| {
            e.for_each(off, n, &mut |b| {
                if found.is_none() {
                    found = self.compare(at + done, b)?.map(|i| done + i);
                }
                done += b.len();
                Ok(())
            })?;
            Ok(found.is_none())
        })?;
        Ok(found)
    }

    /// Copies a range of another table in.
    ///
    /// Context: any. Errors: as [`SGTable::copy_from_slice`].
    #[doc(alias = "sg_copy")]
    pub fn copy_from_sg(&mut self, at: usize, src: &SGTable, src_at: usize, len: usize) -> Result {
        check_range(at, len, self.len)?;
        let mut done = 0;
        src.walk(src_at, len, |e, off, n| {
            e.for_each(off, n, &mut |b| {
                self.copy_from_slice(at + done, b)?;
                done += b.len();
                Ok(())
            })?;
            Ok(true)
        })
    }

    /// Copies from shared memory into a range, without an intermediate buffer.
    ///
    /// Context: as [`LentMem::copy_out`]. Errors: as [`SGTable::copy_from_slice`] and [`LentMem::copy_out`].
    pub fn copy_from_lent(&mut self, at: usize, mem: &LentMem, off: usize, len: usize) -> Result {
        let mut pos = off;
        self.walk_mut(at, len, |e, eoff, n| {
            let start = e.off + eoff;
            match &mut e.piece {
                Piece::Pages(p) => mem.copy_out(pos, &mut p.as_mut_slice()[start..start + n])?,
                Piece::Lent(r) => mem.copy_to_lent(pos, r, start, n)?,
                Piece::Shared(_) | Piece::Zero | Piece::Table(_) => return Err(code::EFAULT),
            }
            pos += n;
            Ok(true)
        })
    }

    /// Copies a range into shared memory, without an intermediate buffer.
    ///
    /// Context: as [`LentMem::copy_in`]. Errors: `EINVAL`: out of range; those of [`LentMem::copy_in`].
    pub fn copy_to_lent(&self, at: usize, mem: &LentMem, off: usize, len: usize) -> Result {
        let mut pos = off;
        self.walk(at, len, |e, eoff, n| {
            match &e.piece {
                Piece::Lent(r) => mem.copy_from_lent(pos, r, e.off + eoff, n)?,
                Piece::Zero => mem.fill(pos, n, 0)?,
                Piece::Table(t) => t.copy_to_lent(e.off + eoff, mem, pos, n)?,
                _ => mem.copy_in(pos, e.bytes(eoff, n).ok_or(code::EFAULT)?)?,
            }
            pos += n;
            Ok(true)
        })
    }

    /// The entry that has the whole range, and the offset in it.
    fn one_entry(&self, at: usize, len: usize) -> Option<(usize, usize)> {
        let mut skip = at;
        for (i, e) in self.first.iter().chain(self.rest.iter()).enumerate() {
            if skip < e.len {
                return (len <= e.len - skip).then_some((i, skip));
            }
            skip -= e.len;
        }
        None
    }

    /// A range as a slice, when it is inside one piece of pages or shared memory (or short zeros).
    pub fn as_slice(&self, at: usize, len: usize) -> Option<&[u8]> {
        let (i, off) = self.one_entry(at, len)?;
        let e = if i == 0 {
            self.first.as_ref()?
        } else {
            self.rest.get(i - 1)?
        };
        e.bytes(off, len)
    }

    /// A range as a writable slice, when it is inside one piece of pages.
    pub fn as_mut_slice(&mut self, at: usize, len: usize) -> Option<&mut [u8]> {
        let (i, off) = self.one_entry(at, len)?;
        let e = if i == 0 {
            self.first.as_mut()?
        } else {
            self.rest.get_mut(i - 1)?
        };
        let start = e.off + off;
        match &mut e.piece {
            Piece::Pages(p) => p.as_mut_slice().get_mut(start..start + len),
            _ => None,
        }
    }

    /// Continues a CRC32C over a range.
    ///
    /// Context: any. Errors: `EINVAL`: out of range.
    pub fn crc32c(&self, at: usize, len: usize, seed: u32) -> Result<u32> {
        let mut crc = seed;
        self.for_each(at, len, |b| crc = crate::crypto::crc32c_append(crc, b))?;
        Ok(crc)
    }

    /// Whether the range has lent memory, whose bytes may change while they are looked at.
    pub fn has_lent(&self) -> bool {
        self.first
            .iter()
            .chain(self.rest.iter())
            .any(|e| match &e.piece {
                Piece::Lent(_) => true,
                Piece::Table(t) => t.has_lent(),
                _ => false,
            })
    }

    /// Whether every contiguous part of a range begins and ends at multiples of `align` in memory, as O_DIRECT asks.
    ///
    /// Context: any. Errors: `EINVAL`: out of range.
    #[doc(alias = "iov_iter_aligned")]
    pub fn is_aligned(&self, at: usize, len: usize, align: usize) -> Result<bool> {
        let mut aligned = true;
        self.for_each_raw(at, len, |p, n| {
            aligned = p.addr() % align == 0 && n % align == 0;
            aligned
        })?;
        Ok(aligned)
    }

    /// Calls `f` with address and length of each contiguous part of a range, until it returns `false`. For system calls
    /// and foreign code that only read. The addresses are good while nobody changes or drops the table; moving it is no
    /// change.
    ///
    /// Context: any. Errors: `EINVAL`: out of range.
    pub fn for_each_raw(
        &self,
        at: usize,
        len: usize,
        mut f: impl FnMut(*const u8, usize) -> bool,
    ) -> Result {
        self.walk(at, len, |e, off, n| {
            let start = e.off + off;
            let base: *const u8 = match &e.piece {
                Piece::Pages(p) => p.ptr(),
                Piece::Shared(s) => s.as_ptr(),
                Piece::Lent(r) => r.ptr(),
                Piece::Zero => {
                    let mut left = n;
                    while left > 0 {
                        let n = left.min(ZEROES_LEN);
                        if !f(ZEROES.as_ptr(), n) {
                            return Ok(false);
                        }
                        left -= n;
                    }
                    return Ok(true);
                }
                Piece::Table(t) => {
                    let mut go_on = true;
                    t.for_each_raw_dyn(start, n, &mut |p, n| {
                        go_on = f(p, n);
                        go_on
                    })?;
                    return Ok(go_on);
                }
            };
            Ok(f(base.wrapping_add(start), n))
        })
    }

    /// The same by a trait object: tables may be nested to any depth, types not.
    fn for_each_raw_dyn(
        &self,
        at: usize,
        len: usize,
        f: &mut dyn FnMut(*const u8, usize) -> bool,
    ) -> Result {
        self.for_each_raw(at, len, f)
    }

    /// As [`SGTable::for_each_raw`], for system calls and foreign code that write.
    ///
    /// # Errors
    ///
    /// `EFAULT`: a shared or zero piece, or lent memory that is only read. `EINVAL`: out of range.
    pub fn for_each_raw_mut(
        &mut self,
        at: usize,
        len: usize,
        mut f: impl FnMut(*mut u8, usize) -> bool,
    ) -> Result {
        self.walk_mut(at, len, |e, off, n| {
            let base = match &mut e.piece {
                Piece::Pages(p) => p.ptr(),
                Piece::Lent(r) if !r.is_read_only() => r.ptr(),
                Piece::Lent(_) | Piece::Shared(_) | Piece::Zero | Piece::Table(_) => {
                    return Err(code::EFAULT);
                }
            };
            Ok(f(base.wrapping_add(e.off + off), n))
        })
    }
}

impl SGEntry {
    fn write(&mut self, at: usize, src: &[u8]) -> Result {
        let start = self.off + at;
        match &mut self.piece {
            Piece::Pages(p) => {
                p.as_mut_slice()[start..start + src.len()].copy_from_slice(src);
                Ok(())
            }
            Piece::Lent(r) => r.copy_in(start, src),
            Piece::Shared(_) | Piece::Zero | Piece::Table(_) => Err(code::EFAULT),
        }
    }
}

/// A table whose bytes several requests read at the same time, as the writes of a mirror do: each gets a table of its own
/// ([`SharedTable::table`]) that stands for all of it. The memory cannot be written meanwhile. When the others are gone the
/// table comes back as it was.
///
/// The kernel's clones of a bio share its vector of pages, which nobody may change; here the type says so.
///
/// ```
/// use kshim::scatterlist::{SGTable, SharedTable};
///
/// let shared = SharedTable::new(SGTable::alloc_zeroed(8192)?);
/// let (a, mut b) = (shared.table()?, shared.table()?);
/// assert_eq!((a.len(), b.nents()), (8192, 1));
/// assert!(b.fill(0, 1, 7).is_err());
/// let shared = shared.into_inner().unwrap_err();
/// drop((a, b));
/// assert_eq!(shared.into_inner().map(|t| t.len()).ok(), Some(8192));
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "bio_alloc_clone")]
#[doc(alias = "__bio_clone_fast")]
#[derive(Debug, Clone)]
pub struct SharedTable(Arc<SGTable>);

impl SharedTable {
    /// Shares a table.
    pub fn new(table: SGTable) -> SharedTable {
        SharedTable(Arc::new(table))
    }

    /// A table that stands for the shared one.
    ///
    /// Context: any. Errors: `ENOMEM`.
    pub fn table(&self) -> Result<SGTable> {
        let mut sg = SGTable::new();
        sg.push(SGEntry {
            len: self.0.len,
            piece: Piece::Table(Arc::clone(&self.0)),
            off: 0,
        })?;
        Ok(sg)
    }

    /// The table itself.
    pub fn get(&self) -> &SGTable {
        &self.0
    }

    /// The table as it was, when no other table or handle stands for it any more; else `self`.
    pub fn into_inner(self) -> Result<SGTable, SharedTable> {
        Arc::try_unwrap(self.0).map_err(SharedTable)
    }
}

impl fmt::Debug for SGTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SGTable")
            .field("len", &self.len)
            .field("nents", &self.nents())
            .finish()
    }
}
