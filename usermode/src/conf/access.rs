//! Small helpers over a management tree: text instead of bytes, names instead of entries, stores that are slow.

use kshim::error::{Result, code};
use kshim::time::delay::msleep;

use kshim::kobject::tree::{EntryKind, TreeOps};

/// Where a management tree is mounted as a rule: messages name attributes by this path.
pub const SYSFS_ROOT: &str = "/sys/kernel/scst_tgt";

/// How long a slow store is waited for, in milliseconds.
const STORE_WAIT_MS: u32 = 300_000;

/// How often the result of a slow store is asked for, in milliseconds.
const STORE_POLL_MS: u32 = 200;

/// The attribute with the result of the last slow store.
const QUEUE_RES: &str = "last_sysfs_mgmt_res";

/// The file of commands of a directory.
pub(crate) const MGMT: &str = "mgmt";

/// The path of a name in a directory.
pub(crate) fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() {
        name.to_owned()
    } else {
        format!("{dir}/{name}")
    }
}

/// The path that messages show.
pub(crate) fn absolute(path: &str) -> String {
    join(SYSFS_ROOT, path)
}

/// The last component of a path.
pub(crate) fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// An attribute as text.
///
/// Context: may sleep. Errors: those of the tree.
pub(crate) fn read_text(tree: &dyn TreeOps, path: &str) -> Result<String> {
    Ok(String::from_utf8_lossy(&tree.read(path)?).into_owned())
}

/// The directories in a directory, and the links, which all lead to directories.
///
/// Context: may sleep. Errors: those of the tree.
pub(crate) fn subdirs(tree: &dyn TreeOps, path: &str) -> Result<Vec<String>> {
    let entries = tree.list(path)?;
    let dirs = entries.into_iter().filter(|e| e.kind != EntryKind::File);
    Ok(dirs.map(|e| e.name).collect())
}

/// True when there is a directory of this path.
pub(crate) fn is_dir(tree: &dyn TreeOps, path: &str) -> bool {
    !path.split('/').any(|part| matches!(part, "" | "." | ".."))
        && tree.stat(path).is_ok_and(|e| e.kind != EntryKind::File)
}

/// Stores a value. A store that the tree has put off is waited for.
///
/// Context: may sleep, minutes if the server needs them.
///
/// # Errors
///
/// Those of the store; `ENOENT` when there is no such attribute or it takes no value; `EAGAIN`: not done after five minutes.
pub(crate) fn store(tree: &dyn TreeOps, path: &str, value: &str) -> Result {
    const WRITABLE: u16 = 0o222;
    let entry = tree.stat(path).map_err(|_| code::ENOENT)?;
    if entry.kind != EntryKind::File || entry.mode & WRITABLE == 0 {
        return Err(code::ENOENT);
    }
    match tree.write(path, value.as_bytes()) {
        Err(e) if e == code::EAGAIN => wait_for_result(tree),
        done => done,
    }
}

/// Waits until a store that was put off is done.
fn wait_for_result(tree: &dyn TreeOps) -> Result {
    let mut waited_ms = 0;
    while waited_ms < STORE_WAIT_MS {
        match read_text(tree, QUEUE_RES) {
            Err(e) if e == code::EAGAIN => {
                msleep(STORE_POLL_MS);
                waited_ms += STORE_POLL_MS;
            }
            Err(e) => return Err(e),
            Ok(text) => {
                return match text.trim().parse::<i32>() {
                    Ok(0) => Ok(()),
                    Ok(errno) => Err(kshim::error::Error::from_errno(errno)),
                    Err(_) => Err(code::EAGAIN),
                };
            }
        }
    }
    Err(code::EAGAIN)
}
