//! What events contain. The layout is that of SCST's structures for x86-64: little-endian, aligned by nature, names in
//! fields of fixed size that end with a zero byte.
//!
//! C source: `scst/include/scst_event.h`

use crate::alua::{StpgGroup, TgState};
use crate::mgmt::TmFunction;
use kshim::error::{Result, code};
use std::fmt;

/// Bytes of a name of an initiator, target or session.
#[doc(alias = "SCST_MAX_EXTERNAL_NAME")]
const EXTERNAL_NAME: usize = 256;
/// Bytes of a device's name in [`Kind::RegVirtDev`].
const REG_NAME: usize = 60;
/// Bytes of names in [`Kind::StpgUserInvoke`].
const STPG_NAME: usize = 64;
/// Bytes of a state in [`Kind::StpgUserInvoke`].
const STPG_STATE: usize = 32;
/// Bytes of a CDB.
#[doc(alias = "SCST_MAX_CDB_SIZE")]
const CDB_LEN: usize = 16;
/// Bytes of [`Kind::StpgUserInvoke`] before the groups are appended, padding at the end included.
const STPG_LEN: usize = 80;
/// Where its groups begin.
const STPG_GROUPS: usize = 74;

/// The events of the core.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A command came for a LUN that there is not.
    #[doc(alias = "SCST_EVENT_LUN_NOT_FOUND")]
    LunNotFound {
        /// The LUN, unpacked; all ones if it was no LUN at all.
        lun: u64,
        /// The initiator.
        initiator: String,
        /// The target.
        target: String,
    },
    /// An initiator that has no LUNs at a target asked for it.
    #[doc(alias = "SCST_EVENT_NEGATIVE_LUNS_INQUIRY")]
    NegativeLunsInquiry {
        /// The initiator.
        initiator: String,
        /// The target.
        target: String,
    },
    /// A device that was blocked by writing `11 DATA` to `block` has no commands any more.
    #[doc(alias = "SCST_EVENT_EXT_BLOCKING_DONE")]
    ExtBlockingDone {
        /// The device.
        device: String,
        /// What was written after `11`.
        data: Vec<u8>,
    },
    /// A task management request came.
    #[doc(alias = "SCST_EVENT_TM_FN_RECEIVED")]
    TmFnReceived(TmFn),
    /// SET TARGET PORT GROUPS has to be carried out. It asks.
    #[doc(alias = "SCST_EVENT_STPG_USER_INVOKE")]
    StpgUserInvoke {
        /// The command's tag.
        tag: u64,
        /// The device that it is for.
        device: String,
        /// Groups that are to change.
        groups: Vec<StpgGroup>,
    },
    /// A device was registered.
    #[doc(alias = "SCST_EVENT_REG_VIRT_DEV")]
    RegVirtDev {
        /// The device.
        device: String,
    },
}

/// A task management request.
#[doc(alias = "scst_event_tm_fn_received_payload")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TmFn {
    /// Its number: see [`tm_code`].
    pub function: u32,
    /// The LUN that it named.
    pub lun: u64,
    /// The device; empty if it is not for one.
    pub device: String,
    /// The initiator.
    pub initiator: String,
    /// The target.
    pub target: String,
    /// Name of the session's directory in the management tree.
    pub session: String,
    /// The command to abort; 0 if it is not there.
    pub tag: u64,
    /// Its operation code; the rest is zero.
    pub cdb: [u8; CDB_LEN],
}

/// Number of the task management function that a session's end stands for.
#[doc(alias = "SCST_UNREG_SESS_TM")]
pub const UNREG_SESS_TM: u32 = 10;

/// SCST's number of a task management function. Those from 12 on SCST does not have.
pub fn tm_code(function: TmFunction) -> u32 {
    match function {
        TmFunction::AbortTask => 0,
        TmFunction::AbortTaskSet => 1,
        TmFunction::ClearAca => 2,
        TmFunction::ClearTaskSet => 3,
        TmFunction::LunReset => 4,
        TmFunction::TargetReset => 5,
        TmFunction::NexusLossSess => 6,
        TmFunction::PrAbortAll => 11,
        TmFunction::NexusReset => 12,
        TmFunction::QueryTask => 13,
        TmFunction::QueryTaskSet => 14,
    }
}

