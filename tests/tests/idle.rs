//! An idle server sleeps: no CPU time, no wake-ups.

use std::thread;
use std::time::Duration;

use scst_tests::procfs::voluntary_switches;
use scst_tests::{PollerKind, Server, ServerOptions};

/// Watched time. The kernel counts CPU time in steps of 10 ms.
const WATCH: Duration = Duration::from_secs(2);
/// Wake-ups allowed in that time, for timers of sessions (NOP-In every 30 s) and of the runtime.
const MAX_WAKE_UPS: u64 = 10;
/// Sessions that are open and idle.
const SESSIONS: u32 = 20;

fn sleeps_when_idle(poller: PollerKind) {
    let server = Server::start(&ServerOptions::lun("64M").poller(poller).cpus(2));
    let Some(pid) = server.pid() else { return };
    let mut sessions: Vec<_> = (1..=SESSIONS).map(|n| server.session(n)).collect();
    for s in &mut sessions {
        // Every session has worked before it idles.
        s.write_blocks(server.lun(0), 0, &[1; 4096]).unwrap();
    }
    thread::sleep(Duration::from_millis(500));
    // A process of the machine may disturb one round; three in a row are ours.
    let mut last = String::new();
    for _ in 0..3 {
        let (cpu, switches) = (server.cpu_time(), voluntary_switches(pid).unwrap());
        thread::sleep(WATCH);
        let cpu = server.cpu_time() - cpu;
        let switches = voluntary_switches(pid).unwrap() - switches;
        println!("{poller:?}: {cpu:?} of CPU, {switches} wake-ups in {WATCH:?}");
        if cpu.is_zero() && switches <= MAX_WAKE_UPS {
            return;
        }
        last = format!("{cpu:?} of CPU and {switches} wake-ups in {WATCH:?}");
    }
    panic!("an idle server used {last}");
}

#[test]
fn sleeps_when_idle_on_io_uring() {
    if scst_tests::server::io_uring_works() {
        sleeps_when_idle(PollerKind::Uring);
    }
}

#[test]
fn sleeps_when_idle_on_epoll() {
    sleeps_when_idle(PollerKind::Epoll);
}
