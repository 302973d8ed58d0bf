//! Commands and events that change a device or look at its storage: MODE SELECT, FORMAT UNIT, GET LBA STATUS, PRE-FETCH,
//! LOG SENSE, resets. They may sleep.
//!
//! C source: `vdisk_exec_mode_select`, `vdisk_exec_format_unit`, `vdisk_set_wt`, `vdisk_task_mgmt_fn_done`,
//! `vdisk_resync_size`, `vdisk_sysfs_gen_tp_soft_threshold_reached_UA` of `scst/src/dev_handlers/scst_vdisk.c`

use super::Vdisk;
use super::VdiskKind;
use super::format::{self, FormatGuard, FormatRequest};
use super::handler::apply;
use super::lba_status::lba_status;
use super::log::{LogSource, log_sense};
use super::mode::ControlBits;
use super::mode_select;
use super::reply::Fault;
use super::saved::Values;
use super::store::{Outcome, Store, read_outcome, write_outcome};
use crate::cmd::{Cmd, ExecRes};
use crate::core::cmd_done;
use crate::dev_type::ExecContext;
use crate::device::{ControlMode, Device};
use crate::sense;
use kshim::error::{Result, code};
use kshim::scatterlist::SGTable;
use std::sync::atomic::Ordering;

/// Bytes that a format discards or zeroes at a time: it can be stopped in between, and tells its progress.
const FORMAT_STEP: u64 = 64 * 1024 * 1024;
/// Bytes of zeros written at a time where the host cannot zero.
const ZERO_STEP: usize = 1024 * 1024;
/// Most bytes that one PRE-FETCH reads, and bytes read at a time.
const PREFETCH_MAX: u64 = 16 * 1024 * 1024;
const PREFETCH_STEP: usize = 256 * 1024;
/// Most bytes of a parameter list that are looked at.
const MAX_PARAM_LIST: usize = 64 * 1024;
/// IMMED in byte 1 of PRE-FETCH.
const IMMED: u8 = 0x02;

/// The parameter list that has come, cut to what the CDB says.
pub(super) fn param_list(cmd: &Cmd) -> std::result::Result<Vec<u8>, Fault> {
    let n = usize::try_from(cmd.write_len().min(cmd.bufflen())).unwrap_or(0);
    let mut list = vec![0; n.min(cmd.sg().len()).min(MAX_PARAM_LIST)];
    cmd.sg()
        .copy_to_slice(0, &mut list)
        .map_err(|_| sense::INTERNAL_FAILURE)?;
    Ok(list)
}

/// The control page as the device has it now.
pub(super) fn control_bits(c: &ControlMode) -> ControlBits {
    ControlBits {
        tst: c.tst.load(Ordering::Relaxed),
        tmf_only: c.tmf_only.load(Ordering::Relaxed),
        dpicz: c.dpicz.load(Ordering::Relaxed),
        d_sense: c.d_sense.load(Ordering::Relaxed),
        queue_alg: c.queue_alg.load(Ordering::Relaxed),
        qerr: c.qerr.load(Ordering::Relaxed),
        swp: c.swp.load(Ordering::Relaxed),
        tas: c.tas.load(Ordering::Relaxed),
    }
}

/// Puts a control page into effect. TST stays: task sets exist already.
pub(super) fn set_control_bits(c: &ControlMode, bits: ControlBits) {
    c.tmf_only.store(bits.tmf_only, Ordering::Relaxed);
    c.dpicz.store(bits.dpicz, Ordering::Relaxed);
    c.d_sense.store(bits.d_sense, Ordering::Relaxed);
    c.queue_alg.store(bits.queue_alg, Ordering::Relaxed);
    c.qerr.store(bits.qerr, Ordering::Relaxed);
    c.swp.store(bits.swp, Ordering::Relaxed);
    c.tas.store(bits.tas, Ordering::Relaxed);
}

