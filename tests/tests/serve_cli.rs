//! `scstd serve` and bad input: one clear line on stderr, non-zero exit, nothing created or left behind.

use std::fs;
use std::net::TcpListener;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use scst_tests::server::{IQN, scstd};
use scst_tests::tools::{self, Output};
use scst_tests::{OpenOptions, Server, ServerOptions, Session};

/// Runs `scstd` with `args` in `dir`; it must end by itself.
fn scstd_in(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(scstd());
    command.args(args).current_dir(dir).env_remove("SCST_LOG");
    tools::run_command(&mut command, Duration::from_secs(10))
}

/// Names in `dir`.
fn names(dir: &Path) -> Vec<PathBuf> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    names.sort();
    names
}

/// `scstd` with `args` must refuse with one line that contains `says`, and leave `dir` as it was.
#[track_caller]
fn refused(dir: &Path, args: &[&str], says: &str) {
    let before = names(dir);
    let out = scstd_in(dir, args);
    assert!(!out.timed_out, "{args:?} did not end");
    assert!(matches!(out.code, Some(1 | 2)), "{args:?}: {out:?}");
    assert_eq!(out.stdout, "", "{args:?}");
    assert_eq!(
        out.stderr.lines().count(),
        1,
        "{args:?}: one line, please: {}",
        out.stderr
    );
    assert!(
        out.stderr.starts_with("scstd: "),
        "{args:?}: {}",
        out.stderr
    );
    assert!(
        out.stderr.contains(says),
        "{args:?}: {:?} lacks {says:?}",
        out.stderr
    );
    assert_eq!(names(dir), before, "{args:?} left something behind");
}

#[test]
fn bad_command_lines_are_refused_with_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (args, says) in [
        (&[][..], "serve"),
        (&["nonsense"], "nonsense"),
        (&["serve"], "FILE|SIZE"),
        (&["serve", "1G", "--nonsense"], "--nonsense"),
        (&["serve", "1G", "--size"], "--size"),
        (&["serve", "1G", "--poller", "select"], "select"),
        (&["serve", "1G", "--chap", "user:@file"], "--chap"),
        (&["serve", "1G", "--read-only=maybe"], "--read-only"),
        (&["serve", "1G", "--portal"], "--portal"),
        (&["serve", "1G", "-v", "-q"], "--quiet"),
        (&["serve", "1G", "--portal", "nowhere"], "nowhere"),
        (&["serve", "1G", "--portal", "127.0.0.1"], "ADDR:PORT"),
        (&["serve", "1G", "--portal", "127.0.0.1:99999"], "ADDR:PORT"),
        (&["serve", "1G", "--portal", "localhost:3260"], "ADDR:PORT"),
        (
            &[
                "serve",
                "1G",
                "--portal",
                "127.0.0.1:3299",
                "--portal",
                "127.0.0.1:3299",
            ],
            "twice",
        ),
        (&["serve", "1G", "--iqn", ""], "target name"),
        (&["serve", "1G", "--iqn", "disk"], "iqn."),
        (
            &["serve", "1G", "--iqn", "iqn.2026-13.org.example:x"],
            "YYYY-MM",
        ),
        (
            &["serve", "1G", "--iqn", "iqn.2026-01.org.example:A b"],
            "character",
        ),
        (&["serve", "1G", "--iqn", "eui.123"], "16 hexadecimal"),
        (&["serve", "1G", "--iqn", "naa.5200"], "hexadecimal"),
        (&["serve", "1G", "--cpus", "0"], "--cpus"),
        (&["serve", "1G", "--cpus", "many"], "--cpus"),
        (&["serve", "1G", "--poll-us", "2000000"], "--poll-us"),
    ] {
        refused(dir, args, says);
    }
}

#[test]
fn arguments_that_are_no_text_are_refused_with_one_line() {
    for arg in [&b"\xff"[..], b"serve\xff", b"--\xff"] {
        let out = Command::new(scstd())
            .arg(std::ffi::OsStr::from_bytes(arg))
            .output()
            .unwrap();
        let says = String::from_utf8_lossy(&out.stderr);
        assert_eq!(
            (out.status.code(), says.lines().count()),
            (Some(2), 1),
            "{says}"
        );
        assert!(says.contains("(see scstd "), "{says}");
    }
}