/// Names of the numbers of [`tm_code`].
const TM_NAMES: [&str; 15] = [
    "ABORT_TASK",
    "ABORT_TASK_SET",
    "CLEAR_ACA",
    "CLEAR_TASK_SET",
    "LUN_RESET",
    "TARGET_RESET",
    "NEXUS_LOSS_SESS",
    "ABORT_ALL_TASKS_SESS",
    "NEXUS_LOSS",
    "ABORT_ALL_TASKS",
    "UNREG_SESS_TM",
    "PR_ABORT_ALL",
    "I_T_NEXUS_RESET",
    "QUERY_TASK",
    "QUERY_TASK_SET",
];

impl Kind {
    /// Codes and names of all kinds.
    pub const NAMES: [(u32, &str); 6] = [
        (1, "LUN_NOT_FOUND"),
        (2, "NEGATIVE_LUNS_INQUIRY"),
        (3, "EXT_BLOCKING_DONE"),
        (4, "TM_FN_RECEIVED"),
        (5, "STPG_USER_INVOKE"),
        (6, "REG_VIRT_DEV"),
    ];

    /// SCST's number for it.
    pub fn code(&self) -> u32 {
        match self {
            Self::LunNotFound { .. } => 1,
            Self::NegativeLunsInquiry { .. } => 2,
            Self::ExtBlockingDone { .. } => 3,
            Self::TmFnReceived(_) => 4,
            Self::StpgUserInvoke { .. } => 5,
            Self::RegVirtDev { .. } => 6,
        }
    }

    /// The code of a name, or of a number in text.
    pub fn code_of(name: &str) -> Option<u32> {
        let known = Self::NAMES
            .iter()
            .find(|(_, n)| n.eq_ignore_ascii_case(name));
        known.map(|(code, _)| *code).or_else(|| name.parse().ok())
    }

    /// As bytes. Errors: `EOVERFLOW`: a name of SET TARGET PORT GROUPS that is too long; other names are cut off.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        match self {
            Self::LunNotFound {
                lun,
                initiator,
                target,
            } => {
                out.extend(lun.to_le_bytes());
                put(&mut out, EXTERNAL_NAME, initiator);
                put(&mut out, EXTERNAL_NAME, target);
            }
            Self::NegativeLunsInquiry { initiator, target } => {
                put(&mut out, EXTERNAL_NAME, initiator);
                put(&mut out, EXTERNAL_NAME, target);
            }
            Self::ExtBlockingDone { device, data } => {
                put(&mut out, EXTERNAL_NAME, device);
                out.extend(u32::try_from(data.len())?.to_le_bytes());
                out.extend(data);
            }
            Self::TmFnReceived(tm) => tm.encode(&mut out),
            Self::StpgUserInvoke {
                tag,
                device,
                groups,
            } => encode_stpg(&mut out, *tag, device, groups)?,
            Self::RegVirtDev { device } => put(&mut out, REG_NAME, device),
        }
        Ok(out)
    }

    /// From bytes; `None` if the code is unknown or the payload is none of it.
    pub fn decode(code: u32, payload: &[u8]) -> Option<Self> {
        let r = &mut Reader(payload);
        Some(match code {
            1 => Self::LunNotFound {
                lun: r.u64()?,
                initiator: r.name(EXTERNAL_NAME)?,
                target: r.name(EXTERNAL_NAME)?,
            },
            2 => Self::NegativeLunsInquiry {
                initiator: r.name(EXTERNAL_NAME)?,
                target: r.name(EXTERNAL_NAME)?,
            },
            3 => Self::ExtBlockingDone {
                device: r.name(EXTERNAL_NAME)?,
                data: {
                    let len = usize::try_from(r.u32()?).ok()?;
                    r.take(len)?.to_vec()
                },
            },
            4 => Self::TmFnReceived(TmFn::decode(r)?),
            5 => decode_stpg(r)?,
            6 => Self::RegVirtDev {
                device: r.name(REG_NAME)?,
            },
            _ => return None,
        })
    }
}

impl TmFn {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend(self.function.to_le_bytes());
        out.extend([0; 4]);
        out.extend(self.lun.to_le_bytes());
        for name in [&self.device, &self.initiator, &self.target, &self.session] {
            put(out, EXTERNAL_NAME, name);
        }
        out.extend(self.tag.to_le_bytes());
        out.extend(self.cdb);
    }

    fn decode(r: &mut Reader<'_>) -> Option<Self> {
        let function = r.u32()?;
        r.take(4)?;
        Some(Self {
            function,
            lun: r.u64()?,
            device: r.name(EXTERNAL_NAME)?,
            initiator: r.name(EXTERNAL_NAME)?,
            target: r.name(EXTERNAL_NAME)?,
            session: r.name(EXTERNAL_NAME)?,
            tag: r.u64()?,
            cdb: *r.take(CDB_LEN)?.first_chunk()?,
        })
    }
}