fn write_zeros(store: &Store, pos: u64, len: u64, stop: &dyn Fn() -> bool) -> Result {
    let mut zeros = SGTable::alloc_zeroed(ZERO_STEP)?;
    let mut done = 0u64;
    while done < len && !stop() {
        let left = usize::try_from(len.saturating_sub(done)).unwrap_or(ZERO_STEP);
        let n = ZERO_STEP.min(left);
        store.write(pos.saturating_add(done), &mut zeros, n, false)?;
        done = done.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
    }
    Ok(())
}

impl Vdisk {
    /// The device's mode parameters at start, when none are saved.
    fn default_values(&self) -> Values {
        Values {
            control: self.default_control,
            write_through: self.write_through_start,
        }
    }

    /// Takes over saved mode pages, if there are any.
    pub(super) fn load_saved_pages(&self, dev: &Device) {
        let Some(saved) = &self.saved else { return };
        let Some(values) = saved.load(self.default_values()) else {
            return;
        };
        set_control_bits(&dev.control, values.control);
        self.write_through
            .store(values.write_through, Ordering::Relaxed);
        self.set_saved(values);
    }

    fn set_saved(&self, values: Values) {
        *self.saved_control.lock() = values.control;
        self.write_through_saved
            .store(values.write_through, Ordering::Relaxed);
    }

    /// Turns the volatile cache off or on; what is in it becomes durable when it is turned off. Devices without one stay
    /// as they are, without an error, as in SCST.
    #[doc(alias = "vdisk_set_wt")]
    fn set_write_through(&self, on: bool) -> Result {
        let no_cache = self.kind() == VdiskKind::Nullio || self.features().nv_cache;
        if no_cache || self.write_through.swap(on, Ordering::Relaxed) == on || !on {
            return Ok(());
        }
        self.store().flush().inspect_err(|e| {
            kshim::pr_err_ratelimited!(
                "Device {}: flush before the cache is turned off failed: {e}",
                self.name()
            );
            self.write_through.store(false, Ordering::Relaxed);
        })
    }

    /// MODE SELECT(6) and (10) (SPC-4 6.11). The core holds all other commands back meanwhile.
    fn mode_select(&self, cmd: &Cmd) -> std::result::Result<(), Outcome> {
        let list = param_list(cmd)?;
        let Some(dev) = cmd.device() else {
            return Err(sense::INTERNAL_FAILURE.into());
        };
        let before = Values {
            control: control_bits(&dev.control),
            write_through: self.write_through.load(Ordering::Relaxed),
        };
        let can_save = self.saved.is_some();
        let changes = mode_select::parse(
            &self.features(),
            &before.control,
            can_save,
            cmd.cdb(),
            &list,
        )?;
        if let Some(write_cache) = changes.write_cache {
            self.set_write_through(!write_cache)
                .map_err(write_outcome)?;
        }
        let after = Values {
            control: changes.control.unwrap_or(before.control),
            write_through: self.write_through.load(Ordering::Relaxed),
        };
        set_control_bits(&dev.control, after.control);
        let any = changes.control.is_some() || changes.write_cache.is_some();
        // DIFFERS: SCST does not save values that are in effect already, whatever was saved before.
        if let Some(saved) = &self.saved
            && any
            && mode_select::wants_save(cmd.cdb())
        {
            if let Err(e) = saved.save(after, self.default_values()) {
                kshim::pr_err_ratelimited!("Device {}: cannot save mode pages: {e}", self.name());
                set_control_bits(&dev.control, before.control);
                self.set_write_through(before.write_through)
                    .map_err(write_outcome)?;
                // As in SCST: it may be better soon.
                return Err(Outcome::Busy);
            }
            self.set_saved(after);
        }
        if after != before {
            kshim::pr_info_ratelimited!(
                "Device {}: new mode parameters: {after:?} (was {before:?})",
                self.name()
            );
        }
        Ok(())
    }

    /// A logical unit reset: saved values come into effect, and the medium may be removed.
    /// DIFFERS: SCST turns the cache on, even if it was saved as off, or the device was made without one.
    pub(super) fn reset(&self, dev: &Device) {
        set_control_bits(&dev.control, *self.saved_control.lock());
        let write_through = self.write_through_saved.load(Ordering::Relaxed);
        if let Err(e) = self.set_write_through(write_through) {
            kshim::pr_err_ratelimited!("Device {}: cannot reset the cache: {e}", self.name());
        }
        self.prevent_medium_removal.store(false, Ordering::Relaxed);
    }

