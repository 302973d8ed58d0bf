//! The receive buffer of a connection.

use crate::error::Result;
use crate::page::{RxChunk, RxSlice};

/// What a receive buffer usually holds: one call takes in this much.
pub const RX_CHUNK: usize = 256 << 10;

/// Unread bytes of a stream, in one piece.
///
/// Received bytes are appended, and read from the front: by looking at [`data`](Self::data) and
/// [`consume`](Self::consume), or without a copy by [`take_slice`](Self::take_slice), which shares the memory. Shared
/// memory is never written again: the buffer goes on behind it, and takes a fresh chunk when that room is used up, to which only
/// the unread bytes are copied. Chunks come from and return to the page pool
/// ([`PagePool`](crate::page::PagePool)), so a busy connection recycles the same few.
///
/// The buffer has no memory before the first receive and after [`release_if_empty`](Self::release_if_empty): an idle
/// connection costs none.
///
/// Context of all methods: any; none sleeps.
///
/// ```
/// use kshim::net::{RX_CHUNK, RxBuf, Socket};
///
/// # fn main() -> kshim::error::Result {
/// let (a, b) = Socket::pair()?;
/// a.send(b"headdata")?;
/// let mut buf = RxBuf::new(RX_CHUNK);
/// assert_eq!(b.recv(&mut buf)?, 8);
/// assert_eq!(&buf.data()[..4], b"head");
/// buf.consume(4);
/// let data = buf.take_slice(4).expect("four bytes are unread");
/// buf.release_if_empty();
/// assert_eq!(&*data, b"data"); // lives on
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct RxBuf {
    chunk: Option<RxChunk>,
    /// Bytes of the chunk that were read.
    ///
    /// # Invariants
    ///
    /// At most what is filled; 0 without a chunk.
    read: usize,
    capacity: usize,
}

impl RxBuf {
    /// An empty buffer that will use chunks of `capacity` bytes (at least one page).
    pub const fn new(capacity: usize) -> RxBuf {
        RxBuf {
            chunk: None,
            read: 0,
            capacity: if capacity < 4096 { 4096 } else { capacity },
        }
    }

    /// The unread bytes.
    #[inline]
    pub fn data(&self) -> &[u8] {
        self.chunk
            .as_ref()
            .and_then(|c| c.filled().get(self.read..))
            .unwrap_or_default()
    }

    /// How many bytes are unread.
    #[inline]
    pub fn len(&self) -> usize {
        self.chunk
            .as_ref()
            .map_or(0, |c| c.len().saturating_sub(self.read))
    }

    /// Whether nothing is unread.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Marks the first `n` unread bytes as read; all, if there are fewer.
    #[inline]
    pub fn consume(&mut self, n: usize) {
        debug_assert!(n <= self.len(), "consuming what was not received");
        self.read = self.read.saturating_add(n.min(self.len()));
    }

    /// Takes the first `n` unread bytes as a shared piece that outlives the buffer. `None`: fewer are there.
    pub fn take_slice(&mut self, n: usize) -> Option<RxSlice> {
        let end = self.read.checked_add(n)?;
        let slice = self.chunk.as_ref()?.slice(self.read..end).ok()?;
        self.read = end;
        Some(slice)
    }

    /// How many bytes can be appended without moving anything. 0 without memory.
    #[inline]
    pub fn spare(&self) -> usize {
        self.chunk.as_ref().map_or(0, RxChunk::spare_len)
    }

    /// Makes room for `n` more bytes in one piece with what is unread, so that a message of known length arrives whole:
    /// compacts, or starts a fresh chunk when slices of this one are alive. A need beyond the usual capacity gets a larger chunk.
    ///
    /// Errors: ENOMEM, EINVAL (more than a chunk can be).
    pub fn reserve(&mut self, n: usize) -> Result {
        if self.spare() >= n && self.chunk.is_some() {
            return Ok(());
        }
        let need = self.len().saturating_add(n);
        if let Some(c) = &mut self.chunk
            && c.capacity() >= need
            && c.compact(self.read)
        {
            self.read = 0;
            return Ok(());
        }
        let mut fresh = RxChunk::alloc(self.capacity.max(need))?;
        let unread = self.data();
        if let Some(room) = fresh.spare_mut().get_mut(..unread.len()) {
            room.copy_from_slice(unread);
        }
        fresh.advance(unread.len())?;
        self.chunk = Some(fresh);
        self.read = 0;
        Ok(())
    }

    /// Makes room as is sensible before a receive: an empty buffer starts again at the front if it can, and one with less
    /// than a quarter left moves on ([`reserve`](Self::reserve)).
    ///
    /// Errors: ENOMEM.
    pub fn make_room(&mut self) -> Result {
        let Some(c) = &mut self.chunk else {
            return self.reserve(1);
        };
        if self.read == c.len() && self.read != 0 && c.reset() {
            self.read = 0;
        }
        let low = self.capacity / 4;
        if c.spare_len() >= low {
            return Ok(());
        }
        // Unread bytes that fill nearly the whole chunk: what is spare must do, if there is any.
        if c.spare_len() > 0 && c.len().saturating_sub(self.read) > c.capacity().saturating_sub(low)
        {
            return Ok(());
        }
        self.reserve(low)
    }

    /// Gives the memory back when nothing is unread. Slices taken before keep theirs.
    pub fn release_if_empty(&mut self) {
        if self.is_empty() {
            self.chunk = None;
            self.read = 0;
        }
    }

