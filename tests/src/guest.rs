//! A Linux guest under QEMU without acceleration: Debian's kernel and open-iscsi in an initramfs made here.
//!
//! `tools/guest DIR` unpacks what it takes; `SCST_GUEST=DIR` says where. The guest reaches this machine's loopback
//! interface as 10.0.2.2 (QEMU's user networking) and talks by its serial console.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::tools::find;

/// The loopback interface of this machine, as guests see it.
pub const HOST: &str = "10.0.2.2";
/// Programs of the guest.
const PROGRAMS: [&str; 8] = [
    "sbin/iscsid",
    "sbin/iscsiadm",
    "sbin/mke2fs",
    "sbin/e2fsck",
    "sbin/mkfs.xfs",
    "sbin/xfs_repair",
    "sbin/dmsetup",
    "usr/bin/sg_persist",
];
/// Kernel modules of the guest; what they need comes along.
const MODULES: [&str; 12] = [
    "virtio_pci",
    "virtio_net",
    "virtio_rng",
    "crc32c_generic",
    "scsi_transport_iscsi",
    "iscsi_tcp",
    "sd_mod",
    "ext4",
    "xfs",
    "scsi_dh_alua",
    "dm_multipath",
    "dm_round_robin",
];
/// What all guests begin with.
const PROLOGUE: &str = include_str!("../data/guest/prologue");
/// Memory of the guest.
const MEMORY: &str = "512M";

/// What `tools/guest` has unpacked.
#[derive(Debug)]
pub struct Kit {
    guest: PathBuf,
    qemu: PathBuf,
    /// Where QEMU's own libraries are, if it is not installed.
    unpacked: Option<PathBuf>,
}

impl Kit {
    /// The kit in the folder that `SCST_GUEST` names; `None` if it names none.
    ///
    /// # Panics
    ///
    /// If that folder is no kit.
    pub fn from_env() -> Option<Self> {
        let dir = PathBuf::from(std::env::var_os("SCST_GUEST")?);
        assert!(dir.join("ready").exists(), "{dir:?}: run tools/guest first");
        // What ldd prints of it is told from other words by its first character.
        let dir = dir.canonicalize().expect("a folder");
        let unpacked = dir.join("qemu/usr/bin/qemu-system-x86_64");
        let (qemu, unpacked) = match find("qemu-system-x86_64") {
            Some(installed) => (installed, None),
            None => (unpacked, Some(dir.join("qemu"))),
        };
        Some(Self {
            guest: dir.join("guest"),
            qemu,
            unpacked,
        })
    }

    fn kernel(&self) -> PathBuf {
        let dir = self.guest.join("boot");
        let kernels = std::fs::read_dir(&dir).expect("boot").flatten();
        let is_kernel = |p: &PathBuf| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))
        };
        kernels.map(|e| e.path()).find(is_kernel).expect("a kernel")
    }

    /// The initramfs: programs with their libraries, modules, and an `/init` with its `/config`.
    fn initramfs(&self, init: &str, config: &str) -> Vec<u8> {
        let mut archive = Cpio::default();
        archive.file("init", 0o755, init.as_bytes());
        let config = format!("{config}MODULES='{}'\n", MODULES.join(" "));
        archive.file("config", 0o644, config.as_bytes());
        archive.copy("bin/busybox", &self.guest.join("bin/busybox"));
        let mut libraries = BTreeMap::new();
        for program in PROGRAMS {
            let path = self.guest.join(program);
            libraries.append(&mut self.libraries(&path));
            archive.copy(program, &path);
        }
        for (name, path) in libraries {
            let dir = if name.starts_with("ld-linux") {
                "lib64"
            } else {
                "lib/x86_64-linux-gnu"
            };
            archive.copy(&format!("{dir}/{name}"), &path);
        }
        self.add_modules(&mut archive);
        archive.end()
    }

    /// What `ldd` says a program loads, by name.
    fn libraries(&self, program: &Path) -> BTreeMap<String, PathBuf> {
        let own = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|d| self.guest.join(d));
        let own: Vec<_> = own.iter().map(|d| d.to_string_lossy()).collect();
        let out = Command::new("ldd")
            .arg(program)
            .env("LD_LIBRARY_PATH", own.join(":"))
            .output()
            .expect("ldd runs");
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        assert!(!text.contains("not found"), "{program:?}: {text}");
        let paths = text.split_whitespace().filter(|w| w.starts_with('/'));
        let named = paths.map(|p| {
            let path = PathBuf::from(p);
            let name = path
                .file_name()
                .expect("a file")
                .to_string_lossy()
                .into_owned();
            (name, path)
        });
        named.collect()
    }

    fn add_modules(&self, archive: &mut Cpio) {
        let all = self.guest.join("lib/modules");
        let version = std::fs::read_dir(&all).expect("modules").flatten().next();
        let dir = version.expect("a kernel's modules").path();
        let inside = |file: &str| {
            let name = dir
                .file_name()
                .expect("a version")
                .to_string_lossy()
                .into_owned();
            format!("lib/modules/{name}/{file}")
        };
        let dep = std::fs::read_to_string(dir.join("modules.dep")).expect("modules.dep");
        let mut wanted = BTreeSet::new();
        for line in dep.lines() {
            let (file, needs) = line.split_once(':').expect("FILE: NEEDS");
            let stem = Path::new(file)
                .file_stem()
                .expect("a name")
                .to_string_lossy()
                .replace('-', "_");
            if MODULES.contains(&stem.as_str()) {
                wanted.insert(file);
                wanted.extend(needs.split_whitespace());
            }
        }
        for file in wanted {
            archive.copy(&inside(file), &dir.join(file));
        }
        for list in [
            "modules.dep",
            "modules.builtin",
            "modules.order",
            "modules.softdep",
        ] {
            if dir.join(list).exists() {
                archive.copy(&inside(list), &dir.join(list));
            }
        }
    }

    /// Boots a guest whose first process is the prologue (`tests/data/guest/prologue`) and then the script `init`; both read
    /// `/config`.
    ///
    /// # Panics
    ///
    /// If something of the kit is missing.
    pub fn boot(&self, init: &str, config: &str) -> Guest {
        let scratch = tempfile::tempdir().expect("a scratch folder");
        let initrd = scratch.path().join("initrd");
        let init = format!("{PROLOGUE}{init}");
        std::fs::write(&initrd, self.initramfs(&init, config)).expect("write the initramfs");
        let mut command = Command::new(&self.qemu);
        if let Some(root) = &self.unpacked {
            let dirs = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|d| root.join(d));
            let dirs: Vec<_> = dirs.iter().map(|d| d.to_string_lossy()).collect();
            command.env("LD_LIBRARY_PATH", dirs.join(":"));
            for data in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
                command.arg("-L").arg(root.join(data));
            }
        }
        command
            .args([
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
                MEMORY,
                "-display",
                "none",
                "-no-reboot",
            ])
            .args(["-serial", "stdio", "-monitor", "none", "-nodefaults"])
            .args([
                "-netdev",
                "user,id=net",
                "-device",
                "virtio-net-pci,netdev=net,romfile=",
                "-device",
                "virtio-rng-pci",
            ])
            .args(["-append", "console=ttyS0 quiet panic=-1 init=/init"])
            .arg("-kernel")
            .arg(self.kernel())
            .arg("-initrd")
            .arg(&initrd);
        Guest::start(&mut command, scratch)
    }
}

