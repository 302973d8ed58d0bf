//! Network block devices: what an NBD server exports, as a disk.
//!
//! A path `/dev/nbd/HOST[:PORT]/[EXPORT][?PARAMETER=VALUE&...]` is a disk while somebody has it open. The server is asked for
//! the export by its name, in the fixed newstyle handshake; whatever `qemu-nbd`, nbdkit or nbd-server can open becomes a disk.
//!
//! | parameter | default | |
//! |---|---|---|
//! | `connections` | 1 | connections, if the server allows several |
//! | `timeout` | 30 | seconds in which a request has to be answered; then the connection is given up and the request sent again, three times in all |
//! | `reconnect` | 60 | seconds for which requests wait when there is no connection; then they fail, and new ones at once, until there is one |
//! | `cache` | `writeback` | `writethrough`: each write is durable at the server when it ends |
//!
//! # When the server goes away
//!
//! Requests that it had not answered are sent again on another connection, or when it is back. What it *had* answered and not
//! yet made durable may have gone with it. The driver cannot know; when there were such writes, the next flush fails
//! with `EIO`, once, so that whoever relies on flushes learns of it. With `cache=writethrough` there are none.
//!
//! The export must still be what it was: as large, with the same abilities. A server that accepts connections and answers
//! nothing counts as one that is away. When it is seen to be larger, at a reconnection or by
//! [`BlockDevice::revalidate`](kshim::block::BlockDevice::revalidate), connections that know the old size are made anew, after a flush.
//!
//! # What is believed
//!
//! Nothing: each number from the server is checked, each length bounded. What does not fit the protocol ends the
//! connection.
//!
//! C source: `drivers/block/nbd.c`, where the handshake is `nbd-client`'s. Not ported: ioctls and netlink, TLS (a server
//! that insists on it is refused with `EOPNOTSUPP`), Unix sockets, the oldstyle handshake (`EPROTO`).
#![forbid(unsafe_code)]

mod conn;
mod disk;
mod handshake;
mod job;
mod proto;
mod shared;
mod spec;
mod stream;

pub use spec::{DEFAULT_PORT, MAX_CONNECTIONS};

use disk::Nbd;
use kshim::block::{class_dir, register_prober};
use kshim::prelude::*;

/// All paths below it are disks of this driver.
pub const PREFIX: &str = "/dev/nbd/";
/// Name of the driver's directory.
const DIR: &str = "nbd";

/// Makes the paths known to [`BlockDevice::open`](kshim::block::BlockDevice::open), and the driver's directory. Once in a
/// process.
///
/// Context: may sleep. Errors: as [`register_prober`] and [`class_dir`].
#[doc(alias = "nbd_init")]
pub fn init() -> Result {
    class_dir(DIR)?;
    register_prober(PREFIX, Arc::new(Nbd::probe))
}