    /// Commands of this module that need the command's data or answer only; on a thread.
    pub(super) fn exec_slow(&self, mut cmd: Box<Cmd>, cx: ExecContext) -> ExecRes {
        use crate::cdb::opcodes as op;
        let code = cmd.cdb_byte(0);
        if code == op::SERVICE_ACTION_IN_16 && cmd.lba() >= self.nblocks() {
            cmd.set_sense(sense::BLOCK_OUT_RANGE);
            return ExecRes::Completed(cmd);
        }
        if cmd.bufflen() == 0 && code != op::LOG_SENSE {
            // No list is no error, and neither is no room for an answer.
            return ExecRes::Completed(cmd);
        }
        if cx == ExecContext::Atomic {
            return ExecRes::NeedThread(cmd);
        }
        let result = match code {
            op::MODE_SELECT | op::MODE_SELECT_10 => self.mode_select(&cmd),
            op::LOG_SENSE => self.log_sense(&mut cmd),
            _ => self.get_lba_status(&mut cmd),
        };
        if let Err(outcome) = result {
            apply(&mut cmd, outcome);
        }
        ExecRes::Completed(cmd)
    }

    fn log_sense(&self, cmd: &mut Cmd) -> std::result::Result<(), Outcome> {
        let used_blocks = self.features().thin_provisioned.then(|| {
            let bytes = self.store().allocated()?;
            let blocks = bytes.checked_shr(u32::from(self.block_shift()))?;
            Some(blocks.min(self.nblocks()))
        });
        let src = LogSource {
            used_blocks: used_blocks.flatten(),
            counters: &self.counters,
        };
        let mut data = Vec::new();
        log_sense(&src, cmd.cdb(), &mut data)?;
        cmd.fill_response(&data);
        Ok(())
    }

    /// GET LBA STATUS (SBC-3 5.6).
    fn get_lba_status(&self, cmd: &mut Cmd) -> std::result::Result<(), Outcome> {
        let nblocks = self.nblocks();
        let store = self.store();
        let thin = self.features().thin_provisioned;
        let store = thin.then_some(&*store);
        let alloc_len = usize::try_from(cmd.bufflen()).unwrap_or(usize::MAX);
        let data = lba_status(store, self.block_shift(), nblocks, cmd.lba(), alloc_len)
            .map_err(read_outcome)?;
        cmd.fill_response(&data);
        Ok(())
    }

    /// FORMAT UNIT (SBC-3 5.3). A thin device is unmapped; another one is zeroed.
    /// DIFFERS: SCST leaves the data of the latter as it is.
    pub(super) fn exec_format(&self, mut cmd: Box<Cmd>, cx: ExecContext) -> ExecRes {
        if cx == ExecContext::Atomic {
            return ExecRes::NeedThread(cmd);
        }
        let request = param_list(&cmd).and_then(|list| format::parse(cmd.cdb(), &list));
        let immed = match request {
            Ok(FormatRequest::Format { immed }) => immed,
            Ok(FormatRequest::Nothing) => return ExecRes::Completed(cmd),
            Err(fault) => {
                apply(&mut cmd, fault.into());
                return ExecRes::Completed(cmd);
            }
        };
        // From here on others are told of it: before the answer, so that nobody slips in between.
        let guard = self.format.begin(self.size_bytes());
        if immed {
            let dev = cmd.device().cloned();
            cmd_done(cmd);
            let gone = || {
                dev.as_ref()
                    .is_some_and(|d| d.unregistered.load(Ordering::Relaxed))
            };
            if let Err(e) = self.format_medium(&guard, &gone) {
                kshim::pr_err_ratelimited!("Device {}: format failed: {e}", self.name());
            }
            return ExecRes::Pending;
        }
        let result = self.format_medium(&guard, &|| cmd.is_aborted());
        drop(guard);
        if let Err(e) = result {
            kshim::pr_err_ratelimited!("Device {}: format failed: {e}", self.name());
            apply(&mut cmd, write_outcome(e));
        }
        ExecRes::Completed(cmd)
    }

