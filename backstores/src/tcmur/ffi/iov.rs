//! Helpers of the interface that look at nothing but the memory they are given: CDBs, pieces, sense buffers.
//!
//! Each function trusts its pointers as far as its C prototype does. Where the original asserts, or walks past the end of
//! what it was given, this stops.

use std::ffi::{c_int, c_void};
use std::ptr::copy_nonoverlapping;
use std::slice;

use kshim::prelude::*;

use super::mem::MAX_CDB_LEN;
use crate::tcmur::abi::{self, iovec};
use crate::tcmur::cdb;

/// The bytes of a CDB that begins at `p`, as many as its operation code says. Empty: unknown.
///
/// # Safety
///
/// `p` is NULL or points to a CDB.
unsafe fn bytes<'a>(p: *const u8) -> &'a [u8] {
    if p.is_null() {
        return &[];
    }
    // SAFETY: a CDB has at least 6 bytes.
    let head = unsafe { slice::from_raw_parts(p, 6) };
    let len = match head.first() {
        // SAFETY: a variable-length CDB has at least 8 bytes. It may say that it has more than any has.
        Some(0x7F) => (8 + usize::from(unsafe { *p.add(7) })).min(MAX_CDB_LEN),
        _ => cdb::len(head).unwrap_or(0),
    };
    // SAFETY: by its operation code it is so long.
    unsafe { slice::from_raw_parts(p, len) }
}

/// The pieces that begin at `p`.
///
/// # Safety
///
/// `p` is NULL or points to `n` pieces that nobody else uses now.
unsafe fn pieces<'a>(p: *mut iovec, n: abi::size_t) -> &'a mut [iovec] {
    if p.is_null() {
        return &mut [];
    }
    // SAFETY: the caller vouches for it.
    unsafe { slice::from_raw_parts_mut(p, n as usize) }
}

/// The whole sense buffer at `p`.
///
/// # Safety
///
/// `p` is NULL or points to a sense buffer that nobody else uses now.
unsafe fn sense<'a>(p: *mut u8) -> Option<&'a mut [u8; abi::TCMU_SENSE_LEN as usize]> {
    // SAFETY: the caller vouches for it.
    unsafe { p.cast::<[u8; abi::TCMU_SENSE_LEN as usize]>().as_mut() }
}

