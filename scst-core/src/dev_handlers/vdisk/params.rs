//! What a virtual disk is made of: the parameters of `add_device`.
//!
//! C source: `vdev_parse_add_dev_params` of `scst/src/dev_handlers/scst_vdisk.c`

use super::{Dif, IdentityOverrides};
use crate::cmd::ThreadsPoolType;
use crate::sysfs::text::Lexems;
use kshim::error::{Error, code};
use kshim::fs::Engine;
use std::path::PathBuf;

/// Size of a null device that was given none: 2.5 TiB.
#[doc(alias = "VDISK_NULLIO_SIZE")]
pub const NULLIO_SIZE: u64 = 5 * 1024 * 1024 * 1024 * 1024 / 2;
/// Preferred transfer length in bytes.
pub(super) const DEF_OPT_TRANS_LEN: u32 = 524_288;
/// Threads of a file device (SCST's module parameter `num_threads`).
pub(super) const DEF_NUM_THREADS: i32 = 8;
/// log2 of a CD-ROM's block size.
#[doc(alias = "DEF_CDROM_BLOCK_SHIFT")]
const CDROM_BLOCK_SHIFT: u8 = 11;
/// Smallest and largest logical block size.
const BLOCK_SHIFTS: std::ops::RangeInclusive<u32> = 9..=16;
const MIB: u64 = 1024 * 1024;

/// What stands behind a virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VdiskKind {
    /// A file, by file I/O.
    Fileio,
    /// A block device, by bios.
    Blockio,
    /// Nothing: writes are dropped, reads give zeros.
    Nullio,
    /// A CD-ROM drive whose medium is an image file.
    Vcdrom,
}

impl VdiskKind {
    /// The handler's name.
    #[must_use]
    pub const fn handler_name(self) -> &'static str {
        match self {
            Self::Fileio => "vdisk_fileio",
            Self::Blockio => "vdisk_blockio",
            Self::Nullio => "vdisk_nullio",
            Self::Vcdrom => "vcdrom",
        }
    }

    /// Threads of a device's pool, where nothing else is said.
    #[must_use]
    pub const fn default_threads_num(self) -> i32 {
        match self {
            Self::Fileio | Self::Vcdrom => DEF_NUM_THREADS,
            Self::Blockio | Self::Nullio => 1,
        }
    }

    /// Parameters that the usage text of this handler lists. It takes those of the pool ([`POOL_PARAMS`]) too, and
    /// vdisk_fileio `lb_per_pb_exp`; and those on files and block devices `engine`, which is ours.
    #[must_use]
    pub const fn listed_param_names(self) -> &'static [&'static str] {
        match self {
            Self::Vcdrom => &["tst"],
            Self::Fileio => &[
                "active",
                "async",
                "bind_alua_state",
                "blocksize",
                "cluster_mode",
                "dif_filename",
                "dif_mode",
                "dif_static_app_tag",
                "dif_type",
                "filename",
                "numa_node_id",
                "nv_cache",
                "o_direct",
                "read_only",
                "removable",
                "rotational",
                "thin_provisioned",
                "tst",
                "t10_dev_id",
                "write_through",
            ],
            Self::Blockio => &[
                "active",
                "bind_alua_state",
                "blocksize",
                "cluster_mode",
                "dif_filename",
                "dif_mode",
                "dif_static_app_tag",
                "dif_type",
                "filename",
                "numa_node_id",
                "nv_cache",
                "read_only",
                "removable",
                "rotational",
                "thin_provisioned",
                "tst",
                "t10_dev_id",
                "write_through",
            ],
            Self::Nullio => &[
                "blocksize",
                "cluster_mode",
                "dif_mode",
                "dif_static_app_tag",
                "dif_type",
                "dummy",
                "numa_node_id",
                "read_only",
                "removable",
                "rotational",
                "size",
                "size_mb",
                "tst",
                "t10_dev_id",
            ],
        }
    }

    fn knows(self, name: &str) -> bool {
        self.listed_param_names().contains(&name)
            || POOL_PARAMS.contains(&name)
            || self == Self::Fileio && name == "lb_per_pb_exp"
            || matches!(self, Self::Fileio | Self::Blockio) && name == "engine"
    }
}

