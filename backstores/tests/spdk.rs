//! Block devices of SPDK, in this process: data, flags, ranges, removal, the end. SPDK starts once in a process, so this is
//! one test. Without the feature there is nothing here but the sentence that says so.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "tests may use the host directly"
)]

#[cfg(not(feature = "spdk"))]
#[test]
fn not_built_in() {
    use std::io::Write as _;
    // Past the test harness, which would swallow it.
    let text = b"\n*** TEST NOT RUN: built without SPDK (cargo test -p backstores --features spdk; docs/spdk.md) ***\n\n";
    std::io::stderr().write_all(text).unwrap();
    assert_eq!(
        backstores::spdk::start(&Default::default()).err(),
        Some(kshim::error::code::EOPNOTSUPP)
    );
}

#[cfg(feature = "spdk")]
mod with {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    use backstores::spdk::{self, DEFAULT_MEM_MIB, SpdkConfig};
    use kshim::block::{Bio, BioEndIo, BioOp, BlkMode, BlockDevice, ReqFlags, dropped_bios};
    use kshim::error::{Result, code};
    use kshim::page::{LentMem, PageBuf};
    use kshim::reactor::{Cx, Reactor, ReactorConfig, Ready, Source};
    use kshim::scatterlist::SGTable;

    const RW: BlkMode = BlkMode::READ.union(BlkMode::WRITE);
    const LIMIT: Duration = Duration::from_secs(20);
    const MIB: usize = 1 << 20;

    fn nobody() -> Arc<dyn BioEndIo> {
        Arc::new(|_: Bio, _: Result| panic!("replaced by submit_bio_wait"))
    }

    fn run(
        b: &BlockDevice,
        op: BioOp,
        flags: ReqFlags,
        at: u64,
        len: usize,
        sg: SGTable,
    ) -> (Bio, Result) {
        let bio = Bio::new(op, at / 512, len, nobody());
        b.submit_bio_wait(bio.with_flags(flags).with_sg(sg, 0))
    }

    fn write(b: &BlockDevice, flags: ReqFlags, at: u64, data: &[u8]) -> Result {
        let mut sg = SGTable::alloc(data.len()).unwrap();
        sg.copy_from_slice(0, data).unwrap();
        run(b, BioOp::Write, flags, at, data.len(), sg).1
    }

    fn read(b: &BlockDevice, at: u64, len: usize) -> Result<Vec<u8>> {
        let sg = SGTable::alloc(len).unwrap();
        let (bio, r) = run(b, BioOp::Read, ReqFlags::empty(), at, len, sg);
        r?;
        let mut out = vec![0; len];
        bio.sg.copy_to_slice(0, &mut out).unwrap();
        Ok(out)
    }

    fn plain(b: &BlockDevice, op: BioOp, at: u64, len: usize) -> Result {
        run(b, op, ReqFlags::empty(), at, len, SGTable::new()).1
    }

    fn pattern(seed: usize, len: usize) -> Vec<u8> {
        (0..len)
            .map(|i| ((i * 31 + seed * 7919) >> 3) as u8)
            .collect()
    }

