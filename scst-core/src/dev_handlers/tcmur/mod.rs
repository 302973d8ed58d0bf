//! The handler `tcmur`: SCSI commands go as they are to whoever is behind a path.
//!
//! For devices that are more than blocks, as the zoned disks and optical drives of tcmu-runner's plug-ins
//! (`/dev/tcmur/zbc/...`). The core still does what it does for every device - LUNs, order, reservations, unit attentions,
//! REPORT LUNS - and decodes what its table knows; INQUIRY, mode pages, reads and writes are the device's own, and so
//! are their sense data. What the device does not know and needs no more than its size
//! is answered as tcmu-runner does.
//!
//! Neighbours: [`kshim::block::ScsiRequest`]; `backstores::tcmur` on the other side.
//!
//! C source: `scst_disk.c`, `scst_cdrom.c` of `scst/src/dev_handlers` do the same with the kernel's SCSI devices.

mod devtype;

use crate::cdb::{self, CdbFlags, opcodes as op};
use crate::cmd::{Cmd, ExecRes};
use crate::consts::{DataDirection, SamStatus, TYPE_DISK};
use crate::core::Core;
use crate::core::cmd_done;
use crate::dev_type::{DevHandler, ExecContext};
use crate::device::Device;
use crate::sense;
use crate::sysfs::text::{flag, line};
use kshim::block::{BlkMode, BlockDevice, ScsiDirection, ScsiEndIo, ScsiOutcome, ScsiRequest};
use kshim::error::{Error, Result, code};
use kshim::kobject::Attr;
use kshim::scatterlist::SGTable;
use kshim::sync::{Completion, SpinLock};
use std::any::Any;
use std::path::Path;
use std::sync::{Arc, Weak};

pub use devtype::dev_type;

/// Statuses of who is to come back.
const BUSY: u8 = SamStatus::Busy as u8;
const TASK_SET_FULL: u8 = SamStatus::TaskSetFull as u8;
/// Peripheral device type of host-managed zoned disks (ZBC). Their commands are a disk's, and two more.
const TYPE_ZBC: u8 = 0x14;
/// Types that the core's table has columns for.
const NR_TYPES: u8 = 16;
/// Zoned disks: CLOSE, FINISH, OPEN ZONE, RESET WRITE POINTER.
const ZBC_OUT: u8 = 0x94;
/// Zoned disks: REPORT ZONES.
const ZBC_IN: u8 = 0x95;
/// Standard INQUIRY data, as much as is looked at.
const INQUIRY_LEN: u8 = 36;
/// Device identification, as much as is looked at.
const PAGE_83_LEN: u8 = 252;

/// A device whose commands are executed elsewhere.
#[derive(Debug)]
pub struct Tcmur {
    me: Weak<Self>,
    bdev: Arc<BlockDevice>,
    name: String,
    /// Peripheral device type of its INQUIRY data.
    device_type: u8,
    block_shift: u8,
    read_only: bool,
    page_83: Vec<u8>,
}

impl Tcmur {
    /// Opens the device for this handler alone.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP`: who is behind the path takes no commands. `EINVAL`: a strange block size. `EIO`: INQUIRY fails. Others:
    /// those of [`BlockDevice::open`].
    pub fn open(name: &str, path: &Path, read_only: bool) -> Result<Arc<Self>> {
        let mut mode = BlkMode::READ | BlkMode::EXCL | BlkMode::PASSTHROUGH;
        if !read_only {
            mode |= BlkMode::WRITE;
        }
        let bdev = BlockDevice::open(path, mode)?;
        let block_shift = u8::try_from(bdev.limits().logical_block_size.trailing_zeros())?;
        let inquiry = read_wait(
            &bdev,
            vec![op::INQUIRY, 0, 0, 0, INQUIRY_LEN, 0],
            INQUIRY_LEN,
        )?;
        let device_type = inquiry.first().ok_or(code::EIO)? & 0x1F;
        let page = vec![op::INQUIRY, 1, 0x83, 0, PAGE_83_LEN, 0];
        let page_83 = read_wait(&bdev, page, PAGE_83_LEN).unwrap_or_default();
        kshim::pr_info!("Device {name}: type {device_type:#04x}, {}", path.display());
        Ok(Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            bdev,
            name: name.to_owned(),
            device_type,
            block_shift,
            read_only,
            page_83,
        }))
    }

    /// Bytes of the device.
    pub fn size_bytes(&self) -> u64 {
        self.bdev.capacity_bytes()
    }

    /// What the core cannot decode has the length that the initiator expects.
    #[cold]
    fn take_unknown(cmd: &mut Cmd) {
        let flags = match cmd.cdb_byte(0) {
            ZBC_IN => CdbFlags::WRITE_EXCL_ALLOWED | CdbFlags::SMALL_TIMEOUT,
            // Beyond reads nothing can be told: take it for what needs most care.
            _ => CdbFlags::WRITE_MEDIUM,
        };
        let known = cmd.cdb_byte(0) == ZBC_OUT || cmd.cdb_byte(0) == ZBC_IN;
        // Vendor-specific codes have no length by themselves; the core could not execute them.
        if !known && cdb::cdb_len(cmd.cdb_byte(0)) == 0 {
            cmd.set_sense(sense::INVALID_OPCODE);
            return;
        }
        cmd.take_as_expected(flags);
    }
}

