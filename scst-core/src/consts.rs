//! Constants of SCSI and of SCST that several modules share.
//!
//! C source: `scst/include/scst_const.h`

/// SCSI status codes (SAM-5 5.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum SamStatus {
    /// Completed without error.
    #[default]
    Good = 0x00,
    /// Sense data says what happened.
    CheckCondition = 0x02,
    /// The condition asked for by the command is met.
    ConditionMet = 0x04,
    /// The logical unit cannot take the command now.
    Busy = 0x08,
    /// Another nexus holds a reservation.
    ReservationConflict = 0x18,
    /// The task set is full for this nexus.
    TaskSetFull = 0x28,
    /// An auto contingent allegiance exists.
    AcaActive = 0x30,
    /// Aborted by another nexus, with TAS=1.
    TaskAborted = 0x40,
}

/// Task attributes (SAM-5 8.6), numbered as iSCSI numbers them (RFC 7143 11.3.1).
#[doc(alias = "scst_cmd_queue_type")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum QueueType {
    /// No attribute given; treated as SIMPLE.
    #[default]
    Untagged = 0,
    /// May be reordered with other SIMPLE tasks.
    Simple = 1,
    /// After all older tasks, before all younger ones.
    Ordered = 2,
    /// Before all tasks that wait.
    HeadOfQueue = 3,
    /// Only while the nexus that caused it has an ACA.
    Aca = 4,
}

/// Direction of the data of a command, as seen by the initiator.
#[doc(alias = "scst_data_direction")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataDirection {
    /// Not known (yet).
    #[default]
    Unknown,
    /// To the target.
    Write,
    /// To the initiator.
    Read,
    /// Both.
    Bidi,
    /// No data.
    None,
}

impl DataDirection {
    /// Whether data goes to the target.
    #[inline]
    pub fn has_write(self) -> bool {
        matches!(self, Self::Write | Self::Bidi)
    }

    /// Whether data goes to the initiator.
    #[inline]
    pub fn has_read(self) -> bool {
        matches!(self, Self::Read | Self::Bidi)
    }
}

/// Peripheral device type of a direct access block device (SPC-4 6.6.2).
pub const TYPE_DISK: u8 = 0x00;
/// Peripheral device type of a CD or DVD.
pub const TYPE_ROM: u8 = 0x05;
/// Longest CDB accepted (SPC-4 4.3.3: 8 + 252).
#[doc(alias = "SCST_MAX_LONG_CDB_SIZE")]
pub const MAX_CDB_SIZE: usize = 260;
/// Longest sense data kept for a command.
#[doc(alias = "SCST_SENSE_BUFFERSIZE")]
pub const SENSE_BUFFERSIZE: usize = 252;
/// Commands one nexus may have at one logical unit before BUSY or TASK SET FULL (`max_tgt_dev_commands`).
#[doc(alias = "SCST_DEF_MAX_TGT_DEV_COMMANDS")]
pub const DEF_MAX_TGT_DEV_COMMANDS: u32 = 64;
/// Longest name of a device or target.
#[doc(alias = "SCST_MAX_NAME")]
pub const MAX_NAME: usize = 64;
