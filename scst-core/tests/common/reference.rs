//! The configuration that conversations with kernel SCST were recorded with, and the notation of their data.
#![allow(dead_code, unreachable_pub)] // each test file uses its part

use scst_core::dev_handlers::vdisk::{Vdisk, VdiskKind, VdiskParams};
use std::path::Path;
use std::sync::Arc;

pub const MIB: u64 = 1 << 20;

/// Bytes in hexadecimal.
fn hex(s: &str) -> Vec<u8> {
    (0..s.len() / 2)
        .map(|i| u8::from_str_radix(&s[2 * i..2 * i + 2], 16).expect("hex"))
        .collect()
}

fn file_disk(dir: &Path, name: &str, size: u64, more: &[(&str, &str)]) -> Arc<Vdisk> {
    let path = dir.join(name);
    let options = kshim::fs::OpenOptions::new().create(true);
    kshim::fs::File::open(&path, &options)
        .and_then(|f| f.set_size(size))
        .expect("scratch file");
    let mut params = vec![("filename", path.to_str().expect("text"))];
    params.extend_from_slice(more);
    let mut params = VdiskParams::parse(VdiskKind::Fileio, &params).expect("known parameters");
    params.state_dir = Some(dir.join("state"));
    Vdisk::new(name, &params).expect("device")
}

/// The configuration that the conversations were recorded with, without the CD-ROM.
pub fn reference_disks(dir: &Path, ram: &str) -> Vec<(Arc<Vdisk>, bool)> {
    let params = |kind, p: &[_]| {
        let mut p = VdiskParams::parse(kind, p).expect("known parameters");
        p.state_dir = Some(dir.join("state"));
        p
    };
    let block = params(VdiskKind::Blockio, &[("filename", ram)]);
    let null = params(VdiskKind::Nullio, &[("size_mb", "1024")]);
    vec![
        (
            file_disk(dir, "disk0", 100 * MIB, &[("thin_provisioned", "1")]),
            false,
        ),
        (Vdisk::new("disk1", &block).expect("device"), false),
        (Vdisk::new("disk2", &null).expect("device"), false),
        (
            file_disk(dir, "disk3", 64 * MIB, &[("read_only", "1")]),
            true,
        ),
        (
            file_disk(
                dir,
                "disk4",
                100 * MIB,
                &[("blocksize", "4096"), ("thin_provisioned", "1")],
            ),
            false,
        ),
    ]
}

/// Data in the notation of the file.
pub fn data(spec: &str) -> Vec<u8> {
    if spec == "-" {
        return Vec::new();
    }
    let part = |p: &str| match p.split_once('*') {
        Some(("seq", n)) => (0..n.parse::<usize>().expect("length"))
            .map(|i| (7 * i + i / 256) as u8)
            .collect(),
        Some((byte, n)) => vec![hex(byte)[0]; n.parse().expect("length")],
        None => hex(p),
    };
    spec.split('+').flat_map(part).collect()
}
