//! A virtual disk as the core sees it: parsing, buffers, execution.

use super::cdrom;
use super::control::{control_bits, param_list};
use super::fileio::{FileStore, Inline};
use super::medium::{Medium, scratch_len};
use super::misc;
use super::plan::Plan;
use super::reply::{Fault, Reply};
use super::store::{Outcome, Store, read_outcome, write_outcome};
use super::walk::{self, Lane};
use super::{PortInfo, Vdisk, VdiskKind};
use crate::alua::{self, TgState};
use crate::caw;
use crate::cdb::bytes::{be16_at, be32_at};
use crate::cdb::{self, CdbFlags, opcodes as op};
use crate::cmd::{Cmd, ExecRes, ThreadsPoolType};
use crate::consts::{TYPE_DISK, TYPE_ROM};
use crate::core::{Core, cmd_done};
use crate::dev_handlers::rsoc;
use crate::dev_type::{BufAlloc, DevHandler, ExecContext, IoFault};
use crate::device::Device;
use crate::mgmt::{MgmtCmd, TmFunction};
use crate::sense::{self, SenseExtra};
use crate::tgt_dev::TgtDev;
use kshim::block::{BioOp, ReqFlags};
use kshim::error::Result;
use kshim::fs::IoOp;
use kshim::kobject::Attr;
use kshim::scatterlist::SGTable;
use kshim::sync::rcu;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// FUA in byte 1 of WRITE(10), (12) and (16).
const FUA: u8 = 0x08;
/// BYTCHK=01b in byte 1 of VERIFY and WRITE AND VERIFY.
const BYTCHK: u8 = 0x02;
/// IMMED in byte 1 of SYNCHRONIZE CACHE.
const IMMED: u8 = 0x02;

/// TPGS of standard INQUIRY data (SPC-4 6.6.2).
const TPGS_IMPLICIT: u8 = 0x10;
const TPGS_EXPLICIT: u8 = 0x20;

/// Ends a command with what went wrong.
pub(super) fn apply(cmd: &mut Cmd, outcome: Outcome) {
    match outcome {
        Outcome::Busy => cmd.set_busy(),
        Outcome::Fault(Fault { sense, extra }) => match extra {
            SenseExtra::FieldInCdb { byte, bit } => cmd.set_invalid_field_in_cdb(byte, bit),
            SenseExtra::FieldInParms { byte, bit } => cmd.set_invalid_field_in_parm_list(byte, bit),
            extra => cmd.set_sense_extra(sense, extra),
        },
    }
}

/// What INQUIRY tells of the command's port.
fn port_info(cmd: &Cmd) -> PortInfo {
    let tgt = cmd.session().tgt();
    let port = cmd.device().map(|d| alua::port_of(d, tgt));
    let port = port.unwrap_or_default();
    let explicit = cmd
        .device()
        .is_some_and(|d| d.expl_alua.load(Ordering::Relaxed));
    let gone = matches!(port.state, TgState::Unavailable | TgState::Offline);
    let versions = tgt.template().transport_versions(tgt);
    let (scsi_transport_version, phys_transport_version) = versions;
    PortInfo {
        tg_id: port.tg_id,
        tpgs: match (port.configured, explicit) {
            (false, _) => 0,
            (true, false) => TPGS_IMPLICIT,
            (true, true) => TPGS_IMPLICIT | TPGS_EXPLICIT,
        },
        not_connected: gone,
        rel_tgt_id: tgt.rel_tgt_id.load(Ordering::Relaxed),
        scsi_transport_version,
        phys_transport_version,
    }
}

