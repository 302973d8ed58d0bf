//! The block drivers of `ports/` behind the wire.

use std::fs;

use scst_tests::run_server::{As, RunOptions, RunServer, fuse_works};
use scst_tests::scsi::{self, status};
use scst_tests::session::Command;
use scst_tests::{Rng, Server, ServerOptions};

const BLOCK: usize = 512;

#[test]
fn brd_and_null_blk_are_served_and_fail_where_they_are_told_to() {
    if Server::is_external() {
        return;
    }
    let null = "/dev/null_blk/wire?size=8M&memory_backed=1&irqmode=timer&completion_nsec=20000\
                &cache_size=64K&discard=1&badblocks=+1024-1031";
    let options = ServerOptions::lun("/dev/brd/wire?rd_size=8M").and(null);
    let server = Server::start_own(&options);
    let mut rng = Rng::from_env(8);
    let mut s = server.session(1);
    for lun in [server.lun(0), server.lun(1)] {
        s.clear_ua(lun).unwrap();
        for blocks in [1usize, 8, 64, 500] {
            let lba = rng.below(500);
            let data = rng.bytes(blocks * BLOCK);
            s.write_blocks(lun, lba, &data).unwrap();
            s.expect_blocks(lun, lba, &data);
        }
        let sync = Command::new(lun, scsi::synchronize_cache10());
        assert!(s.scsi(&sync).unwrap().is_good());
    }
    let lun = server.lun(1);
    let read = Command::read(lun, scsi::read10(1020, 8), 8 * BLOCK as u32);
    let reply = s.scsi(&read).unwrap();
    assert_eq!(reply.status, status::CHECK_CONDITION);
    // MEDIUM ERROR, unrecovered read error.
    assert_eq!(reply.sense_code(), (3, 0x11, 0));
    s.assert_clean();
    s.close().unwrap();
    assert!(server.stop().success());
}

#[test]
fn the_tree_makes_disks_for_scst_to_serve() {
    if Server::is_external() || !fuse_works(As::Me) {
        return;
    }
    let block = tempfile::tempdir().unwrap();
    let options = RunOptions {
        sysfs: true,
        more: vec![
            "--block-sysfs".into(),
            block.path().to_str().unwrap().into(),
        ],
        ..RunOptions::default()
    };
    let mut server = RunServer::start(&options);
    let knob = |name: &str| block.path().join("null_blk").join(name);
    let add = "add_device d0 filename=/dev/null_blk/n0";
    let mgmt = server.sysfs("handlers/vdisk_blockio/mgmt");
    // Without knobs in the path it is what the tree has made, or a disk of the driver's defaults.
    fs::write(knob("mgmt"), "add n0 size=16M&memory_backed=1").unwrap();
    fs::write(&mgmt, add).unwrap();
    let size = fs::read_to_string(server.sysfs("devices/d0/size_mb")).unwrap();
    assert!(size.starts_with("16\n"), "{size}");
    assert_eq!(fs::read_to_string(knob("n0/size")).unwrap(), "32768\n");
    assert!(fs::write(knob("mgmt"), "del n0").is_err());
    fs::write(knob("n0/badblocks"), "+5-9").unwrap();
    assert_eq!(fs::read_to_string(knob("n0/badblocks")).unwrap(), "5 5\n");
    fs::write(&mgmt, "del_device d0").unwrap();
    fs::write(knob("mgmt"), "del n0").unwrap();
    assert!(!knob("n0").exists());
    // And with knobs.
    fs::write(
        &mgmt,
        "add_device d1 filename=/dev/null_blk/n1?size:32M&queue_mode:bio",
    )
    .unwrap();
    assert_eq!(fs::read_to_string(knob("n1/queue_mode")).unwrap(), "0\n");
    assert!(server.stop().success());
}