    /// Appends a copy of `bytes`, as if they had been received.
    ///
    /// Errors: ENOMEM, EINVAL (more than a chunk can be).
    pub fn extend_from_slice(&mut self, bytes: &[u8]) -> Result {
        self.reserve(bytes.len())?;
        if let Some(room) = self.spare_mut().get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
        }
        self.filled(bytes.len())
    }

    /// Where to receive; empty without memory.
    pub(super) fn spare_mut(&mut self) -> &mut [u8] {
        self.chunk
            .as_mut()
            .map(RxChunk::spare_mut)
            .unwrap_or_default()
    }

    /// `n` bytes of the spare room were received.
    pub(super) fn filled(&mut self, n: usize) -> Result {
        self.chunk.as_mut().map_or(Ok(()), |c| c.advance(n))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_idle_buffer_has_no_memory() {
        let mut b = RxBuf::new(8192);
        assert_eq!((b.len(), b.spare()), (0, 0));
        assert!(b.take_slice(1).is_none());
        b.extend_from_slice(b"abc").unwrap();
        b.release_if_empty();
        assert_eq!(b.data(), b"abc");
        b.consume(3);
        b.release_if_empty();
        assert_eq!(b.spare(), 0);
    }

    #[test]
    fn an_emptied_buffer_starts_again_at_the_front() {
        let mut b = RxBuf::new(8192);
        for _ in 0..100 {
            b.extend_from_slice(&[1; 1000]).unwrap();
            b.consume(1000);
            b.make_room().unwrap();
            assert_eq!(b.spare(), 8192);
        }
    }

    #[test]
    fn shared_bytes_never_move_or_change() {
        let mut b = RxBuf::new(4096);
        b.extend_from_slice(&[7; 4000]).unwrap();
        let s = b.take_slice(3000).unwrap();
        let at = s.as_ptr();
        b.reserve(2000).unwrap(); // fresh chunk: 1000 unread bytes move over
        b.extend_from_slice(&[9; 2000]).unwrap();
        assert_eq!(s.as_ptr(), at);
        assert!(s.iter().all(|&x| x == 7));
        assert_eq!(b.len(), 3000);
        assert!(b.data()[..1000].iter().all(|&x| x == 7));
    }

    #[test]
    fn a_large_message_gets_a_large_chunk() {
        let mut b = RxBuf::new(4096);
        b.extend_from_slice(&[1; 100]).unwrap();
        b.reserve(1 << 20).unwrap();
        assert!(b.spare() >= 1 << 20);
        assert_eq!(b.len(), 100);
        assert!(b.reserve(usize::MAX).is_err());
        assert_eq!(b.len(), 100);
    }

    #[test]
    fn a_nearly_full_chunk_uses_its_last_bytes_first() {
        let mut b = RxBuf::new(4096);
        b.extend_from_slice(&[1; 4000]).unwrap();
        b.make_room().unwrap();
        assert_eq!(b.spare(), 96);
        b.extend_from_slice(&[1; 96]).unwrap();
        b.make_room().unwrap();
        assert!(b.spare() > 0);
        assert_eq!(b.len(), 4096);
    }

    #[test]
    fn a_full_larger_chunk_still_finds_room() {
        let mut b = RxBuf::new(4096);
        b.extend_from_slice(&[1; 20_000]).unwrap();
        let spare = b.spare();
        b.extend_from_slice(&vec![1; spare]).unwrap();
        b.make_room().unwrap();
        assert!(b.spare() > 0);
    }

    #[derive(Clone, Debug)]
    enum Op {
        Append(usize),
        Consume(usize),
        Take(usize),
        DropSlices,
        Reserve(usize),
        MakeRoom,
        Release,
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0usize..6000).prop_map(Op::Append),
            3 => (0usize..6000).prop_map(Op::Consume),
            3 => (0usize..3000).prop_map(Op::Take),
            1 => Just(Op::DropSlices),
            1 => (0usize..20000).prop_map(Op::Reserve),
            2 => Just(Op::MakeRoom),
            1 => Just(Op::Release),
        ]
    }

    proptest! {
        #[test]
        fn behaves_like_a_vector(ops in proptest::collection::vec(op(), 1..80)) {
            let mut b = RxBuf::new(8192);
            let mut model: Vec<u8> = Vec::new();
            let mut slices: Vec<(RxSlice, Vec<u8>)> = Vec::new();
            let mut next = 0u8;
            for op in ops {
                match op {
                    Op::Append(n) => {
                        let bytes: Vec<u8> = (0..n).map(|_| { next = next.wrapping_add(37); next }).collect();
                        b.extend_from_slice(&bytes).unwrap();
                        model.extend_from_slice(&bytes);
                    }
                    Op::Consume(n) => {
                        let n = n.min(model.len());
                        b.consume(n);
                        model.drain(..n);
                    }
                    Op::Take(n) => match b.take_slice(n) {
                        Some(s) => slices.push((s, model.drain(..n).collect())),
                        None => prop_assert!(n > model.len() || b.spare() == 0),
                    },
                    Op::DropSlices => slices.clear(),
                    Op::Reserve(n) => { b.reserve(n).unwrap(); prop_assert!(b.spare() >= n); }
                    Op::MakeRoom => { b.make_room().unwrap(); prop_assert!(b.spare() > 0); }
                    Op::Release => b.release_if_empty(),
                }
                prop_assert_eq!(b.data(), &model[..]);
                prop_assert_eq!(b.len(), model.len());
                for (s, m) in &slices {
                    prop_assert_eq!(&s[..], &m[..]);
                }
            }
        }
    }
}