fn usize_of(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

impl DevHandler for Vdisk {
    fn name(&self) -> &'static str {
        self.kind().handler_name()
    }

    #[inline]
    fn type_code(&self) -> u8 {
        if self.kind() == VdiskKind::Vcdrom {
            TYPE_ROM
        } else {
            TYPE_DISK
        }
    }

    #[inline]
    fn block_shift(&self) -> u8 {
        Vdisk::block_shift(self)
    }

    fn threads_num(&self) -> i32 {
        self.threads_num
    }

    fn threads_pool_type(&self) -> ThreadsPoolType {
        self.threads_pool_type
    }

    fn default_threads_num(&self) -> i32 {
        self.kind().default_threads_num()
    }

    fn sysfs_attrs(&self, core: &Arc<Core>, dev: &Arc<Device>) -> Vec<Attr> {
        super::attrs::all(self, core, dev)
    }

    fn attach(&self, dev: &Arc<Device>) -> Result {
        dev.control.tst.store(self.tst, Ordering::Relaxed);
        dev.numa_node_id
            .store(self.params.lock().numa_node_id, Ordering::Relaxed);
        self.load_saved_pages(dev);
        Ok(())
    }

    fn detach(&self, _dev: &Device) {
        self.close();
    }

    fn attach_tgt(&self, tgt_dev: &TgtDev) -> Result {
        if self.read_only {
            tgt_dev.rd_only.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    #[doc(alias = "vdisk_task_mgmt_fn_done")]
    fn task_mgmt_fn_done(&self, mcmd: &MgmtCmd, tgt_dev: &TgtDev) {
        if matches!(
            mcmd.params().function,
            TmFunction::LunReset | TmFunction::TargetReset
        ) {
            self.reset(&tgt_dev.dev);
        }
    }

    fn is_lost(&self) -> bool {
        self.store().is_lost()
    }

    fn needs_activation(&self) -> bool {
        self.follows_alua_state() && (!self.is_active() || self.store().is_lost())
    }

    /// A device that is bound to the state (`bind_alua_state`) opens its backing store before commands come.
    #[doc(alias = "vdev_on_alua_state_change_start")]
    fn on_alua_state_change_start(&self, dev: &Arc<Device>, _old: TgState, new: TgState) {
        if !new.is_active() || !self.needs_activation() {
            return;
        }
        if self.is_active() {
            self.shut(dev);
        }
        let before = self.nblocks();
        if let Err(e) = self.activate() {
            kshim::pr_err!(
                "dev {}: Activating after ALUA state change to {} failed: {e}",
                dev.name(),
                new.name()
            );
        } else if self.nblocks() != before {
            dev.capacity_data_changed();
        }
    }

    /// ... and closes it when no more come and those that are there are over.
    #[doc(alias = "vdev_on_alua_state_change_finish")]
    fn on_alua_state_change_finish(&self, dev: &Arc<Device>, _old: TgState, new: TgState) {
        if self.follows_alua_state() && !new.is_active() && self.is_active() {
            self.shut(dev);
        }
    }

    #[inline]
    fn parse(&self, cmd: &mut Cmd) {
        let Some(info) = cmd.info() else {
            // SCST computes a byte offset before it looks whether the command is known at all; of an unknown service
            // action of a variable-length CDB it knows neither LBA nor that there is none.
            let var_len =
                cmd.cdb_byte(0) == op::VARIABLE_LENGTH_CMD && self.kind() != VdiskKind::Vcdrom;
            cmd.set_sense(if var_len {
                sense::BLOCK_OUT_RANGE
            } else {
                sense::INVALID_OPCODE
            });
            return;
        };
        if let Err(s) = cdb::sbc_generic_parse(info, Vdisk::block_shift(self)) {
            cmd.set_sense(s);
            return;
        }
        self.parse_data_len(cmd);
        // As in SCST, a file device refuses here what is out of range, the others when they execute (that is, after
        // unit attentions and reservation conflicts).
        if matches!(self.kind(), VdiskKind::Fileio | VdiskKind::Vcdrom)
            && self.position(cmd).is_none()
        {
            cmd.set_sense(self.range_sense());
        }
    }

    #[inline]
    fn alloc_data_buf(&self, cmd: &mut Cmd) -> BufAlloc {
        if !matches!(
            cmd.cdb_byte(0),
            op::READ_10 | op::READ_16 | op::READ_6 | op::READ_12
        ) {
            return BufAlloc::Default;
        }
        let len = usize_of(cmd.bufflen());
        let guard = rcu::read_lock();
        let pushed = match self.store_under(&guard) {
            Store::Null => {
                cmd.sg_mut().clear();
                cmd.sg_mut().push_zeroes(len)
            }
            Store::Block(b) => {
                let lent = self.position(cmd).and_then(|pos| b.lend(pos, len));
                let Some(range) = lent else {
                    return BufAlloc::Default;
                };
                cmd.sg_mut().clear();
                cmd.sg_mut().push_lent(range)
            }
            Store::Closed | Store::File(_) | Store::Cd(_) => return BufAlloc::Default,
        };
        if pushed.is_ok() {
            BufAlloc::Done
        } else {
            cmd.sg_mut().clear();
            BufAlloc::Default
        }
    }

    #[inline]
    fn exec(&self, mut cmd: Box<Cmd>, cx: ExecContext) -> ExecRes {
        if self.format.is_active() && !works_while_formatting(&cmd) {
            cmd.set_sense(sense::FORMAT_IN_PROGRESS);
            return ExecRes::Completed(cmd);
        }
        if cx == ExecContext::Atomic {
            let guard = rcu::read_lock();
            self.exec_on(self.store_under(&guard), cmd, cx)
        } else {
            // A read section would hold up others while this sleeps.
            let store = self.store();
            self.exec_on(&store, cmd, cx)
        }
    }

    fn device_identification(&self) -> Vec<u8> {
        let mut out = Reply::new();
        let cdb = [op::INQUIRY, 1, 0x83, 1, 0, 0];
        match self.inquiry(&PortInfo::default(), &cdb, &mut out) {
            Ok(()) => out.as_slice().to_vec(),
            Err(_) => Vec::new(),
        }
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn has_protection(&self) -> bool {
        self.params.lock().dif.is_on()
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn ext_copy_remap(&self, src: &dyn DevHandler, src_pos: u64, pos: u64, len: u64) -> u64 {
        let src = src.as_any().and_then(|d| d.downcast_ref::<Self>());
        src.map_or(0, |src| self.remap_from(src, src_pos, pos, len))
    }

    fn read_blocks(
        &self,
        pos: u64,
        sg: &mut SGTable,
        len: usize,
        cx: ExecContext,
    ) -> std::result::Result<(), IoFault> {
        self.direct_read(pos, sg, len, cx)
    }

    fn write_blocks(
        &self,
        pos: u64,
        sg: &mut SGTable,
        len: usize,
        fua: bool,
        cx: ExecContext,
    ) -> std::result::Result<(), IoFault> {
        self.direct_write(pos, sg, len, fua, cx)
    }
}

impl Vdisk {
    /// Corrects what the decoder takes for the length on the medium.
    #[inline]
    fn parse_data_len(&self, cmd: &mut Cmd) {
        let shift = u32::from(Vdisk::block_shift(self));
        let blocks = match cmd.cdb_byte(0) {
            op::PRE_FETCH_10 => u64::from(be16_at(cmd.cdb(), 7)),
            op::PRE_FETCH_16 => u64::from(be32_at(cmd.cdb(), 10)),
            // Its length is that of the answer.
            op::SERVICE_ACTION_IN_16 if cmd.cdb_byte(1) & 0x1F == op::SAI_GET_LBA_STATUS => 0,
            _ => return,
        };
        cmd.set_data_len(blocks.checked_shl(shift).unwrap_or(u64::MAX));
    }

    /// Byte position of the command's first block; `None` when it goes beyond the end of the device.
    #[inline]
    fn position(&self, cmd: &Cmd) -> Option<u64> {
        if cmd
            .info()
            .is_some_and(|i| i.flags.contains(CdbFlags::LBA_NOT_VALID))
        {
            return Some(0);
        }
        let shift = u32::from(Vdisk::block_shift(self));
        let pos = cmd
            .lba()
            .checked_shl(shift)
            .filter(|p| p.checked_shr(shift) == Some(cmd.lba()))?;
        let end = pos.checked_add(cmd.data_len())?;
        (end <= self.size_bytes()).then_some(pos)
    }

    #[inline]
    fn exec_on(&self, store: &Store, cmd: Box<Cmd>, cx: ExecContext) -> ExecRes {
        match cmd.cdb_byte(0) {
            op::READ_10 | op::READ_16 | op::READ_6 | op::READ_12 => self.exec_read(store, cmd, cx),
            op::WRITE_10 | op::WRITE_16 | op::WRITE_6 | op::WRITE_12 => {
                self.exec_write(store, cmd, cx)
            }
            _ => self.exec_other(store, cmd, cx),
        }
    }

    /// What a command is told whose blocks are not there.
    /// DIFFERS: a device whose backing store is closed is NOT READY, for TEST UNIT READY too; SCST panics (fileio) or
    /// says NO MEDIUM (blockio).
    #[cold]
    fn range_sense(&self) -> sense::Sense {
        match &*self.store() {
            Store::Closed => sense::NOT_READY,
            Store::Cd(c) if c.is_empty() => sense::NO_MEDIUM,
            _ => sense::BLOCK_OUT_RANGE,
        }
    }

    /// How much of the data-out that the CDB asks for has come, in whole blocks.
    /// DIFFERS: SCST writes a part of a block to a file, and fails for a block device.
    #[inline]
    fn data_out_len(&self, cmd: &Cmd) -> usize {
        self.whole_blocks(usize_of(cmd.write_len().min(cmd.bufflen())).min(cmd.sg().len()))
    }

    /// Whole blocks in `n` bytes.
    #[inline]
    fn blocks(&self, n: usize) -> u64 {
        u64::try_from(n)
            .unwrap_or(u64::MAX)
            .checked_shr(u32::from(Vdisk::block_shift(self)))
            .unwrap_or(0)
    }

    #[inline]
    fn whole_blocks(&self, n: usize) -> usize {
        let block = 1usize
            .checked_shl(u32::from(Vdisk::block_shift(self)))
            .unwrap_or(1);
        n.saturating_sub(n & block.saturating_sub(1))
    }

    #[inline]
    fn exec_read(&self, store: &Store, mut cmd: Box<Cmd>, cx: ExecContext) -> ExecRes {
        let Some(pos) = self.position(&cmd) else {
            cmd.set_sense(self.range_sense());
            return ExecRes::Completed(cmd);
        };
        let len = usize_of(cmd.bufflen());
        if len == 0 {
            return ExecRes::Completed(cmd);
        }
        if cx == ExecContext::Atomic {
            // Counted once, when it comes.
            self.counters.read(self.blocks(len));
        }
        match store {
            Store::File(f) => return self.read_file(f, cmd, cx, pos, len),
            Store::Cd(c) => match c.medium() {
                Some(f) => return self.read_file(&f, cmd, cx, pos, len),
                None => cmd.set_sense(sense::NO_MEDIUM),
            },
            // What was lent is the answer.
            Store::Block(_) if cmd.sg().has_lent() => {}
            Store::Block(b) => return b.submit(cmd, BioOp::Read, pos, len, ReqFlags::LEND),
            // Zeros were lent; a buffer that somebody else allocated has to be filled.
            // DIFFERS: without `read_zero`, SCST gives whatever was in the buffer's memory.
            Store::Null => {
                let _ = cmd.sg_mut().fill(0, len, 0);
            }
            Store::Closed => cmd.set_sense(sense::NOT_READY),
        }
        ExecRes::Completed(cmd)
    }

    #[inline]
    fn read_file(
        &self,
        f: &FileStore,
        mut cmd: Box<Cmd>,
        cx: ExecContext,
        pos: u64,
        len: usize,
    ) -> ExecRes {
        let r = match cx {
            ExecContext::Atomic => match f.read_inline(pos, cmd.sg_mut(), len) {
                Inline::Done(r) => r,
                Inline::WouldBlock => return engine_or_thread(f, cmd, IoOp::Read, pos, len),
            },
            ExecContext::Thread => f.read_sync(pos, cmd.sg_mut(), len),
        };
        if let Err(e) = r {
            kshim::pr_err_ratelimited!("{}: read at {pos} failed: {e}", self.name());
            apply(&mut cmd, read_outcome(e));
        }
        ExecRes::Completed(cmd)
    }

    #[inline]
    fn exec_write(&self, store: &Store, mut cmd: Box<Cmd>, cx: ExecContext) -> ExecRes {
        let Some(pos) = self.position(&cmd) else {
            cmd.set_sense(self.range_sense());
            return ExecRes::Completed(cmd);
        };
        let len = self.data_out_len(&cmd);
        if len == 0 {
            return ExecRes::Completed(cmd);
        }
        if cx == ExecContext::Atomic {
            self.counters.written(self.blocks(len));
        }
        let durable = self.wants_durable(&cmd);
        match store {
            Store::File(f) => {
                let r = match cx {
                    ExecContext::Atomic if durable && !f.flushes_ranges() => {
                        return engine_or_thread(f, cmd, IoOp::WriteDurable, pos, len);
                    }
                    ExecContext::Atomic => match f.write_inline(pos, cmd.sg(), len) {
                        Inline::Done(Ok(())) if durable => {
                            f.submit(cmd, IoOp::FlushRange, pos, len);
                            return ExecRes::Pending;
                        }
                        Inline::Done(r) => r,
                        Inline::WouldBlock => {
                            let op = if durable {
                                IoOp::WriteDurable
                            } else {
                                IoOp::Write
                            };
                            return engine_or_thread(f, cmd, op, pos, len);
                        }
                    },
                    ExecContext::Thread => f.write_sync(pos, cmd.sg(), len, durable),
                };
                if let Err(e) = r {
                    kshim::pr_err_ratelimited!("{}: write at {pos} failed: {e}", self.name());
                    apply(&mut cmd, write_outcome(e));
                }
            }
            Store::Block(b) => {
                let fua = if durable {
                    ReqFlags::FUA
                } else {
                    ReqFlags::empty()
                };
                return b.submit(cmd, BioOp::Write, pos, len, fua);
            }
            Store::Null => {}
            Store::Cd(_) => cmd.set_sense(sense::WRITE_PROTECTED),
            Store::Closed => cmd.set_sense(sense::NOT_READY),
        }
        ExecRes::Completed(cmd)
    }

    /// FUA, or a device without a volatile cache.
    #[inline]
    fn wants_durable(&self, cmd: &Cmd) -> bool {
        let fua = cmd.cdb_byte(0) != op::WRITE_6 && cmd.cdb_byte(1) & FUA != 0;
        self.is_write_through() || fua && self.needs_flush()
    }

    /// Everything but plain reads and writes.
    fn exec_other(&self, store: &Store, mut cmd: Box<Cmd>, cx: ExecContext) -> ExecRes {
        let Some(pos) = self.position(&cmd) else {
            cmd.set_sense(self.range_sense());
            return ExecRes::Completed(cmd);
        };
        if matches!(store, Store::Closed) && !works_without_medium(&cmd) {
            cmd.set_sense(sense::NOT_READY);
            return ExecRes::Completed(cmd);
        }
        if matches!(store, Store::Cd(c) if c.is_empty()) && cmd.cdb_byte(0) != op::INQUIRY {
            cmd.set_sense(sense::NO_MEDIUM);
            return ExecRes::Completed(cmd);
        }
        match cmd.cdb_byte(0) {
            op::SYNCHRONIZE_CACHE_10 | op::SYNCHRONIZE_CACHE_16 => {
                let immed = cmd.cdb_byte(1) & IMMED != 0;
                self.exec_flush(store, cmd, cx, immed)
            }
            op::START_STOP => self.exec_flush(store, cmd, cx, false),
            op::COMPARE_AND_WRITE => caw::exec(self, cmd, pos, cx),
            op::MODE_SELECT | op::MODE_SELECT_10 | op::LOG_SENSE => self.exec_slow(cmd, cx),
            op::SERVICE_ACTION_IN_16 if cmd.cdb_byte(1) & 0x1F == op::SAI_GET_LBA_STATUS => {
                self.exec_slow(cmd, cx)
            }
            op::FORMAT_UNIT => self.exec_format(cmd, cx),
            op::PRE_FETCH_10 | op::PRE_FETCH_16 => self.exec_prefetch(cmd, cx, pos),
            op::VERIFY_10
            | op::VERIFY_12
            | op::VERIFY_16
            | op::WRITE_VERIFY_10
            | op::WRITE_VERIFY_12
            | op::WRITE_VERIFY_16
            | op::WRITE_SAME_10
            | op::WRITE_SAME_16
            | op::ORWRITE_16
            | op::UNMAP => self.exec_medium(store, cmd, cx, pos),
            _ => {
                if let Err(f) = self.emulate(&mut cmd) {
                    apply(&mut cmd, f.into());
                }
                ExecRes::Completed(cmd)
            }
        }
    }

    /// Makes data durable. With IMMED the command completes first; a failure then shows at the next flush.
    #[doc(alias = "vdisk_fsync")]
    fn exec_flush(
        &self,
        store: &Store,
        mut cmd: Box<Cmd>,
        cx: ExecContext,
        immed: bool,
    ) -> ExecRes {
        if !self.needs_flush() {
            return ExecRes::Completed(cmd);
        }
        match store {
            Store::Block(b) if immed => {
                b.flush_in_background();
                ExecRes::Completed(cmd)
            }
            Store::Block(b) => b.submit(cmd, BioOp::Flush, 0, 0, ReqFlags::empty()),
            Store::File(f) => match cx {
                ExecContext::Atomic if immed && f.has_engine() => {
                    f.flush_in_background();
                    ExecRes::Completed(cmd)
                }
                ExecContext::Atomic => engine_or_thread(f, cmd, IoOp::Flush, 0, 0),
                ExecContext::Thread if immed => {
                    cmd_done(cmd);
                    f.flush_in_background();
                    ExecRes::Pending
                }
                ExecContext::Thread => {
                    if let Err(e) = f.flush() {
                        kshim::pr_err_ratelimited!("{}: flush failed: {e}", self.name());
                        apply(&mut cmd, write_outcome(e));
                    }
                    ExecRes::Completed(cmd)
                }
            },
            Store::Null | Store::Closed | Store::Cd(_) => ExecRes::Completed(cmd),
        }
    }

    /// Commands that read or write the medium for long: by the engine where it can, else on a thread.
    fn exec_medium(&self, store: &Store, mut cmd: Box<Cmd>, cx: ExecContext, pos: u64) -> ExecRes {
        let lane = match cx {
            ExecContext::Thread => None,
            ExecContext::Atomic => match planned(&cmd).and_then(|reads| Lane::of(store, reads)) {
                None => return ExecRes::NeedThread(cmd),
                lane => lane,
            },
        };
        if cmd.charge_scratch(scratch_len(&cmd)).is_err() {
            cmd.set_busy();
            return ExecRes::Completed(cmd);
        }
        // The buffer leaves the command for the time, so that the abort flag can be watched.
        let mut data = std::mem::take(cmd.sg_mut());
        data.truncate(usize_of(cmd.write_len().min(cmd.bufflen())));
        let aborted = || cmd.is_aborted();
        let medium = self.medium(store, &aborted);
        let result = match (self.plan(&medium, &cmd, pos, &data), lane) {
            (Ok(Some(mut plan)), Some(lane)) => {
                plan.data = data;
                return walk::start(cmd, plan, lane);
            }
            (Ok(Some(mut plan)), None) => {
                plan.data = data;
                let result = medium.run(&mut plan);
                data = plan.data;
                result
            }
            (Ok(None), _) => self.change_medium_data(&medium, &cmd, pos, &mut data),
            (Err(outcome), _) => Err(outcome),
        };
        *cmd.sg_mut() = data;
        if let Err(outcome) = result {
            apply(&mut cmd, outcome);
        }
        ExecRes::Completed(cmd)
    }

    /// What VERIFY, WRITE SAME and UNMAP do. `None`: another command.
    fn plan(
        &self,
        medium: &Medium<'_>,
        cmd: &Cmd,
        pos: u64,
        data: &SGTable,
    ) -> std::result::Result<Option<Plan>, Outcome> {
        let (cdb, len) = (cmd.cdb(), cmd.data_len());
        match cmd.cdb_byte(0) {
            op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 => {
                let bytchk = cmd.cdb_byte(1) & BYTCHK != 0;
                medium.verify(pos, len, bytchk.then_some(data))
            }
            op::WRITE_SAME_10 | op::WRITE_SAME_16 => {
                let len_off = cmd.info().map_or(0, |i| i.len_off());
                // DIFFERS: SCST takes more than one block, and leaves the rest.
                if cmd.expected_transfer_len() > cmd.bufflen() {
                    Err(sense::PARAMETER_LIST_LENGTH_INVALID.into())
                } else {
                    medium.write_same(cdb, len_off, pos, len, data)
                }
            }
            op::UNMAP => medium.unmap(cdb, usize_of(cmd.bufflen()), data),
            _ => return Ok(None),
        }
        .map(Some)
    }

    /// ORWRITE, and WRITE AND VERIFY. Context: may sleep.
    fn change_medium_data(
        &self,
        medium: &Medium<'_>,
        cmd: &Cmd,
        pos: u64,
        data: &mut SGTable,
    ) -> std::result::Result<(), Outcome> {
        let n = self.whole_blocks(data.len());
        data.truncate(n);
        if cmd.cdb_byte(0) == op::ORWRITE_16 {
            return medium.or_write(pos, data, self.wants_durable(cmd));
        }
        let durable = self.is_write_through();
        let written = medium.store.write(pos, data, n, durable);
        written.map_err(write_outcome)?;
        let mut plan = medium.verify(pos, cmd.data_len(), Some(data))?;
        plan.data = std::mem::take(data);
        let result = medium.run(&mut plan);
        *data = plan.data;
        result
    }

    pub(super) fn medium<'a>(
        &'a self,
        store: &'a Store,
        aborted: &'a dyn Fn() -> bool,
    ) -> Medium<'a> {
        Medium {
            store,
            block_shift: Vdisk::block_shift(self),
            nblocks: self.nblocks(),
            thin_provisioned: self.features().thin_provisioned,
            max_write_same_len: self.limits().max_write_same_len,
            unmap_max_lba_cnt: self.limits().unmap_max_lba_cnt,
            durable: self.is_write_through(),
            needs_flush: self.needs_flush(),
            aborted,
        }
    }

    /// Closes the backing store when no command is on the device. Context: may sleep.
    fn shut(&self, dev: &Device) {
        // The command that asks for the change is alone on its device, and stays there until it is carried out.
        let alone = dev.stpg_under_way.load(Ordering::Acquire);
        if !alone {
            dev.block.block_and_drain();
        }
        self.deactivate();
        if !alone {
            for cmd in dev.block.unblock() {
                let _ = cmd.go_home();
            }
        }
    }

    /// Whether the backing store is open in active states only.
    fn follows_alua_state(&self) -> bool {
        matches!(self.kind(), VdiskKind::Fileio | VdiskKind::Blockio) && self.binds_alua_state()
    }

    /// Commands that are answered from the device's state.
    fn emulate(&self, cmd: &mut Cmd) -> std::result::Result<(), Fault> {
        let code = cmd.cdb_byte(0);
        let sa = cmd.cdb_byte(1) & 0x1F;
        let mut out = Reply::new();
        match code {
            op::TEST_UNIT_READY if self.store().is_lost() => {
                return Err(sense::ALUA_STANDBY.into());
            }
            op::TEST_UNIT_READY | op::SEND_DIAGNOSTIC => return Ok(()),
            op::PREVENT_ALLOW_MEDIUM => {
                let prevent = cmd.cdb_byte(4) & 1 != 0;
                self.prevent_medium_removal
                    .store(prevent, Ordering::Relaxed);
                return Ok(());
            }
            // Nothing of the log can be set.
            op::LOG_SELECT => return Err(Fault::cdb(2, Some(0))),
            op::READ_CAPACITY => self.read_capacity(cmd.cdb(), &mut out)?,
            op::READ_TOC if self.kind() == VdiskKind::Vcdrom => {
                cdrom::read_toc(self.nblocks(), cmd.cdb(), &mut out)?;
            }
            // SEND KEY and REPORT KEY have these codes here.
            op::MAINTENANCE_IN | op::MAINTENANCE_OUT if self.kind() == VdiskKind::Vcdrom => {
                return Err(sense::HARDW_ERROR.into());
            }
            op::SERVICE_ACTION_IN_16 if sa == op::SAI_READ_CAPACITY_16 => {
                self.read_capacity16(cmd.cdb(), &mut out)?;
            }
            op::SERVICE_ACTION_IN_16 => return Err(Fault::cdb(1, Some(0))),
            op::MAINTENANCE_IN => return self.maintenance_in(cmd, sa),
            op::MAINTENANCE_OUT if sa == op::MO_SET_TIMESTAMP => {
                if self.clock.set(&param_list(cmd)?)?
                    && let Some(t) = cmd.tgt_dev()
                {
                    t.dev.check_set_ua(sense::TIMESTAMP_CHANGED, Some(t));
                }
                return Ok(());
            }
            op::WRITE_BUFFER | op::READ_BUFFER => return Self::buffer(cmd),
            op::READ_DEFECT_DATA_10 | op::READ_DEFECT_DATA_12 => {
                misc::read_defect_data(cmd.cdb(), &mut out);
            }
            op::MAINTENANCE_OUT => return Err(sense::HARDW_ERROR.into()),
            // Without room for an answer SCST looks at nothing else in these.
            op::INQUIRY | op::MODE_SENSE | op::MODE_SENSE_10 | op::REQUEST_SENSE
                if cmd.bufflen() == 0 => {}
            op::INQUIRY => self.inquiry(&port_info(cmd), cmd.cdb(), &mut out)?,
            op::MODE_SENSE | op::MODE_SENSE_10 => {
                let current = cmd
                    .device()
                    .map(|d| control_bits(&d.control))
                    .unwrap_or_default();
                let read_only = cmd.tgt_dev().is_some_and(|t| t.is_read_only());
                self.mode_sense(current, read_only, cmd.cdb(), &mut out)?;
            }
            op::REQUEST_SENSE => {
                let d_sense = cmd
                    .device()
                    .is_some_and(|d| d.control.d_sense.load(Ordering::Relaxed));
                let mut data = Vec::with_capacity(sense::STANDARD_SENSE_LEN);
                match self.format.progress() {
                    Some(p) => {
                        let extra = SenseExtra::Progress(p);
                        sense::build(&mut data, d_sense, sense::FORMAT_IN_PROGRESS, extra);
                    }
                    None => {
                        sense::build(&mut data, d_sense, sense::NO_SENSE_DATA, SenseExtra::None);
                    }
                }
                out.put(0, &data);
            }
            _ => return Err(sense::INVALID_OPCODE.into()),
        }
        if cmd.bufflen() != 0 {
            cmd.fill_response(out.as_slice());
        }
        Ok(())
    }

    /// READ BUFFER and WRITE BUFFER: the echo buffer of the nexus.
    fn buffer(cmd: &mut Cmd) -> std::result::Result<(), Fault> {
        let nexus = cmd.tgt_dev().ok_or(sense::INTERNAL_FAILURE)?;
        if cmd.cdb_byte(0) == op::WRITE_BUFFER {
            return misc::write_echo(nexus, cmd.cdb(), param_list(cmd)?);
        }
        let mut data = Vec::new();
        misc::read_echo(nexus, cmd.cdb(), &mut data)?;
        if cmd.bufflen() != 0 {
            cmd.fill_response(&data);
        }
        Ok(())
    }

    fn maintenance_in(&self, cmd: &mut Cmd, sa: u8) -> std::result::Result<(), Fault> {
        let mut data = Vec::new();
        match sa {
            op::MI_REPORT_SUPPORTED_OPERATION_CODES => {
                let explicit = cmd
                    .device()
                    .is_some_and(|d| d.expl_alua.load(Ordering::Relaxed));
                let table = if explicit {
                    rsoc::VDISK_EXPL_ALUA
                } else {
                    rsoc::VDISK
                };
                rsoc::report_supported_opcodes(table, cmd.cdb(), &mut data)?;
            }
            op::MI_REPORT_SUPPORTED_TASK_MANAGEMENT_FUNCTIONS => {
                rsoc::report_supported_tmfs(cmd.cdb(), &mut data);
            }
            op::MI_REPORT_TIMESTAMP => {
                let mut out = Reply::new();
                self.clock.report(&mut out);
                data.extend_from_slice(out.as_slice());
            }
            _ => return Err(sense::HARDW_ERROR.into()),
        }
        if cmd.bufflen() != 0 {
            cmd.fill_response(&data);
        }
        Ok(())
    }
}

/// Whether a command is carried out by a plan, and that reads.
fn planned(cmd: &Cmd) -> Option<bool> {
    match cmd.cdb_byte(0) {
        op::VERIFY_10 | op::VERIFY_12 | op::VERIFY_16 => Some(true),
        op::WRITE_SAME_10 | op::WRITE_SAME_16 | op::UNMAP => Some(false),
        _ => None,
    }
}

/// What cannot be done without waiting.
#[inline]
fn engine_or_thread(f: &FileStore, cmd: Box<Cmd>, op: IoOp, pos: u64, len: usize) -> ExecRes {
    if f.has_engine() {
        f.submit(cmd, op, pos, len);
        ExecRes::Pending
    } else {
        ExecRes::NeedThread(cmd)
    }
}

/// Commands that a device answers during a format (the core answers REPORT LUNS).
fn works_while_formatting(cmd: &Cmd) -> bool {
    matches!(cmd.cdb_byte(0), op::INQUIRY | op::REQUEST_SENSE)
}

/// Commands that a device answers whose backing store is closed.
#[doc(alias = "vdisk_no_fd_allowed_commands")]
fn works_without_medium(cmd: &Cmd) -> bool {
    match cmd.cdb_byte(0) {
        op::INQUIRY
        | op::MODE_SENSE
        | op::MODE_SENSE_10
        | op::READ_CAPACITY
        | op::REQUEST_SENSE
        | op::MODE_SELECT
        | op::MODE_SELECT_10
        | op::READ_BUFFER
        | op::WRITE_BUFFER
        | op::LOG_SELECT
        | op::LOG_SENSE
        | op::SEND_DIAGNOSTIC
        | op::MAINTENANCE_IN
        | op::MAINTENANCE_OUT => true,
        op::SERVICE_ACTION_IN_16 => cmd.cdb_byte(1) & 0x1F == op::SAI_READ_CAPACITY_16,
        _ => false,
    }
}
