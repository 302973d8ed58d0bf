//! Starts the built `scstd serve`, or stands for a target that already runs.
//!
//! With `SCST_TEST_EXTERNAL="ADDR:PORT IQN LUN [PID]"` the tests that need no own server talk to that target instead
//! (another implementation, a kernel, a server under a profiler); `LUN` is its first LUN. Tests which need what that
//! target cannot give (kill -9, two LUNs) do not run then.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::procfs::{self, Usage};
use crate::session::{LoginError, OpenOptions, Session};
use crate::tools::end_of;

/// Name of the target in the tests.
pub const IQN: &str = "iqn.2026-01.org.example:scst";
/// How long a start or a clean stop may take.
const START_LIMIT: Duration = Duration::from_secs(20);

/// Poller that the server is told to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PollerKind {
    /// What the server chooses.
    #[default]
    Auto,
    /// io_uring.
    Uring,
    /// epoll.
    Epoll,
}

/// How to start a server.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// LUN arguments: sizes or paths.
    pub luns: Vec<String>,
    /// Poller.
    pub poller: PollerKind,
    /// Number of reactors; the server's default when `None`.
    pub cpus: Option<u32>,
    /// Further arguments, as `--size`.
    pub more: Vec<String>,
    /// Another server than `scstd`, with its command line.
    pub program: Option<PathBuf>,
    /// A program that runs the server, with its arguments.
    pub wrapper: Vec<String>,
}

impl ServerOptions {
    /// One LUN: a size for a RAM disk, or the path of a file.
    pub fn lun(lun: impl AsRef<str>) -> Self {
        Self {
            luns: vec![lun.as_ref().to_owned()],
            ..Self::default()
        }
    }

    /// One LUN that is a file.
    pub fn file(path: &Path) -> Self {
        Self::lun(path.to_str().expect("test paths are UTF-8"))
    }

    /// With one more LUN.
    pub fn and(mut self, lun: impl AsRef<str>) -> Self {
        self.luns.push(lun.as_ref().to_owned());
        self
    }

    /// With this poller.
    pub fn poller(mut self, poller: PollerKind) -> Self {
        self.poller = poller;
        self
    }

    /// With so many reactors.
    pub fn cpus(mut self, n: u32) -> Self {
        self.cpus = Some(n);
        self
    }

    /// With a further argument.
    pub fn arg(mut self, arg: &str) -> Self {
        self.more.push(arg.to_owned());
        self
    }

    /// The command line that starts the server on a free port.
    pub fn command(&self) -> Command {
        let server = self.program.as_deref().unwrap_or_else(|| scstd());
        let mut command = match self.wrapper.split_first() {
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(server);
                command
            }
            None => Command::new(server),
        };
        command
            .arg("serve")
            .args(&self.luns)
            .args(["--portal", "127.0.0.1:0", "--iqn", IQN]);
        match self.poller {
            PollerKind::Auto => {}
            PollerKind::Uring => drop(command.args(["--poller", "uring"])),
            PollerKind::Epoll => drop(command.args(["--poller", "epoll"])),
        }
        if let Some(n) = self.cpus {
            command.args(["--cpus", &n.to_string()]);
        }
        command.args(&self.more);
        command
    }
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// First portal.
    pub addr: SocketAddr,
    /// Target name.
    pub iqn: String,
    /// LUN number of the first LUN.
    pub first_lun: u16,
    /// What it printed until it was ready.
    pub ready_lines: Vec<String>,
    pid: Option<u32>,
    child: Option<Child>,
    stderr: Arc<Mutex<String>>,
    options: ServerOptions,
}

impl Server {
    /// Starts a server and waits until it is ready.
    ///
    /// # Panics
    ///
    /// If it ends or does not become ready in time, with what it wrote to stderr.
    pub fn start(options: &ServerOptions) -> Self {
        Self::external().unwrap_or_else(|| Self::start_own(options))
    }

    /// True if the tests run against a target that they did not start.
    pub fn is_external() -> bool {
        std::env::var_os("SCST_TEST_EXTERNAL").is_some()
    }

    /// Starts an own server also where an external one is given.
    pub fn start_own(options: &ServerOptions) -> Self {
        Self::try_start(options).unwrap_or_else(|e| panic!("scstd serve {options:?}: {e}"))
    }

