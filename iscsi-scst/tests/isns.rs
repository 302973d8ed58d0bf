//! The iSNS client against Debian's open-isns-server.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test runs programs and uses the host's sockets and clock"
)]

mod wire;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use wire::{Bed, IQN, Ini, PATIENCE, POLLERS};

const INITIATOR: &str = "iqn.2026-01.org.example:ini1";

/// open-isns-server, as long as this lives.
struct Isnsd {
    child: Child,
    addr: SocketAddr,
    _dir: tempfile::TempDir,
}

impl Isnsd {
    /// `None`: it is not installed, which is a failure in CI.
    fn start() -> Option<Self> {
        let places = ["/usr/sbin/isnsd", "/sbin/isnsd", "/usr/local/sbin/isnsd"];
        let Some(program) = places.map(PathBuf::from).into_iter().find(|p| p.exists()) else {
            assert!(
                std::env::var_os("CI").is_none(),
                "isnsd is not installed; run tools/setup"
            );
            let text = "\n*** TEST NOT RUN: isnsd is not installed; run tools/setup ***\n\n";
            let _ = std::io::stderr().write_all(text.as_bytes());
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let addr = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .unwrap();
        let config = configuration(dir.path(), addr);
        let child = Command::new(program)
            .args(["-f", "-c"])
            .arg(config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let isnsd = Self {
            child,
            addr,
            _dir: dir,
        };
        eventually("isnsd listens", || TcpStream::connect(addr).is_ok());
        Some(isnsd)
    }
}

impl Drop for Isnsd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn configuration(dir: &Path, addr: SocketAddr) -> PathBuf {
    let path = dir.join("isnsd.conf");
    let text = format!(
        "Database = {0}/db\nDefaultDiscoveryDomain = 1\nBindAddress = {addr}\nControlName = CONTROL\n\
         ControlSocket = {0}/control\nSourceName = isns.test\nSecurity = 0\nSLPRegister = 0\n\
         PIDFile = {0}/pid\nRegistrationPeriod = 10m\n",
        dir.display(),
    );
    std::fs::write(&path, text).unwrap();
    path
}

#[track_caller]
fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < end, "in {PATIENCE:?} not: {what}");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn attr(tag: u32, value: &[u8]) -> Vec<u8> {
    let len = value.len().next_multiple_of(4);
    let mut out = tag.to_be_bytes().to_vec();
    out.extend((len as u32).to_be_bytes());
    out.extend(value);
    out.resize(8 + len, 0);
    out
}

fn name(tag: u32, text: &str) -> Vec<u8> {
    attr(tag, format!("{text}\0").as_bytes())
}

/// Asks the server as an initiator; the body of its answer after the status.
fn ask(server: SocketAddr, function: u16, attrs: &[Vec<u8>]) -> Vec<u8> {
    let body = attrs.concat();
    let mut sock = TcpStream::connect(server).unwrap();
    sock.set_read_timeout(Some(PATIENCE)).unwrap();
    let header = [1, function, body.len() as u16, 0x8c00, 7, 0];
    let mut message: Vec<u8> = header.iter().flat_map(|f| f.to_be_bytes()).collect();
    message.extend(body);
    sock.write_all(&message).unwrap();
    let mut header = [0; 12];
    sock.read_exact(&mut header).unwrap();
    let mut body = vec![0; usize::from(u16::from_be_bytes([header[4], header[5]]))];
    sock.read_exact(&mut body).unwrap();
    assert_eq!(
        u16::from_be_bytes([header[2], header[3]]),
        function | 0x8000
    );
    assert_eq!(body[..4], [0; 4], "status");
    body.split_off(4)
}

fn register_initiator(server: SocketAddr) {
    ask(
        server,
        1,
        &[
            name(32, INITIATOR),
            name(1, "initiator.test"),
            attr(0, &[]),
            name(1, "initiator.test"),
            attr(2, &2u32.to_be_bytes()),
            name(32, INITIATOR),
            attr(33, &2u32.to_be_bytes()),
        ],
    );
}

/// What the server tells the initiator of targets.
fn targets_seen(server: SocketAddr) -> String {
    let answer = ask(
        server,
        2,
        &[
            name(32, INITIATOR),
            attr(33, &1u32.to_be_bytes()),
            attr(0, &[]),
            attr(32, &[]),
            attr(34, &[]),
            attr(17, &[]),
        ],
    );
    String::from_utf8_lossy(&answer).into_owned()
}

fn may_log_in(bed: &Bed) -> bool {
    let mut ini = Ini::connect(bed.addr);
    match ini.try_login(1, 0, &[]) {
        Ok(()) => {
            ini.logout();
            true
        }
        Err(status) => {
            assert_eq!(status, Some(0x0203));
            false
        }
    }
}

#[test]
fn targets_are_registered_and_initiators_let_in_by_the_name_server() {
    let Some(isnsd) = Isnsd::start() else {
        return;
    };
    let bed = Bed::new(POLLERS[0]);
    bed.target.set_alias(Some("the alias".to_owned()));
    assert!(may_log_in(&bed), "nobody is asked");
    let config = format!("{} AccessControl", isnsd.addr).parse().unwrap();
    bed.driver.set_isns(Some(config)).unwrap();
    assert!(!may_log_in(&bed), "nobody is named");
    register_initiator(isnsd.addr);
    eventually("the target is registered", || {
        targets_seen(isnsd.addr).contains(IQN)
    });
    assert!(targets_seen(isnsd.addr).contains("the alias"));
    // The server's notification brings that, long before the next question.
    eventually("the initiator is let in", || may_log_in(&bed));
    let other = "iqn.2026-01.org.example:second";
    let second = bed
        .driver
        .add_target(other, None, Default::default(), Default::default())
        .unwrap();
    bed.core.enable_target(second.tgt(), true).unwrap();
    eventually("a further target is registered", || {
        targets_seen(isnsd.addr).contains(other)
    });
    bed.core.enable_target(second.tgt(), false).unwrap();
    eventually("a disabled target is not", || {
        !targets_seen(isnsd.addr).contains(other)
    });
    assert!(targets_seen(isnsd.addr).contains(IQN));
    ask(
        isnsd.addr,
        4,
        &[name(32, INITIATOR), attr(0, &[]), name(1, "initiator.test")],
    );
    eventually("the initiator is kept out again", || !may_log_in(&bed));
    bed.driver.remove_target(&second).unwrap();
    bed.driver.set_isns(None).unwrap();
    assert!(may_log_in(&bed), "nobody is asked any more");
    register_initiator(isnsd.addr);
    assert!(!targets_seen(isnsd.addr).contains(IQN), "nothing is left");
    bed.settle();
    bed.stop();
}

#[test]
fn a_server_that_is_not_there_is_waited_for_and_forgotten() {
    let bed = Bed::new(POLLERS[1]);
    let nobody = TcpListener::bind("127.0.0.1:0")
        .and_then(|l| l.local_addr())
        .unwrap();
    bed.driver
        .set_isns(Some(nobody.to_string().parse().unwrap()))
        .unwrap();
    assert!(may_log_in(&bed), "without access control nobody is asked");
    assert_eq!(
        bed.driver.isns().map(|c| c.server),
        Some(nobody.to_string())
    );
    bed.settle();
    bed.stop();
    // One that listens and says nothing must not hold up a stop for long.
    let bed = Bed::new(POLLERS[1]);
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let config = deaf.local_addr().unwrap().to_string().parse().unwrap();
    bed.driver.set_isns(Some(config)).unwrap();
    bed.stop();
}
