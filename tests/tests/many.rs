//! A thousand sessions at a time: what they cost, and that the next one logs in as fast as the first.

use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use scst_tests::{Server, ServerOptions, Session};

/// Sessions at a time.
const SESSIONS: u32 = 1000;
/// Bounds, generous as CI machines are slow: they catch what grows with the number of sessions.
const MAX_SESSION_KIB: u64 = 64;
const MAX_LOGIN: Duration = Duration::from_millis(500);
/// Share of one CPU that a thousand idle sessions may use.
const MAX_IDLE_CPU: f64 = 0.05;
const IDLE: Duration = Duration::from_secs(3);

/// One descriptor a session, here as in the server.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    setrlimit(Resource::Nofile, raised).expect("the soft limit goes up to the hard one");
}

fn login(server: &Server, n: u32) -> (Session, Duration) {
    let begin = Instant::now();
    let session = server
        .try_session(n)
        .unwrap_or_else(|e| panic!("login {n}: {e}"));
    (session, begin.elapsed())
}

/// The middle one of some logins that end at once.
fn login_time(server: &Server, from: u32) -> Duration {
    let mut times: Vec<_> = (from..from + 21)
        .map(|n| {
            let (session, time) = login(server, n);
            session.close().expect("logout");
            time
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

#[test]
fn a_thousand_sessions_stay_small_and_let_others_in() {
    raise_descriptor_limit();
    let server = Server::start_own(&ServerOptions::lun("16M"));
    let alone = login_time(&server, 10_000);
    let before = server.usage();
    let begin = Instant::now();
    let mut sessions: Vec<_> = (0..SESSIONS).map(|n| login(&server, n).0).collect();
    let logins = begin.elapsed();
    let with_all = server.usage();
    let crowded = login_time(&server, 20_000);
    let cpu = server.cpu_time();
    std::thread::sleep(IDLE);
    let idle = (server.cpu_time() - cpu).as_secs_f64() / IDLE.as_secs_f64();
    let each = with_all.rss_kib.saturating_sub(before.rss_kib) / u64::from(SESSIONS);
    println!(
        "{SESSIONS} logins in {logins:.2?}; {each} KiB a session; idle {:.2} % of a CPU; a login {alone:.2?} alone, \
         {crowded:.2?} among them",
        idle * 100.0
    );
    // All of them are served.
    for session in sessions.iter_mut().step_by(50) {
        session.clear_ua(server.lun(0)).expect("TEST UNIT READY");
    }
    assert!(each < MAX_SESSION_KIB, "{each} KiB a session");
    assert!(crowded < MAX_LOGIN, "a login takes {crowded:?}");
    assert!(idle < MAX_IDLE_CPU, "{idle} of a CPU");
    drop(sessions);
    assert!(server.stop().success());
}
