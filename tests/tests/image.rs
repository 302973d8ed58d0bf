//! A file system of real files travels through qemu-img to a LUN and back unharmed; what was acknowledged as durable
//! outlives kill -9.
//!
//! `SCST_IMAGE_MIB` sets the size of the image (64), `SCST_KILL_ROUNDS` the number of kills (5).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use scst_tests::kills::{LUN_BYTES, outlive_kills};
use scst_tests::server::io_uring_works;
use scst_tests::tools::{env_number, require, require_qemu_img, run, sha256};
use scst_tests::{Rng, Server, ServerOptions};

const LIMIT: Duration = Duration::from_secs(600);

struct Tools {
    qemu: PathBuf,
    mke2fs: PathBuf,
    e2fsck: PathBuf,
}

fn tools() -> Option<Tools> {
    let [mke2fs, e2fsck, _] = require(["mke2fs", "e2fsck", "sha256sum"])?;
    Some(Tools {
        qemu: require_qemu_img()?,
        mke2fs,
        e2fsck,
    })
}

impl Tools {
    /// An ext4 image of `mib` MiB, two thirds full of files of many sizes.
    fn make_image(&self, dir: &Path, mib: u64) -> PathBuf {
        let tree = dir.join("tree");
        let mut rng = Rng::from_env(11);
        let mut left = mib * (1 << 20) * 2 / 3;
        let mut n = 0;
        while left > 0 {
            let folder = tree
                .join(format!("d{}", n % 17))
                .join(format!("e{}", n % 5));
            fs::create_dir_all(&folder).unwrap();
            let most = if rng.one_in(8) { 4 << 20 } else { 64 << 10 };
            let len = rng.below(most).min(left) + 1;
            let data = if rng.one_in(4) {
                vec![0; len as usize]
            } else {
                rng.bytes(len as usize)
            };
            fs::write(folder.join(format!("f{n}")), data).unwrap();
            left = left.saturating_sub(len);
            n += 1;
        }
        let image = dir.join("fs.img");
        let (from, to) = (tree.to_str().unwrap(), image.to_str().unwrap());
        run(
            &self.mke2fs,
            &["-q", "-t", "ext4", "-d", from, to, &format!("{mib}M")],
            LIMIT,
        )
        .success();
        println!("{n} files in {mib} MiB");
        image
    }

    fn write(&self, image: &Path, url: &str) {
        // Write-back: qemu-img flushes the target's cache at the end.
        let image = image.to_str().unwrap();
        let args = [
            "convert",
            "-n",
            "-t",
            "writeback",
            "-f",
            "raw",
            "-O",
            "raw",
            image,
            url,
        ];
        run(&self.qemu, &args, LIMIT).success();
    }

    /// Reads the LUN's first `len` bytes back and compares: same bytes, sound file system.
    fn check(&self, url: &str, dir: &Path, len: u64, digest: &str) {
        let back = dir.join("back.img");
        let args = [
            "convert",
            "-f",
            "raw",
            "-O",
            "raw",
            url,
            back.to_str().unwrap(),
        ];
        run(&self.qemu, &args, LIMIT).success();
        // An external target's LUN may be larger.
        fs::File::options()
            .write(true)
            .open(&back)
            .unwrap()
            .set_len(len)
            .unwrap();
        assert_eq!(sha256(&back), digest, "the image came back changed");
        run(&self.e2fsck, &["-fn", back.to_str().unwrap()], LIMIT).success();
        fs::remove_file(back).unwrap();
    }
}

#[test]
fn a_file_system_survives_the_way_there_and_back_and_kill9() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mib = env_number("SCST_IMAGE_MIB", 64);
    let image = tools.make_image(dir.path(), mib);
    let digest = sha256(&image);
    // The LUN starts full of other data: zeros of the image must really be written (or unmapped).
    let path = dir.path().join("disk.img");
    let junk = Rng::new(5).bytes(1 << 20);
    let mut all = Vec::new();
    (0..mib).for_each(|_| all.extend_from_slice(&junk));
    fs::write(&path, all).unwrap();
    let mut server = Server::start(&ServerOptions::file(&path));
    tools.write(&image, &server.url(0));
    tools.check(&server.url(0), dir.path(), mib << 20, &digest);
    if Server::is_external() {
        return;
    }
    server.restart();
    tools.check(&server.url(0), dir.path(), mib << 20, &digest);
    assert!(server.stop().success());
    assert_eq!(sha256(&path), digest);
}

#[test]
fn a_file_system_survives_the_way_through_a_ram_disk() {
    let Some(tools) = tools() else { return };
    let dir = tempfile::tempdir().unwrap();
    let mib = env_number("SCST_IMAGE_MIB", 64);
    let image = tools.make_image(dir.path(), mib);
    let server = Server::start(&ServerOptions::lun(format!("{mib}M")));
    tools.write(&image, &server.url(0));
    tools.check(&server.url(0), dir.path(), mib << 20, &sha256(&image));
}

/// A file, with these arguments for the server.
fn outlive_kills_with(args: &[&str]) {
    if Server::is_external() {
        return;
    }
    // Not in memory, where O_DIRECT may not be had.
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("disk.img");
    fs::write(&path, vec![0; LUN_BYTES as usize]).unwrap();
    let options = ServerOptions::file(&path);
    outlive_kills(&args.iter().fold(options, |o, a| o.arg(a)));
}

#[test]
fn acknowledged_durable_writes_outlive_kill9() {
    outlive_kills_with(&["--engine", "threads"]);
}

#[test]
fn so_they_do_with_io_uring() {
    if io_uring_works() {
        outlive_kills_with(&["--engine", "uring"]);
        outlive_kills_with(&["--engine", "uring", "--direct"]);
    }
}

#[test]
fn so_they_do_with_linux_aio() {
    outlive_kills_with(&["--engine", "aio"]);
    outlive_kills_with(&["--engine", "aio", "--direct"]);
}

#[test]
fn so_they_do_in_a_mapped_file() {
    if Server::is_external() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    fs::write(&path, vec![0; LUN_BYTES as usize]).unwrap();
    let path = path.to_str().unwrap();
    outlive_kills(&ServerOptions::lun(format!("/dev/mmap/{path}")));
}

#[test]
fn so_they_do_in_a_qcow2_image() {
    let Some([qemu, _]) = require(["qemu-img", "tcmu-runner"]) else {
        return;
    };
    if Server::is_external() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.qcow2");
    let image = path.to_str().unwrap();
    let size = LUN_BYTES.to_string();
    run(&qemu, &["create", "-q", "-f", "qcow2", image, &size], LIMIT).success();
    outlive_kills(&ServerOptions::lun(format!("/dev/tcmur/qcow/{image}")));
    // 3: only clusters that nobody uses.
    let code = run(&qemu, &["check", "-f", "qcow2", image], LIMIT).code;
    assert!(matches!(code, Some(0 | 3)), "qemu-img check: {code:?}");
}
