//! Bdevs of SPDK behind the wire. Only with a server that is built with SPDK (`docs/spdk.md`):
//! `cargo build --features spdk`, and `SCST_TEST_SCSTD=$PWD/target/debug/scstd cargo test -p scst-tests --test spdk`.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use scst_tests::server::scstd;
use scst_tests::tools::{require_qemu_img, run};
use scst_tests::{Command, Rng, Server, ServerOptions, Session, scsi};

const LIMIT: Duration = Duration::from_secs(60);
const BLOCK: usize = 512;
const LUN_BYTES: usize = 32 << 20;
const BDEVS: [&str; 2] = ["Mem", "File"];

/// Whether the server is built with SPDK; loud if not.
fn ready() -> bool {
    if Server::is_external() {
        return false;
    }
    let args = ["serve", "/dev/spdk/x", "--portal", "127.0.0.1:0"];
    let said = run(scstd(), &args, LIMIT).stderr;
    if !said.contains("built without SPDK") {
        return true;
    }
    // Straight to stderr, past the test harness, which would swallow it.
    let text = "\n*** TEST NOT RUN: the server is built without SPDK (docs/spdk.md) ***\n\n";
    std::io::stderr().write_all(text.as_bytes()).unwrap();
    false
}

/// A folder with a configuration of SPDK (memory, and a file by Linux AIO), and the paths in it.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let near = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir_in(near.parent().unwrap()).unwrap();
        let place = Self { dir };
        let file = fs::File::create(place.at("disk")).unwrap();
        file.set_len(LUN_BYTES as u64).unwrap();
        let config = r#"{"subsystems":[{"subsystem":"bdev","config":[
            {"method":"bdev_malloc_create","params":{"name":"Mem","num_blocks":65536,"block_size":512}},
            {"method":"bdev_aio_create","params":{"name":"File","filename":"DISK","block_size":512,"fallocate":true}}]}]}"#;
        let config = config.replace("DISK", place.at("disk").to_str().unwrap());
        fs::write(place.at("spdk.json"), config).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn server(&self) -> Server {
        let text = |name| self.at(name).to_str().unwrap().to_owned();
        let lun = |n: usize| format!("/dev/spdk/{}", BDEVS[n]);
        let options = ServerOptions::lun(lun(0)).and(lun(1)).cpus(2);
        let options = options.arg("--spdk-config").arg(&text("spdk.json"));
        Server::start(&options.arg("--spdk-rpc").arg(&text("rpc")))
    }

    fn rpc(&self, method: &str, params: &str) -> String {
        let mut s = UnixStream::connect(self.at("rpc")).unwrap();
        s.set_read_timeout(Some(LIMIT)).unwrap();
        let call =
            format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\",\"params\":{params}}}");
        s.write_all(call.as_bytes()).unwrap();
        let mut buf = [0; 4096];
        let n = s.read(&mut buf).unwrap();
        String::from_utf8_lossy(&buf[..n]).into_owned()
    }
}

/// A session that has seen the unit attentions of both LUNs.
fn session(server: &Server) -> Session {
    let mut s = server.session(1);
    for lun in [server.lun(0), server.lun(1)] {
        let tur = Command::new(lun, scsi::test_unit_ready());
        s.scsi(&tur).unwrap();
    }
    s
}

/// Writes of all sizes, some with FUA, read back; `expected` is what is there.
fn write_and_read(s: &mut Session, lun: u16, expected: &mut [u8], rng: &mut Rng) {
    for n in 0..80 {
        let blocks = if n % 8 == 0 {
            1 + rng.below(4096)
        } else {
            1 + rng.below(64)
        };
        let lba = rng.below((LUN_BYTES / BLOCK) as u64 - blocks);
        let data = rng.bytes(blocks as usize * BLOCK);
        if n % 5 == 0 {
            let cdb = scsi::write16_fua(lba, blocks as u32);
            let fua = Command::write(lun, cdb, data.clone());
            s.scsi(&fua).unwrap().good();
        } else {
            s.write_blocks(lun, lba, &data).unwrap();
        }
        let start = lba as usize * BLOCK;
        expected[start..start + data.len()].copy_from_slice(&data);
        s.expect_blocks(lun, lba, &data);
    }
    let flush = Command::new(lun, scsi::synchronize_cache10());
    s.scsi(&flush).unwrap().good();
}