    /// Discards or zeroes everything, until `stop` says so.
    fn format_medium(&self, guard: &FormatGuard<'_>, stop: &dyn Fn() -> bool) -> Result {
        let store = self.store();
        let size = self.size_bytes();
        let mut discard = self.features().thin_provisioned;
        let mut at = 0u64;
        while at < size && !stop() {
            let n = FORMAT_STEP.min(size.saturating_sub(at));
            let done = if discard {
                store.discard(at, n)
            } else {
                match store.zero(at, n) {
                    Err(code::EOPNOTSUPP) => write_zeros(&store, at, n, stop),
                    r => r,
                }
            };
            match done {
                // The host has no holes after all.
                Err(code::EOPNOTSUPP) if discard => discard = false,
                Err(e) => return Err(e),
                Ok(()) => {
                    at = at.saturating_add(n);
                    guard.set_done(at);
                }
            }
        }
        store.flush()
    }

    /// PRE-FETCH(10) and (16) (SBC-3 5.10): reads into the host's cache. The answer is GOOD, not CONDITION MET: nobody
    /// knows how long the blocks stay there.
    pub(super) fn exec_prefetch(&self, mut cmd: Box<Cmd>, cx: ExecContext, pos: u64) -> ExecRes {
        if self.kind() == VdiskKind::Nullio {
            return ExecRes::Completed(cmd);
        }
        if cx == ExecContext::Atomic {
            return ExecRes::NeedThread(cmd);
        }
        let rest = self.size_bytes().saturating_sub(pos);
        let len = match cmd.data_len() {
            0 => rest,
            n => n.min(rest),
        }
        .min(PREFETCH_MAX);
        if cmd.cdb_byte(1) & IMMED != 0 {
            cmd_done(cmd);
            if let Err(e) = self.prefetch(pos, len, &|| false) {
                kshim::pr_err_ratelimited!("{}: pre-fetch at {pos} failed: {e}", self.name());
            }
            return ExecRes::Pending;
        }
        if let Err(e) = self.prefetch(pos, len, &|| cmd.is_aborted()) {
            apply(&mut cmd, read_outcome(e));
        }
        ExecRes::Completed(cmd)
    }

    fn prefetch(&self, pos: u64, len: u64, stop: &dyn Fn() -> bool) -> Result {
        let store = self.store();
        let mut buf = SGTable::alloc(PREFETCH_STEP)?;
        let mut done = 0u64;
        while done < len && !stop() {
            let left = usize::try_from(len.saturating_sub(done)).unwrap_or(PREFETCH_STEP);
            let n = PREFETCH_STEP.min(left);
            store.read(pos.saturating_add(done), &mut buf, n)?;
            done = done.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
        }
        Ok(())
    }

    /// Looks at the size of the backing store again; a change is told to the initiators (2A/09). Answers whether there
    /// was one. Context: may sleep.
    ///
    /// # Errors
    /// Those of asking the host.
    #[doc(alias = "vdisk_resync_size")]
    pub fn resync_size_of(&self, dev: &Device) -> Result<bool> {
        let changed = self.resync_size()?;
        if changed {
            kshim::pr_info!("Device {}: new size {} blocks", self.name(), self.nblocks());
            dev.capacity_data_changed();
        }
        Ok(changed)
    }

    /// Tells all initiators that the thin provisioning soft threshold is reached (38/07). Context: any.
    ///
    /// # Errors
    /// `EINVAL`: the device is not thin.
    #[doc(alias = "gen_tp_soft_threshold_reached_UA")]
    pub fn gen_tp_soft_threshold_reached_ua(&self, dev: &Device) -> Result {
        if !self.features().thin_provisioned {
            return Err(code::EINVAL);
        }
        dev.check_set_ua(sense::TP_SOFT_THRESHOLD_REACHED, None);
        Ok(())
    }
}