#[doc(alias = "scst_event_stpg_payload")]
fn encode_stpg(out: &mut Vec<u8>, tag: u64, device: &str, groups: &[StpgGroup]) -> Result {
    out.extend(tag.to_le_bytes());
    put_whole(out, STPG_NAME, device)?;
    out.extend(u16::try_from(groups.len())?.to_le_bytes());
    for g in groups {
        out.extend(g.id.to_le_bytes());
        put(out, STPG_STATE, g.prev_state.name());
        put(out, STPG_STATE, g.new_state.name());
        put_whole(out, STPG_NAME, &g.dg)?;
        put_whole(out, STPG_NAME, &g.tg)?;
    }
    // The structure's own padding counts, although the groups begin before it.
    out.resize(out.len().saturating_add(STPG_LEN - STPG_GROUPS), 0);
    Ok(())
}

fn decode_stpg(r: &mut Reader<'_>) -> Option<Kind> {
    let (tag, device) = (r.u64()?, r.name(STPG_NAME)?);
    let count = r.u16()?;
    let mut groups = Vec::new();
    for _ in 0..count {
        groups.push(StpgGroup {
            id: r.u16()?,
            prev_state: TgState::from_name(&r.name(STPG_STATE)?)?,
            new_state: TgState::from_name(&r.name(STPG_STATE)?)?,
            dg: r.name(STPG_NAME)?,
            tg: r.name(STPG_NAME)?,
        });
    }
    Some(Kind::StpgUserInvoke {
        tag,
        device,
        groups,
    })
}

/// A name in a field; cut off if it is too long, as the kernel does.
fn put(out: &mut Vec<u8>, field: usize, name: &str) {
    let end = out.len().saturating_add(field);
    let cut = name.as_bytes().get(..field.saturating_sub(1));
    out.extend(cut.unwrap_or(name.as_bytes()));
    out.resize(end, 0);
}

fn put_whole(out: &mut Vec<u8>, field: usize, name: &str) -> Result {
    if name.len() >= field {
        return Err(code::EOVERFLOW);
    }
    put(out, field, name);
    Ok(())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(*self.take(2)?.first_chunk()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }

    fn name(&mut self, field: usize) -> Option<String> {
        let bytes = self.take(field)?;
        let text = bytes.split(|b| *b == 0).next().unwrap_or_default();
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// One line: name, then `key=value` in the order of the fields. Values are quoted as Rust does if they have anything but
/// printable ASCII without blanks and quotes.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::NAMES.iter().find(|(c, _)| *c == self.code());
        f.write_str(name.map_or("?", |(_, n)| n))?;
        match self {
            Self::LunNotFound {
                lun,
                initiator,
                target,
            } => {
                write_lun(f, *lun)?;
                write_text(f, "initiator", initiator)?;
                write_text(f, "target", target)
            }
            Self::NegativeLunsInquiry { initiator, target } => {
                write_text(f, "initiator", initiator)?;
                write_text(f, "target", target)
            }
            Self::ExtBlockingDone { device, data } => {
                write_text(f, "device", device)?;
                write_text(f, "data", &String::from_utf8_lossy(data))
            }
            Self::TmFnReceived(tm) => tm.fmt(f),
            Self::StpgUserInvoke {
                tag,
                device,
                groups,
            } => {
                write_text(f, "device", device)?;
                write!(f, " tag={tag}")?;
                for g in groups {
                    write_text(f, "device_group", &g.dg)?;
                    write_text(f, "target_group", &g.tg)?;
                    let (prev, new) = (g.prev_state.name(), g.new_state.name());
                    write!(f, " group_id={} prev_state={prev} state={new}", g.id)?;
                }
                Ok(())
            }
            Self::RegVirtDev { device } => write_text(f, "device", device),
        }
    }
}

impl TmFn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = usize::try_from(self.function).unwrap_or(usize::MAX);
        match TM_NAMES.get(at) {
            Some(name) => write!(f, " function={name}")?,
            None => write!(f, " function={}", self.function)?,
        }
        write_lun(f, self.lun)?;
        if !self.device.is_empty() {
            write_text(f, "device", &self.device)?;
        }
        write_text(f, "initiator", &self.initiator)?;
        write_text(f, "target", &self.target)?;
        write_text(f, "session", &self.session)?;
        if self.function == tm_code(TmFunction::AbortTask) && self.tag != 0 {
            let [opcode, ..] = self.cdb;
            write!(f, " tag={} opcode={opcode:#04x}", self.tag)?;
        }
        Ok(())
    }
}

