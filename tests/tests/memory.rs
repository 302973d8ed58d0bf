//! What a session costs: resident memory with one idle session, with a hundred, under load, and after all have gone.

use std::time::{Duration, Instant};

use scst_tests::scsi;
use scst_tests::{Command, Rng, Server, ServerOptions};

/// Size of the RAM disk; it counts as resident once it was written.
const DISK_MIB: u64 = 16;
/// Bounds, in KiB. Generous: they catch a leak or a buffer per session, not a few pages more.
const MAX_START_KIB: u64 = 48 << 10;
const MAX_IDLE_SESSION_KIB: u64 = 64;
const MAX_LOAD_KIB: u64 = 64 << 10;
const MAX_LEFT_KIB: u64 = 8 << 10;
/// Idle sessions.
const SESSIONS: u32 = 100;
/// Time under load.
const LOAD: Duration = Duration::from_secs(2);

#[test]
fn sessions_are_small_and_give_their_memory_back() {
    let server = Server::start(&ServerOptions::lun(format!("{DISK_MIB}M")));
    if server.pid().is_none() {
        return;
    }
    let lun = server.lun(0);
    let start = server.usage();
    // Let the disk become resident now, so that it does not count for the sessions.
    let mut first = server.session(1);
    for at in 0..DISK_MIB * 8 {
        first
            .write_blocks(lun, at * 256, &vec![7; 128 << 10])
            .unwrap();
    }
    first.close().unwrap();
    let one = server.session(1);
    let with_one = settled(&server);
    let many: Vec<_> = (2..=SESSIONS).map(|n| server.session(n)).collect();
    let with_many = settled(&server);
    drop(many);
    let loaded = under_load(&server);
    drop(one);
    let after = settled(&server);
    let per_session = with_many.rss_kib.saturating_sub(with_one.rss_kib) / u64::from(SESSIONS - 1);
    println!(
        "resident KiB: at start {}, disk written and 1 session {}, {SESSIONS} sessions {} ({per_session} a session), \
         4 KiB random reads at queue depth 32 {}, after all {}",
        start.rss_kib, with_one.rss_kib, with_many.rss_kib, loaded, after.rss_kib
    );
    assert!(start.rss_kib < MAX_START_KIB);
    assert!(per_session < MAX_IDLE_SESSION_KIB);
    assert!(loaded < with_one.rss_kib + MAX_LOAD_KIB);
    assert!(after.rss_kib < with_many.rss_kib.max(loaded) + MAX_LEFT_KIB);
    assert!(after.fds <= with_one.fds && after.threads <= with_one.threads);
}

/// Usage once descriptors have stopped changing: teardown goes on after the connection is gone.
fn settled(server: &Server) -> scst_tests::procfs::Usage {
    let mut last = server.usage();
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        let now = server.usage();
        if now.fds == last.fds {
            return now;
        }
        last = now;
    }
    last
}

/// Largest resident size during 4 KiB random reads at queue depth 32.
fn under_load(server: &Server) -> u64 {
    let lun = server.lun(0);
    let mut s = server.session(1000);
    let mut rng = Rng::new(9);
    let end = Instant::now() + LOAD;
    let (mut most, mut count) = (0, 0u64);
    let mut next = |s: &mut scst_tests::Session| {
        let lba = rng.below(DISK_MIB * 256) * 8;
        s.submit(&Command::read(lun, scsi::read16(lba, 8), 4096))
            .unwrap()
    };
    for _ in 0..32 {
        next(&mut s);
    }
    while Instant::now() < end {
        let (_, outcome) = s.wait_any().unwrap();
        assert!(
            matches!(&outcome, scst_tests::session::Outcome::Scsi(r) if r.is_good()),
            "{outcome:?}"
        );
        next(&mut s);
        count += 1;
        if count % 1024 == 0 {
            most = most.max(server.usage().rss_kib);
        }
    }
    s.kill();
    most
}
