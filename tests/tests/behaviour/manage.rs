//! Management for the cases that change the configuration: by the management tree.

use std::path::{Path, PathBuf};

use kshim::kobject::tree::{Tree, TreeOps};
use scst_compare::{Access, Errno, Manage};

/// Files of the recording: name and size in KiB.
const FILES: [(&str, u64); 3] = [("m0.img", 16 << 10), ("m1.img", 8 << 10), ("m0.dif", 256)];

/// Manages a server in this process.
pub(crate) struct TreeManage {
    tree: Tree,
    data: PathBuf,
}

impl TreeManage {
    /// By its tree; `$DATA` is `data`, where the files of the recording are made.
    pub(crate) fn new(tree: Tree, data: &Path) -> std::io::Result<Self> {
        for (name, kib) in FILES {
            std::fs::File::create(data.join(name))?.set_len(kib << 10)?;
        }
        let data = data.to_owned();
        Ok(Self { tree, data })
    }
}

impl Manage for TreeManage {
    fn can(&self, _access: &Access) -> bool {
        true
    }

    fn write(&mut self, path: &str, value: &str) -> Errno {
        let value = if value.is_empty() { "\n" } else { value };
        let done = self.tree.write(path, value.as_bytes());
        done.map_or_else(|e| e.errno(), |()| 0)
    }

    fn read(&mut self, path: &str) -> Result<String, Errno> {
        let data = self.tree.read(path).map_err(|e| e.errno())?;
        Ok(String::from_utf8_lossy(&data).into_owned())
    }

    fn list(&mut self, path: &str) -> Result<String, Errno> {
        let all = self.tree.list(path).map_err(|e| e.errno())?;
        let names: Vec<_> = all.into_iter().map(|e| e.name).collect();
        Ok(names.join(" "))
    }

    fn data_dir(&self) -> String {
        self.data.display().to_string()
    }
}
