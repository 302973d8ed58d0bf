//! The mounted tree and the control socket.

use std::fs::{self, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::process::Command;

use scst_tests::run_server::{As, RunOptions, RunServer, fuse_works};

/// Errnos of Linux.
const EACCES: i32 = 13;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOTCONN: i32 = 107;

fn mounted(user: As) -> Option<RunServer> {
    let options = RunOptions {
        user,
        sysfs: true,
        ..RunOptions::default()
    };
    fuse_works(user).then(|| RunServer::start(&options))
}

fn errno<T: std::fmt::Debug>(r: std::io::Result<T>) -> i32 {
    r.expect_err("an error").raw_os_error().expect("an errno")
}

#[test]
fn the_mount_is_the_tree() {
    let Some(mut server) = mounted(As::Me) else {
        return;
    };
    let root = server.sysfs("");
    for name in ["devices", "handlers", "targets", "device_groups", "sgv"] {
        assert!(root.join(name).is_dir(), "{name}");
    }
    let version = server.sysfs("version");
    let meta = fs::metadata(&version).unwrap();
    assert_eq!(
        (meta.len(), meta.permissions().mode() & 0o777),
        (4096, 0o444)
    );
    assert!(!fs::read_to_string(&version).unwrap().is_empty());
    assert_eq!(errno(OpenOptions::new().write(true).open(&version)), EACCES);

    let setup_id = server.sysfs("setup_id");
    fs::write(&setup_id, "0x1234\n").unwrap();
    assert_eq!(fs::read_to_string(&setup_id).unwrap(), "0x1234\n[key]\n");
    assert_eq!(errno(fs::write(&setup_id, "zz")), EINVAL);
    assert_eq!(errno(fs::write(root.join("new"), "")), EACCES);
    assert!(fs::create_dir(root.join("new")).is_err());
    assert!(fs::remove_dir(root.join("devices")).is_err());

    assert!(server.stop().success());
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0, "unmounted");
}

#[test]
fn an_open_file_of_a_removed_device_answers_enodev() {
    let Some(server) = mounted(As::Me) else {
        return;
    };
    let mgmt = server.sysfs("handlers/vdisk_nullio/mgmt");
    fs::write(&mgmt, "add_device null1\n").unwrap();
    let dir = server.sysfs("devices/null1");
    let handler = fs::read_link(dir.join("handler")).unwrap();
    assert_eq!(handler.to_str(), Some("../../handlers/vdisk_nullio"));
    let mut size = fs::File::open(dir.join("size")).unwrap();
    let mut text = String::new();
    size.read_to_string(&mut text).unwrap();
    assert!(!text.is_empty());
    fs::write(&mgmt, "del_device null1").unwrap();
    size.rewind().unwrap();
    assert_eq!(errno(size.read(&mut [0; 10])), ENODEV);
    assert!(!dir.exists());
    // One of the same name is another one.
    fs::write(&mgmt, "add_device null1").unwrap();
    assert_eq!(errno(size.read(&mut [0; 10])), ENODEV);
    assert!(fs::read(dir.join("size")).is_ok());
}

#[test]
fn an_ordinary_user_has_a_server_with_a_mount() {
    let Some(server) = mounted(As::User) else {
        return;
    };
    // Others do not see into the user's name spaces; the user does.
    let mut script = server.exec("cat /sys/kernel/scst_tgt/version && id -u");
    let out = script.output().unwrap();
    assert!(
        out.status.success(),
        "{}",
        String::from_utf8_lossy(&out.stderr)
    );
    assert!(server.ready_lines.iter().any(|l| l.starts_with("sysfs ")));
}

#[test]
fn a_killed_server_leaves_nothing_that_stops_the_next() {
    let Some(mut server) = mounted(As::Me) else {
        return;
    };
    let mut version = fs::File::open(server.sysfs("version")).unwrap();
    server.kill9();
    assert_eq!(errno(version.read(&mut [0; 10])), ENOTCONN);
    assert_eq!(errno(fs::read_dir(server.sysfs(""))), ENOTCONN);
    server.restart();
    assert!(fs::read(server.sysfs("version")).is_ok());
}

#[test]
fn a_control_socket_belongs_to_one_server() {
    let options = RunOptions::default();
    let mut first = RunServer::start(&options);
    let mode = fs::metadata(first.control()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o600);
    let second = RunServer::try_start_in(&first.dir, &options).unwrap_err();
    assert!(
        second.contains("another server has this control socket"),
        "{second}"
    );
    first.kill9();
    assert!(first.control().exists(), "a killed server cannot remove it");
    first.restart();
    assert!(first.stop().success());
    assert!(!first.control().exists());
}

#[test]
fn the_service_manager_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    let notify = (
        "NOTIFY_SOCKET".to_owned(),
        path.to_str().unwrap().to_owned(),
    );
    let mut server = RunServer::start(&RunOptions {
        env: vec![notify],
        ..RunOptions::default()
    });
    let next = || {
        let mut buf = [0; 100];
        let n = manager.recv(&mut buf).unwrap();
        String::from_utf8_lossy(&buf[..n]).into_owned()
    };
    assert_eq!(next(), "READY=1");
    assert!(server.stop().success());
    assert_eq!(next(), "STOPPING=1");
}

#[test]
fn what_cannot_be_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::File::create(path("file"))
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let cases = [
        (vec!["--sysfs".to_owned(), path("absent")], "No such file"),
        (vec!["--sysfs".to_owned(), path("file")], "Not a directory"),
        (vec!["--control".to_owned(), path("file")], "File exists"),
        (
            vec!["--control".to_owned(), path(&"x".repeat(200))],
            "too long",
        ),
        (vec!["--portal".to_owned(), "nonsense".to_owned()], "portal"),
        (vec!["--cpus".to_owned(), "0".to_owned()], "--cpus"),
        (vec!["--state-dir".to_owned(), path("file")], "--state-dir"),
    ];
    for (args, why) in cases {
        let mut command = Command::new(scst_tests::server::scstd());
        command.args(["-q", "run", "--no-config", "--portal", "127.0.0.1:0"]);
        // What is given twice has to be left out here.
        if args[0] != "--control" {
            command.args(["--control", &path("c.sock")]);
        }
        if args[0] != "--state-dir" {
            command.args(["--state-dir", &path("state")]);
        }
        command.args(&args);
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr);
        assert!(!out.status.success(), "{args:?}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
        assert!(text.contains(why), "{args:?}: {text}");
    }
}
