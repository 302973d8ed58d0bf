//! A real Linux initiator: open-iscsi in a QEMU guest logs in with CHAP and digests, makes ext4, and writes while the server
//! is restarted, the connection is cut, and the network goes silent. No write may fail.
//!
//! Second tier (`cargo xtask nightly guest`): it downloads 90 MB of Debian packages. Runs where `SCST_GUEST` names the
//! folder into which `tools/guest` has unpacked them.

use std::io::Write as _;
use std::time::Duration;

use scst_tests::guest::{HOST, Kit};
use scst_tests::proxy::Proxy;
use scst_tests::{Server, ServerOptions};

const USER: &str = "guest";
const SECRET: &str = "twelve or more";
/// What happens to the session, in this order.
const TROUBLE: [&str; 4] = ["restart", "cut", "kill", "silence"];
/// How long the guest may take to boot and log in without acceleration, and for any other step.
const STEP: Duration = Duration::from_secs(180);

#[test]
fn linux_keeps_its_data_through_restarts_and_broken_connections() {
    let Some(kit) = Kit::from_env() else {
        let text = "\n*** TEST NOT RUN: second tier, `cargo xtask nightly guest` ***\n\n";
        // Past the harness, which would swallow it.
        let _ = std::io::stderr().write_all(text.as_bytes());
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let options = ServerOptions::file(&dir.path().join("disk.img"))
        .arg("--digests")
        .arg(&format!("--chap={USER}:@{}", secret.display()));
    let mut server = Some(Server::start_own(&options.clone().arg("--size=256M")));
    let addr = |s: &Option<Server>| s.as_ref().expect("it runs").addr;
    let proxy = Proxy::start(addr(&server));
    let config = format!(
        "IQN={}\nPORTAL={HOST}:{}\nCHAP_USER={USER}\nCHAP_SECRET='{SECRET}'\nMIB=16\nTROUBLE='{}'\n",
        scst_tests::server::IQN,
        proxy.addr.port(),
        TROUBLE.join(" "),
    );
    let mut guest = kit.boot(include_str!("../data/guest/init"), &config);
    guest.expect("disk", STEP);
    guest.expect("written", STEP);
    for what in TROUBLE {
        guest.expect(what, STEP);
        match what {
            "restart" => assert!(server.take().expect("it runs").stop().success()),
            "kill" => server.take().expect("it runs").kill9(),
            "cut" => proxy.cut(),
            _ => proxy.silence(),
        }
        if server.is_none() {
            let again = Server::start_own(&options);
            proxy.retarget(again.addr);
            server = Some(again);
        }
        guest.go_on();
        guest.expect(&format!("survived {what}"), STEP);
    }
    guest.expect("done", STEP);
    proxy.cut();
    assert!(server.take().expect("it runs").stop().success());
}
