//! The SCSI target core of SCST.
#![forbid(unsafe_code)]

pub mod cdb;
pub mod consts;
pub mod lun;
pub mod parking;
pub mod sense;
