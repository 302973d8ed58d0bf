//! Attributes do what they say: an initiator sees it.

use std::fs::OpenOptions as FileOptions;

use anyhow::{Context as _, Result, ensure};
use kshim::kobject::tree::TreeOps;
use scst_initiator::{Command, Session, scsi};

use crate::bench::{Bench, MIB, TARGET};

/// disk0, a file; disk2, nothing; cd5, a CD-ROM drive.
const FILE: u16 = 0;
const NULL: u16 = 2;
const CD: u16 = 5;
const SESSION: &str =
    "targets/iscsi/iqn.2026-01.org.example:scst/sessions/iqn.2026-01.org.example:init1";
/// Sense key, additional sense code and qualifier.
type Sense = (u8, u8, u8);
const NOTHING: Sense = (0, 0, 0);
const CAPACITY_CHANGED: Sense = (6, 0x2a, 9);
const INQUIRY_CHANGED: Sense = (6, 0x3f, 3);
const MEDIUM_CHANGED: Sense = (6, 0x28, 0);
const THRESHOLD_REACHED: Sense = (6, 0x38, 7);

/// The reference configuration with an initiator that has had its unit attentions. Events come as unit attentions.
fn start(name: &str) -> Result<(Bench, Session)> {
    let bench = Bench::start(name)?;
    bench.reference()?;
    bench.write(&format!("{TARGET}/aen_disabled"), "1")?;
    let addr = bench.driver.add_portal("127.0.0.1:0".parse()?)?;
    let mut session = bench.login(addr, "init1")?;
    for lun in 0..=CD {
        session.clear_ua(lun)?;
    }
    Ok((bench, session))
}

fn read(bench: &Bench, path: &str) -> Result<String> {
    let bytes = bench.view.read(path).with_context(|| path.to_owned())?;
    Ok(String::from_utf8(bytes)?)
}

/// What the next command at the LUN is told.
fn next_sense(session: &mut Session, lun: u16) -> Result<Sense> {
    let reply = session.scsi(&Command::new(lun, scsi::test_unit_ready()))?;
    Ok(match reply.is_good() {
        true => NOTHING,
        false => reply.sense_code(),
    })
}

/// Writes, and looks what the initiator is told.
fn expect(
    (bench, session): (&Bench, &mut Session),
    (path, value): (&str, &str),
    lun: u16,
    want: Sense,
) -> Result<()> {
    bench.write(path, value)?;
    let got = next_sense(session, lun)?;
    ensure!(
        got == want,
        "{path} = {value:?}: {got:02x?}, not {want:02x?}"
    );
    Ok(())
}

#[test]
fn initiators_are_told_of_what_changes() -> Result<()> {
    let (bench, mut s) = start("effects-ua")?;
    let two = &mut s;
    for (name, value) in [
        ("t10_vend_id", "ACME"),
        ("prod_id", "A disk"),
        ("prod_rev_lvl", "7"),
        ("usn", "serial"),
        ("t10_dev_id", "an-id"),
        ("naa_id", "5000000000000001"),
        ("eui64_id", "0123456789abcdef"),
        ("scsi_device_name", "iqn.2026-01.org.example:lu"),
        ("inq_vend_specific", "hello"),
    ] {
        let path = format!("devices/disk0/{name}");
        expect((&bench, two), (&path, value), FILE, INQUIRY_CHANGED)?;
    }
    let inquiry = two.scsi(&Command::read(FILE, scsi::inquiry(36), 36))?;
    let data = inquiry.good();
    ensure!(data[8..36] == *b"ACME    A disk          7   ");
    let size = ("devices/disk2/size_mb", "128");
    expect((&bench, two), size, NULL, CAPACITY_CHANGED)?;
    ensure!(two.capacity(NULL)? == (128 * MIB / 512, 512));
    let file = bench.places.dir.path().join("data/disk0.img");
    let grown = FileOptions::new().write(true).open(file)?;
    grown.set_len(200 * MIB)?;
    let resync = ("devices/disk0/resync_size", "1");
    expect((&bench, two), resync, FILE, CAPACITY_CHANGED)?;
    ensure!(two.capacity(FILE)? == (200 * MIB / 512, 512));
    expect((&bench, two), resync, FILE, NOTHING)?;
    let threshold = ("devices/disk0/gen_tp_soft_threshold_reached_UA", "1");
    expect((&bench, two), threshold, FILE, THRESHOLD_REACHED)?;
    let medium = ("devices/cd5/filename", "/data/disk3.img");
    expect((&bench, two), medium, CD, MEDIUM_CHANGED)?;
    expect(
        (&bench, two),
        ("devices/cd5/filename", "\n"),
        CD,
        (2, 0x3a, 0),
    )?;
    s.close()?;
    bench.stop()
}

