//! What comes out of a socket, against an encoder that does it one byte after the other.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "tests may fail loudly"
)]

use super::*;
use crate::pdu::flags;
use crate::pdu::hdr::{DataInHdr, NopInHdr};
use crate::sn::DataSn;
use proptest::prelude::*;
use zerocopy::FromBytes as _;

/// One response: the cuts of its data into PDUs.
type Spec = Vec<usize>;

fn header(n: usize, len: usize) -> NopInHdr {
    let mut hdr = NopInHdr::new();
    hdr.itt = u32::try_from(n).unwrap().into();
    hdr.set_data_len(u32::try_from(len).unwrap());
    hdr
}

fn byte(n: usize, at: usize) -> u8 {
    (n * 31 + at * 7 + at / 251) as u8
}

fn response(n: usize, spec: &Spec) -> TxResp {
    let all = (0..spec.iter().sum()).map(|at| byte(n, at)).collect();
    let first = *spec.first().unwrap_or(&0);
    let mut resp = TxResp::new(TxPdu::new(&header(n, first), 0, first), TxData::Bytes(all));
    let mut at = first;
    for &len in spec.iter().skip(1) {
        resp.push(TxPdu::new(&header(n, len), at, len));
        at += len;
    }
    resp
}

/// The same bytes, the slow way.
fn encode(n: usize, spec: &Spec, digests: Digests, out: &mut Vec<u8>) {
    let mut at = 0;
    let lens = if spec.is_empty() {
        vec![0]
    } else {
        spec.clone()
    };
    for len in lens {
        let mut bhs = [0; BHS_LEN];
        header(n, len).encode(&mut bhs);
        out.extend(bhs);
        if digests.header {
            out.extend(crypto::crc32c(&bhs).to_le_bytes());
        }
        let mut data: Vec<u8> = (at..at + len).map(|at| byte(n, at)).collect();
        while !data.len().is_multiple_of(4) {
            data.push(0);
        }
        out.extend(&data);
        if digests.data && len != 0 {
            out.extend(crypto::crc32c(&data).to_le_bytes());
        }
        at += len;
    }
}

fn queue(specs: &[Spec], digests: Digests) -> (TxQueue, Vec<u8>) {
    let mut tx = TxQueue::default();
    tx.set_digests(digests);
    let mut expected = Vec::new();
    for (n, spec) in specs.iter().enumerate() {
        tx.push(response(n, spec)).unwrap();
        encode(n, spec, digests, &mut expected);
    }
    (tx, expected)
}

fn all_digests() -> [Digests; 4] {
    [(false, false), (true, false), (false, true), (true, true)]
        .map(|(header, data)| Digests { header, data })
}

/// Takes `n` bytes as the socket would have, by way of the parts and `head_sent`.
fn take(tx: &mut TxQueue, n: usize, out: &mut Vec<u8>) {
    let mut bytes: Vec<u8> = Vec::new();
    for part in tx.queue.iter().flat_map(TxResp::parts) {
        match part {
            IoPart::Bytes(b) => bytes.extend(b),
            IoPart::Sg(..) => unreachable!("no tables here"),
        }
    }
    let from = tx.head_sent;
    out.extend(&bytes[from..from + n]);
    tx.advance(n);
}

#[test]
fn every_point_of_interruption_goes_on_right() {
    let specs = [vec![5, 4, 1], vec![], vec![48], vec![3]];
    for digests in all_digests() {
        let (_, expected) = queue(&specs, digests);
        for cut in 0..=expected.len() {
            let (mut tx, _) = queue(&specs, digests);
            let mut out = Vec::new();
            take(&mut tx, cut, &mut out);
            assert_eq!(tx.is_empty(), cut == expected.len());
            take(&mut tx, expected.len() - cut, &mut out);
            assert_eq!(out, expected, "cut at {cut}");
            assert!(tx.is_empty() && tx.backlog == 0 && tx.head_sent == 0);
            assert_eq!(tx.responses_sent(), 4);
        }
    }
}

#[test]
fn a_full_socket_blocks_and_goes_on() {
    let digests = Digests {
        header: true,
        data: true,
    };
    let specs: Vec<Spec> = (0..40).map(|n| vec![10_000 + n, 7, 30_001]).collect();
    let (mut tx, expected) = queue(&specs, digests);
    let (a, b) = Socket::pair().unwrap();
    a.set_buffer_sizes(Some(4096), None).unwrap();
    let mut out: Vec<u8> = Vec::new();
    let mut blocked = 0;
    loop {
        let flushed = tx.flush(&a).unwrap();
        let mut some = vec![0; 1 + out.len() % 5000];
        match b.recv_bytes(&mut some) {
            Ok(n) => out.extend(&some[..n]),
            Err(e) => assert_eq!(e, code::EAGAIN),
        }
        if flushed == Flushed::Blocked {
            blocked += 1;
        } else if out.len() == expected.len() {
            break;
        }
    }
    assert!(blocked > 0, "the socket took everything at once");
    assert!(out == expected);
}