    /// Starts an own server; what it wrote to stderr when it ended instead of becoming ready.
    pub fn try_start(options: &ServerOptions) -> Result<Self, String> {
        let mut child = options
            .command()
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|e| format!("cannot run scstd: {e}"))?;
        let stderr = Arc::new(Mutex::new(String::new()));
        let collected = Arc::clone(&stderr);
        let errors = BufReader::new(child.stderr.take().expect("stderr is a pipe"));
        thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                // Shown by the harness if the test fails.
                eprintln!("scstd: {line}");
                let mut all = collected.lock().expect("stderr collector");
                all.push_str(&line);
                all.push('\n');
            }
        });
        let (send, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // Nobody listens once the server is ready; its output is drained all the same.
                let _ = send.send(line);
            }
        });
        match wait_ready(&lines) {
            Ok((addr, iqn, ready_lines)) => Ok(Self {
                addr,
                iqn,
                first_lun: 0,
                ready_lines,
                pid: Some(child.id()),
                child: Some(child),
                stderr,
                options: options.clone(),
            }),
            Err(why) => {
                // It may have ended by itself.
                let _ = child.kill();
                let status = child.wait().map_err(|e| e.to_string())?;
                thread::sleep(Duration::from_millis(50));
                Err(format!(
                    "{why} ({status}): {}",
                    stderr.lock().expect("stderr collector")
                ))
            }
        }
    }

    fn external() -> Option<Self> {
        let text = std::env::var("SCST_TEST_EXTERNAL").ok()?;
        let mut words = text.split_whitespace();
        let mut word = || words.next();
        Some(Self {
            addr: word()?
                .parse()
                .expect("SCST_TEST_EXTERNAL: ADDR:PORT IQN LUN [PID]"),
            iqn: word()?.to_owned(),
            first_lun: word().map_or(0, |w| w.parse().expect("SCST_TEST_EXTERNAL: LUN")),
            ready_lines: Vec::new(),
            pid: word().map(|w| w.parse().expect("SCST_TEST_EXTERNAL: PID")),
            child: None,
            stderr: Arc::default(),
            options: ServerOptions::default(),
        })
    }

    /// Number of the `n`-th LUN.
    pub fn lun(&self, n: u16) -> u16 {
        self.first_lun + n
    }

    /// `iscsi://` URL of the `n`-th LUN.
    pub fn url(&self, n: u16) -> String {
        format!("iscsi://{}/{}/{}", self.addr, self.iqn, self.lun(n))
    }

    /// Options of a session with this target.
    pub fn options(&self) -> OpenOptions {
        OpenOptions::normal(&self.iqn)
    }

    /// Opens a session as the `n`-th initiator.
    pub fn try_session(&self, n: u32) -> Result<Session, LoginError> {
        Session::open(self.addr, &self.options().initiator(n))
    }

    /// Opens a session as the `n`-th initiator and takes the unit attentions of the first LUN.
    ///
    /// # Panics
    ///
    /// If the login fails.
    #[track_caller]
    pub fn session(&self, n: u32) -> Session {
        let mut session = self
            .try_session(n)
            .unwrap_or_else(|e| panic!("login to {}: {e}", self.addr));
        session.clear_ua(self.lun(0)).expect("TEST UNIT READY");
        session
    }

    /// Process id; `None` for an external target that did not say.
    pub fn pid(&self) -> Option<u32> {
        self.pid
    }

    /// Memory, descriptors and threads; zeros for an external target that did not say its pid.
    pub fn usage(&self) -> Usage {
        self.pid.map_or_else(Usage::default, |pid| {
            Usage::of(pid).expect("the server runs")
        })
    }

    /// CPU time used so far.
    pub fn cpu_time(&self) -> Duration {
        self.pid.map_or(Duration::ZERO, |pid| {
            procfs::cpu_time(pid).expect("the server runs")
        })
    }

    /// What the server wrote to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.lock().expect("stderr collector").clone()
    }

    /// True while the process runs.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_none_or(|c| c.try_wait().expect("waiting for a child").is_none())
    }

    /// Ends the server at once (kill -9).
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            child.wait().expect("waiting for a killed child");
        }
    }

    /// The same server again, after [`Server::kill9`], on a new port.
    pub fn restart(&mut self) {
        self.kill9();
        *self = Self::start_own(&self.options.clone());
    }

    /// Asks the server to stop (SIGTERM) and waits for its end.
    ///
    /// # Panics
    ///
    /// If it does not stop in time.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait_end()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = self
            .child
            .as_ref()
            .and_then(|c| Pid::from_raw(c.id() as i32))
        {
            kill_process(pid, signal).expect("the server runs");
        }
    }

    /// Waits until the server has ended.
    ///
    /// # Panics
    ///
    /// If it does not in time.
    pub fn wait_end(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a server of our own");
        let (status, killed) = end_of(&mut child, START_LIMIT);
        assert!(
            !killed,
            "the server did not stop within {START_LIMIT:?}; stderr: {}",
            self.stderr()
        );
        status
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let ended = self.child.as_mut().map(|c| c.try_wait().ok().flatten());
        self.kill9();
        if thread::panicking() {
            return;
        }
        assert!(
            !matches!(ended, Some(Some(_))),
            "the server ended by itself: {ended:?}"
        );
        let stderr = self.stderr();
        assert!(
            !stderr.contains("panicked at"),
            "a thread of the server panicked: {stderr}"
        );
    }
}

