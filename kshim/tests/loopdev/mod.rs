//! A block device of the host.

use std::process::Command;

/// A loop device over a file of zeros, where the test may make one.
pub(crate) struct Loop {
    pub(crate) path: String,
    _image: tempfile::NamedTempFile,
}

fn losetup(args: &[&str]) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "makes a block device")]
    let out = Command::new("losetup").args(args).output().ok()?;
    out.status
        .success()
        .then(|| String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

impl Loop {
    pub(crate) fn new(len: u64) -> Option<Loop> {
        let image = tempfile::NamedTempFile::new().unwrap();
        image.as_file().set_len(len).unwrap();
        let path = losetup(&["--find", "--show", image.path().to_str()?]);
        if path.is_none() {
            eprintln!("no loop devices here");
        }
        Some(Loop {
            path: path?,
            _image: image,
        })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        losetup(&["--detach", &self.path]);
    }
}