/// Reads `len` bytes by a command of ours.
fn read_wait(bdev: &BlockDevice, cdb: Vec<u8>, len: u8) -> Result<Vec<u8>> {
    type Slot = (SpinLock<Option<(ScsiRequest, ScsiOutcome)>>, Completion);
    let slot: Arc<Slot> = Arc::new((SpinLock::new(None), Completion::new()));
    let theirs = Arc::clone(&slot);
    let end = move |req: ScsiRequest, outcome: ScsiOutcome| {
        *theirs.0.lock() = Some((req, outcome));
        theirs.1.complete();
    };
    let len = usize::from(len);
    let sg = SGTable::alloc_zeroed(len)?;
    let req = ScsiRequest::new(cdb, Arc::new(end)).with_data(ScsiDirection::FromDevice, sg, len);
    bdev.submit_scsi(req);
    slot.1.wait_for_completion();
    let (req, outcome) = slot.0.lock().take().ok_or(code::EIO)?;
    if outcome != ScsiOutcome::Good {
        return Err(code::EIO);
    }
    let mut data = vec![0; len.saturating_sub(req.resid)];
    req.sg.copy_to_slice(0, &mut data)?;
    Ok(data)
}

/// Hears of the end of a command.
struct CmdEndIo {
    bdev: Weak<BlockDevice>,
}

impl ScsiEndIo for CmdEndIo {
    fn scsi_done(&self, mut req: ScsiRequest, outcome: ScsiOutcome) {
        let Some(Ok(mut cmd)) = req.private.take().map(|p| p.downcast::<Cmd>()) else {
            kshim::warn_on!(true);
            return;
        };
        *cmd.sg_mut() = std::mem::take(&mut req.sg);
        let bdev = self.bdev.upgrade();
        finish(&mut cmd, &outcome, req.resid, bdev.as_deref());
        // Not kept while the command goes on: it may be the last that holds the device open.
        drop(bdev);
        cmd_done(cmd);
    }
}

/// Gives a command its result.
fn finish(cmd: &mut Cmd, outcome: &ScsiOutcome, resid: usize, bdev: Option<&BlockDevice>) {
    match outcome {
        ScsiOutcome::Good => {
            if cmd.data_direction() == DataDirection::Read {
                let resid = u32::try_from(resid).unwrap_or(u32::MAX);
                cmd.set_resp_data_len(cmd.bufflen().saturating_sub(resid));
            }
        }
        ScsiOutcome::Status(BUSY | TASK_SET_FULL) => cmd.set_busy(),
        ScsiOutcome::Status(_) => cmd.set_sense(sense::HARDW_ERROR),
        ScsiOutcome::Sense(data) => {
            let unknown = data.get(2).map(|k| k & 0xF) == Some(sense::key::ILLEGAL_REQUEST)
                && data.get(12..14) == Some(&[0x20, 0]);
            if !(unknown && bdev.is_some_and(|b| fallback(cmd, b))) {
                cmd.set_sense_data(data);
            }
        }
        ScsiOutcome::Failed(e) => failed(cmd, *e),
    }
}

fn failed(cmd: &mut Cmd, e: Error) {
    match e {
        code::EAGAIN | code::ENOMEM => cmd.set_busy(),
        code::ENODEV => cmd.set_sense(sense::NOT_READY),
        _ => cmd.set_sense(sense::HARDW_ERROR),
    }
}

