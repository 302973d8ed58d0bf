//! Starts the built `scstd run` in a directory of its own, with a control socket and, where it is asked for and can be, a mount.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::server::scstd;
use crate::tools::end_of;

/// How long a start, a clean stop or a program may take.
const LIMIT: Duration = Duration::from_secs(60);
/// A user that owns nothing.
const NOBODY: &str = "65534";

/// As whom a server and its tools run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    /// As whoever runs the test.
    Me,
    /// As an ordinary user: if the test runs as root, as nobody, in a mount name space in which `/dev/fuse` is open to all,
    /// as it is on most machines.
    User,
}

/// How to start a server.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// As whom.
    pub user: As,
    /// With the tree mounted.
    pub sysfs: bool,
    /// Further arguments.
    pub more: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            user: As::Me,
            sysfs: false,
            more: Vec::new(),
            env: Vec::new(),
        }
    }
}

/// A running `scstd run`.
#[derive(Debug)]
pub struct RunServer {
    /// Its directory: `mnt`, `state`, `c.sock`, and room for a test's files.
    pub dir: PathBuf,
    /// What it printed until it was ready.
    pub ready_lines: Vec<String>,
    options: RunOptions,
    child: Option<Child>,
    /// Reads what it writes to stderr.
    log: Option<thread::JoinHandle<String>>,
    owned_dir: Option<tempfile::TempDir>,
}

impl RunServer {
    /// Starts a server in a new directory.
    ///
    /// # Panics
    ///
    /// If it does not become ready, with what it wrote to stderr.
    pub fn start(options: &RunOptions) -> Self {
        let owned = tempfile::tempdir().expect("temporary directory");
        let dir = owned.path().to_owned();
        open_to_all(&dir, 0o777);
        for sub in ["mnt", "state"] {
            fs::create_dir(dir.join(sub)).expect("directory");
            open_to_all(&dir.join(sub), 0o777);
        }
        if options.user == As::User {
            // The target folder may be closed to others.
            fs::copy(scstd(), dir.join("scstd")).expect("copy of scstd");
        }
        let mut server = Self::try_start_in(&dir, options).unwrap_or_else(|e| panic!("{e}"));
        server.owned_dir = Some(owned);
        server
    }

    /// Starts a server in a directory that [`RunServer::start`] made, for instance after a kill.
    ///
    /// # Errors
    ///
    /// What it wrote to stderr when it ended instead of becoming ready.
    pub fn try_start_in(dir: &Path, options: &RunOptions) -> Result<Self, String> {
        let mut command = command_as(dir, options.user, "run");
        command.args(["--portal", "127.0.0.1:0", "--control"]);
        command.arg(dir.join("c.sock"));
        command.arg("--state-dir").arg(dir.join("state"));
        if options.sysfs {
            command.arg("--sysfs").arg(dir.join("mnt"));
        }
        if !options.more.iter().any(|arg| arg == "--config") {
            command.arg("--no-config");
        }
        command.args(&options.more);
        command.envs(options.env.iter().map(|(k, v)| (k, v)));
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot run scstd: {e}"))?;
        let (send, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Nobody listens once the server is ready.
                let _ = send.send(line);
            }
        });
        let mut errors = child.stderr.take().expect("stderr is a pipe");
        let stderr = thread::spawn(move || {
            let mut text = String::new();
            // What is no text is of no interest.
            let _ = errors.read_to_string(&mut text);
            eprint!("{text}");
            text
        });
        let deadline = Instant::now() + LIMIT;
        let mut ready_lines = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match lines.recv_timeout(left) {
                Ok(line) if line == "ready" => break,
                Ok(line) => ready_lines.push(line),
                Err(why) => {
                    if why == RecvTimeoutError::Timeout {
                        // It may have ended by itself.
                        let _ = child.kill();
                    }
                    let status = child.wait().map_err(|e| e.to_string())?;
                    let text = stderr.join().unwrap_or_default();
                    return Err(format!("scstd run {options:?}: {status}: {text}"));
                }
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            ready_lines,
            options: options.clone(),
            child: Some(child),
            log: Some(stderr),
            owned_dir: None,
        })
    }

    /// The control socket.
    pub fn control(&self) -> PathBuf {
        self.dir.join("c.sock")
    }

    /// A path of the mounted tree.
    pub fn sysfs(&self, path: &str) -> PathBuf {
        self.dir.join("mnt").join(path)
    }

    /// The first portal.
    ///
    /// # Panics
    ///
    /// If it has none.
    pub fn portal(&self) -> SocketAddr {
        let mut lines = self.ready_lines.iter();
        let portal = lines.find_map(|l| l.strip_prefix("portal "));
        portal.expect("a portal").parse().expect("an address")
    }

    /// `scstd exec` with a shell script, as the user of the server.
    pub fn exec(&self, script: &str) -> Command {
        let mut command = command_as(&self.dir, self.options.user, "exec");
        command.arg("--control").arg(self.control());
        command.args(["--", "sh", "-c", script]);
        command
    }

    /// Process number of the server itself.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("a running server").id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.pid().cast_signed()).expect("a process number");
        kill_process(pid, signal).expect("the server runs");
    }

    /// Ends the server at once, as kill -9 does. Its directory stays.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            child.wait().expect("waiting for a killed child");
        }
    }

    /// The same server again after [`RunServer::kill9`].
    ///
    /// # Panics
    ///
    /// If it does not become ready.
    pub fn restart(&mut self) {
        let dir = self.dir.clone();
        let mut new = Self::try_start_in(&dir, &self.options).unwrap_or_else(|e| panic!("{e}"));
        self.child = new.child.take();
        self.log = new.log.take();
        self.ready_lines = std::mem::take(&mut new.ready_lines);
        // Its mount is ours now.
        new.options.sysfs = false;
    }

    /// Asks the server to stop (SIGTERM) and waits for its end. Its directory stays.
    ///
    /// # Panics
    ///
    /// If it does not stop in time.
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        let mut child = self.child.take().expect("a running server");
        let (status, killed) = end_of(&mut child, LIMIT);
        assert!(!killed, "the server did not stop within {LIMIT:?}");
        status
    }
}

