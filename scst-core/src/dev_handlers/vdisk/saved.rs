//! Saved mode pages: one text file per device, in SCST's layout, so that a file moves between the kernel and us.
//!
//! The first line is the device's name; each following one is `KEY=VALUE` for a value that is not the default. A device
//! whose values are all defaults has no file.
//!
//! A new state is written to a temporary file, made durable, and takes the old one's place by renaming; the state
//! before it stays as a copy with `1` at the end of its name. DIFFERS: SCST rewrites the file in place, removes the copy
//! once it is done, and so also takes the copy of device `d` for the file of device `d1`.
//!
//! C source: `vdev_save_mode_pages`, `vdev_load_mode_pages` of `scst/src/dev_handlers/scst_vdisk.c`,
//! `scst_save_global_mode_pages`, `scst_write_file_transactional` of `scst/src/scst_lib.c`

use super::mode::ControlBits;
use super::params::parse_number;
use kshim::error::{Result, code};
use kshim::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

/// Directory of the files, below the state directory.
#[doc(alias = "VDEV_MODE_PAGES_DIR")]
const DIR: &str = "vdev_mode_pages";
/// Longest file that is read.
#[doc(alias = "VDEV_MODE_PAGES_BUF_SIZE")]
const MAX_LEN: usize = 64 * 1024;
const FILE_MODE: u32 = 0o644;

/// What is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Values {
    /// The control page; TST is not saved.
    pub(super) control: ControlBits,
    /// No volatile write cache.
    pub(super) write_through: bool,
}

/// The file of one device.
#[derive(Debug)]
pub(super) struct SavedPages {
    dir: PathBuf,
    name: String,
}

impl SavedPages {
    /// The file of the device `name` below `state_dir`; `None` for a name that no file can have.
    pub(super) fn new(state_dir: &Path, name: &str) -> Option<Self> {
        let bad = name.is_empty() || name.starts_with('.') || name.contains(['/', '\n', '\0']);
        (!bad).then(|| Self {
            dir: state_dir.join(DIR),
            name: name.to_owned(),
        })
    }

    fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    fn backup(&self) -> PathBuf {
        self.dir.join(format!("{}1", self.name))
    }

    /// Saves, durably, or fails with the former state still there. Context: may sleep. Errors: the host's.
    pub(super) fn save(&self, now: Values, defaults: Values) -> Result {
        let (path, backup) = (self.path(), self.backup());
        let Some(text) = encode(&self.name, now, defaults) else {
            return self.remove();
        };
        fs::create_dir_all(&self.dir)?;
        // The copy may be the file of a device that is called so: then there is none.
        if self.may_use(&backup)
            && let Ok(old) = fs::read(&path, MAX_LEN)
            && decode(&self.name, &old, defaults).is_ok()
        {
            self.replace(&backup, &old)?;
        }
        self.replace(&path, &text)
    }

