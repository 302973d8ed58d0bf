//! The same verified I/O over the wire with each engine, through the page cache and with O_DIRECT.

use std::fs;
use std::path::{Path, PathBuf};

use kshim::kobject::control::Client;
use kshim::kobject::tree::TreeOps as _;
use scst_tests::rng::stamped_blocks;
use scst_tests::run_server::{RunOptions, RunServer};
use scst_tests::scsi;
use scst_tests::server::io_uring_works;
use scst_tests::{Command, Rng, Server, ServerOptions, Session};

/// Extents of the LUN, and blocks of one.
const EXTENTS: u64 = 64;
const EXTENT_BLOCKS: u64 = 64;
const BLOCK: u64 = 512;
/// Commands in flight, each on an extent of its own.
const DEPTH: u64 = 16;
const ROUNDS: u64 = 40;

/// A folder beside the test's program: what is below /tmp is in memory, sometimes, and has no O_DIRECT then.
fn scratch() -> tempfile::TempDir {
    let near = std::env::current_exe().unwrap();
    tempfile::tempdir_in(near.parent().unwrap()).unwrap()
}

fn image(dir: &Path) -> PathBuf {
    let path = dir.join("disk.img");
    let file = fs::File::create(&path).unwrap();
    file.set_len(EXTENTS * EXTENT_BLOCKS * BLOCK).unwrap();
    path
}

/// Whether files in this folder can be opened with O_DIRECT for blocks of 512 bytes.
fn has_direct(file: &Path) -> bool {
    use kshim::fs::{File, OpenOptions};
    File::open(file, &OpenOptions::new().direct(true)).is_ok_and(|f| f.dio_align() <= 512)
}

/// What a command of a round is to show.
struct Sent {
    itt: u32,
    /// The data that a read must give.
    want: Option<Vec<u8>>,
}

/// One command on a part of an extent that has generation `old` everywhere.
fn send(s: &mut Session, lun: u16, rng: &mut Rng, extent: u64, old: &mut u64) -> Sent {
    let first = extent * EXTENT_BLOCKS;
    let (lba, blocks) = (first, EXTENT_BLOCKS);
    let (command, want) = match rng.below(4) {
        0 | 1 => {
            let skip = rng.below(blocks);
            let n = 1 + rng.below(blocks - skip);
            let all = stamped_blocks(lba, blocks, *old);
            let part = &all[(skip * BLOCK) as usize..((skip + n) * BLOCK) as usize];
            let cdb = scsi::read16(lba + skip, n as u32);
            let read = Command::read(lun, cdb, (n * BLOCK) as u32);
            (read, Some(part.to_vec()))
        }
        way => {
            *old += 1;
            let data = stamped_blocks(lba, blocks, *old);
            let cdb = if way == 2 {
                scsi::write16(lba, blocks as u32)
            } else {
                scsi::write16_fua(lba, blocks as u32)
            };
            (Command::write(lun, cdb, data), None)
        }
    };
    let itt = s.submit(&command).unwrap();
    Sent { itt, want }
}

fn verified_io(engine: &str, direct: bool, poller: &str) {
    if Server::is_external() || (engine == "uring" && !io_uring_works()) {
        return;
    }
    let dir = scratch();
    let path = image(dir.path());
    if direct && !has_direct(&path) {
        eprintln!("no O_DIRECT here");
        return;
    }
    let mut options = ServerOptions::file(&path).arg("--engine").arg(engine);
    options = options.arg("--poller").arg(poller);
    if direct {
        options = options.arg("--direct");
    }
    let server = Server::start(&options);
    let lun = server.lun(0);
    let mut s = server.session(1);
    let mut rng = Rng::from_env(11);
    let mut generations = vec![1; EXTENTS as usize];
    for e in 0..EXTENTS {
        let first = e * EXTENT_BLOCKS;
        let data = stamped_blocks(first, EXTENT_BLOCKS, 1);
        s.write_blocks(lun, first, &data).unwrap();
    }
    for round in 0..ROUNDS {
        let sent: Vec<Sent> = (0..DEPTH)
            .map(|i| {
                let e = (round * DEPTH + i) % EXTENTS;
                send(&mut s, lun, &mut rng, e, &mut generations[e as usize])
            })
            .collect();
        if round % 8 == 0 {
            let flush = Command::new(lun, scsi::synchronize_cache10());
            s.scsi(&flush).unwrap().good();
        }
        for Sent { itt, want } in sent {
            let data = s.wait_scsi(itt).unwrap().good();
            if let Some(want) = want {
                assert!(data == want, "{engine}, direct {direct}: wrong data");
            }
        }
    }
    s.close().unwrap();
    assert!(server.stop().success());
    let on_disk = fs::read(&path).unwrap();
    for (e, generation) in generations.iter().enumerate() {
        let want = stamped_blocks(e as u64 * EXTENT_BLOCKS, EXTENT_BLOCKS, *generation);
        let at = e * want.len();
        assert!(on_disk[at..at + want.len()] == want, "extent {e}");
    }
}

macro_rules! per_engine {
    ($($name:ident: $engine:literal, $direct:literal, $poller:literal;)*) => {$(
        #[test]
        fn $name() {
            verified_io($engine, $direct, $poller);
        }
    )*};
}

per_engine! {
    uring_through_the_page_cache: "uring", false, "auto";
    uring_with_o_direct: "uring", true, "auto";
    uring_beside_epoll: "uring", true, "epoll";
    aio_through_the_page_cache: "aio", false, "auto";
    aio_with_o_direct: "aio", true, "auto";
    aio_with_o_direct_and_epoll: "aio", true, "epoll";
    threads_through_the_page_cache: "threads", false, "auto";
    threads_with_o_direct: "threads", true, "auto";
}

#[test]
fn an_engine_is_named_per_device() {
    if Server::is_external() {
        return;
    }
    let dir = scratch();
    let path = image(dir.path());
    let server = RunServer::start(&RunOptions::default());
    let tree = Client::connect(&server.control()).unwrap();
    let mgmt = "handlers/vdisk_fileio/mgmt";
    let add = |name: &str, more: &str| {
        let text = format!("add_device {name} filename={}{more}", path.display());
        tree.write(mgmt, text.as_bytes())
    };
    add("named", ";engine=threads").unwrap();
    add("other", "").unwrap();
    let shown = tree.read("devices/named/engine").unwrap();
    assert_eq!(shown, b"threads\n[key]\n");
    assert!(tree.read("devices/other/engine").is_err());
    let e = add("bad", ";engine=fast").unwrap_err();
    assert_eq!(e, kshim::error::code::EINVAL);
}
