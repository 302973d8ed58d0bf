//! List identifiers: what became of the copies of a session, and RECEIVE COPY RESULTS, which tells it.
//!
//! C source: `scst_cm_add_list_id`, `scst_cm_sched_del_list_id`, `scst_cm_copy_status`, `scst_cm_failed_seg_details`,
//! `scst_cm_oper_parameters` of `scst/src/scst_copy_mgr.c`

use super::in_secs;
use super::params::{
    CSCD_IDENTIFICATION, DESCRIPTORS_MAX, MAX_CSCDS, MAX_SEGMENTS, SEGMENT_BLOCK_TO_BLOCK,
};
use crate::cmd::Cmd;
use crate::consts::SamStatus;
use crate::sense::{self, Sense};
use kshim::sync::SpinLock;
use kshim::time::Instant;
use std::sync::Arc;

/// How long the result of a copy is kept.
#[doc(alias = "SCST_CM_ID_KEEP_TIME")]
const KEEP_S: i64 = 5;
/// MAXIMUM SEGMENT LENGTH in bytes.
const MAX_SEGMENT_LEN: u32 = 256 * 1024 * 1024;
/// DATA SEGMENT GRANULARITY: log2 of bytes.
const GRANULARITY: u8 = 16;
/// Most sense data that is kept.
#[doc(alias = "SCST_SENSE_BUFFERSIZE")]
const SENSE_MAX: usize = 252;
/// Length of FAILED SEGMENT DETAILS without sense data.
const DETAILS_LEN: usize = 60;

const COPY_STATUS: u8 = 0x00;
const OPERATING_PARAMETERS: u8 = 0x03;
const FAILED_SEGMENT_DETAILS: u8 = 0x04;

#[derive(Debug)]
struct Entry {
    id: u8,
    /// The copy has its result.
    has_result: bool,
    /// The command is over; until when the result is kept.
    free_at: Option<Instant>,
    /// The result was asked for: it need not be kept.
    told: bool,
    segments: u16,
    written: u64,
    status: u8,
    sense: Vec<u8>,
}

/// The list identifiers of a session.
#[derive(Debug, Default)]
pub(crate) struct ListIds(SpinLock<Vec<Entry>>);

/// A list identifier in use by a copy. When the copy goes, the result is kept for a while.
#[derive(Debug)]
pub(crate) struct ListId {
    ids: Arc<ListIds>,
    id: u8,
}

impl ListIds {
    /// Begins a copy. OPERATION IN PROGRESS if the identifier is in use.
    pub(super) fn begin(self: &Arc<Self>, id: u8, now: Instant) -> Result<ListId, Sense> {
        let mut all = self.0.lock();
        all.retain(|e| e.free_at.is_none_or(|t| t > now));
        if all.iter().any(|e| e.id == id && e.free_at.is_none()) {
            return Err(sense::OPERATION_IN_PROGRESS);
        }
        all.retain(|e| e.id != id);
        all.push(Entry {
            id,
            has_result: false,
            free_at: None,
            told: false,
            segments: 0,
            written: 0,
            status: 0,
            sense: Vec::new(),
        });
        Ok(ListId {
            ids: Arc::clone(self),
            id,
        })
    }

    fn with<R>(&self, id: u8, now: Instant, f: impl FnOnce(&mut Entry) -> Option<R>) -> Option<R> {
        let mut all = self.0.lock();
        all.retain(|e| e.free_at.is_none_or(|t| t > now));
        let r = all.iter_mut().find(|e| e.id == id).and_then(f);
        all.retain(|e| !(e.told && e.free_at.is_some()));
        r
    }

    /// Parameter data of COPY STATUS.
    fn copy_status(&self, id: u8, now: Instant) -> Option<Vec<u8>> {
        self.with(id, now, |e| {
            e.told = true;
            let status = match (e.has_result, e.status) {
                (false, _) => 0,
                (true, 0) => 1,
                (true, _) => 2,
            };
            let kib = u32::try_from(e.written >> 10).unwrap_or(u32::MAX);
            let mut data = vec![0, 0, 0, 8, status];
            data.extend_from_slice(&e.segments.to_be_bytes());
            data.push(1); // TRANSFER COUNT is in KiB
            data.extend_from_slice(&kib.to_be_bytes());
            Some(data)
        })
    }

    /// Parameter data of FAILED SEGMENT DETAILS, for whoever has room for `room` bytes.
    fn failed_segment_details(&self, id: u8, room: usize, now: Instant) -> Option<Vec<u8>> {
        self.with(id, now, |e| {
            if !e.has_result {
                return None;
            }
            let needed = DETAILS_LEN.saturating_add(if e.status == 0 { 0 } else { SENSE_MAX });
            e.told |= room == 0 || room >= needed;
            let mut data = vec![0; DETAILS_LEN];
            if e.status != 0 {
                data.extend_from_slice(&e.sense);
            }
            let available = u32::try_from(data.len().saturating_sub(3)).unwrap_or(0);
            let sense_len = u16::try_from(e.sense.len()).unwrap_or(0);
            put(&mut data, 0, &available.to_be_bytes());
            put(&mut data, 56, &[e.status]);
            put(&mut data, 58, &sense_len.to_be_bytes());
            Some(data)
        })
    }
}

