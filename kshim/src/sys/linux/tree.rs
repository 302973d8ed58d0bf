//! Directories of attributes: what `ls`, `cat` and `echo >` do.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use crate::error::{Result, code};
use crate::kobject::tree::{Entry, EntryKind};

/// An attribute is at most this long; longer ones are cut.
const VALUE_MAX: u64 = 64 << 10;

fn entry(name: String, meta: &fs::Metadata) -> Entry {
    let kind = match meta.file_type() {
        t if t.is_dir() => EntryKind::Dir,
        t if t.is_symlink() => EntryKind::Link,
        _ => EntryKind::File,
    };
    let mode = u16::try_from(meta.permissions().mode() & 0o777).unwrap_or(0);
    Entry { name, kind, mode }
}

/// The entries of a directory, by name. What vanishes meanwhile is left out.
pub(crate) fn list(path: &Path) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for found in fs::read_dir(path)? {
        let found = found?;
        if let (Ok(name), Ok(meta)) = (found.file_name().into_string(), found.metadata()) {
            entries.push(entry(name, &meta));
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

/// What a name is, links not followed.
pub(crate) fn stat(path: &Path) -> Result<Entry> {
    Ok(entry(String::new(), &fs::symlink_metadata(path)?))
}

/// The content of an attribute.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut data = Vec::new();
    fs::File::open(path)?
        .take(VALUE_MAX)
        .read_to_end(&mut data)?;
    Ok(data)
}

/// Stores a value: one write.
pub(crate) fn write(path: &Path, value: &[u8]) -> Result {
    let mut file = fs::OpenOptions::new().write(true).open(path)?;
    if file.write(value)? < value.len() {
        return Err(code::EIO);
    }
    Ok(())
}

/// Where a link leads.
pub(crate) fn readlink(path: &Path) -> Result<String> {
    let to = fs::read_link(path)?.into_os_string().into_string();
    to.map_err(|_| code::EILSEQ)
}

/// Writes a file anew. An ordinary one is replaced: a crash leaves the old or the new one. It keeps its mode and owner; a new
/// one is its owner's alone.
pub(crate) fn save(path: &Path, data: &[u8]) -> Result {
    let old = match fs::metadata(path) {
        Ok(meta) if !meta.is_file() => {
            let mut file = fs::OpenOptions::new().write(true).open(path)?;
            return Ok(file.write_all(data)?);
        }
        Ok(meta) => Some(meta),
        Err(_) => None,
    };
    // Links are followed: what they lead to is replaced.
    let path = match &old {
        Some(_) => fs::canonicalize(path)?,
        None => path.to_owned(),
    };
    let mut name = path.file_name().ok_or(code::EISDIR)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let temporary = path.with_file_name(name);
    let written = write_new(&temporary, old.as_ref(), data);
    let done = written.and_then(|()| Ok(fs::rename(&temporary, &path)?));
    if done.is_err() {
        // What is left of it is of no use to anybody.
        let _ = fs::remove_file(&temporary);
    }
    done
}

fn write_new(path: &Path, old: Option<&fs::Metadata>, data: &[u8]) -> Result {
    use std::os::unix::fs::MetadataExt as _;
    const PRIVATE: u32 = 0o600;
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(PRIVATE)
        .open(path)?;
    if let Some(old) = old {
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid()))?;
        }
        file.set_permissions(old.permissions())?;
    }
    file.write_all(data)?;
    Ok(file.sync_all()?)
}
