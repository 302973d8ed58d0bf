//! The SCSI target core of SCST.
#![forbid(unsafe_code)]
