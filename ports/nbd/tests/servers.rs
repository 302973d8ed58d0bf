//! The driver against the servers that people run: qemu-nbd, nbd-server, nbdkit.

#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the test starts servers and makes their files"
)]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kshim::block::{Bio, BioOp, BlkMode, BlockDevice, ReqFlags, class, dropped_bios};
use kshim::error::{Error, Result, code};
use kshim::kobject::tree::{Tree, TreeOps};
use kshim::scatterlist::SGTable;
use kshim::sync::Arc;

const LIMIT: Duration = Duration::from_secs(60);
const MIB: usize = 1 << 20;
const SIZE: usize = 40 * MIB;
/// More bytes than any request may carry.
const MORE_THAN_ONE: usize = 33 * MIB;
const RW: BlkMode = BlkMode::READ.union(BlkMode::WRITE);

/// Where a program is; without it the test does not run, which fails in CI and is said loudly elsewhere.
fn find(name: &str) -> Option<PathBuf> {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&dirs).collect();
    dirs.push("/usr/sbin".into());
    let found = dirs.into_iter().map(|d| d.join(name)).find(|p| p.exists());
    if found.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "{name} not installed; run tools/setup"
        );
        let text = format!("\n*** TEST NOT RUN: {name} not installed; run tools/setup ***\n\n");
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }
    found
}

/// A folder that goes with the value.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static N: AtomicU32 = AtomicU32::new(0);
        let n = N.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("nbd-servers-{}-{n}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Folder(dir)
    }

    fn file(&self, name: &str, len: usize) -> PathBuf {
        let path = self.0.join(name);
        let file = fs::File::create(&path).unwrap();
        file.set_len(len as u64).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server on a port that was free, killed when dropped.
struct Server {
    port: u16,
    command: Box<dyn Fn(u16) -> Command>,
    child: Option<Child>,
}

impl Server {
    fn start(command: impl Fn(u16) -> Command + 'static) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let mut server = Server {
            port,
            command: Box::new(command),
            child: None,
        };
        server.restart();
        server
    }

    fn restart(&mut self) {
        let end = Instant::now() + LIMIT;
        loop {
            let mut command = (self.command)(self.port);
            let mut child = command.stdin(Stdio::null()).spawn().unwrap();
            // One that goes on in the background ends well.
            while child.try_wait().unwrap().is_none_or(|done| done.success()) {
                if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                    self.child = Some(child);
                    return;
                }
                assert!(Instant::now() < end, "{command:?} does not listen");
                thread::sleep(Duration::from_millis(10));
            }
            // The port was not free yet.
            assert!(Instant::now() < end, "{command:?} does not start");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        let done = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(done.success());
    }

    /// Has it stand still. Each of its threads: one may still answer when the signal has been sent.
    fn pause(&self) {
        self.signal("-STOP");
        let tasks = format!("/proc/{}/task", self.child.as_ref().unwrap().id());
        let is_stopped = |task: &fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            let state = stat.rsplit_once(") ").map(|(_, s)| s.starts_with('T'));
            state.unwrap_or_default()
        };
        let end = Instant::now() + LIMIT;
        while !fs::read_dir(&tasks)
            .unwrap()
            .all(|t| is_stopped(&t.unwrap()))
        {
            assert!(Instant::now() < end, "it must stop");
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn path(&self, export: &str) -> String {
        static ONCE: Once = Once::new();
        ONCE.call_once(|| nbd::init().unwrap());
        format!("/dev/nbd/127.0.0.1:{}/{export}", self.port)
    }

    fn open(&self, export: &str) -> Arc<BlockDevice> {
        BlockDevice::open(self.path(export), RW).unwrap()
    }

    fn refuses(&self, export: &str, mode: BlkMode) -> Option<Error> {
        BlockDevice::open(self.path(export), mode).err()
    }

    fn attr(&self, export: &str, name: &str) -> String {
        let path = format!("nbd/127.0.0.1:{}!{export}/{name}", self.port);
        let text = Tree::new(class()).read(&path).unwrap();
        String::from_utf8(text).unwrap().trim().to_owned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill9();
    }
}

/// A daemon that has written its number into a file.
struct Killed(PathBuf);

impl Drop for Killed {
    fn drop(&mut self) {
        let pid = fs::read_to_string(&self.0).unwrap_or_default();
        // It may have ended by itself.
        let _ = Command::new("kill").args(["-9", pid.trim()]).status();
    }
}

fn qemu_nbd(image: &Path, more: &'static [&'static str]) -> Option<Server> {
    let (program, image) = (find("qemu-nbd")?, image.to_owned());
    Some(Server::start(move |port| {
        let mut c = Command::new(&program);
        c.args(["-t", "-b", "127.0.0.1", "-f", "raw", "-x", "disk", "-p"]);
        c.arg(port.to_string()).args(more).arg(&image);
        c
    }))
}