/// Reads the ready lines: the first portal, the target name, and all of them.
fn wait_ready(lines: &Receiver<String>) -> Result<(SocketAddr, String, Vec<String>), String> {
    let deadline = Instant::now() + START_LIMIT;
    let (mut addr, mut iqn, mut all) = (None, None, Vec::new());
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let line = match lines.recv_timeout(left) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => return Err("not ready in time".into()),
            Err(RecvTimeoutError::Disconnected) => return Err("ended before it was ready".into()),
        };
        if let Some(portal) = line.strip_prefix("portal ") {
            let portal = portal
                .trim()
                .parse()
                .map_err(|e| format!("ready line {line:?}: {e}"))?;
            addr.get_or_insert(portal);
        } else if let Some(name) = line.strip_prefix("target ") {
            iqn.get_or_insert(name.trim().to_owned());
        } else if line == "ready" {
            let (addr, iqn) = addr.zip(iqn).ok_or("ready without portal or target")?;
            return Ok((addr, iqn, all));
        }
        all.push(line);
    }
}

/// True if the kernel lets this process use io_uring; prints a message if not. That is the machine's business, not a
/// missing package, and no failure in CI either.
pub fn io_uring_works() -> bool {
    let disabled =
        std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    if matches!(disabled.trim(), "1" | "2") {
        eprintln!("*** TEST NOT RUN: io_uring is disabled on this machine ***");
        return false;
    }
    true
}

/// Path of the `scstd` binary, built once per test process (`SCST_TEST_SCSTD` names another one).
pub fn scstd() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var_os("SCST_TEST_SCSTD") {
        Some(path) => PathBuf::from(path),
        None => build(),
    })
}

/// Path of the `scstadmin` binary, which is beside `scstd`.
pub fn scstadmin() -> PathBuf {
    scstd().with_file_name("scstadmin")
}

/// Path of the `scst-compare` binary, which is beside `scstd`.
pub fn scst_compare() -> PathBuf {
    scstd().with_file_name("scst-compare")
}

/// `cargo test` builds the binaries of the package under test only; ours is in the root package. Built as the test
/// itself was: with the test profile's settings beside it, or in release mode.
fn build() -> PathBuf {
    let bins = [
        "--bin",
        "scstd",
        "--bin",
        "scstadmin",
        "--bin",
        "scst-compare",
    ];
    build_in_profile(&bins).join("scstd")
}

/// Path of an example of the root package, built as the server is.
pub fn example(name: &str) -> PathBuf {
    build_in_profile(&["--example", name])
        .join("examples")
        .join(name)
}

/// Builds something of the workspace; the folder of the profile.
fn build_in_profile(what: &[&str]) -> PathBuf {
    let exe = std::env::current_exe().expect("path of this test");
    // target/PROFILE/deps/NAME-HASH
    let profile_dir = exe
        .ancestors()
        .nth(2)
        .expect("tests are built in target/PROFILE/deps");
    let release = profile_dir
        .file_name()
        .is_some_and(|name| name == "release");
    let profile = if release { "release" } else { "test" };
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target_dir = profile_dir.parent().expect("a target folder");
    let status = Command::new(cargo)
        .args(["build", "--quiet", "--workspace", "--profile", profile])
        .args(what)
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "cargo build {what:?}: {status}");
    profile_dir.to_owned()
}