#[test]
fn bad_sizes_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    for (lun, says) in [
        ("0", "size is 0"),
        ("0G", "size is 0"),
        ("1000", "multiple of the block size"),
        ("1X", "is no size"),
        ("1.5G", "is no size"),
        ("99999999T", "too large"),
        ("18446744073709551616", "too large"),
        ("", "empty"),
    ] {
        refused(dir, &["serve", lun], says);
    }
    for (size, says) in [
        ("0", "size is 0"),
        ("100", "multiple of the block size"),
        ("big", "is no size"),
        ("-1", "-1"),
        ("8388608T", "too large"),
        ("1Gi", "is no size"),
    ] {
        refused(dir, &["serve", "new.img", "--size", size], says);
    }
}

#[test]
fn bad_files_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let file = |name: &str, len: u64| {
        fs::File::create(dir.join(name))
            .unwrap()
            .set_len(len)
            .unwrap();
    };
    file("odd.img", 1000);
    file("empty.img", 0);
    file("good.img", 1 << 20);
    file("other.img", 1 << 20);
    fs::create_dir(dir.join("folder")).unwrap();
    symlink("good.img", dir.join("link.img")).unwrap();
    symlink("nowhere", dir.join("dangling.img")).unwrap();
    fs::hard_link(dir.join("good.img"), dir.join("hard.img")).unwrap();
    for (args, says) in [
        (&["missing.img"][..], "missing.img: no such file"),
        (&["./missing.img"], "no such file"),
        (&["no/such/dir.img"], "no such file"),
        (&["no/such/dir.img", "--size", "1M"], "cannot be created"),
        (&["folder"], "is a directory"),
        (&["folder/"], "is a directory"),
        (&["/dev/null"], "neither a file nor a block device"),
        (&["odd.img"], "multiple of the block size"),
        (&["empty.img"], "size is 0"),
        (&["good.img/x"], "good.img/x"),
        (&["good.img", "--size", "2M"], "not the 2097152"),
        (&["good.img", "good.img"], "LUN 0 already"),
        (&["good.img", "./good.img"], "LUN 0 already"),
        (&["other.img", "good.img", "link.img"], "LUN 1 already"),
        (&["good.img", "hard.img"], "LUN 0 already"),
        (&["new.img", "./new.img", "--size", "1M"], "LUN 0 already"),
        // The second argument is wrong: the first must not be created.
        (&["new.img", "good.img", "--size", "2M"], "good.img"),
        (&["new.img", "folder/", "--size", "2M"], "folder"),
        (
            &["new.img", "dangling.img", "--size", "2M"],
            "cannot be created",
        ),
        (&["new.img", "--size", "2M", "--iqn", "x"], "target name"),
    ] {
        let all: Vec<&str> = ["serve"].iter().chain(args).copied().collect();
        refused(dir, &all, says);
    }
}