impl ListId {
    fn entry(&self, f: impl FnOnce(&mut Entry)) {
        if let Some(e) = self.ids.0.lock().iter_mut().find(|e| e.id == self.id) {
            f(e);
        }
    }

    /// The copy is at its `n`th segment (from 1), and has written so much.
    pub(super) fn progress(&self, n: u16, written: u64) {
        self.entry(|e| {
            e.segments = n;
            e.written = written;
        });
    }

    /// The copy has its result.
    pub(super) fn set_result(&self, status: SamStatus, sense: &[u8]) {
        self.entry(|e| {
            e.has_result = true;
            e.status = status as u8;
            e.sense = sense.iter().copied().take(SENSE_MAX).collect();
        });
    }
}

impl Drop for ListId {
    /// The command is over. What has no result, or was asked for, goes at once.
    #[doc(alias = "scst_cm_sched_del_list_id")]
    fn drop(&mut self) {
        let until = in_secs(KEEP_S);
        let id = self.id;
        let mut all = self.ids.0.lock();
        all.retain(|e| e.id != id || e.has_result && !e.told);
        if let Some(e) = all.iter_mut().find(|e| e.id == id) {
            e.free_at = Some(until);
        }
    }
}

fn put(data: &mut [u8], at: usize, bytes: &[u8]) {
    for (d, s) in data.iter_mut().skip(at).zip(bytes) {
        *d = *s;
    }
}

/// Parameter data of OPERATING PARAMETERS.
fn operating_parameters() -> Vec<u8> {
    let mut data = vec![0; 46];
    let n16 = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_be_bytes();
    put(&mut data, 3, &[42, 1]); // AVAILABLE DATA; SNLID
    put(&mut data, 8, &n16(MAX_CSCDS));
    put(&mut data, 10, &n16(MAX_SEGMENTS));
    put(&mut data, 12, &u32::from(DESCRIPTORS_MAX).to_be_bytes());
    put(&mut data, 16, &MAX_SEGMENT_LEN.to_be_bytes());
    put(&mut data, 34, &[0xFF, 0xFF, 0xFF, GRANULARITY]); // TOTAL and MAXIMUM CONCURRENT COPIES
    put(
        &mut data,
        43,
        &[2, SEGMENT_BLOCK_TO_BLOCK, CSCD_IDENTIFICATION],
    );
    data
}

/// RECEIVE COPY RESULTS (SPC-4 6.18 to 6.22). Context: any.
#[doc(alias = "scst_cm_rcv_copy_res_exec")]
pub(crate) fn receive_copy_results(cmd: &mut Cmd) {
    let id = cmd.cdb_byte(2);
    let ids = Arc::clone(&cmd.session().list_ids);
    let room = usize::try_from(cmd.bufflen()).unwrap_or(usize::MAX);
    let data = match cmd.cdb_byte(1) & 0x1F {
        COPY_STATUS => ids.copy_status(id, Instant::now()),
        OPERATING_PARAMETERS => Some(operating_parameters()),
        FAILED_SEGMENT_DETAILS => ids.failed_segment_details(id, room, Instant::now()),
        _ => return cmd.set_invalid_field_in_cdb(1, Some(0)),
    };
    match data {
        None => cmd.set_invalid_field_in_cdb(2, None),
        Some(data) if room > 0 => cmd.fill_response(&data),
        Some(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_kept_for_a_while_or_until_they_are_told() {
        let ids = Arc::new(ListIds::default());
        let now = Instant::now;
        let later = || in_secs(KEEP_S + 1);
        let status = |id| ids.copy_status(id, now()).map(|d| d[4..].to_vec());
        assert_eq!(status(7), None);
        let copy = ids.begin(7, now()).expect("free");
        assert_eq!(
            ids.begin(7, now()).err(),
            Some(sense::OPERATION_IN_PROGRESS)
        );
        copy.progress(2, 5000);
        assert_eq!(
            ids.failed_segment_details(7, 400, now()),
            None,
            "still runs"
        );
        copy.set_result(SamStatus::Good, &[]);
        drop(copy);
        assert_eq!(status(7), Some(vec![1, 0, 2, 1, 0, 0, 0, 4]));
        assert_eq!(status(7), None, "told once");
        // Asked for while it runs: not kept afterwards.
        let copy = ids.begin(7, now()).expect("free");
        assert_eq!(status(7).map(|s| s[0]), Some(0));
        copy.set_result(SamStatus::Good, &[]);
        drop(copy);
        assert_eq!(status(7), None);
        // Nobody asks.
        let copy = ids.begin(8, now()).expect("free");
        copy.set_result(SamStatus::CheckCondition, &[0x70, 0, 0xA]);
        drop(copy);
        let short = ids.failed_segment_details(8, 60, now()).expect("kept");
        assert_eq!(
            (short.len(), short[3], short[56], short[59]),
            (63, 60, 2, 3)
        );
        assert_eq!(ids.copy_status(8, later()), None);
        // A copy that ended without a result leaves nothing; a new one may follow one that is kept.
        drop(ids.begin(9, now()).expect("free"));
        assert_eq!(status(9), None);
        for _ in 0..2 {
            let copy = ids.begin(9, now()).expect("free");
            copy.set_result(SamStatus::Good, &[]);
        }
        assert_eq!(ids.0.lock().len(), 1);
    }
}