/// An archive in the form that kernels unpack (cpio's newc).
#[derive(Default)]
struct Cpio {
    out: Vec<u8>,
    dirs: BTreeSet<String>,
    inode: u32,
}

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, data: &[u8]) {
        self.inode += 1;
        let size = u32::try_from(data.len()).expect("a file below 4 GiB");
        let name_len = u32::try_from(name.len() + 1).expect("a short name");
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_len, 0];
        self.out.extend(b"070701");
        for field in fields {
            self.out.extend(format!("{field:08x}").as_bytes());
        }
        self.out.extend(name.as_bytes());
        self.out.push(0);
        self.pad();
        self.out.extend(data);
        self.pad();
    }

    fn pad(&mut self) {
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }

    fn file(&mut self, name: &str, mode: u32, data: &[u8]) {
        let parents: Vec<_> = Path::new(name).ancestors().skip(1).collect();
        for dir in parents.into_iter().rev() {
            let dir = dir.to_string_lossy().into_owned();
            if !dir.is_empty() && self.dirs.insert(dir.clone()) {
                self.entry(&dir, 0o040_755, &[]);
            }
        }
        self.entry(name, 0o100_000 | mode, data);
    }

    fn copy(&mut self, name: &str, from: &Path) {
        let data = std::fs::read(from).unwrap_or_else(|e| panic!("{from:?}: {e}"));
        self.file(name, 0o755, &data);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.out
    }
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    log: Vec<String>,
    started: Instant,
    _scratch: tempfile::TempDir,
}

impl Guest {
    fn start(command: &mut Command, scratch: tempfile::TempDir) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
        let output = BufReader::new(child.stdout.take().expect("stdout is a pipe"));
        let (send, lines) = channel();
        thread::spawn(move || {
            for line in output.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                // Nobody listens once the test is over.
                let _ = send.send(line);
            }
        });
        Self {
            input: child.stdin.take().expect("stdin is a pipe"),
            child,
            lines,
            log: Vec::new(),
            started: Instant::now(),
            _scratch: scratch,
        }
    }

    /// Waits until the guest says the word; `limit` is for this word alone.
    ///
    /// # Panics
    ///
    /// If it says that something failed, ends, or says nothing in time, with what it printed.
    #[track_caller]
    pub fn expect(&mut self, word: &str, limit: Duration) {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.lines.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no {word:?} in {limit:?}: {:#?}", self.log)
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("ended before {word:?}: {:#?}", self.log)
                }
            };
            println!(
                "guest {:6.1} s: {line}",
                self.started.elapsed().as_secs_f32()
            );
            let failed = line.contains("@@ failed");
            let said = line.contains(&format!("@@ {word}"));
            self.log.push(line);
            if failed {
                // The rest says why.
                while let Ok(line) = self.lines.recv_timeout(Duration::from_secs(5)) {
                    self.log.push(line);
                }
                panic!("the guest failed before {word:?}: {:#?}", self.log);
            }
            if said {
                return;
            }
        }
    }

    /// Lets a guest go on that waits for it.
    ///
    /// # Panics
    ///
    /// If the guest has ended.
    pub fn go_on(&mut self) {
        self.input.write_all(b"go\n").expect("the guest listens");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
