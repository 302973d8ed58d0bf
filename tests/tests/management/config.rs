//! `scstd run --config`, SIGHUP, and the program scstadmin on a server.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use scst_tests::run_server::{As, RunOptions, RunServer, fuse_works};
use scst_tests::server::scstadmin;

use crate::{output, text};

/// How long a changed file may take to be applied.
const LIMIT: Duration = Duration::from_secs(30);

fn options(config: &str) -> RunOptions {
    RunOptions {
        more: vec!["--config".to_owned(), config.to_owned()],
        ..RunOptions::default()
    }
}

/// A file with one device on one target.
fn conf(image: &str, more: &str) -> String {
    format!(
        "HANDLER vdisk_fileio {{\n\tDEVICE disk1 {{\n\t\tfilename {image}\n\t}}\n}}\n\nTARGET_DRIVER iscsi {{\n\tenabled 1\n\n\
         \tTARGET iqn.2026-01.org.example:t {{\n\t\tenabled 1\n\n\t\tLUN 0 disk1\n{more}\t}}\n}}\n"
    )
}

/// A directory with a disk image.
fn place() -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().expect("temporary directory");
    let image = dir.path().join("disk1.img");
    fs::File::create(&image)
        .and_then(|f| f.set_len(1 << 20))
        .expect("image");
    let image = image.display().to_string();
    (dir, image)
}

#[test]
fn a_file_is_applied_at_the_start_and_what_differs_on_sighup() {
    let (dir, image) = place();
    let path = dir.path().join("scst.conf");
    fs::write(&path, conf(&image, "")).unwrap();
    let mut server = RunServer::start(&options(path.to_str().unwrap()));
    let target = "target iqn.2026-01.org.example:t".to_owned();
    assert!(
        server.ready_lines.contains(&target),
        "{:?}",
        server.ready_lines
    );

    let group = "\n\t\tGROUP g {\n\t\t\tLUN 0 disk1\n\n\t\t\tINITIATOR iqn.x:a\n\t\t}\n";
    fs::write(&path, conf(&image, group)).unwrap();
    server.signal(Signal::HUP);
    let groups = ["-list_group", "-driver", "iscsi", "-json"];
    let deadline = Instant::now() + LIMIT;
    while !text(admin(&server, &groups)).contains("\"initiators\":[\"iqn.x:a\"]") {
        assert!(Instant::now() < deadline, "the change was not applied");
        std::thread::sleep(Duration::from_millis(20));
    }
    // A bad file is logged, and the server goes on as it is.
    let before = text(admin(&server, &["-write_config", "/dev/stdout"]));
    fs::write(&path, "HANDLER vdisk_fileio {\n").unwrap();
    server.signal(Signal::HUP);
    assert_eq!(
        text(admin(&server, &["-write_config", "/dev/stdout"])),
        before
    );
    assert!(server.stop().success());
}

fn admin(server: &RunServer, args: &[&str]) -> Command {
    let mut command = Command::new(scstadmin());
    command.args(args).arg("-control").arg(server.control());
    command
}

#[test]
fn a_bad_file_is_told_with_its_place_and_nothing_starts() {
    let (dir, image) = place();
    let path = dir.path().join("scst.conf");
    let good = conf(&image, "");
    let cases = [
        (
            good.replace("\t\tLUN 0", "\t\tLUM 0"),
            ":13:9: attribute 'LUM' takes one value",
        ),
        (
            good.replacen("filename", "filenam", 1),
            ":3:3: device 'disk1' has no attribute 'filenam'",
        ),
        (
            conf(&image, "\t\tLUN 0 disk1\n"),
            ":14:7: LUN 0 is defined twice here",
        ),
        (
            good.trim_end().trim_end_matches('}').to_owned(),
            ":7:1: section 'TARGET_DRIVER iscsi' is not closed",
        ),
        (
            good.replace(&image, "/no/such/file"),
            ":2:2: Opening device 'disk1' using handler 'vdisk_fileio': No such file",
        ),
        (
            good.replace("TARGET_DRIVER iscsi", "TARGET_DRIVER qla2x00t"),
            "is not loaded or available",
        ),
    ];
    for (file, message) in cases {
        fs::write(&path, &file).unwrap();
        let run = tempfile::tempdir().unwrap();
        let started = RunServer::try_start_in(run.path(), &options(path.to_str().unwrap()));
        let e = started.expect_err(&file);
        assert!(e.contains(message), "{e}\nwanted: {message}");
        assert!(e.contains("scst.conf"), "{e}");
    }
    let run = tempfile::tempdir().unwrap();
    let e = RunServer::try_start_in(run.path(), &options("/no/such.conf")).unwrap_err();
    assert!(
        e.contains("Unable to open configuration file '/no/such.conf': No such file"),
        "{e}"
    );
}

#[test]
fn what_cannot_be_applied_may_be_left_out() {
    let (dir, image) = place();
    let path = dir.path().join("scst.conf");
    let file = conf(&image, "").replace(
        "\tDEVICE disk1",
        "\tDEVICE gone {\n\t\tfilename /no/such\n\t}\n\n\tDEVICE disk1",
    );
    fs::write(&path, file).unwrap();
    let mut options = options(path.to_str().unwrap());
    options.more.push("--cont-on-err".to_owned());
    let mut server = RunServer::start(&options);
    let devices = text(admin(&server, &["-list_handler", "vdisk_fileio", "-json"]));
    assert_eq!(devices, "{\"vdisk_fileio\":[\"disk1\"]}\n");
    assert!(server.stop().success());
}

