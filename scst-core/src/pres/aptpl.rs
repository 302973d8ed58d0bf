//! The file that keeps registrations and the reservation across power loss.
//!
//! Layout, the one of kernel SCST, in the byte order of the host where nothing else is said: u64 signature, u64
//! version, u8 aptpl, u8 is_set, u8 type, u8 scope; then for each registration u8 is_holder, TransportID, be64 key,
//! u16 relative target port id.
//!
//! # Crash safety
//!
//! While a file is written its signature is 0, and only when everything else is on the medium the real one is written.
//! Before that the old file, if it is whole, is copied to `NAME copy`, also with signature last; where there is none,
//! the copy is an empty file. So at any moment one of both is whole and holds the state before or the state after the
//! command under way, or both say that there was none before. DIFFERS: kernel SCST copies without a sync, copies a
//! broken file over a whole copy, removes the file before the copy (so that the copy comes back to life when it is
//! stopped between), and fails a device for ever whose very first file was cut off.
//!
//! No device can have the name of a copy: names have no spaces. DIFFERS: kernel SCST's copy is `NAME.1`, which is also the
//! file of a device that is called so. Such a copy is read where the file is not whole and nothing newer is there; it is
//! never written or removed.
//!
//! The layout has no length: a file cut off between two registrations looks whole unless the holder was behind the
//! cut. The signature is there against that.
//!
//! C source: `scst_pr_do_load_device_file`, `scst_pr_sync_device_file` of `scst/src/scst_pres.c`

use super::TransportId;
use super::state::{PrState, PrType};
use kshim::error::{Result, code};
use kshim::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

/// First word of a whole file.
#[doc(alias = "SCST_PR_FILE_SIGN")]
pub const SIGNATURE: u64 = 0xBBEE_EEAA_EEBB_DD77;
/// Second word.
#[doc(alias = "SCST_PR_FILE_VERSION")]
pub const VERSION: u64 = 1;
/// Longer files are refused.
pub const MAX_FILE_LEN: usize = 15 * 1024 * 1024;
const SIGNATURE_LEN: usize = 8;

/// Why a file is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corrupt {
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// The signature is 0: writing it was interrupted.
    #[error("it was not written to its end")]
    Unfinished,
    /// The signature is another one.
    #[error("invalid signature")]
    Signature,
    /// The version is another one.
    #[error("unknown version")]
    Version,
    /// It ends too early.
    #[error("it is cut off")]
    Truncated,
    /// It contradicts itself.
    #[error("{0}")]
    Inconsistent(&'static str),
}

/// Reads fields one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, n: usize) -> Result<&'a [u8], Corrupt> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Corrupt::Truncated)?;
        self.0 = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Corrupt> {
        let bytes = self.bytes(N)?;
        bytes.try_into().map_err(|_| Corrupt::Truncated)
    }

    fn u8(&mut self) -> Result<u8, Corrupt> {
        self.array().map(|[b]: [u8; 1]| b)
    }
}

impl PrState {
    /// The file's contents.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let mut data = SIGNATURE.to_ne_bytes().to_vec();
        data.extend_from_slice(&VERSION.to_ne_bytes());
        let (is_set, ty, scope) = match &self.reservation {
            Some(r) => (1, r.ty.code(), r.scope),
            None => (0, 0, 0),
        };
        data.extend_from_slice(&[u8::from(self.aptpl), is_set, ty, scope]);
        let holder = self.holder().map(|h| h.id);
        for reg in &self.registrants {
            data.push(u8::from(holder == Some(reg.id)));
            data.extend_from_slice(reg.transport_id.as_bytes());
            data.extend_from_slice(&reg.key.to_be_bytes());
            data.extend_from_slice(&reg.rel_tgt_id.to_ne_bytes());
        }
        data
    }

    /// The state of a file's contents; no nexus is attached. PRGENERATION is 0.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn from_file(data: &[u8]) -> Result<Self, Corrupt> {
        if data.is_empty() {
            return Err(Corrupt::Empty);
        }
        if data.len() < SIGNATURE_LEN && data.iter().all(|b| *b == 0) {
            return Err(Corrupt::Unfinished);
        }
        let mut f = Fields(data);
        match u64::from_ne_bytes(f.array()?) {
            SIGNATURE => {}
            0 => return Err(Corrupt::Unfinished),
            _ => return Err(Corrupt::Signature),
        }
        if u64::from_ne_bytes(f.array()?) != VERSION {
            return Err(Corrupt::Version);
        }
        let [aptpl, is_set, ty, scope] = f.array()?;
        let mut state = Self::default();
        state.aptpl = aptpl != 0;
        let mut holder = None;
        while !f.0.is_empty() {
            let is_holder = f.u8()? != 0;
            let tid = f.bytes(TransportId::len_at(f.0))?;
            let tid = TransportId::parse(tid).ok_or(Corrupt::Truncated)?;
            let key = u64::from_be_bytes(f.array()?);
            let port = u16::from_ne_bytes(f.array()?);
            let id = state.add(tid, port, key);
            let id = id.ok_or(Corrupt::Inconsistent("a registration is there twice"))?;
            if key == 0 {
                return Err(Corrupt::Inconsistent("a key is 0"));
            }
            if is_holder && holder.replace(id).is_some() {
                return Err(Corrupt::Inconsistent(
                    "two registrations hold the reservation",
                ));
            }
        }
        let first = state.registrants.first().map(|r| r.id);
        // Without registrations there is no file.
        let first = first.ok_or(Corrupt::Truncated)?;
        if is_set != 0 {
            let ty = PrType::from_code(ty);
            let ty = ty.ok_or(Corrupt::Inconsistent("unknown reservation type"))?;
            let holder = if ty.is_all_reg() { Some(first) } else { holder };
            let holder = holder.ok_or(Corrupt::Inconsistent("nobody holds the reservation"))?;
            state.reserve(holder, ty, scope);
        }
        Ok(state)
    }
}