/// Parameters of `add_device` of all handlers, although the usage texts don't list them.
pub const POOL_PARAMS: [&str; 2] = ["threads_num", "threads_pool_type"];

/// Parameters as they stand behind the device's name: `name=value; name=value`.
///
/// # Errors
/// A name without a value, or with more than one.
#[doc(alias = "scst_get_next_token_str")]
pub(super) fn parse_pairs(text: &str) -> Result<Vec<(&str, &str)>, ParamError> {
    let mut tokens = Lexems::new(text);
    let mut pairs = Vec::new();
    while let Some(token) = tokens.next_token() {
        if let Some(path) = path_with_options(token) {
            pairs.push(("filename", path));
            continue;
        }
        let mut words = Lexems::new(token);
        let (name, value) = (words.next_lexem(), words.next_lexem());
        if name.is_empty() || value.is_empty() {
            return Err(ParamError::NoValue(name.to_owned()));
        }
        if !words.next_lexem().is_empty() {
            return Err(ParamError::Duplicate(name.to_owned()));
        }
        pairs.push((name, value));
    }
    Ok(pairs)
}

/// A `filename` below `/dev` with options behind a question mark, as disks of this process have them
/// (`/dev/tcmur/rbd/pool/image?id=admin`). SCST takes no `=` inside a value.
fn path_with_options(token: &str) -> Option<&str> {
    let (name, path) = token.split_once('=')?;
    let (name, path) = (name.trim(), path.trim());
    let ours =
        path.starts_with("/dev/") && path.contains('?') && !path.contains(char::is_whitespace);
    (name.eq_ignore_ascii_case("filename") && ours).then_some(path)
}

/// Parameters of a virtual disk. [`VdiskParams::new`] has SCST's defaults.
///
/// ```
/// use scst_core::dev_handlers::vdisk::{VdiskKind, VdiskParams};
///
/// let p = VdiskParams::parse(VdiskKind::Nullio, &[("size_mb", "1024"), ("blocksize", "4096")])?;
/// assert_eq!((p.size, p.block_shift), (Some(1 << 30), 12));
/// # Ok::<(), scst_core::dev_handlers::vdisk::ParamError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VdiskParams {
    /// The handler.
    pub kind: VdiskKind,
    /// Path of the file or block device; the first medium of a CD-ROM drive.
    pub filename: Option<PathBuf>,
    /// log2 of the block size.
    pub block_shift: u8,
    /// Size in bytes, for null devices.
    pub size: Option<u64>,
    /// Nobody may write.
    pub read_only: bool,
    /// Every write is durable when it completes; no volatile cache is reported.
    pub write_through: bool,
    /// The cache is non-volatile: flushes are not needed.
    pub nv_cache: bool,
    /// Bypass the page cache (with `async_io` only, as in SCST).
    pub o_direct: bool,
    /// Asynchronous file I/O. Files are read without waiting in any case.
    pub async_io: bool,
    /// Who does what would wait; `None`: as for all devices. SCST has no such parameter.
    pub engine: Option<Engine>,
    /// RMB bit.
    pub removable: bool,
    /// Tell of a rotating medium; `None`: as the block device says, else true.
    pub rotational: Option<bool>,
    /// Logical block provisioning; `None`: on if a block device can discard.
    pub thin_provisioned: Option<bool>,
    /// Task set type: 0 or 1.
    pub tst: u8,
    /// Tell the physical block size.
    pub lb_per_pb_exp: bool,
    /// Null device: tell that nothing is connected.
    pub dummy: bool,
    /// Open the backing store.
    pub active: bool,
    /// Close the backing store when the ALUA state is not active.
    pub bind_alua_state: bool,
    /// NUMA node for the device's memory; -1 for any.
    pub numa_node_id: i32,
    /// SCST's set-up number, part of serial numbers.
    pub setup_id: u32,
    /// Threads of the device's pool.
    pub threads_num: i32,
    /// Who shares them.
    pub threads_pool_type: ThreadsPoolType,
    /// Null device: reads give zeros, and not whatever was in the buffer. They do in any case here.
    pub read_zero: bool,
    /// Preferred transfer length in bytes, when management has set it.
    pub opt_trans_len: Option<u32>,
    /// Where state is kept over restarts (`/var/lib/scst`), here saved mode pages below `vdev_mode_pages`; `None`: nothing is
    /// saved, and MODE SELECT with SP=1 refused. Not a parameter of `add_device`.
    pub state_dir: Option<PathBuf>,
    /// Protection information.
    pub dif: Dif,
    /// Identity other than SCST's defaults.
    pub identity: IdentityOverrides,
}

