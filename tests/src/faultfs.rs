//! A file that fails on demand: `c/faultfs.c`, a FUSE file system under the server.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::run_server::{As, fuse_works};
use crate::tools::{missing_in_ci, require, run};

/// A file system with one file, whose data is in another file outside.
#[derive(Debug)]
pub struct FaultFs {
    dir: PathBuf,
}

impl FaultFs {
    /// Builds it into a directory, with a file of so many bytes. `None`: this machine has no compiler, or no FUSE.
    ///
    /// # Panics
    ///
    /// If it cannot be built, or in CI if a tool is missing.
    #[must_use]
    pub fn new(dir: &Path, len: u64) -> Option<Self> {
        let [cc, _] = require(["cc", "unshare"])?;
        if !fuse_works(As::Me) {
            missing_in_ci("no FUSE");
            return None;
        }
        let me = Self {
            dir: dir.to_owned(),
        };
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("c/faultfs.c");
        let args = [
            Path::new("-O1"),
            Path::new("-pthread"),
            Path::new("-o"),
            &me.at("faultfs"),
            &source,
        ];
        run(&cc, &args, Duration::from_secs(60)).success();
        fs::create_dir(me.at("mnt")).expect("mount point");
        let data = fs::File::create(me.data()).expect("file");
        data.set_len(len).expect("file");
        me.fail("");
        Some(me)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The file, as the server has it.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.at("mnt/disk")
    }

    /// The file with its data, outside.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.at("data")
    }

    /// What goes wrong from now on, as `read=5 slow=5000`; see `c/faultfs.c`.
    ///
    /// # Panics
    ///
    /// If the control file cannot be replaced.
    pub fn fail(&self, how: &str) {
        // All at once: it is read before each request.
        fs::write(self.at("control.new"), how).expect("control file");
        fs::rename(self.at("control.new"), self.at("control")).expect("control file");
    }

    /// What was done so far, a line for each request.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        let text = fs::read_to_string(self.at("log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Runs a server in a mount name space that has the file system.
    #[must_use]
    pub fn wrapper(&self) -> Vec<String> {
        let text = |name: &str| {
            let path = self.at(name);
            path.to_str().expect("test paths are UTF-8").to_owned()
        };
        let mut words: Vec<String> = ["unshare", "--map-root-user", "--mount"]
            .map(str::to_owned)
            .into();
        words.extend(["faultfs", "mnt", "data", "control", "log"].map(text));
        words
    }
}
