//! Programs under `scstd exec`.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use scst_tests::run_server::{As, RunOptions, RunServer, fuse_works};

use crate::{output, text};

/// A server without a mount of its own.
fn server(user: As) -> Option<RunServer> {
    let options = RunOptions {
        user,
        ..RunOptions::default()
    };
    fuse_works(user).then(|| RunServer::start(&options))
}

fn reads_and_writes(user: As) {
    let Some(server) = server(user) else { return };
    // Writes by `>`, and by write(2) without truncation; a wrong value fails in the shell.
    let script = "set -e; cd /sys/kernel/scst_tgt; id -u; echo 0x77 > setup_id; cat setup_id; \
                  printf 0x78 | dd of=setup_id conv=notrunc 2>/dev/null; cat setup_id; \
                  if echo zz > setup_id; then exit 1; fi; \
                  echo 'add_device n1' > handlers/vdisk_nullio/mgmt; ls devices; \
                  readlink devices/n1/handler; stat -c '%u %g %a' devices/n1/size";
    let lines = text(server.exec(script));
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[..5], ["0", "0x77", "[key]", "0x78", "[key]"]);
    assert_eq!(lines[5..7], ["n1", "../../handlers/vdisk_nullio"]);
    assert!(lines[7].starts_with("0 0 "), "{lines:?}");
    // Another program sees the same server, and what else is below /sys/kernel.
    let script = "ls /sys/kernel/scst_tgt/devices; ls /sys/kernel | grep -c .";
    let lines = text(server.exec(script));
    let outside = std::fs::read_dir("/sys/kernel").unwrap().count();
    let outside = outside + usize::from(!std::path::Path::new("/sys/kernel/scst_tgt").exists());
    assert_eq!(lines, format!("n1\n{outside}\n"));
}

#[test]
fn root_reads_and_writes_the_tree() {
    reads_and_writes(As::Me);
}

#[test]
fn an_ordinary_user_reads_and_writes_the_tree() {
    reads_and_writes(As::User);
}

#[test]
fn scripts_find_modules_loaded() {
    let Some(server) = server(As::Me) else { return };
    let script = "set -e; modprobe scst; modprobe -r scst; rmmod scst; lsmod | grep '^scst '; \
                  lsmod | grep '^iscsi_scst '; echo $SCST_CONTROL";
    let out = text(server.exec(script));
    assert!(out.ends_with(&format!("{}\n", server.control().display())));
    // One in another: the inner one counts.
    let scstd = scst_tests::server::scstd().display();
    let script = format!("{scstd} exec -- sh -c 'lsmod >/dev/null; ls /sys/kernel/scst_tgt'");
    assert!(text(server.exec(&script)).contains("devices\n"));
}

#[test]
fn a_program_outlives_the_server() {
    let Some(mut server) = server(As::Me) else {
        return;
    };
    let script = "exec 3< /sys/kernel/scst_tgt/version; cat <&3; echo there; read line; \
                  cat /sys/kernel/scst_tgt/version; echo $?; ls /sys/kernel/scst_tgt; echo done";
    let mut child = server
        .exec(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut until = |what: &str| {
        let mut seen = Vec::new();
        for line in lines.by_ref().map_while(Result::ok) {
            if line == what {
                return seen;
            }
            seen.push(line);
        }
        panic!("ended without {what}: {seen:?}");
    };
    until("there");
    server.kill9();
    writeln!(child.stdin.take().unwrap(), "on").unwrap();
    assert_eq!(until("done"), ["1"]);
    let out = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(errors.contains("not connected"), "{errors}");
}

#[test]
fn a_clean_stop_does_not_wait_for_programs() {
    let Some(mut server) = server(As::Me) else {
        return;
    };
    let script = "exec 3< /sys/kernel/scst_tgt/version; echo there; read line";
    let mut child = server
        .exec(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "there\n");
    assert!(server.stop().success());
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn what_cannot_be_run_is_one_line() {
    let Some(server) = server(As::Me) else { return };
    let exec = |args: &[&str]| {
        let mut command = Command::new(scst_tests::server::scstd());
        command.arg("exec").args(args);
        let out = output(command);
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(!out.status.success());
        assert_eq!(text.lines().count(), 1, "{text}");
        text
    };
    let control = server.control();
    let control = control.to_str().unwrap();
    assert!(exec(&["--control", "/no/such/socket", "--", "true"]).contains("no server at"));
    assert!(exec(&["--control", control, "--", "/no/such/program"]).contains("cannot be run"));
    assert!(exec(&["--control", control]).contains("see scstd exec --help"));
}