fn write_lun(f: &mut fmt::Formatter<'_>, lun: u64) -> fmt::Result {
    if lun == u64::MAX {
        f.write_str(" lun=invalid")
    } else {
        write!(f, " lun={lun}")
    }
}

fn write_text(f: &mut fmt::Formatter<'_>, key: &str, value: &str) -> fmt::Result {
    let plain = |b: u8| b.is_ascii_graphic() && b != b'"';
    if !value.is_empty() && value.bytes().all(plain) {
        write!(f, " {key}={value}")
    } else {
        write!(f, " {key}={value:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Sizes and offsets as a C compiler has them for x86-64.
    #[test]
    fn the_layout_is_that_of_the_structures() {
        let name = |s: &str| s.to_owned();
        let (initiator, target) = (name("i"), name("t"));
        let lun = Kind::LunNotFound {
            lun: 5,
            initiator: initiator.clone(),
            target: target.clone(),
        };
        let bytes = lun.encode().unwrap();
        assert_eq!(bytes.len(), 520);
        assert_eq!((bytes[0], bytes[8], bytes[264]), (5, b'i', b't'));
        let none = Kind::NegativeLunsInquiry { initiator, target };
        assert_eq!(none.encode().unwrap().len(), 512);
        let blocked = Kind::ExtBlockingDone {
            device: name("d"),
            data: b"xyz".to_vec(),
        };
        let bytes = blocked.encode().unwrap();
        assert_eq!((bytes.len(), bytes[256], bytes[260]), (263, 3, b'x'));
        let tm = Kind::TmFnReceived(TmFn {
            function: 4,
            tag: 9,
            cdb: [0x28; CDB_LEN],
            ..TmFn::default()
        });
        let bytes = tm.encode().unwrap();
        assert_eq!((bytes.len(), bytes[1040], bytes[1048]), (1064, 9, 0x28));
        let group = StpgGroup {
            dg: name("dg"),
            tg: name("tg"),
            id: 0x102,
            prev_state: TgState::Optimized,
            new_state: TgState::Standby,
        };
        let stpg = Kind::StpgUserInvoke {
            tag: 1,
            device: name("d"),
            groups: vec![group.clone(), group],
        };
        let bytes = stpg.encode().unwrap();
        assert_eq!(bytes.len(), 80 + 2 * 194);
        assert_eq!((bytes[72], bytes[74], bytes[76]), (2, 2, b'a'));
        assert_eq!((bytes[108], bytes[140], bytes[204]), (b's', b'd', b't'));
        let reg = Kind::RegVirtDev { device: name("d") };
        assert_eq!(reg.encode().unwrap().len(), 60);
        for kind in [lun, none, blocked, tm, stpg, reg] {
            let bytes = kind.encode().unwrap();
            assert_eq!(Kind::decode(kind.code(), &bytes), Some(kind.clone()));
            assert_eq!(Kind::decode(kind.code(), &bytes[1..]), None, "{kind}");
        }
    }

    #[test]
    fn names_that_are_too_long() {
        let long = "x".repeat(300);
        let reg = Kind::RegVirtDev {
            device: long.clone(),
        };
        let back = Kind::decode(6, &reg.encode().unwrap()).unwrap();
        let device = "x".repeat(59);
        assert_eq!(back, Kind::RegVirtDev { device });
        let stpg = Kind::StpgUserInvoke {
            tag: 0,
            device: long,
            groups: Vec::new(),
        };
        assert_eq!(stpg.encode(), Err(code::EOVERFLOW));
    }

    #[test]
    fn a_line_says_it_all() {
        let tm = Kind::TmFnReceived(TmFn {
            function: 0,
            lun: 3,
            initiator: "iqn.a#p".to_owned(),
            target: "iqn.t".to_owned(),
            session: "a b".to_owned(),
            tag: 77,
            cdb: [0x2a; CDB_LEN],
            ..TmFn::default()
        });
        assert_eq!(
            tm.to_string(),
            "TM_FN_RECEIVED function=ABORT_TASK lun=3 initiator=iqn.a#p target=iqn.t session=\"a b\" tag=77 opcode=0x2a"
        );
        assert_eq!(Kind::code_of("ext_blocking_done"), Some(3));
        assert_eq!(Kind::code_of("17"), Some(17));
        assert_eq!(Kind::code_of("all"), None);
    }

    proptest! {
        #[test]
        fn no_bytes_hurt(code in 0u32..8, bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
            if let Some(kind) = Kind::decode(code, &bytes) {
                prop_assert_eq!(kind.code(), code);
                prop_assert!(!kind.to_string().contains('\n'));
            }
        }
    }
}