/// What is done to the two files, step by step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Which {
    Main,
    Backup,
    /// The copy of kernel SCST and of earlier versions, which is only read.
    Former,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step<'a> {
    /// Make the file empty, then write this.
    Create(Which, &'a [u8]),
    /// Write over the beginning of the file.
    Overwrite(Which, &'a [u8]),
    /// Make the file's contents durable.
    Sync(Which),
    Remove(Which),
    /// Make names durable.
    SyncDir,
}

/// Contents with the signature apart.
struct Contents {
    unsigned: Vec<u8>,
    signature: Vec<u8>,
}

impl Contents {
    fn new(mut data: Vec<u8>) -> Self {
        let rest = data.split_off(SIGNATURE_LEN.min(data.len()));
        let mut unsigned = vec![0; data.len()];
        unsigned.extend_from_slice(&rest);
        Self {
            unsigned,
            signature: data,
        }
    }

    fn steps(&self, which: Which) -> [Step<'_>; 5] {
        [
            Step::Create(which, &self.unsigned),
            Step::Sync(which),
            Step::SyncDir,
            Step::Overwrite(which, &self.signature),
            Step::Sync(which),
        ]
    }
}

/// Where the state of one logical unit is kept.
#[derive(Clone, Debug)]
pub struct PrFile {
    main: PathBuf,
    backup: PathBuf,
    former: PathBuf,
}

/// What the name of a copy ends with. No name of a device has a space in it.
const BACKUP: &str = " copy";
/// The same as kernel SCST has it.
const FORMER: &str = ".1";

impl PrFile {
    /// The file of a device in a directory, which is made. Errors: those of making it. Context: may sleep.
    #[doc(alias = "scst_pr_set_file_name")]
    pub fn new(dir: &Path, device: &str) -> Result<Self> {
        fs::create_dir_all(dir)?;
        Ok(Self {
            main: dir.join(device),
            backup: dir.join(format!("{device}{BACKUP}")),
            former: dir.join(format!("{device}{FORMER}")),
        })
    }

    fn path(&self, which: Which) -> &Path {
        match which {
            Which::Main => &self.main,
            Which::Backup => &self.backup,
            Which::Former => &self.former,
        }
    }

    /// The state that was saved last; `None` if there is none. A file that is not whole is refused with a line in the
    /// log, and the copy is used.
    ///
    /// # Errors
    ///
    /// `EINVAL`: neither file is whole. Others: those of reading.
    ///
    /// Context: may sleep.
    #[doc(alias = "scst_pr_load_device_file")]
    pub fn load(&self) -> Result<Option<PrState>> {
        let main = self.read(Which::Main)?;
        let (main_is_there, mut from) = (main.is_some(), Which::Main);
        let chosen = choose(main, || {
            let (which, found) = self.read_copy(main_is_there)?;
            from = which;
            Ok(found)
        })?;
        if chosen.is_some() && from != Which::Main {
            let copy = self.path(from).display();
            kshim::pr_warn!("Persistent reservations taken from {copy}");
        }
        Ok(chosen)
    }

    /// The copy, and what is in it. Without a main file there is none of former versions: they removed a device's
    /// copy with its file, or what is left there is another device's.
    fn read_copy(&self, main_is_there: bool) -> Result<(Which, Found)> {
        let found = self.read(Which::Backup)?;
        if found.is_some() || !main_is_there || self.former_is_a_device() {
            return Ok((Which::Backup, found));
        }
        Ok((Which::Former, self.read(Which::Former)?))
    }

    /// Whether what would be a copy of former versions has a copy itself, so that it is the file of a device.
    fn former_is_a_device(&self) -> bool {
        [BACKUP, FORMER].iter().any(|end| {
            let mut copy = self.former.clone().into_os_string();
            copy.push(end);
            fs::stat(Path::new(&copy)).is_ok()
        })
    }

    fn read(&self, which: Which) -> Result<Found> {
        let path = self.path(which);
        let state = match fs::read(path, MAX_FILE_LEN) {
            Ok(data) => PrState::from_file(&data),
            Err(e) if e == code::ENOENT => return Ok(None),
            Err(e) if e == code::EFBIG => Err(Corrupt::Inconsistent("it is too long")),
            Err(e) => return Err(e),
        };
        match &state {
            // Means that there was no state before.
            Err(Corrupt::Empty) if which == Which::Backup => {}
            Err(e) => kshim::pr_err!(
                "Persistent reservation file {} refused: {e}",
                path.display()
            ),
            Ok(_) => {}
        }
        Ok(Some(state))
    }

    /// Saves the state, or removes the files if it is not to be kept. Errors: those of writing; what is there is then
    /// not the state, but the one before it or none. Context: may sleep.
    #[doc(alias = "scst_pr_sync_device_file")]
    pub fn save(&self, state: &PrState) -> Result {
        let old = match fs::read(&self.main, MAX_FILE_LEN) {
            Ok(old) => Some(old),
            Err(e) if e == code::ENOENT => None,
            Err(e) => return Err(e),
        };
        let old_is_there = old.is_some();
        let backup_is_whole = || matches!(self.read_copy(old_is_there), Ok((_, Some(Ok(_)))));
        with_plan(state, old, backup_is_whole, |steps| {
            steps.iter().try_for_each(|step| self.run(step))
        })
    }

    fn run(&self, step: &Step<'_>) -> Result {
        let open = |which, new: bool| {
            let options = OpenOptions::new().create(new).truncate(new);
            File::open(self.path(which), &options)
        };
        match step {
            Step::Create(which, data) => open(*which, true)?.write_at(data, 0).map(drop),
            Step::Overwrite(which, data) => open(*which, false)?.write_at(data, 0).map(drop),
            Step::Sync(which) => open(*which, false)?.fsync(),
            Step::Remove(which) => match fs::unlink(self.path(*which)) {
                Err(e) if e == code::ENOENT => Ok(()),
                r => r,
            },
            Step::SyncDir => match self.main.parent() {
                Some(dir) => fs::sync_dir(dir),
                None => Ok(()),
            },
        }
    }
}

/// What a file was found to be; `None` if it is not there.
type Found = Option<Result<PrState, Corrupt>>;

/// The state that counts.
fn choose(main: Found, backup: impl FnOnce() -> Result<Found>) -> Result<Option<PrState>> {
    let main = match main {
        Some(Ok(state)) => return Ok(Some(state)),
        Some(Err(e)) => Some(e),
        None => None,
    };
    match (main, backup()?) {
        (_, Some(Ok(state))) => Ok(Some(state)),
        // The first file ever was being written: no command that needs it was answered.
        (None | Some(Corrupt::Empty | Corrupt::Unfinished), None | Some(Err(Corrupt::Empty))) => {
            Ok(None)
        }
        _ => Err(code::EINVAL),
    }
}

/// Plans what has to be done for the files to hold `state`, and has `run` do it. `old` is what the main file has now.
fn with_plan<R>(
    state: &PrState,
    old: Option<Vec<u8>>,
    backup_is_whole: impl FnOnce() -> bool,
    run: impl FnOnce(&[Step<'_>]) -> R,
) -> R {
    if !state.aptpl || state.registrants.is_empty() {
        // The copy first: left alone, it would pass for the state.
        let (copy, main) = (Step::Remove(Which::Backup), Step::Remove(Which::Main));
        return run(&[copy, Step::SyncDir, main, Step::SyncDir]);
    }
    let new = Contents::new(state.to_file());
    let old_is_whole = old
        .as_deref()
        .is_some_and(|o| PrState::from_file(o).is_ok());
    let old = Contents::new(old.unwrap_or_default());
    let mut steps = Vec::new();
    if old_is_whole {
        steps.extend(old.steps(Which::Backup));
    } else if !backup_is_whole() {
        // Neither is the state of an answered command, so that nothing is lost with it.
        let none = Step::Create(Which::Backup, &[]);
        steps.extend([none, Step::Sync(Which::Backup), Step::SyncDir]);
    }
    steps.extend(new.steps(Which::Main));
    run(&steps)
}

#[cfg(test)]
mod tests;