#[test]
fn scstadmin_applies_saves_checks_and_clears() {
    let (dir, image) = place();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut server = RunServer::start(&RunOptions::default());
    fs::write(at("a.conf"), conf(&image, "")).unwrap();
    let before = text(admin(&server, &["-write_config", "/dev/stdout"]));

    let plan = text(admin(&server, &["-config", &at("a.conf"), "--dry-run"]));
    assert!(plan.contains("\t-> Opening device 'disk1' using handler 'vdisk_fileio'\n"));
    assert_eq!(
        text(admin(&server, &["-write_config", "/dev/stdout"])),
        before
    );

    // Fails at the target, and what was done before is taken back.
    fs::write(
        at("bad.conf"),
        conf(&image, "").replace("org.example:t ", "bad_name "),
    )
    .unwrap();
    let out = output(admin(&server, &["-config", &at("bad.conf")]));
    assert_eq!(out.status.code(), Some(1));
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(err.contains("bad.conf:10:2: Creating target"), "{err}");
    assert_eq!(
        text(admin(&server, &["-write_config", "/dev/stdout"])),
        before
    );

    let report = text(admin(&server, &["-config", &at("a.conf"), "-json"]));
    assert!(
        report.starts_with("{\"applied\":[\"Opening device"),
        "{report}"
    );
    text(admin(&server, &["-write_config", &at("b.conf")]));
    let saved = fs::read_to_string(at("b.conf")).unwrap();
    assert!(saved.starts_with("# Automatically generated by SCST Configurator v3."));
    let again = text(admin(
        &server,
        &["-config", &at("b.conf"), "-force", "-noprompt"],
    ));
    assert!(again.contains("-> Done, 0 change(s) made."));
    text(admin(&server, &["-check_config", &at("b.conf")]));
    text(admin(&server, &["-clear_config", "-force", "-noprompt"]));
    let empty = text(admin(&server, &["-list_handler", "vdisk_fileio", "-json"]));
    assert_eq!(empty, "{\"vdisk_fileio\":[]}\n");
    let applied = text(admin(&server, &["-config", &at("b.conf"), "-json"]));
    assert!(applied.contains("\"failed\":[]"), "{applied}");
    text(admin(&server, &["-write_config", &at("c.conf")]));
    assert_eq!(fs::read_to_string(at("c.conf")).unwrap(), saved);
    assert!(server.stop().success());
}

#[test]
fn a_server_that_is_not_there_is_told() {
    let mut command = Command::new(scstadmin());
    command.args(["-list_driver", "-control", "/no/such/socket"]);
    let out = output(command);
    let err = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(err.contains("no server at /no/such/socket"), "{err}");
    assert_eq!(out.status.code(), Some(1));
}

#[test]
fn scstadmin_works_on_a_mounted_tree() {
    if !fuse_works(As::Me) {
        return;
    }
    let (dir, image) = place();
    let path = dir.path().join("a.conf");
    fs::write(&path, conf(&image, "")).unwrap();
    let mut server = RunServer::start(&RunOptions {
        sysfs: true,
        ..RunOptions::default()
    });
    let mount = server.sysfs("").display().to_string();
    let mounted = |args: &[&str]| {
        let mut command = Command::new(scstadmin());
        command.args(args).args(["-sysfs", &mount]);
        command
    };
    text(mounted(&["-config", path.to_str().unwrap()]));
    let save = ["-write_config", "/dev/stdout"];
    assert_eq!(text(mounted(&save)), text(admin(&server, &save)));
    // And where programs look for the kernel's.
    let program = scstadmin().display().to_string();
    let script = format!(
        "unset SCST_CONTROL; {program} -control /no -sysfs /sys/kernel/scst_tgt -list_device"
    );
    assert!(text(server.exec(&script)).contains("vdisk_fileio     disk1"));
    assert!(server.stop().success());
}

#[test]
fn a_file_of_an_old_scst_is_converted_and_applied() {
    let (dir, image) = place();
    let path = dir.path().join("scst.conf");
    let old = format!(
        "[HANDLER vdisk]\nDEVICE disk1,{image},WRITE_THROUGH,4096\nDEVICE null1,,NULLIO\n[GROUP Default]\n[GROUP g]\nUSER \
         iqn.x:a\n[ASSIGNMENT Default]\nDEVICE null1,0\n[ASSIGNMENT g]\nDEVICE disk1,0\n"
    );
    fs::write(&path, old).unwrap();
    let mut server = RunServer::start(&RunOptions::default());
    text(admin(
        &server,
        &[
            "-add_target",
            "iqn.2026-01.org.example:t",
            "-driver",
            "iscsi",
        ],
    ));
    let applied = text(admin(&server, &["-config", path.to_str().unwrap()]));
    assert!(
        applied.contains("NOTE: Using a deprecated configuration file."),
        "{applied}"
    );
    let saved = text(admin(&server, &["-write_config", "/dev/stdout"]));
    for part in [
        "\tDEVICE disk1 {\n\t\tblocksize 4096\n",
        "\t\twrite_through 1\n",
        "HANDLER vdisk_nullio {\n\tDEVICE null1",
    ] {
        assert!(saved.contains(part), "{part}\n{saved}");
    }
    assert!(server.stop().success());
}
