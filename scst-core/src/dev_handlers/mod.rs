//! Device handlers: what executes commands behind a logical unit.
//!
//! [`vdisk`] has the virtual disks on a file (`vdisk_fileio`), on a block device (`vdisk_blockio`) and on nothing
//! (`vdisk_nullio`). [`tcmur`] passes commands on to who executes them. [`rsoc`] answers REPORT SUPPORTED OPERATION CODES and TASK MANAGEMENT FUNCTIONS for them.

pub mod rsoc;
pub mod tcmur;
pub mod vdisk;