/// UNMAP of one range.
fn unmap(lun: u16, lba: u64, blocks: u32) -> Command {
    let mut list = vec![0, 22, 0, 16, 0, 0, 0, 0];
    list.extend(lba.to_be_bytes());
    list.extend(blocks.to_be_bytes());
    list.extend([0; 4]);
    Command::write(lun, vec![0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0], list)
}

#[test]
fn data_survives_foreign_initiators_and_a_restart() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let mut server = place.server();
    let mut rng = Rng::from_env(11);
    let mut all = [vec![0; LUN_BYTES], vec![0; LUN_BYTES]];
    for (n, expected) in (0..).zip(&mut all) {
        let mut s = session(&server);
        let lun = server.lun(n);
        assert_eq!(s.capacity(lun).unwrap(), ((LUN_BYTES / BLOCK) as u64, 512));
        write_and_read(&mut s, lun, expected, &mut rng);
        s.scsi(&unmap(lun, 1000, 2000)).unwrap().good();
        let ws = Command::write(lun, scsi::write_same16(5000, 3000), vec![0; BLOCK]);
        s.scsi(&ws).unwrap().good();
        expected[1000 * BLOCK..3000 * BLOCK].fill(0);
        expected[5000 * BLOCK..8000 * BLOCK].fill(0);
        s.expect_blocks(lun, 900, &expected[900 * BLOCK..3100 * BLOCK]);
        s.expect_blocks(lun, 4900, &expected[4900 * BLOCK..8100 * BLOCK]);
        s.assert_clean();
        drop(s);
        if let Some(qemu) = require_qemu_img() {
            let out = place.at("out.raw");
            let out = out.to_str().unwrap();
            let args = [
                "convert",
                "-q",
                "-f",
                "raw",
                "-O",
                "raw",
                &server.url(n),
                out,
            ];
            run(&qemu, &args, LIMIT).success();
            assert!(fs::read(out).unwrap() == *expected, "LUN {n} by qemu-img");
        }
    }
    // The file keeps what was written, also when the server is killed; memory does not.
    server.kill9();
    assert!(fs::read(place.at("disk")).unwrap() == all[1], "the file");
    let server = place.server();
    let mut s = session(&server);
    s.expect_blocks(server.lun(1), 0, &all[1][..1 << 20]);
    s.expect_blocks(server.lun(0), 0, &[0; 1 << 20]);
    drop(s);
    assert!(server.stop().success());
    assert!(!place.at("rpc").exists());
}

#[test]
fn a_bdev_that_is_removed_takes_nothing_with_it() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let server = place.server();
    let mut s = session(&server);
    let (mem, file) = (server.lun(0), server.lun(1));
    s.write_blocks(mem, 0, &[7; 4096]).unwrap();
    let said = place.rpc("bdev_malloc_delete", "{\"name\":\"Mem\"}");
    assert!(said.contains("true"), "{said}");
    for command in [
        Command::read(mem, scsi::read16(0, 8), 4096),
        Command::write(mem, scsi::write16(0, 8), vec![1; 4096]),
        Command::new(mem, scsi::synchronize_cache10()),
    ] {
        let reply = s.scsi(&command).unwrap();
        println!("{:?}", scsi::sense_code(&reply.sense));
        assert_eq!(reply.status, scsi::status::CHECK_CONDITION);
    }
    s.write_blocks(file, 8, &[9; 4096]).unwrap();
    s.expect_blocks(file, 8, &[9; 4096]);
    drop(s);
    assert!(server.stop().success());
}

#[test]
fn idle_costs_next_to_nothing() {
    if !ready() {
        return;
    }
    let place = Place::new();
    let server = place.server();
    let mut s = session(&server);
    for lun in [server.lun(0), server.lun(1)] {
        s.write_blocks(lun, 0, &[7; 65536]).unwrap();
    }
    let mut best = Duration::MAX;
    for _ in 0..3 {
        let before = server.cpu_time();
        std::thread::sleep(Duration::from_secs(2));
        best = best.min(server.cpu_time() - before);
        println!("{best:?} of CPU in 2 s");
        if best < Duration::from_millis(30) {
            return;
        }
    }
    panic!("an idle server used {best:?} of CPU in 2 s");
}