#[test]
fn files_without_permission_are_refused() {
    if rustix::process::geteuid().is_root() {
        // Root may open anything; what can be tested then is a read-only medium, which needs a mount.
        println!("run as root: permission bits do not bind it");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    refused(dir.path(), &["serve", "disk.img"], "Permission denied");
    refused(
        dir.path(),
        &["serve", "disk.img", "--read-only"],
        "Permission denied",
    );
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    refused(dir.path(), &["serve", "disk.img"], "Permission denied");
}

#[test]
fn a_port_in_use_is_refused_and_created_files_are_removed_again() {
    let dir = tempfile::tempdir().unwrap();
    let busy = TcpListener::bind("127.0.0.1:0").unwrap();
    let portal = busy.local_addr().unwrap().to_string();
    refused(dir.path(), &["serve", "1M", "--portal", &portal], &portal);
    let args = ["serve", "new.img", "--size", "1M", "--portal", &portal];
    refused(dir.path(), &args, &portal);
    // The first portal is free, the second is not.
    let args = [
        "serve",
        "new.img",
        "--size",
        "1M",
        "--portal",
        "127.0.0.1:0",
        "--portal",
        &portal,
    ];
    refused(dir.path(), &args, &portal);
    // An address that is not ours.
    refused(
        dir.path(),
        &["serve", "1M", "--portal", "192.0.2.1:3260"],
        "192.0.2.1:3260",
    );
}

#[test]
fn help_and_version_go_to_stdout() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["--help"][..], &["serve", "--help"], &["--version"]] {
        let out = scstd_in(dir.path(), args);
        assert_eq!((out.code, out.stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(out.stdout.contains("scstd"), "{args:?}");
    }
}

#[test]
fn a_wrong_log_level_in_the_environment_is_refused() {
    let mut command = Command::new(scstd());
    command
        .args(["serve", "1M", "--portal", "127.0.0.1:0"])
        .env("SCST_LOG", "loud");
    let out = tools::run_command(&mut command, Duration::from_secs(10));
    assert_eq!(out.code, Some(1));
    assert!(
        out.stderr.contains("SCST_LOG") && out.stderr.lines().count() == 1,
        "{}",
        out.stderr
    );
}

#[test]
fn ready_lines_name_portals_target_and_luns() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let options = ServerOptions::file(&path)
        .and(dir.path().join("two.img").to_str().unwrap())
        .arg("--size=3M")
        .arg("--portal=[::1]:0");
    let server = Server::start_own(&options);
    assert_eq!(server.iqn, IQN);
    assert_ne!(server.addr.port(), 0);
    let lines = &server.ready_lines;
    assert_eq!(
        lines.iter().filter(|l| l.starts_with("portal ")).count(),
        2,
        "{lines:?}"
    );
    let first = format!("lun 0: file {}, 3 MiB, {}", path.display(), server.url(0));
    assert!(lines.contains(&first), "{lines:?} lacks {first:?}");
    let mut s = server.session(1);
    s.clear_ua(1).unwrap();
    assert_eq!(s.capacity(0).unwrap(), (6144, 512));
    assert_eq!(s.capacity(1).unwrap(), (6144, 512));
    let status = server.stop();
    assert!(status.success(), "{status}");
    assert_eq!(fs::metadata(&path).unwrap().len(), 3 << 20);
}

#[test]
fn sockets_of_the_service_manager_are_its_portals() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let session = OpenOptions::normal(IQN).initiator(1);
    // As systemd does: the socket is descriptor 3, and the process is named.
    let script = "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" serve 1M --iqn \"$1\" 3<&0 </dev/null";
    let mut child = Command::new("sh")
        .args(["-c", script])
        .arg(scstd())
        .arg(IQN)
        .stdin(Stdio::from(std::os::fd::OwnedFd::from(listener)))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut lines = std::io::BufRead::lines(output).map_while(Result::ok);
    let portals: Vec<_> = lines.by_ref().take_while(|l| l != "ready").collect();
    assert!(portals.contains(&format!("portal {addr}")), "{portals:?}");
    assert_eq!(
        portals.iter().filter(|l| l.starts_with("portal ")).count(),
        1
    );
    let mut session = Session::open(addr, &session).unwrap();
    session.clear_ua(0).unwrap();
    drop(session);
    let pid = rustix::process::Pid::from_raw(child.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn read_only_luns_refuse_writes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
    let server = Server::start_own(&ServerOptions::file(&path).arg("--read-only"));
    let mut s = server.session(1);
    let write = scst_tests::Command::write(0, scst_tests::scsi::write10(0, 1), vec![1; 512]);
    // DATA PROTECT, without further code, as kernel SCST says it.
    assert_eq!(s.scsi(&write).unwrap().sense_code(), (7, 0, 0));
    s.expect_blocks(0, 0, &[0; 512]);
}

#[test]
fn termination_signals_stop_it_cleanly_and_sigpipe_does_not() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut server = Server::start_own(&ServerOptions::lun("8M"));
        let session = server.session(1);
        server.signal(Signal::PIPE);
        assert!(server.is_running());
        server.signal(signal);
        let status = server.wait_end();
        assert!(status.success(), "{signal:?}: {status}");
        // The session's connection was closed, not left hanging.
        drop(session);
    }
}

#[test]
fn data_of_an_existing_file_is_served_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let mut data = scst_tests::rng::stamped_blocks(0, 2048, 1);
    fs::write(&path, &data).unwrap();
    let server = Server::start_own(&ServerOptions::file(&path));
    let mut s = server.session(1);
    s.expect_blocks(0, 0, &data);
    let new = scst_tests::rng::stamped_blocks(100, 8, 2);
    s.write_blocks(0, 100, &new).unwrap();
    s.close().unwrap();
    assert!(server.stop().success());
    data[100 * 512..108 * 512].copy_from_slice(&new);
    assert!(fs::read(&path).unwrap() == data);
}
