//! The driver of `docs/porting-a-driver.md` is what the guide prints, is short, and serves a LUN.

use std::fs;
use std::path::{Path, PathBuf};

use scst_tests::scsi;
use scst_tests::server::example;
use scst_tests::{Command, Rng, Server, ServerOptions};

const BLOCK: usize = 512;

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

#[test]
fn the_guide_prints_the_driver() {
    let guide = fs::read_to_string(top().join("docs/porting-a-driver.md")).unwrap();
    let driver = fs::read_to_string(top().join("examples/driver.rs")).unwrap();
    assert!(driver.lines().count() < 100);
    let printed = format!("<!-- driver -->\n\n```rust,ignore\n{driver}```\n\n<!-- end -->");
    assert!(
        guide.contains(&printed),
        "copy examples/driver.rs into the guide"
    );
}

#[test]
fn the_driver_of_the_guide_serves_a_lun() {
    if Server::is_external() {
        return;
    }
    let mut options = ServerOptions::lun("/dev/xor/a?size=4M&key=7");
    options.program = Some(example("driver"));
    let server = Server::start_own(&options);
    let (mut s, lun) = (server.session(1), server.lun(0));
    let mut rng = Rng::from_env(3);
    // What was never written is zeros of the memory below.
    s.expect_blocks(lun, 100, &[7; BLOCK]);
    for blocks in [1, 8, 9, 700] {
        let lba = rng.below(7000);
        let data = rng.bytes(blocks * BLOCK);
        s.write_blocks(lun, lba, &data).unwrap();
        s.expect_blocks(lun, lba, &data);
    }
    let sync = Command::new(lun, scsi::synchronize_cache10());
    s.scsi(&sync).unwrap().good();
    s.assert_clean();
    s.close().unwrap();
    assert!(server.stop().success());
    options.luns = vec!["/dev/xor/a?colour=red".to_owned()];
    assert!(Server::try_start(&options).is_err());
}