fn nbdkit(more: Vec<String>) -> Option<Server> {
    let program = find("nbdkit")?;
    Some(Server::start(move |port| {
        let mut c = Command::new(&program);
        c.args(["-f", "-i", "127.0.0.1", "-p", &port.to_string()]);
        c.args(&more);
        c
    }))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn run(disk: &BlockDevice, op: BioOp, at: usize, data: &mut [u8], flags: ReqFlags) -> Result {
    let mut sg = SGTable::new();
    let carries = matches!(op, BioOp::Read | BioOp::Write);
    if carries {
        sg = SGTable::alloc(data.len()).unwrap();
        sg.copy_from_slice(0, data).unwrap();
    }
    let ignored = Arc::new(|_: Bio, _: Result| {});
    let bio = Bio::new(op, (at / 512) as u64, data.len(), ignored).with_sg(sg, 0);
    let (bio, status) = disk.submit_bio_wait(bio.with_flags(flags));
    status?;
    if op == BioOp::Read {
        bio.sg.copy_to_slice(0, data).unwrap();
    }
    Ok(())
}

fn read(disk: &BlockDevice, at: usize, len: usize) -> Result<Vec<u8>> {
    let mut data = vec![0xee; len];
    run(disk, BioOp::Read, at, &mut data, ReqFlags::empty()).map(|()| data)
}

fn pattern(seed: u32, len: usize) -> Vec<u8> {
    let mut x = seed | 1;
    let mut next = || {
        x ^= x << 13;
        x ^= x >> 17;
        x ^= x << 5;
        x.to_le_bytes()
    };
    (0..len / 4).flat_map(|_| next()).collect()
}

/// Writes up to `largest` bytes, reads, trims, zeroes, flushes a disk of zeros of [`SIZE`] bytes; returns what it holds then.
fn exercise(disk: &BlockDevice, largest: usize) -> Vec<u8> {
    let none = ReqFlags::empty();
    let mut model = vec![0; SIZE];
    let unit = disk.limits().logical_block_size as usize;
    let lengths = [unit, 8 * unit, 64 << 10, largest];
    for (n, len) in lengths.into_iter().enumerate() {
        let at = n * 65536;
        let flags = if n % 2 == 0 { ReqFlags::FUA } else { none };
        let mut data = pattern(n as u32 + 1, len);
        run(disk, BioOp::Write, at, &mut data, flags).unwrap();
        model[at..at + len].copy_from_slice(&data);
        assert!(read(disk, at, len).unwrap() == data);
    }
    let zero = |op, at: usize, len: usize| {
        let done = run(disk, op, at, &mut vec![0; len], none);
        assert!(matches!(done, Ok(()) | Err(code::EOPNOTSUPP)), "{done:?}");
        done.is_ok()
    };
    if zero(BioOp::WriteZeroes, MIB, 16 * MIB) {
        model[MIB..17 * MIB].fill(0);
    }
    if zero(BioOp::Discard, 20 * MIB, 4 * MIB) {
        // It may read as anything.
        let now = read(disk, 20 * MIB, 4 * MIB).unwrap();
        model[20 * MIB..24 * MIB].copy_from_slice(&now);
    }
    run(disk, BioOp::Flush, 0, &mut [], none).unwrap();
    assert!(read(disk, 0, SIZE).unwrap() == model);
    assert_eq!(
        read(disk, disk.capacity_bytes() as usize, unit),
        Err(code::EIO)
    );
    model
}

#[test]
fn qemu_nbd_serves_and_refuses() {
    let dir = Folder::new();
    let image = dir.file("a", SIZE);
    let Some(server) = qemu_nbd(&image, &["-e", "4", "--discard=unmap"]) else {
        return;
    };
    let disk = server.open("disk?connections=3");
    let model = exercise(&disk, MORE_THAN_ONE);
    assert_eq!(server.attr("disk", "connections"), "3 of 3");
    drop(disk);
    assert!(fs::read(&image).unwrap() == model);
    assert_eq!(server.refuses("none", RW), Some(code::ENOENT));
    drop(server);
    let Some(server) = qemu_nbd(&image, &["-r"]) else {
        return;
    };
    assert_eq!(server.refuses("disk", RW), Some(code::EROFS));
    let disk = BlockDevice::open(server.path("disk"), BlkMode::READ).unwrap();
    assert!(disk.limits().read_only && read(&disk, 0, SIZE).unwrap() == model);
    drop(disk);
    assert_eq!(dropped_bios(), 0);
}

#[test]
fn nbd_server_serves_and_refuses() {
    let Some(program) = find("nbd-server") else {
        return;
    };
    let dir = Folder::new();
    let image = dir.file("a", SIZE);
    let config = dir.0.join("config");
    let text = format!(
        "[generic]\nlistenaddr = 127.0.0.1\nport = PORT\nallowlist = true\n\
         [disk]\nexportname = {0}\nflush = true\nfua = true\ntrim = true\n\
         [fixed]\nexportname = {0}\nreadonly = true\n",
        image.display()
    );
    let pid = dir.0.join("pid");
    let theirs = pid.clone();
    let server = Server::start(move |port| {
        fs::write(&config, text.replace("PORT", &port.to_string())).unwrap();
        let mut c = Command::new(&program);
        c.arg("-C").arg(&config).arg("-p").arg(&theirs);
        c
    });
    let _killed = Killed(pid);
    let disk = server.open("disk?connections=2");
    let model = exercise(&disk, MORE_THAN_ONE);
    drop(disk);
    assert!(fs::read(&image).unwrap() == model);
    assert_eq!(server.refuses("none", RW), Some(code::ENOENT));
    assert_eq!(server.refuses("fixed", RW), Some(code::EROFS));
    let disk = BlockDevice::open(server.path("fixed"), BlkMode::READ).unwrap();
    assert!(read(&disk, 0, SIZE).unwrap() == model);
}

#[test]
fn nbdkit_in_all_its_forms() {
    for form in [
        "memory 40M",
        "--no-sr memory 40M",
        "--filter=blocksize-policy memory 40M blocksize-minimum=4K blocksize-preferred=64K blocksize-maximum=256K blocksize-error-policy=error",
        "--filter=nozero memory 40M zeromode=none",
        "--mask-handshake=1 memory 40M",
        "--filter=noparallel memory 40M serialize=all-requests",
        "--filter=multi-conn memory 40M multi-conn-mode=disable",
        "-e disk memory 40M",
    ] {
        let Some(server) = nbdkit(words(form)) else {
            return;
        };
        let disk = server.open("disk?connections=2");
        exercise(&disk, MIB);
        let several = !form.contains("disable");
        let want = if several { "2 of 2" } else { "1 of 1" };
        assert_eq!(server.attr("disk", "connections"), want, "{form}");
    }
    assert_eq!(dropped_bios(), 0);
}

#[test]
fn what_cannot_be_had_is_refused_at_once() {
    let start = Instant::now();
    let strict = "--filter=exportname memory 1M exportname=disk exportname-strict=true";
    let Some(server) = nbdkit(words(strict)) else {
        return;
    };
    assert_eq!(server.refuses("none", RW), Some(code::ENOENT));
    drop(server.open("disk"));
    // Its beginning is that of another protocol.
    let Some(server) = nbdkit(words("-o memory 1M")) else {
        return;
    };
    assert_eq!(server.refuses("disk", RW), Some(code::EPROTO));
    let psk = Folder::new();
    let keys = psk.0.join("keys");
    fs::write(&keys, "user:0123456789abcdef0123456789abcdef\n").unwrap();
    let tls = format!("--tls=require --tls-psk={} memory 1M", keys.display());
    let Some(server) = nbdkit(words(&tls)) else {
        return;
    };
    assert_eq!(server.refuses("disk", RW), Some(code::EOPNOTSUPP));
    let Some(server) = nbdkit(words("-r memory 1M")) else {
        return;
    };
    assert_eq!(server.refuses("disk", RW), Some(code::EROFS));
    assert!(start.elapsed() < LIMIT);
}

#[test]
fn a_server_that_is_killed_stopped_or_resized_is_lived_with() {
    let dir = Folder::new();
    let image = dir.file("a", SIZE);
    let Some(mut server) = nbdkit(vec!["file".into(), image.display().to_string()]) else {
        return;
    };
    let disk = server.open("disk?connections=2&timeout=1&reconnect=2&cache=writethrough");
    let none = ReqFlags::empty();
    let mut data = pattern(7, MIB);
    run(&disk, BioOp::Write, 0, &mut data, none).unwrap();
    // Killed, and there again.
    server.kill9();
    thread::scope(|s| {
        let reader = s.spawn(|| read(&disk, 0, MIB));
        server.restart();
        assert!(reader.join().unwrap().unwrap() == data);
    });
    // It stands still: requests fail after three times a second, and work when it goes on.
    server.pause();
    let start = Instant::now();
    assert_eq!(read(&disk, 0, 512), Err(code::ETIMEDOUT));
    assert!(start.elapsed() > Duration::from_secs(2));
    server.signal("-CONT");
    let end = Instant::now() + LIMIT;
    while read(&disk, 0, MIB).ok() != Some(data.clone()) {
        assert!(Instant::now() < end, "it must come back");
        thread::sleep(Duration::from_millis(20));
    }
    // It has grown: seen when somebody looks, without losing the connections.
    let lost = server.attr("disk", "connections_lost");
    let file = fs::OpenOptions::new().write(true).open(&image).unwrap();
    file.set_len((SIZE + MIB) as u64).unwrap();
    assert_eq!(read(&disk, SIZE, 512), Err(code::EIO));
    assert_eq!(disk.revalidate(), Ok((SIZE + MIB) as u64));
    assert_eq!(read(&disk, SIZE, 512), Ok(vec![0; 512]));
    let mut more = pattern(9, MIB);
    run(&disk, BioOp::Write, SIZE, &mut more, none).unwrap();
    assert_eq!(server.attr("disk", "connections_lost"), lost);
    // Gone for too long, then smaller: not used.
    server.kill9();
    assert_eq!(read(&disk, 0, 512), Err(code::ETIMEDOUT));
    file.set_len(MIB as u64).unwrap();
    server.restart();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(read(&disk, 0, 512), Err(code::ETIMEDOUT));
    drop(disk);
    assert_eq!(dropped_bios(), 0);
}