    /// One call of SPDK's RPC server.
    fn rpc(socket: &Path, method: &str, params: &str) -> String {
        let mut s = UnixStream::connect(socket).unwrap();
        s.set_read_timeout(Some(LIMIT)).unwrap();
        let call =
            format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\",\"params\":{params}}}");
        s.write_all(call.as_bytes()).unwrap();
        let mut answer = String::new();
        let mut buf = [0; 65536];
        loop {
            let n = s.read(&mut buf).unwrap();
            assert!(n > 0, "{method}: {answer}");
            answer += std::str::from_utf8(&buf[..n]).unwrap();
            let (open, close) = (answer.matches('{').count(), answer.matches('}').count());
            if open > 0 && open == close {
                return answer;
            }
        }
    }

    /// Data as written, in several pieces, from a thread that is no reactor.
    fn data(path: &str) {
        let b = BlockDevice::open(path, RW).unwrap();
        let size = b.capacity_bytes();
        assert_eq!(size, 16 * MIB as u64, "{path}");
        for (i, len) in [512, 4096, 65536, MIB].into_iter().enumerate() {
            let (at, d) = (i as u64 * 2 * MIB as u64, pattern(i, len));
            let flags = if i % 2 == 0 {
                ReqFlags::empty()
            } else {
                ReqFlags::FUA | ReqFlags::PREFLUSH
            };
            write(&b, flags, at, &d).unwrap();
            assert!(read(&b, at, len).unwrap() == d, "{path}: {len} bytes");
        }
        // Pieces that are not aligned, in the middle of a table.
        let d = pattern(9, 8192);
        let mut sg = SGTable::new();
        for part in [&d[..100], &d[100..5000], &d[5000..]] {
            let mut buf = PageBuf::alloc(part.len() + 3).unwrap();
            buf[3..].copy_from_slice(part);
            sg.push_pages(buf, 3, part.len()).unwrap();
        }
        run(&b, BioOp::Write, ReqFlags::empty(), size - 8192, 8192, sg)
            .1
            .unwrap();
        assert!(read(&b, size - 8192, 8192).unwrap() == d, "{path}: pieces");
        plain(&b, BioOp::Flush, 0, 0).unwrap();
        assert_eq!(read(&b, size, 512).err(), Some(code::EIO));
    }

    /// Memory that is not SPDK's: a bdev of unknown needs gets a copy of it.
    fn foreign_memory(path: &str, copies: u64) {
        let b = BlockDevice::open(path, RW).unwrap();
        let lent = LentMem::anonymous(8192).unwrap();
        let d = pattern(7, 8192);
        lent.copy_in(0, &d).unwrap();
        let table = |lent: &LentMem| {
            let mut sg = SGTable::new();
            sg.push_lent(lent.range(0, 8192).unwrap()).unwrap();
            sg
        };
        let before = spdk::bounced_bios();
        run(&b, BioOp::Write, ReqFlags::empty(), 0, 8192, table(&lent))
            .1
            .unwrap();
        assert!(read(&b, 0, 8192).unwrap() == d);
        lent.copy_in(0, &[0; 8192]).unwrap();
        run(&b, BioOp::Read, ReqFlags::empty(), 0, 8192, table(&lent))
            .1
            .unwrap();
        let mut got = vec![0; 8192];
        lent.copy_out(0, &mut got).unwrap();
        assert!(got == d);
        assert_eq!(spdk::bounced_bios(), before + copies);
    }

    fn ranges(path: &str) {
        let b = BlockDevice::open(path, RW).unwrap();
        let limits = b.limits();
        let d = pattern(3, 64 << 10);
        for (op, max) in [
            (BioOp::WriteZeroes, limits.max_write_zeroes_bytes),
            (BioOp::Discard, limits.max_discard_bytes),
        ] {
            assert!(max > 0, "{path}: {op:?}");
            write(&b, ReqFlags::empty(), 0, &d).unwrap();
            plain(&b, op, 4096, 8192).unwrap();
            let got = read(&b, 0, d.len()).unwrap();
            assert!(
                got[..4096] == d[..4096] && got[12288..] == d[12288..],
                "{path}: {op:?}"
            );
            assert!(got[4096..12288].iter().all(|&x| x == 0), "{path}: {op:?}");
        }
    }

    /// Many bios at once, submitted on a reactor and ended there.
    fn on_a_reactor(reactor: &Reactor, path: &str) {
        let b = BlockDevice::open(path, RW).unwrap();
        for op in [BioOp::Write, BioOp::Read] {
            let (tx, rx) = channel();
            let bdev = Arc::clone(&b);
            let home = reactor.handle();
            reactor.handle().post(move |_| {
                for i in 0..600_usize {
                    let mut sg = SGTable::alloc(4096).unwrap();
                    if op == BioOp::Write {
                        sg.copy_from_slice(0, &pattern(i, 4096)).unwrap();
                    }
                    let (tx, home) = (tx.clone(), home.clone());
                    let end = move |bio: Bio, status: Result| {
                        let here = home.is_current();
                        tx.send((i, bio, status, here)).unwrap();
                    };
                    let bio = Bio::new(op, i as u64 * 8, 4096, Arc::new(end));
                    bdev.submit_bio(bio.with_sg(sg, 0));
                }
            });
            for _ in 0..600 {
                let (i, bio, status, here) = rx.recv_timeout(LIMIT).unwrap();
                status.unwrap();
                assert!(here, "{path}: ended on another thread");
                let mut got = vec![0; 4096];
                bio.sg.copy_to_slice(0, &mut got).unwrap();
                assert!(got == pattern(i, 4096), "{path}: {op:?} {i}");
            }
        }
    }

    /// A bdev is deleted while it is open and used: what comes later fails, and the deletion ends.
    fn removal(reactor: &Reactor, socket: &Path) {
        rpc(
            socket,
            "bdev_malloc_create",
            r#"{"name":"Hot","num_blocks":32768,"block_size":512}"#,
        );
        on_a_reactor(reactor, "/dev/spdk/Hot");
        let b = BlockDevice::open("/dev/spdk/Hot", RW).unwrap();
        write(&b, ReqFlags::empty(), 0, &pattern(1, 4096)).unwrap();
        let said = rpc(socket, "bdev_malloc_delete", r#"{"name":"Hot"}"#);
        assert!(said.contains("true"), "{said}");
        assert_eq!(
            read(&b, 0, 4096).err(),
            Some(code::EIO),
            "beyond the capacity, which is 0"
        );
        assert_eq!(plain(&b, BioOp::Flush, 0, 0), Err(code::ENODEV));
        drop(b);
        assert_eq!(
            BlockDevice::open("/dev/spdk/Hot", RW).err(),
            Some(code::ENODEV)
        );
        // Again, under the same name.
        rpc(
            socket,
            "bdev_malloc_create",
            r#"{"name":"Hot","num_blocks":32768,"block_size":512}"#,
        );
        data("/dev/spdk/Hot");
    }

    /// A read on the reactor that takes any memory.
    fn read_lent(reactor: &Reactor, b: &Arc<BlockDevice>, at: u64, len: usize) -> (Bio, Vec<u8>) {
        let (tx, rx) = channel();
        let b = Arc::clone(b);
        reactor.handle().post(move |_| {
            let end = move |bio: Bio, status: Result| tx.send((bio, status)).unwrap();
            let bio = Bio::new(BioOp::Read, at / 512, len, Arc::new(end));
            let sg = SGTable::alloc(len).unwrap();
            b.submit_bio(bio.with_flags(ReqFlags::LEND).with_sg(sg, 0));
        });
        let (bio, status) = rx.recv_timeout(LIMIT).unwrap();
        status.unwrap();
        let mut got = vec![0; len];
        bio.sg.copy_to_slice(0, &mut got).unwrap();
        (bio, got)
    }

    /// Something on a reactor that holds memory until the reactor ends.
    struct Holder {
        _bio: Bio,
    }

    impl Source for Holder {
        fn ready(&mut self, _: &mut Cx<'_>, _: Ready) {}
        fn woken(&mut self, _: &mut Cx<'_>) {}
        fn timer(&mut self, _: &mut Cx<'_>, _: u32) {}
    }

    /// Blocks that are in memory are shown where they are, and stay there until nobody looks any more.
    fn lending(reactor: &Reactor, socket: &Path) {
        let new = r#"{"name":"Lend","num_blocks":32768,"block_size":512}"#;
        rpc(socket, "bdev_malloc_create", new);
        let b = BlockDevice::open("/dev/spdk/Lend", RW).unwrap();
        let d = pattern(4, MIB);
        write(&b, ReqFlags::empty(), 4096, &d).unwrap();
        // More at once than SPDK keeps for each thread.
        let held: Vec<_> = (0..600)
            .map(|i| read_lent(reactor, &b, 4096 + i * 512, 1024))
            .collect();
        for (i, (bio, got)) in held.iter().enumerate() {
            assert!(bio.sg.has_lent() && got[..] == d[i * 512..][..1024], "{i}");
        }
        let (one, _) = held.into_iter().next().unwrap();
        // From elsewhere it is copied.
        let sg = SGTable::alloc(4096).unwrap();
        let (bio, status) = run(&b, BioOp::Read, ReqFlags::LEND, 4096, 4096, sg);
        assert!(status.is_ok() && !bio.sg.has_lent());
        // Deleted, it is there all the same.
        let theirs = socket.to_owned();
        let deletion =
            std::thread::spawn(move || rpc(&theirs, "bdev_malloc_delete", r#"{"name":"Lend"}"#));
        let limit = Instant::now() + LIMIT;
        while b.capacity_bytes() != 0 {
            assert!(Instant::now() < limit);
            std::thread::yield_now();
        }
        let mut got = [0; 1024];
        one.sg.copy_to_slice(0, &mut got).unwrap();
        assert!(got[..] == d[..1024]);
        drop(one);
        assert!(deletion.join().unwrap().contains("true"));
        drop(b);
        let b = BlockDevice::open("/dev/spdk/P", RW).unwrap();
        let (bio, _) = read_lent(reactor, &b, 0, 4096);
        assert!(!bio.sg.has_lent(), "its memory is SPDK's");
        // A reactor ends while something on it has lent memory.
        let b = BlockDevice::open("/dev/spdk/M", RW).unwrap();
        let (bio, _) = read_lent(reactor, &b, 0, 4096);
        let holder = Box::new(Holder { _bio: bio });
        let (tx, rx) = channel();
        reactor.handle().post(move |cx| {
            cx.add(None, |_| holder).unwrap();
            tx.send(()).unwrap();
        });
        rx.recv_timeout(LIMIT).unwrap();
    }

    fn resizing(socket: &Path) {
        rpc(
            socket,
            "bdev_null_create",
            r#"{"name":"Grow","num_blocks":2048,"block_size":4096}"#,
        );
        let b = BlockDevice::open("/dev/spdk/Grow", RW).unwrap();
        assert_eq!(
            (b.capacity_bytes(), b.limits().logical_block_size),
            (8 << 20, 4096)
        );
        assert_eq!(plain(&b, BioOp::Flush, 0, 0), Ok(()));
        rpc(
            socket,
            "bdev_null_resize",
            r#"{"name":"Grow","new_size":16}"#,
        );
        let limit = Instant::now() + LIMIT;
        while b.capacity_bytes() != 16 << 20 {
            assert!(Instant::now() < limit, "{}", b.capacity_bytes());
            std::thread::yield_now();
        }
        write(&b, ReqFlags::empty(), 12 << 20, &[1; 4096]).unwrap();
    }

    #[test]
    fn spdk() {
        let dir = tempfile::tempdir().unwrap();
        let (json, socket, file) = (
            dir.path().join("c.json"),
            dir.path().join("s"),
            dir.path().join("f"),
        );
        std::fs::File::create(&file)
            .unwrap()
            .set_len(16 << 20)
            .unwrap();
        let config = r#"{"subsystems":[{"subsystem":"bdev","config":[
            {"method":"bdev_malloc_create","params":{"name":"M","num_blocks":32768,"block_size":512}},
            {"method":"bdev_malloc_create","params":{"name":"Base","num_blocks":32768,"block_size":512}},
            {"method":"bdev_passthru_create","params":{"name":"P","base_bdev_name":"Base"}},
            {"method":"bdev_aio_create","params":{"name":"A","filename":"FILE","block_size":512,"fallocate":true}}]}]}"#;
        std::fs::write(&json, config.replace("FILE", file.to_str().unwrap())).unwrap();
        spdk::init().unwrap();
        assert_eq!(
            BlockDevice::open("/dev/spdk/M", RW).err(),
            Some(code::ENXIO)
        );
        // With hugepages where there are some: then there could be devices, and data is where they can reach it.
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
        let free = meminfo
            .lines()
            .find_map(|l| l.strip_prefix("HugePages_Free:"));
        let huge = free.is_some_and(|n| n.trim().parse::<u32>().unwrap() >= 200);
        println!("with hugepages: {huge}");
        let config = SpdkConfig {
            json: Some(json),
            rpc: Some(socket.clone()),
            mem_mib: (!huge).then_some(DEFAULT_MEM_MIB),
        };
        spdk::start(&config).unwrap();
        assert_eq!(spdk::start(&config), Err(code::EEXIST));
        let mut reactor = ReactorConfig::new("test");
        reactor.cpu = None;
        let reactor = Reactor::spawn(reactor).unwrap();
        for name in ["M", "P", "A"] {
            let path = format!("/dev/spdk/{name}");
            data(&path);
            ranges(&path);
            let before = spdk::bounced_bios();
            on_a_reactor(&reactor, &path);
            assert_eq!(
                spdk::bounced_bios(),
                before,
                "{path}: the pool has SPDK's memory"
            );
        }
        foreign_memory("/dev/spdk/P", if huge { 2 } else { 0 });
        foreign_memory("/dev/spdk/M", 0);
        // What went through the AIO bdev is in the file.
        let b = BlockDevice::open("/dev/spdk/A", RW).unwrap();
        write(&b, ReqFlags::FUA, 4096, &pattern(5, 8192)).unwrap();
        assert!(std::fs::read(&file).unwrap()[4096..12288] == pattern(5, 8192));
        drop(b);
        assert_eq!(
            BlockDevice::open("/dev/spdk/No", RW).err(),
            Some(code::ENODEV)
        );
        // It belongs to the bdev above it.
        assert_eq!(
            BlockDevice::open("/dev/spdk/Base", RW).err(),
            Some(code::EBUSY)
        );
        // Whoever writes needs it opened for that by the first one.
        let reader = BlockDevice::open("/dev/spdk/M", BlkMode::READ).unwrap();
        let second = BlockDevice::open("/dev/spdk/M", BlkMode::READ).unwrap();
        assert_eq!(
            BlockDevice::open("/dev/spdk/M", RW).err(),
            Some(code::EBUSY)
        );
        drop(reader);
        read(&second, 0, 512).unwrap();
        drop(second);
        drop(BlockDevice::open("/dev/spdk/M", RW).unwrap());
        removal(&reactor, &socket);
        resizing(&socket);
        lending(&reactor, &socket);
        assert!(rpc(&socket, "bdev_get_bdevs", "{}").contains("\"A\""));
        reactor.stop();
        assert!(spdk::exit());
        assert_eq!(dropped_bios(), 0);
        assert_eq!(
            BlockDevice::open("/dev/spdk/M", RW).err(),
            Some(code::ENXIO)
        );
        assert!(!socket.exists());
    }
}
