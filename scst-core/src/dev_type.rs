//! What the core asks of a device handler.
//!
//! C source: `struct scst_dev_type` of `scst/include/scst.h`

use crate::alua::TgState;
use crate::cmd::{Cmd, ExecRes, ThreadsPoolType};
use crate::core::Core;
use crate::device::Device;
use crate::mgmt::MgmtCmd;
use crate::sense::{self, Sense};
use crate::tgt_dev::TgtDev;
use kshim::error::Result;
use kshim::kobject::Attr;
use kshim::scatterlist::SGTable;
use std::any::Any;
use std::sync::Arc;

/// Where `exec` runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExecContext {
    /// On a reactor: must not sleep; [`ExecRes::NeedThread`] is the way out.
    Atomic,
    /// On a thread of the device's pool: may sleep.
    Thread,
}

/// Who provides a command's data buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufAlloc {
    /// The core, from the SGV pool.
    Default,
    /// The handler has put it into the command (memory it lends).
    Done,
}

/// Why blocks could not be read or written for the core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoFault {
    /// It would have to sleep, where it must not: to be tried again on a thread.
    WouldBlock,
    /// No memory, or the like: worth a retry.
    Busy,
    /// CHECK CONDITION with this sense.
    Sense(Sense),
}

impl From<Sense> for IoFault {
    fn from(s: Sense) -> Self {
        Self::Sense(s)
    }
}