#[test]
fn a_closed_device_gets_another_file() -> Result<()> {
    let (bench, mut s) = start("effects-active")?;
    s.write_blocks(FILE, 0, &[7; 512])?;
    let filename = "devices/disk0/filename";
    ensure!(
        bench.write(filename, "/data/disk4.img").is_err(),
        "it is open"
    );
    bench.write("devices/disk0/active", "0")?;
    ensure!(next_sense(&mut s, FILE)?.0 == 2, "not ready");
    ensure!(read(&bench, "devices/disk0/active")? == "0\n[key]\n");
    bench.write(filename, "/data/absent.img")?;
    ensure!(
        bench.write("devices/disk0/active", "1").is_err(),
        "there is no such file"
    );
    bench.write(filename, "/data/cd.iso")?;
    bench.write("devices/disk0/active", "1")?;
    ensure!(next_sense(&mut s, FILE)? == CAPACITY_CHANGED);
    ensure!(s.capacity(FILE)? == (2 * MIB / 512, 512));
    s.expect_blocks(FILE, 0, &[0; 512]);
    bench.write("devices/disk0/active", "0")?;
    bench.write(filename, "/data/disk0.img")?;
    bench.write("devices/disk0/active", "1")?;
    s.clear_ua(FILE)?;
    s.expect_blocks(FILE, 0, &[7; 512]);
    s.close()?;
    bench.stop()
}

#[test]
fn commands_wait_while_activity_is_suspended_or_the_device_blocked() -> Result<()> {
    let (bench, mut s) = start("effects-suspend")?;
    for (path, begin, shown, end) in [
        ("suspend", "1", "1\n", "-1"),
        ("devices/disk0/block", "1", "1 0\n", "0"),
    ] {
        bench.write(path, begin)?;
        ensure!(read(&bench, path)? == shown, "{path}");
        let waiting = s.submit(&Command::read(FILE, scsi::read10(0, 8), 4096))?;
        while read(&bench, &format!("{SESSION}/commands"))? != "1\n" {
            std::thread::yield_now();
        }
        ensure!(s.take_answer(waiting).is_none(), "it waits");
        bench.write(path, end)?;
        ensure!(s.wait_scsi(waiting)?.is_good());
    }
    ensure!(read(&bench, "suspend")? == "0\n");
    ensure!(read(&bench, "devices/disk0/block")? == "0 0\n");
    ensure!(bench.write("suspend", "-1").is_err(), "nothing to resume");
    s.close()?;
    bench.stop()
}

#[test]
fn sessions_count_and_measure() -> Result<()> {
    let (bench, mut s) = start("effects-counters")?;
    bench.write("measure_latency", "1")?;
    let before: u64 = read(&bench, &format!("{SESSION}/read_cmd_count"))?
        .trim()
        .parse()?;
    for _ in 0..10 {
        s.read_blocks(FILE, 0, 8)?;
    }
    // The last command may still be on its way to the shelf: a later one's answer says that it is there.
    s.scsi(&Command::new(FILE, scsi::test_unit_ready()))?;
    let after: u64 = read(&bench, &format!("{SESSION}/read_cmd_count"))?
        .trim()
        .parse()?;
    ensure!(after == before + 10, "{before} {after}");
    let latency = format!("{SESSION}/latency/r4096");
    let text = read(&bench, &latency)?;
    // More than 10 when some had to go to a thread.
    let executed = text.lines().find_map(|l| l.strip_prefix("REAL_EXEC "));
    let count = executed
        .and_then(|l| l.split(' ').next())
        .context("no line")?;
    ensure!(count.parse::<u32>()? >= 10, "{text}");
    ensure!(text.lines().any(|l| l.starts_with("total ")), "{text}");
    bench.write(&latency, "0")?;
    ensure!(read(&bench, &latency)? == "state count min max avg stddev\n");
    bench.write("measure_latency", "0")?;
    bench.write(&format!("{SESSION}/read_cmd_count"), "0")?;
    ensure!(read(&bench, &format!("{SESSION}/read_io_count_kb"))? == "0\n");
    s.close()?;
    bench.stop()
}

#[test]
fn threads_change_under_commands() -> Result<()> {
    let (bench, mut s) = start("effects-threads")?;
    for (num, pool) in [
        ("3", "shared"),
        ("1", "per_initiator"),
        ("0", "shared"),
        ("8", "shared"),
    ] {
        let mut flying = Vec::new();
        for n in 0..8 {
            let flush = Command::new(FILE, scsi::synchronize_cache10());
            let read = Command::read(FILE, scsi::read10(n, 1), 512);
            flying.push(s.submit(if n % 2 == 0 { &flush } else { &read })?);
        }
        bench.write("devices/disk0/threads_num", num)?;
        bench.write("devices/disk0/threads_pool_type", pool)?;
        for itt in flying {
            ensure!(s.wait_scsi(itt)?.is_good());
        }
        ensure!(read(&bench, "devices/disk0/threads_num")?.starts_with(num));
    }
    bench.write("threads", "5")?;
    bench.write("poll_us", "50")?;
    s.read_blocks(FILE, 0, 8)?;
    bench.write("poll_us", "0")?;
    s.close()?;
    bench.stop()
}

#[test]
fn a_session_is_closed_by_force_and_its_directory_goes() -> Result<()> {
    let (bench, mut s) = start("effects-close")?;
    let names = bench.view.list(SESSION)?.len();
    ensure!(names > 30, "{names}");
    bench.write(&format!("{SESSION}/force_close"), "1")?;
    let gone = s.scsi(&Command::new(FILE, scsi::test_unit_ready()));
    ensure!(gone.is_err(), "the connection is closed");
    while bench.view.stat(SESSION).is_ok() {
        std::thread::yield_now();
    }
    bench.stop()
}