impl RunServer {
    /// Stops the server cleanly; what it wrote to stderr since it was started.
    ///
    /// # Panics
    ///
    /// If it does not stop in time, or not cleanly.
    pub fn stop_and_log(&mut self) -> String {
        let status = self.stop();
        let log = self.log.take().expect("the log is asked for once");
        let log = log.join().expect("a thread that reads");
        assert!(status.success(), "{status}: {log}");
        log
    }
}

impl Drop for RunServer {
    fn drop(&mut self) {
        if self.child.is_some() && !thread::panicking() {
            assert!(self.stop().success());
        }
        self.kill9();
        if self.options.sysfs {
            // Of a killed server; mounts of name spaces go with them.
            let _ = Command::new("umount")
                .args(["-l", "-q"])
                .arg(self.dir.join("mnt"))
                .stderr(Stdio::null())
                .status();
        }
    }
}

fn open_to_all(path: &Path, mode: u32) {
    let mode = fs::Permissions::from_mode(mode);
    fs::set_permissions(path, mode).expect("permissions of a test's directory");
}

/// `scstd SUBCOMMAND`, as that user.
fn command_as(dir: &Path, user: As, subcommand: &str) -> Command {
    if user == As::Me {
        let mut command = Command::new(scstd());
        command.arg(subcommand);
        return command;
    }
    if !is_root() {
        let mut command = Command::new(dir.join("scstd"));
        command.arg(subcommand);
        return command;
    }
    // The device file of this test, at the place of the host's. `exec` keeps the process number of the server.
    let script = format!(
        "set -e; f=$1/fuse-device; [ -e $f ] || mknod -m 666 $f c 10 229; mount --bind $f /dev/fuse; \
         b=$1/scstd; shift; exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups $b \"$@\""
    );
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", &script, "sh"]);
    command.arg(dir).arg(subcommand);
    command
}

/// Whether the test runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether a mount can be made here as that user; says so if not. It is a matter of the machine.
pub fn fuse_works(user: As) -> bool {
    let open = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse");
    if let Err(e) = open {
        eprintln!("*** TEST NOT RUN: /dev/fuse: {e} ***");
        return false;
    }
    let mut tries = vec!["unshare"];
    if user == As::User && is_root() {
        tries = vec![
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "unshare",
        ];
    }
    if user == As::User || !is_root() {
        tries.extend(["-U", "-r"]);
    }
    tries.extend(["-m", "true"]);
    let status = Command::new(tries[0]).args(&tries[1..]).status();
    if !status.is_ok_and(|s| s.success()) {
        eprintln!("*** TEST NOT RUN: this machine permits no name spaces ({tries:?}) ***");
        return false;
    }
    true
}