    /// Removes the file and its copy.
    fn remove(&self) -> Result {
        for path in [self.path(), self.backup()] {
            if self.may_use(&path) {
                match fs::unlink(&path) {
                    Ok(()) | Err(code::ENOENT) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        match fs::sync_dir(&self.dir) {
            Err(code::ENOENT) => Ok(()),
            r => r,
        }
    }

    /// Whether a file is not there, or ours, or nobody's.
    fn may_use(&self, path: &Path) -> bool {
        match fs::read(path, MAX_LEN) {
            Ok(data) => {
                let first = data.split(|b| *b == b'\n').next().unwrap_or_default();
                let other = path.file_name().map(std::ffi::OsStr::as_encoded_bytes);
                first == self.name.as_bytes() || other != Some(first)
            }
            Err(e) => e == code::ENOENT,
        }
    }

    /// Puts a whole new file in a file's place.
    fn replace(&self, path: &Path, data: &[u8]) -> Result {
        let temp = self.dir.join(format!(".{}.tmp", self.name));
        let options = OpenOptions::new()
            .create(true)
            .truncate(true)
            .mode(FILE_MODE);
        let written = File::open(&temp, &options).and_then(|file| {
            if file.write_at(data, 0)? != data.len() {
                return Err(code::EIO);
            }
            file.fsync()
        });
        match written.and_then(|()| fs::rename(&temp, path)) {
            Ok(()) => fs::sync_dir(&self.dir),
            Err(e) => {
                let _ = fs::unlink(&temp);
                Err(e)
            }
        }
    }

    /// The saved values; `None` when there are none that can be used. A file that is cut off or wrong is refused with a
    /// message, and its copy is used. Context: may sleep.
    pub(super) fn load(&self, defaults: Values) -> Option<Values> {
        for path in [self.path(), self.backup()] {
            let data = match fs::read(&path, MAX_LEN) {
                Ok(data) => data,
                Err(code::ENOENT) => continue,
                Err(e) => {
                    kshim::pr_err!("Unable to read file '{}': {e}", path.display());
                    continue;
                }
            };
            match decode(&self.name, &data, defaults) {
                Ok(values) => {
                    kshim::pr_info!(
                        "Mode pages of device {} restored from '{}'",
                        self.name,
                        path.display()
                    );
                    return Some(values);
                }
                // Somebody else's file under the copy's name.
                Err(Bad::Signature) if path == self.backup() => {}
                Err(why) => kshim::pr_err!(
                    "File '{}' with mode pages of device {} is refused: {why}",
                    path.display(),
                    self.name
                ),
            }
        }
        None
    }
}

/// The file's text, or nothing when all values are defaults.
fn encode(name: &str, now: Values, defaults: Values) -> Option<Vec<u8>> {
    let (c, d) = (now.control, defaults.control);
    let mut lines = String::new();
    let mut put = |key: &str, value: u8, default: u8| {
        if value != default {
            lines.push_str(&format!("{key}={value}\n"));
        }
    };
    put("TAS", c.tas.into(), d.tas.into());
    put("QERR", c.qerr, d.qerr);
    put("TMF_ONLY", c.tmf_only.into(), d.tmf_only.into());
    put("SWP", c.swp.into(), d.swp.into());
    put("D_SENSE", c.d_sense.into(), d.d_sense.into());
    put("DPICZ", c.dpicz.into(), d.dpicz.into());
    put("QUEUE_ALG", c.queue_alg, d.queue_alg);
    // SCST's default is 0 whatever the device was made with; then 0 has to be said too.
    let unsaid = !now.write_through && !defaults.write_through;
    put(
        "WRITE_THROUGH",
        now.write_through.into(),
        if unsaid { 0 } else { u8::MAX },
    );
    (!lines.is_empty()).then(|| format!("{name}\n{lines}").into_bytes())
}

/// Why a file is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Bad {
    #[error("it is not of this device")]
    Signature,
    #[error("its end is missing")]
    CutOff,
    #[error("it is not text")]
    NoText,
    #[error("line {0:?}")]
    Line(String),
}

/// Reads a file's text. Nothing of a file with a mistake is used. DIFFERS: SCST uses what stands before the mistake.
fn decode(name: &str, data: &[u8], defaults: Values) -> std::result::Result<Values, Bad> {
    let text = std::str::from_utf8(data).map_err(|_| Bad::NoText)?;
    let body = text
        .strip_prefix(name)
        .and_then(|t| t.strip_prefix('\n'))
        .ok_or(Bad::Signature)?;
    if !body.ends_with('\n') {
        return Err(Bad::CutOff);
    }
    let mut values = defaults;
    for line in body.split(['\n', ';']).filter(|l| !l.trim().is_empty()) {
        set(&mut values, line).ok_or_else(|| Bad::Line(line.to_owned()))?;
    }
    Ok(values)
}

/// Takes one `KEY=VALUE`.
fn set(values: &mut Values, line: &str) -> Option<()> {
    let is_blank = |c: char| c == '=' || c.is_whitespace();
    let mut words = line.split(is_blank).filter(|w| !w.is_empty());
    let (key, value) = (words.next()?, words.next()?);
    if words.next().is_some() {
        return None;
    }
    let value = u8::try_from(parse_number(value)?).ok()?;
    let bit = match value {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    };
    let c = &mut values.control;
    match key.to_ascii_uppercase().as_str() {
        "TAS" => c.tas = bit?,
        "QERR" if value <= 3 && value != 2 => c.qerr = value,
        "TMF_ONLY" => c.tmf_only = bit?,
        "SWP" => c.swp = bit?,
        "D_SENSE" => c.d_sense = bit?,
        "DPICZ" => c.dpicz = bit?,
        "QUEUE_ALG" if value <= 1 => c.queue_alg = value,
        "WRITE_THROUGH" => values.write_through = bit?,
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DEFAULTS: Values = Values {
        control: ControlBits {
            tst: 1,
            tmf_only: false,
            dpicz: false,
            d_sense: false,
            queue_alg: 1,
            qerr: 0,
            swp: false,
            tas: false,
        },
        write_through: false,
    };

    fn changed() -> Values {
        let mut v = DEFAULTS;
        v.control.d_sense = true;
        v.write_through = true;
        v
    }

    #[test]
    fn the_layout_is_that_of_scst() {
        let mut v = changed();
        let text = |v| encode("m0", v, DEFAULTS).map(|t| String::from_utf8(t).expect("text"));
        assert_eq!(text(v).as_deref(), Some("m0\nD_SENSE=1\nWRITE_THROUGH=1\n"));
        assert_eq!(text(DEFAULTS), None);
        v.control = ControlBits {
            tst: 1,
            tmf_only: true,
            dpicz: true,
            d_sense: true,
            queue_alg: 0,
            qerr: 3,
            swp: true,
            tas: true,
        };
        assert_eq!(
            text(v).as_deref(),
            Some(
                "m0\nTAS=1\nQERR=3\nTMF_ONLY=1\nSWP=1\nD_SENSE=1\nDPICZ=1\nQUEUE_ALG=0\nWRITE_THROUGH=1\n"
            )
        );
    }

    #[test]
    fn a_device_without_cache_can_save_that_it_has_one() {
        let defaults = Values {
            write_through: true,
            ..DEFAULTS
        };
        let text = encode("m0", DEFAULTS, defaults).expect("differs");
        assert_eq!(text, b"m0\nWRITE_THROUGH=0\n");
        assert_eq!(decode("m0", &text, defaults), Ok(DEFAULTS));
    }

    #[test]
    fn mistakes_are_refused() {
        let line = |s: &str| Err(Bad::Line(s.to_owned()));
        for (text, want) in [
            ("m01\nTAS=1\n", Err(Bad::Signature)),
            ("m", Err(Bad::Signature)),
            ("", Err(Bad::Signature)),
            ("m0\nTAS=1", Err(Bad::CutOff)),
            ("m0\n", Err(Bad::CutOff)),
            ("m0\nTAS=\n", line("TAS=")),
            ("m0\nTAS=2\n", line("TAS=2")),
            ("m0\nQERR=2\n", line("QERR=2")),
            ("m0\nTAS=1 1\n", line("TAS=1 1")),
            ("m0\nFOO=1\n", line("FOO=1")),
            ("m0\nSWP=-1\n", line("SWP=-1")),
        ] {
            assert_eq!(decode("m0", text.as_bytes(), DEFAULTS), want, "{text:?}");
        }
        assert_eq!(decode("m0", &[0xFF, 0xFE], DEFAULTS), Err(Bad::NoText));
        let text = b"m0\n\nd_sense = 0x1;write_through 1\n";
        assert_eq!(decode("m0", text, DEFAULTS), Ok(changed()));
    }

    #[test]
    fn a_spoilt_file_is_replaced_by_its_copy() {
        let dir = tempfile::tempdir().expect("scratch directory");
        let saved = SavedPages::new(dir.path(), "m0").expect("good name");
        assert_eq!(saved.load(DEFAULTS), None);
        let mut older = changed();
        older.control.tas = true;
        saved.save(older, DEFAULTS).expect("saved");
        saved.save(changed(), DEFAULTS).expect("saved");
        assert_eq!(saved.load(DEFAULTS), Some(changed()));
        let text = std::fs::read(saved.path()).expect("there");
        for cut in 0..text.len() {
            std::fs::write(saved.path(), &text[..cut]).expect("written");
            // Lines that are whole count; nothing in between.
            let got = saved.load(DEFAULTS).expect("one of the two");
            let first_line = Values {
                write_through: false,
                ..changed()
            };
            assert!(got == older || got == first_line, "{cut}: {got:?}");
        }
        std::fs::remove_file(saved.path()).expect("there");
        assert_eq!(saved.load(DEFAULTS), Some(older));
        saved.save(DEFAULTS, DEFAULTS).expect("removed");
        assert_eq!(std::fs::read_dir(&saved.dir).expect("there").count(), 0);
        assert_eq!(saved.load(DEFAULTS), None);
    }

    /// The copy of `m0` has the name of the file of `m01`.
    #[test]
    fn a_device_never_touches_the_file_of_another() {
        let dir = tempfile::tempdir().expect("scratch directory");
        let (a, b) = (
            SavedPages::new(dir.path(), "m0").expect("good"),
            SavedPages::new(dir.path(), "m01").expect("good"),
        );
        let mut other = DEFAULTS;
        other.control.qerr = 3;
        b.save(other, DEFAULTS).expect("saved");
        a.save(changed(), DEFAULTS).expect("saved");
        a.save(changed(), DEFAULTS).expect("saved");
        assert_eq!(b.load(DEFAULTS), Some(other));
        a.save(DEFAULTS, DEFAULTS).expect("removed");
        assert_eq!(b.load(DEFAULTS), Some(other));
        assert_eq!(a.load(DEFAULTS), None);
        // The other way round only a copy is lost.
        a.save(changed(), DEFAULTS).expect("saved");
        b.save(changed(), DEFAULTS).expect("saved");
        assert_eq!(a.load(DEFAULTS), Some(changed()));
        assert_eq!(b.load(DEFAULTS), Some(changed()));
    }

    #[test]
    fn names_that_are_no_files_have_none() {
        for name in ["", ".", "..", "a/b", "a\nb", ".hidden"] {
            assert!(
                SavedPages::new(Path::new("/nowhere"), name).is_none(),
                "{name:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(tas: bool, tmf_only: bool, swp: bool, d_sense: bool, dpicz: bool,
                                   queue_alg in 0u8..2, qerr in prop_oneof![Just(0u8), Just(1), Just(3)],
                                   write_through: bool, start: bool) {
            let defaults = Values { write_through: start, ..DEFAULTS };
            let control = ControlBits { tst: 1, tmf_only, dpicz, d_sense, queue_alg, qerr, swp, tas };
            let v = Values { control, write_through };
            match encode("d", v, defaults) {
                Some(text) => prop_assert_eq!(decode("d", &text, defaults), Ok(v)),
                None => prop_assert_eq!(v, defaults),
            }
        }

        #[test]
        fn any_file_is_survived(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode("d", &data, DEFAULTS);
        }
    }
}