/// Answers a command that the device does not know, if it is one that needs no more than the device's size. Returns whether.
fn fallback(cmd: &mut Cmd, bdev: &BlockDevice) -> bool {
    let answer: &[u8] = match cmd.cdb_byte(0) {
        op::READ_CAPACITY => {
            let block = bdev.limits().logical_block_size;
            let blocks = bdev
                .capacity_bytes()
                .checked_div(u64::from(block))
                .unwrap_or(0);
            let last = u32::try_from(blocks.saturating_sub(1)).unwrap_or(u32::MAX);
            let [a, b, c, d] = last.to_be_bytes();
            let [e, f, g, h] = block.to_be_bytes();
            &[a, b, c, d, e, f, g, h]
        }
        op::REQUEST_SENSE => &[0x70, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        op::START_STOP | op::SEND_DIAGNOSTIC | op::PREVENT_ALLOW_MEDIUM => &[],
        _ => return false,
    };
    if cmd.bufflen() != 0 && cmd.data_direction() == DataDirection::Read {
        cmd.fill_response(answer);
    }
    true
}

impl DevHandler for Tcmur {
    fn name(&self) -> &'static str {
        "tcmur"
    }

    fn type_code(&self) -> u8 {
        // The column of the table by which commands are decoded.
        match self.device_type {
            TYPE_ZBC => TYPE_DISK,
            t if t < NR_TYPES => t,
            _ => TYPE_DISK,
        }
    }

    fn block_shift(&self) -> u8 {
        self.block_shift
    }

    fn threads_num(&self) -> i32 {
        -1
    }

    fn attach_tgt(&self, tgt_dev: &crate::tgt_dev::TgtDev) -> Result {
        if self.read_only {
            tgt_dev
                .rd_only
                .store(true, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
    }

    fn parse(&self, cmd: &mut Cmd) {
        match cmd.info() {
            None => Self::take_unknown(cmd),
            Some(info) => {
                if let Err(s) = cdb::sbc_generic_parse(info, self.block_shift) {
                    cmd.set_sense(s);
                }
            }
        }
    }

    fn exec(&self, mut cmd: Box<Cmd>, _cx: ExecContext) -> ExecRes {
        let direction = match cmd.data_direction() {
            DataDirection::Read => ScsiDirection::FromDevice,
            DataDirection::Write => ScsiDirection::ToDevice,
            DataDirection::Bidi => {
                kshim::pr_warn_ratelimited!("{}: bidirectional command", self.name);
                cmd.set_sense(sense::INVALID_OPCODE);
                return ExecRes::Completed(cmd);
            }
            DataDirection::None | DataDirection::Unknown => ScsiDirection::None,
        };
        let len = match direction {
            ScsiDirection::None => 0,
            ScsiDirection::FromDevice => cmd.bufflen(),
            // What has come.
            ScsiDirection::ToDevice => cmd.bufflen().min(cmd.write_len()),
        };
        let end = CmdEndIo {
            bdev: Arc::downgrade(&self.bdev),
        };
        let sg = std::mem::take(cmd.sg_mut());
        let len = usize::try_from(len).unwrap_or(0).min(sg.len());
        let mut req =
            ScsiRequest::new(cmd.cdb().to_vec(), Arc::new(end)).with_data(direction, sg, len);
        req.private = Some(cmd);
        self.bdev.submit_scsi(req);
        ExecRes::Pending
    }

    fn sysfs_attrs(&self, _core: &Arc<Core>, _dev: &Arc<Device>) -> Vec<Attr> {
        let ro = |name: &str, show: fn(&Self) -> String| {
            let me = Weak::clone(&self.me);
            Attr::ro(name, move || {
                me.upgrade().map(|me| show(&me)).ok_or(code::ENODEV)
            })
        };
        vec![
            ro("filename", |d| line(d.bdev.path(), true)),
            ro("read_only", |d| flag(d.read_only, d.read_only)),
            ro("blocksize", |d| {
                line(d.bdev.limits().logical_block_size, false)
            }),
            ro("size", |d| line(d.size_bytes(), false)),
            ro("size_mb", |d| {
                line(d.size_bytes().checked_shr(20).unwrap_or(0), false)
            }),
        ]
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn device_identification(&self) -> Vec<u8> {
        self.page_83.clone()
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }
}
