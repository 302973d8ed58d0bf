//! Foreign programs, run with a time limit.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// What a program left behind.
#[derive(Debug)]
pub struct Output {
    /// Exit code; `None` when a signal ended it or it ran out of time.
    pub code: Option<i32>,
    /// True if it was killed because it ran out of time.
    pub timed_out: bool,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output of a program that must have succeeded.
    ///
    /// # Panics
    ///
    /// If it did not.
    #[track_caller]
    pub fn success(self) -> String {
        assert!(self.code == Some(0), "{self:#?}");
        self.stdout
    }
}

/// Runs `program` with `args` for at most `limit`.
pub fn run<S: AsRef<OsStr>>(program: &Path, args: &[S], limit: Duration) -> Output {
    let mut command = Command::new(program);
    command.args(args);
    run_command(&mut command, limit)
}

/// Runs a prepared command for at most `limit`.
pub fn run_command(command: &mut Command, limit: Duration) -> Output {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let stdout = collect(child.stdout.take().expect("stdout is a pipe"));
    let stderr = collect(child.stderr.take().expect("stderr is a pipe"));
    let (status, timed_out) = end_of(&mut child, limit);
    let text = |t: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&t.join().expect("pipe reader")).into_owned()
    };
    Output {
        code: status.code(),
        timed_out,
        stdout: text(stdout),
        stderr: text(stderr),
    }
}

/// Waits for the end of a child, kills it when that takes longer than `limit`, and tells whether it was.
pub(crate) fn end_of(child: &mut Child, limit: Duration) -> (ExitStatus, bool) {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait().expect("waiting for a child") {
            return (status, false);
        }
        if Instant::now() > deadline {
            // It may have ended by itself just now.
            let _ = child.kill();
            return (child.wait().expect("waiting for a killed child"), true);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn collect(mut pipe: impl std::io::Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        // What came before an error is worth more than the error.
        let _ = pipe.read_to_end(&mut all);
        all
    })
}

/// Where `name` is installed; also looks where only root's PATH points to.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(more)
        .map(|dir| dir.join(name))
        .find(|p| p.is_file())
}

/// The paths of `names`. When one is missing: in CI the test fails, elsewhere it says so on stderr and `None` comes back,
/// upon which the test returns.
pub fn require<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let missing: Vec<&str> = names.into_iter().filter(|n| find(n).is_none()).collect();
    if missing.is_empty() {
        return Some(names.map(|n| find(n).expect("found just now")));
    }
    missing_in_ci(&format!("{} not installed", missing.join(", ")));
    None
}

/// A test cannot run here, for this reason: fails in CI, else prints a message that is hard to overlook.
pub fn missing_in_ci(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{why}; run tools/setup");
    // Straight to stderr, past the test harness, which would swallow it.
    let text = format!("\n*** TEST NOT RUN: {why}; run tools/setup ***\n\n");
    let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
}

/// `qemu-img`, if it can open `iscsi://` (the driver is a module in a package of its own); else as [`require`].
pub fn require_qemu_img() -> Option<PathBuf> {
    let [qemu] = require(["qemu-img"])?;
    let url = "iscsi://127.0.0.1:1/iqn.none/0";
    let said = run(&qemu, &["info", url], Duration::from_secs(30)).stderr;
    if said.contains("Unable to load module") || said.contains("Unknown protocol") {
        missing_in_ci("qemu-img has no iscsi driver (package qemu-block-extra)");
        return None;
    }
    Some(qemu)
}

/// The number in environment variable `name`, or `default`.
///
/// # Panics
///
/// If it is set to something else than a number.
pub fn env_number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// SHA-256 of a file, by coreutils.
pub fn sha256(path: &Path) -> String {
    let out = run(Path::new("sha256sum"), &[path], Duration::from_secs(300)).success();
    out.split_whitespace()
        .next()
        .expect("sha256sum prints the digest")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_limit_and_output() {
        let sh = find("sh").unwrap();
        let out = run(
            &sh,
            &["-c", "echo a; echo b >&2; exit 3"],
            Duration::from_secs(10),
        );
        assert_eq!(
            (out.code, out.stdout.as_str(), out.stderr.as_str()),
            (Some(3), "a\n", "b\n")
        );
        let out = run(&sh, &["-c", "exec sleep 60"], Duration::from_millis(50));
        assert!(out.timed_out && out.code.is_none(), "{out:?}");
    }
}