#[test]
fn a_dead_socket_is_an_error_and_what_went_before_counts() {
    let (mut tx, _) = queue(&[vec![100], vec![200]], Digests::default());
    let (a, b) = Socket::pair().unwrap();
    assert_eq!(tx.flush(&a), Ok(Flushed::All));
    drop(b);
    tx.push(response(2, &vec![10])).unwrap();
    assert!(tx.flush(&a).is_err());
    assert_eq!(tx.responses_sent(), 2);
    assert!(tx.take_unsent().is_empty() && tx.is_empty());
}

#[test]
fn copied_data_leaves_while_it_is_hot() {
    let (ours, peer) = Socket::pair().unwrap();
    let mut tx = TxQueue::default();
    let push = |tx: &mut TxQueue, len: usize| tx.push(response(0, &vec![len])).unwrap();
    for _ in 0..HOT_MAX / (HOT_MIN / 2) {
        push(&mut tx, HOT_MIN / 2);
        assert!(!tx.is_hot(), "small responses leave together");
    }
    for _ in 0..4 {
        assert!(!tx.is_hot());
        push(&mut tx, HOT_MAX / 4);
    }
    assert!(tx.is_hot());
    // Nobody reads: what the socket does not take is no reason to try again after each request.
    assert_eq!(tx.flush(&ours).unwrap(), Flushed::Blocked);
    assert!(!tx.is_hot() && !tx.is_empty());
    drop(peer);
}

#[test]
fn clogging_counts_bytes_and_responses() {
    let mut tx = TxQueue::default();
    tx.push(response(0, &vec![TX_BACKLOG_MAX])).unwrap();
    assert!(tx.is_clogged() && tx.is_clogged_for_login());
    tx.advance(BHS_LEN);
    assert!(!tx.is_clogged());
    let mut tx = TxQueue::default();
    for n in 0..=TX_QUEUE_MAX {
        assert!(!tx.is_clogged());
        tx.push(response(n, &vec![])).unwrap();
    }
    assert!(tx.is_clogged());
}

proptest! {
    #[test]
    fn output_agrees_with_the_naive_encoder(
        specs in proptest::collection::vec(proptest::collection::vec(0usize..70, 0..6), 1..12),
        steps in proptest::collection::vec(1usize..90, 1..40),
        header: bool,
        data: bool,
    ) {
        let digests = Digests { header, data };
        let (mut tx, expected) = queue(&specs, digests);
        prop_assert_eq!(tx.backlog, expected.len());
        let mut out = Vec::new();
        for step in steps.iter().cycle() {
            let n = (*step).min(expected.len() - out.len());
            take(&mut tx, n, &mut out);
            prop_assert_eq!(tx.backlog, expected.len() - out.len());
            if out.len() == expected.len() {
                break;
            }
        }
        prop_assert_eq!(out, expected);
        prop_assert!(tx.is_empty());
    }
}

/// A command with this data.
fn sequence(len: usize, seg: usize, burst_max: usize) -> DataInSeq {
    let (mut hdr, mut last) = (DataInHdr::new(), DataInHdr::new());
    hdr.itt = 7.into();
    last.itt = 7.into();
    last.flags = flags::FINAL | flags::STATUS;
    DataInSeq {
        hdr,
        last,
        len,
        seg,
        burst_max,
        copy: false,
        at: 0,
        burst: 0,
        data_sn: DataSn::default(),
    }
}

proptest! {
    #[test]
    fn a_sequence_is_as_long_as_it_says_and_follows_the_rules(
        len in 1usize..20_000,
        seg in 1usize..3000,
        burst_max in 1usize..5000,
        made in 0usize..20,
        header: bool,
        data: bool,
    ) {
        let digests = Digests { header, data };
        let mut seq = sequence(len, seg, burst_max);
        let digest = |on| if on { DIGEST_LEN } else { 0 };
        let (mut at, mut burst, mut sn, mut left) = (0, 0, 0u32, seq.wire_len(digests));
        while let Some(pdu) = seq.next() {
            let hdr = DataInHdr::read_from_bytes(&pdu.hdr).unwrap();
            prop_assert_eq!((pdu.at, hdr.buffer_offset.get() as usize), (at, at));
            prop_assert_eq!(hdr.data_sn.get(), sn);
            prop_assert!(pdu.len != 0 && pdu.len <= seg);
            prop_assert_eq!(hdr.data_len() as usize, pdu.len);
            burst += pdu.len;
            at += pdu.len;
            prop_assert!(burst <= burst_max);
            let ends = burst == burst_max || at == len;
            prop_assert_eq!(hdr.flags & flags::FINAL != 0, ends);
            prop_assert_eq!(hdr.flags & flags::STATUS != 0, at == len);
            burst = if ends { 0 } else { burst };
            let wire = BHS_LEN + pdu.len.next_multiple_of(4) + digest(header) + digest(data);
            left -= wire;
            if sn as usize == made {
                prop_assert_eq!(seq.wire_len(digests), left, "also in the middle");
            }
            sn += 1;
        }
        prop_assert_eq!((at, left, seq.is_done()), (len, 0, true));
    }
}