fn advance(v: &mut iovec, n: usize) {
    v.iov_base = v.iov_base.wrapping_byte_add(n);
    v.iov_len -= n as abi::size_t;
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_cdb_get_length(cdb: *mut u8) -> c_int {
    // SAFETY: the plug-in's CDB.
    match unsafe { bytes(cdb) }.len() {
        0 => EINVAL.to_errno(),
        n => n as c_int,
    }
}

#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn tcmu_cdb_get_lba(cdb: *mut u8) -> u64 {
    // SAFETY: the plug-in's CDB.
    cdb::lba(unsafe { bytes(cdb) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_cdb_get_xfer_length(cdb: *mut u8) -> u32 {
    // SAFETY: the plug-in's CDB.
    cdb::transfer_length(unsafe { bytes(cdb) })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_iovec_length(iov: *mut iovec, n: abi::size_t) -> abi::size_t {
    // SAFETY: the plug-in's pieces.
    let iov = unsafe { pieces(iov, n) };
    iov.iter().fold(0, |sum, v| sum.saturating_add(v.iov_len))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_iovec_seek(iov: *mut iovec, count: abi::size_t) -> abi::size_t {
    let (mut p, mut left, mut consumed) = (iov, count, 0);
    while left > 0 && !p.is_null() {
        // SAFETY: there are `count` bytes in the pieces, says the contract, so this one is there.
        let v = unsafe { &mut *p };
        if left < v.iov_len {
            advance(v, left as usize);
            break;
        }
        left -= v.iov_len;
        v.iov_len = 0;
        consumed += 1;
        p = p.wrapping_add(1);
    }
    consumed
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_cmd_seek(cmd: *mut abi::tcmulib_cmd, count: abi::size_t) {
    // SAFETY: the plug-in's command.
    let Some(cmd) = (unsafe { cmd.as_mut() }) else {
        return;
    };
    // SAFETY: its pieces.
    let total = unsafe { tcmu_iovec_length(cmd.iovec, cmd.iov_cnt) };
    // SAFETY: its pieces; no more than they have.
    let n = unsafe { tcmu_iovec_seek(cmd.iovec, count.min(total)) };
    cmd.iov_cnt = cmd.iov_cnt.saturating_sub(n);
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_iovec_zero(iov: *mut iovec, n: abi::size_t) {
    // SAFETY: the plug-in's pieces.
    for v in unsafe { pieces(iov, n) } {
        // SAFETY: a piece is writable memory of that length.
        unsafe { v.iov_base.write_bytes(0, v.iov_len as usize) };
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_iovec_zeroed(iov: *mut iovec, n: abi::size_t) -> bool {
    // SAFETY: the plug-in's pieces.
    unsafe { pieces(iov, n) }.iter().all(|v| {
        v.iov_len == 0
            // SAFETY: a piece is readable memory of that length.
            || unsafe { slice::from_raw_parts(v.iov_base.cast::<u8>(), v.iov_len as usize) }
                .iter()
                .all(|b| *b == 0)
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_iovec_compare(
    mem: *mut c_void,
    iov: *mut iovec,
    size: abi::size_t,
) -> abi::off_t {
    let (mut p, mut done, size) = (iov, 0usize, size as usize);
    while done < size && !p.is_null() {
        // SAFETY: there are `size` bytes in the pieces, says the contract.
        let v = unsafe { *p };
        let n = (size - done).min(v.iov_len as usize);
        if n > 0 {
            // SAFETY: `mem` has `size` bytes, the piece has `iov_len`.
            let (a, b) = unsafe {
                (
                    slice::from_raw_parts(mem.cast::<u8>().add(done), n),
                    slice::from_raw_parts(v.iov_base.cast::<u8>(), n),
                )
            };
            if let Some(i) = a.iter().zip(b).position(|(x, y)| x != y) {
                return (done + i) as abi::off_t;
            }
        }
        done += n;
        p = p.wrapping_add(1);
    }
    -1
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_memcpy_into_iovec(
    iov: *mut iovec,
    n: abi::size_t,
    src: *mut c_void,
    len: abi::size_t,
) -> abi::size_t {
    let (mut done, len) = (0usize, len as usize);
    // SAFETY: the plug-in's pieces.
    for v in unsafe { pieces(iov, n) } {
        let now = (len - done).min(v.iov_len as usize);
        if now > 0 {
            // SAFETY: `src` has `len` bytes, the piece has `iov_len`; they do not overlap.
            unsafe { copy_nonoverlapping(src.cast::<u8>().add(done), v.iov_base.cast(), now) };
            advance(v, now);
            done += now;
        }
    }
    done as abi::size_t
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_memcpy_from_iovec(
    dest: *mut c_void,
    len: abi::size_t,
    iov: *mut iovec,
    n: abi::size_t,
) -> abi::size_t {
    let (mut done, len) = (0usize, len as usize);
    // SAFETY: the plug-in's pieces.
    for v in unsafe { pieces(iov, n) } {
        let now = (len - done).min(v.iov_len as usize);
        if now > 0 {
            // SAFETY: `dest` has room for `len` bytes, the piece has `iov_len`; they do not overlap.
            unsafe { copy_nonoverlapping(v.iov_base.cast(), dest.cast::<u8>().add(done), now) };
            advance(v, now);
            done += now;
        }
    }
    done as abi::size_t
}

#[unsafe(no_mangle)]
unsafe extern "C" fn __tcmu_sense_set_data(buf: *mut u8, key: u8, asc_ascq: u16) {
    // SAFETY: the plug-in's sense buffer.
    if let Some(buf) = unsafe { sense(buf) } {
        crate::tcmur::status::put_sense(buf, key, asc_ascq);
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_sense_set_data(buf: *mut u8, key: u8, asc_ascq: u16) -> c_int {
    // SAFETY: the plug-in's sense buffer.
    if let Some(buf) = unsafe { sense(buf) } {
        buf.fill(0);
        crate::tcmur::status::put_sense(buf, key, asc_ascq);
    }
    abi::TCMU_STS_PASSTHROUGH_ERR
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_sense_set_info(buf: *mut u8, info: u32) {
    // SAFETY: the plug-in's sense buffer.
    if let Some(buf) = unsafe { sense(buf) } {
        buf[..18].fill(0);
        buf[3..7].copy_from_slice(&info.to_be_bytes());
        buf[0] |= 0x80;
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn tcmu_sense_set_key_specific_info(buf: *mut u8, info: u16) {
    // SAFETY: the plug-in's sense buffer.
    if let Some(buf) = unsafe { sense(buf) } {
        buf[..18].fill(0);
        buf[16..18].copy_from_slice(&info.to_be_bytes());
        buf[15] |= 0x80;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces_of(bufs: &mut [Vec<u8>]) -> Vec<iovec> {
        bufs.iter_mut()
            .map(|b| iovec {
                iov_base: b.as_mut_ptr().cast(),
                iov_len: b.len() as abi::size_t,
            })
            .collect()
    }

    #[test]
    fn pieces_are_filled_compared_and_consumed() {
        let mut bufs = vec![vec![1; 3], vec![], vec![2; 5]];
        let mut iov = pieces_of(&mut bufs);
        let src: Vec<u8> = (10..20).collect();
        // SAFETY: the pieces and the buffers live.
        unsafe {
            let (p, n) = (iov.as_mut_ptr(), 3);
            assert_eq!(tcmu_iovec_length(p, n), 8);
            let src = src.as_ptr().cast_mut().cast();
            assert_eq!(tcmu_memcpy_into_iovec(p, n, src, 4), 4);
            assert_eq!(tcmu_iovec_length(p, n), 4);
            assert_eq!(tcmu_memcpy_into_iovec(p, n, src, 10), 4);
            assert_eq!(tcmu_iovec_length(p, n), 0);
        }
        assert_eq!(bufs, [vec![10, 11, 12], vec![], vec![13, 10, 11, 12, 13]]);
        let mut iov = pieces_of(&mut bufs);
        let mut out = [0u8; 8];
        // SAFETY: the pieces and the buffers live.
        unsafe {
            let p = iov.as_mut_ptr();
            let mem = [10u8, 11, 12, 13, 10, 99, 12, 13];
            assert_eq!(tcmu_iovec_compare(mem.as_ptr().cast_mut().cast(), p, 8), 5);
            assert_eq!(tcmu_iovec_compare(mem.as_ptr().cast_mut().cast(), p, 5), -1);
            assert!(!tcmu_iovec_zeroed(p, 3));
            assert_eq!(tcmu_iovec_seek(p, 4), 2);
            assert_eq!(tcmu_memcpy_from_iovec(out.as_mut_ptr().cast(), 8, p, 3), 4);
        }
        assert_eq!(out, [10, 11, 12, 13, 0, 0, 0, 0]);
    }

    #[test]
    fn cdbs_are_read_as_far_as_they_go() {
        let mut cdb = [0u8; 16];
        cdb[0] = 0x88;
        cdb[9] = 7;
        cdb[13] = 3;
        let mut vendor = [0xC1u8, 0, 0, 0, 0, 0];
        let mut long = [0xFFu8; MAX_CDB_LEN];
        long[0] = 0x7F;
        // SAFETY: CDBs of the length that their codes say.
        unsafe {
            assert_eq!(tcmu_cdb_get_length(cdb.as_mut_ptr()), 16);
            assert_eq!(tcmu_cdb_get_lba(cdb.as_mut_ptr()), 7);
            assert_eq!(tcmu_cdb_get_xfer_length(cdb.as_mut_ptr()), 3);
            assert_eq!(tcmu_cdb_get_length(vendor.as_mut_ptr()), -22);
            assert_eq!(tcmu_cdb_get_length(long.as_mut_ptr()), 260);
            assert_eq!(tcmu_cdb_get_lba(vendor.as_mut_ptr()), 0);
        }
    }

    #[test]
    fn sense_is_put_where_the_interface_says() {
        let mut buf = [0xFFu8; 96];
        // SAFETY: a whole sense buffer.
        unsafe {
            assert_eq!(tcmu_sense_set_data(buf.as_mut_ptr(), 5, 0x2400), 2);
            assert_eq!(
                (buf[0], buf[2], buf[7], buf[12], buf[13]),
                (0x70, 5, 10, 0x24, 0)
            );
            tcmu_sense_set_info(buf.as_mut_ptr(), 0x0102_0304);
            __tcmu_sense_set_data(buf.as_mut_ptr(), 0xE, 0x1D00);
        }
        assert_eq!(buf[..8], [0xF0, 0, 0xE, 1, 2, 3, 4, 10]);
    }
}