/// A device handler's instance for one device. Handlers are shared by all nexuses: every method takes `&self`.
#[doc(alias = "scst_dev_type")]
pub trait DevHandler: Send + Sync + 'static {
    /// The handler's name, as in `/sys/kernel/scst_tgt/handlers` (`vdisk_fileio`, ...).
    fn name(&self) -> &'static str;

    /// Peripheral device type (SPC-4 6.6.2).
    #[doc(alias = "type")]
    fn type_code(&self) -> u8;

    /// log2 of the logical block size, as the CDB decoder needs it to know lengths.
    fn block_shift(&self) -> u8;

    /// Threads of the device's own pool: negative for none (exec never sleeps; should it have to after all, the global
    /// pool helps), 0 for the global pool.
    fn threads_num(&self) -> i32 {
        0
    }

    /// Whether the device has one pool, or each of its nexuses.
    fn threads_pool_type(&self) -> ThreadsPoolType {
        ThreadsPoolType::default()
    }

    /// [`DevHandler::threads_num`] of a device that nobody set it for.
    fn default_threads_num(&self) -> i32 {
        0
    }

    /// Attributes of the device in the management tree, besides those that every device has. They may outlive neither: hold
    /// them weakly. Context: any.
    #[doc(alias = "dev_attrs")]
    fn sysfs_attrs(&self, _core: &Arc<Core>, _dev: &Arc<Device>) -> Vec<Attr> {
        Vec::new()
    }

    /// Called when the device has been registered; keeps what it needs of the core's device object.
    /// Context: may sleep.
    fn attach(&self, _dev: &Arc<Device>) -> Result {
        Ok(())
    }

    /// Called when the device has been unregistered and no command is left. Context: may sleep.
    fn detach(&self, _dev: &Device) {}

    /// A nexus begins to use the device. Context: may sleep.
    fn attach_tgt(&self, _tgt_dev: &TgtDev) -> Result {
        Ok(())
    }

    /// A nexus stops using the device. Context: may sleep.
    fn detach_tgt(&self, _tgt_dev: &TgtDev) {}

    /// Checks the decoded CDB against the device (range, lengths) and may correct the command's lengths.
    /// Fails it with [`Cmd::set_sense`]. Context: reactor.
    fn parse(&self, cmd: &mut Cmd);

    /// May lend memory as the command's data buffer ([`Cmd::sg_mut`]). Context: reactor.
    #[doc(alias = "dev_alloc_data_buf")]
    fn alloc_data_buf(&self, _cmd: &mut Cmd) -> BufAlloc {
        BufAlloc::Default
    }

    /// Executes the command. Status GOOD is preset; the response length is the buffer's for reads.
    /// Context: as `cx` says.
    fn exec(&self, cmd: Box<Cmd>, cx: ExecContext) -> ExecRes;

    /// Reads `len` bytes at byte `pos` into the beginning of `sg`, for a command that the core executes itself (COMPARE
    /// AND WRITE, EXTENDED COPY). Errors: out of range, and those of the device. A handler that does not implement this
    /// cannot take part in such commands. Context: as `cx` says.
    fn read_blocks(
        &self,
        _pos: u64,
        _sg: &mut SGTable,
        _len: usize,
        _cx: ExecContext,
    ) -> std::result::Result<(), IoFault> {
        Err(sense::INVALID_OPCODE.into())
    }

    /// Writes the first `len` bytes of `sg` at byte `pos`, with `fua` through to the medium; else as
    /// [`DevHandler::read_blocks`]. What `sg` holds afterwards is undefined if it fails.
    fn write_blocks(
        &self,
        _pos: u64,
        _sg: &mut SGTable,
        _len: usize,
        _fua: bool,
        _cx: ExecContext,
    ) -> std::result::Result<(), IoFault> {
        Err(sense::INVALID_OPCODE.into())
    }

    /// VPD page 83h without what depends on the port: by its designators EXTENDED COPY finds the device. Empty for none.
    /// Context: any.
    fn device_identification(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Whether the device can be written by nobody. Context: any.
    #[doc(alias = "dev_rd_only")]
    fn is_read_only(&self) -> bool {
        false
    }

    /// Whether the device has T10 protection information; then it is for targets alone that support it. Context: any.
    #[doc(alias = "dev_dif_mode")]
    fn has_protection(&self) -> bool {
        false
    }

    /// Makes the beginning of `len` bytes at byte `pos` of this device the same as what is at byte `src_pos` of another
    /// one (or of the same, where the ranges don't overlap), if it can without moving the data through the
    /// process. Answers how many bytes were done; the core copies the rest. Context: may sleep.
    fn ext_copy_remap(&self, _src: &dyn DevHandler, _src_pos: u64, _pos: u64, _len: u64) -> u64 {
        0
    }

    /// The handler as what it is, for handlers of the same kind that meet in [`DevHandler::ext_copy_remap`].
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }

    /// Whether another host has taken what the device serves: at ports here it is standby, whatever the state of their group.
    /// Context: any.
    fn is_lost(&self) -> bool {
        false
    }

    /// Whether the device is to be opened (again) by [`DevHandler::on_alua_state_change_start`] before it can serve in an active
    /// state. Context: any.
    fn needs_activation(&self) -> bool {
        false
    }

    /// The state of the device's port group is about to change; commands see the old one. One for the whole group,
    /// whatever the number of its ports. Old and new state are the same where the state is set again. Context: may sleep,
    /// under `scst_dg_mutex`.
    fn on_alua_state_change_start(&self, _dev: &Arc<Device>, _old: TgState, _new: TgState) {}

    /// The state of the device's port group has changed; new commands see the new one. Context: may sleep, under
    /// `scst_dg_mutex`.
    fn on_alua_state_change_finish(&self, _dev: &Arc<Device>, _old: TgState, _new: TgState) {}

    /// Last look at an executed command. Context: reactor.
    fn dev_done(&self, _cmd: &mut Cmd) {}

    /// A command with [`Cmd::dh_priv`] goes away. Context: reactor.
    fn on_free_cmd(&self, _cmd: &mut Cmd) {}

    /// Task management concerns this device; commands are already marked. Context: may sleep.
    fn task_mgmt_fn_received(&self, _mcmd: &MgmtCmd, _tgt_dev: &TgtDev) {}

    /// All commands that the function concerns have left the device. Context: may sleep.
    fn task_mgmt_fn_done(&self, _mcmd: &MgmtCmd, _tgt_dev: &TgtDev) {}
}