/// What is wrong with a parameter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParamError {
    /// Not a parameter of this handler.
    #[error("unknown parameter {0}")]
    Unknown(String),
    /// Needed, and not given.
    #[error("parameter {0} is required")]
    Missing(&'static str),
    /// Given without a value.
    #[error("parameter {0:?} has no value")]
    NoValue(String),
    /// Given twice.
    #[error("parameter {0} is given more than once")]
    Duplicate(String),
    /// Not a number.
    #[error("parameter {name}: {value:?} is not a number")]
    NotANumber {
        /// The parameter.
        name: String,
        /// Its value.
        value: String,
    },
    /// A value that cannot be.
    #[error("parameter {name}: {value:?}: {why}")]
    Invalid {
        /// The parameter.
        name: String,
        /// Its value.
        value: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Parameters that exclude each other.
    #[error("{0}")]
    Conflict(&'static str),
    /// Known to SCST, and not to be had here.
    #[error("parameter {0} is not supported")]
    Unsupported(String),
}

impl ParamError {
    /// The errno that SCST gives.
    #[must_use]
    pub fn errno(&self) -> Error {
        code::EINVAL
    }
}

impl VdiskParams {
    /// SCST's defaults for a handler.
    #[must_use]
    pub fn new(kind: VdiskKind) -> Self {
        let cdrom = kind == VdiskKind::Vcdrom;
        let file = cdrom || kind == VdiskKind::Fileio;
        Self {
            kind,
            filename: None,
            block_shift: if cdrom { CDROM_BLOCK_SHIFT } else { 9 },
            size: None,
            read_only: cdrom,
            write_through: false,
            nv_cache: false,
            o_direct: false,
            async_io: false,
            engine: None,
            removable: cdrom,
            rotational: None,
            thin_provisioned: None,
            tst: 1,
            lb_per_pb_exp: true,
            dummy: false,
            active: true,
            bind_alua_state: !file,
            numa_node_id: -1,
            setup_id: 0,
            threads_num: kind.default_threads_num(),
            threads_pool_type: ThreadsPoolType::default(),
            read_zero: false,
            opt_trans_len: None,
            state_dir: None,
            dif: Dif::default(),
            identity: IdentityOverrides::default(),
        }
    }

    /// Reads the parameters of `add_device`; names in any case, numbers as in C.
    ///
    /// # Errors
    /// The first thing that is wrong.
    #[doc(alias = "vdev_parse_add_dev_params")]
    pub fn parse(kind: VdiskKind, params: &[(&str, &str)]) -> Result<Self, ParamError> {
        let mut p = Self::new(kind);
        for (name, value) in params {
            let lower = name.to_ascii_lowercase();
            if !kind.knows(&lower) {
                return Err(ParamError::Unknown((*name).to_owned()));
            }
            p.set(&lower, value)?;
        }
        p.validate()?;
        Ok(p)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), ParamError> {
        let invalid = |why| ParamError::Invalid {
            name: name.to_owned(),
            value: value.to_owned(),
            why,
        };
        let number = || {
            parse_number(value).ok_or_else(|| ParamError::NotANumber {
                name: name.to_owned(),
                value: value.to_owned(),
            })
        };
        let unsigned = || u64::try_from(number()?).map_err(|_| invalid("must not be negative"));
        let flag = || unsigned().map(|n| n != 0);
        match name {
            "filename" => {
                if self.filename.is_some() {
                    return Err(ParamError::Duplicate(name.to_owned()));
                }
                if !value.starts_with('/') {
                    return Err(invalid("must be an absolute path"));
                }
                // The attribute of this name is a line.
                if value.contains('\n') {
                    return Err(invalid("must not have line feeds"));
                }
                self.filename = Some(PathBuf::from(value));
            }
            "engine" if value == "auto" => self.engine = None,
            "engine" => {
                let engine = value.parse();
                self.engine = Some(engine.map_err(|_| invalid("auto, uring, aio or threads"))?);
            }
            "t10_dev_id" => {
                if value.len() > super::ident::MAX_T10_DEV_ID_LEN {
                    return Err(invalid("too long"));
                }
                self.identity.t10_dev_id = Some(value.to_owned());
            }
            "blocksize" => {
                let n = unsigned()?;
                let shift = if n == 0 { 9 } else { n.ilog2() };
                if !BLOCK_SHIFTS.contains(&shift) {
                    return Err(invalid("must be from 512 to 65536"));
                }
                if n != 0 && !n.is_power_of_two() {
                    kshim::pr_warn!("blocksize {n} is no power of two: rounded down");
                }
                self.block_shift = u8::try_from(shift).map_err(|_| invalid("too large"))?;
            }
            "size" => self.size = Some(unsigned()?),
            "size_mb" => {
                self.size = Some(
                    unsigned()?
                        .checked_mul(MIB)
                        .ok_or_else(|| invalid("too large"))?,
                );
            }
            "numa_node_id" => {
                let n = i32::try_from(number()?).map_err(|_| invalid("out of range"))?;
                if n < -1 {
                    return Err(invalid("must be -1 or a node"));
                }
                self.numa_node_id = n;
            }
            "threads_num" => {
                let n = i32::try_from(unsigned()?);
                self.threads_num = n.map_err(|_| invalid("out of range"))?;
            }
            "threads_pool_type" => {
                let ty = ThreadsPoolType::from_name(value);
                self.threads_pool_type =
                    ty.ok_or_else(|| invalid("must be per_initiator or shared"))?;
            }
            "tst" => match unsigned()? {
                n @ (0 | 1) => self.tst = u8::from(n == 1),
                _ => return Err(invalid("must be 0 or 1")),
            },
            "dummy" => match unsigned()? {
                n @ (0 | 1) => self.dummy = n == 1,
                _ => return Err(invalid("must be 0 or 1")),
            },
            "dif_mode" | "dif_filename" | "dif_type" | "dif_static_app_tag" => {
                self.dif.set(name, value).map_err(invalid)?;
            }
            "cluster_mode" => {
                if flag()? {
                    return Err(ParamError::Unsupported(name.to_owned()));
                }
            }
            _ => {
                let on = flag()?;
                *self
                    .flag_mut(name)
                    .ok_or_else(|| ParamError::Unknown(name.to_owned()))? = on;
            }
        }
        Ok(())
    }

    /// The yes-or-no parameters.
    fn flag_mut(&mut self, name: &str) -> Option<&mut bool> {
        Some(match name {
            "active" => &mut self.active,
            "async" => &mut self.async_io,
            "bind_alua_state" => &mut self.bind_alua_state,
            "lb_per_pb_exp" => &mut self.lb_per_pb_exp,
            "nv_cache" => &mut self.nv_cache,
            "o_direct" => &mut self.o_direct,
            "read_only" => &mut self.read_only,
            "removable" => &mut self.removable,
            "rotational" => self.rotational.insert(false),
            "thin_provisioned" => self.thin_provisioned.insert(false),
            "write_through" => &mut self.write_through,
            _ => return None,
        })
    }

    /// Checks parameters against each other.
    ///
    /// # Errors
    /// [`ParamError::Missing`], [`ParamError::Conflict`], [`ParamError::Invalid`].
    pub fn validate(&self) -> Result<(), ParamError> {
        let needs_file = !matches!(self.kind, VdiskKind::Nullio | VdiskKind::Vcdrom);
        if needs_file && self.filename.is_none() {
            return Err(ParamError::Missing("filename"));
        }
        if self.kind == VdiskKind::Fileio && self.read_only && (self.write_through || self.nv_cache)
        {
            return Err(ParamError::Conflict("write options on a read-only device"));
        }
        if self.o_direct && !self.async_io {
            return Err(ParamError::Conflict("o_direct needs async"));
        }
        self.dif.validate(self.kind)?;
        if let Some(size) = self.size
            && (size == 0 || size.trailing_zeros() < u32::from(self.block_shift))
        {
            return Err(ParamError::Invalid {
                name: "size".to_owned(),
                value: size.to_string(),
                why: "must be a multiple of the block size",
            });
        }
        Ok(())
    }
}

/// A number as `kstrtoll(.., 0, ..)` reads it: decimal, `0x` hexadecimal or `0` octal, with an optional sign; here up
/// to the range of u64.
pub(super) fn parse_number(s: &str) -> Option<i128> {
    let (negative, digits) = match s.as_bytes().first()? {
        b'-' => (true, s.get(1..)?),
        b'+' => (false, s.get(1..)?),
        _ => (false, s),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(hex) = lower.strip_prefix("0x") {
        (16, hex)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, lower.get(1..)?)
    } else {
        (10, lower.as_str())
    };
    // `from_str_radix` takes a sign of its own.
    if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let n = i128::from(u64::from_str_radix(digits, radix).ok()?);
    Some(if negative { n.checked_neg()? } else { n })
}

#[cfg(test)]
mod tests {
    use super::*;
    use VdiskKind::{Blockio, Fileio, Nullio};

    #[test]
    fn numbers_are_read_as_in_c() {
        for (s, n) in [
            ("0", Some(0)),
            ("10", Some(10)),
            ("0x10", Some(16)),
            ("0X1f", Some(31)),
            ("010", Some(8)),
            ("-1", Some(-1)),
            ("+7", Some(7)),
            ("18446744073709551615", Some(i128::from(u64::MAX))),
            ("18446744073709551616", None),
            ("", None),
            ("-", None),
            ("0x", None),
            ("1k", None),
            ("08", None),
            ("--1", None),
            ("0x-1", None),
            (" 1", None),
        ] {
            assert_eq!(parse_number(s), n, "{s:?}");
        }
    }

    #[test]
    fn paths_of_this_process_may_have_options() {
        let path = "/dev/tcmur/rbd/p/i?conf=/c&id=me";
        let text = format!("read_only=1; filename={path} ;");
        assert_eq!(
            parse_pairs(&text).unwrap(),
            [("read_only", "1"), ("filename", path)]
        );
        for bad in ["filename=/x=y", "filename=/x?a=b", "usn=/dev/x?a=b"] {
            assert!(parse_pairs(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn wrong_parameters_are_refused_by_name() {
        let f = ("filename", "/x");
        type Case<'a> = (VdiskKind, &'a [(&'a str, &'a str)], &'a str);
        let cases: &[Case<'_>] = &[
            (Fileio, &[], "parameter filename is required"),
            (Blockio, &[], "parameter filename is required"),
            (
                Fileio,
                &[("filename", "x")],
                "parameter filename: \"x\": must be an absolute path",
            ),
            (
                Fileio,
                &[f, f],
                "parameter filename is given more than once",
            ),
            (Fileio, &[f, ("bogus", "1")], "unknown parameter bogus"),
            (Fileio, &[f, ("size", "1")], "unknown parameter size"),
            (
                Blockio,
                &[f, ("o_direct", "1")],
                "unknown parameter o_direct",
            ),
            (Nullio, &[f], "unknown parameter filename"),
            (
                Fileio,
                &[f, ("read_only", "yes")],
                "parameter read_only: \"yes\" is not a number",
            ),
            (
                Fileio,
                &[f, ("read_only", "-1")],
                "parameter read_only: \"-1\": must not be negative",
            ),
            (
                Fileio,
                &[f, ("tst", "2")],
                "parameter tst: \"2\": must be 0 or 1",
            ),
            (
                Nullio,
                &[("dummy", "2")],
                "parameter dummy: \"2\": must be 0 or 1",
            ),
            (
                Fileio,
                &[f, ("blocksize", "256")],
                "parameter blocksize: \"256\": must be from 512 to 65536",
            ),
            (
                Nullio,
                &[("size", "100")],
                "parameter size: \"100\": must be a multiple of the block size",
            ),
            (
                Nullio,
                &[("size", "0")],
                "parameter size: \"0\": must be a multiple of the block size",
            ),
            (
                Nullio,
                &[("numa_node_id", "-2")],
                "parameter numa_node_id: \"-2\": must be -1 or a node",
            ),
            (Fileio, &[f, ("o_direct", "1")], "o_direct needs async"),
            (
                Fileio,
                &[f, ("engine", "fast")],
                "parameter engine: \"fast\": auto, uring, aio or threads",
            ),
            (Nullio, &[("engine", "aio")], "unknown parameter engine"),
            (
                Fileio,
                &[f, ("read_only", "1"), ("nv_cache", "1")],
                "write options on a read-only device",
            ),
            (
                Fileio,
                &[f, ("dif_mode", "tgt")],
                "dif_mode and dif_filename need a dif_type",
            ),
            (
                Fileio,
                &[f, ("cluster_mode", "1")],
                "parameter cluster_mode is not supported",
            ),
        ];
        for (kind, params, want) in cases {
            let e = VdiskParams::parse(*kind, params).expect_err(want);
            assert_eq!(e.to_string(), *want);
            assert_eq!(e.errno(), code::EINVAL);
        }
    }

    #[test]
    fn every_listed_parameter_is_known() {
        for kind in [Fileio, Blockio, Nullio] {
            for name in kind.listed_param_names().iter().chain(&POOL_PARAMS) {
                let value = match *name {
                    n if n.ends_with("filename") => "/x",
                    "threads_pool_type" => "shared",
                    _ => "0",
                };
                if let Err(ParamError::Unknown(n)) = VdiskParams::new(kind).set(name, value) {
                    panic!("{n}");
                }
            }
        }
    }

    #[test]
    fn values_are_taken() {
        let p = VdiskParams::parse(
            Fileio,
            &[
                ("FileName", "/data/d"),
                ("blocksize", "5000"),
                ("thin_provisioned", "1"),
                ("rotational", "0"),
                ("t10_dev_id", "id"),
                ("removable", "1"),
                ("numa_node_id", "-1"),
                ("engine", "aio"),
            ],
        )
        .expect("all known");
        assert_eq!(p.block_shift, 12);
        assert_eq!(
            (p.thin_provisioned, p.rotational, p.removable),
            (Some(true), Some(false), true)
        );
        assert_eq!(p.engine, Some(Engine::Aio));
        assert_eq!(p.identity.t10_dev_id.as_deref(), Some("id"));
        assert_eq!((p.threads_num, p.bind_alua_state), (8, false));
        assert_eq!(VdiskParams::new(Blockio).threads_num, 1);
    }
}
