//! Transcripts: JSON lines, each a case with its steps.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// Longest data-out of one step.
const MAX_OUT: i64 = 64 << 20;

/// A recorded conversation.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name, with slashes between the parts.
    pub name: String,
    /// Its steps, in order.
    pub steps: Vec<Step>,
}

/// One step of a case.
#[derive(Clone, Debug)]
pub struct Step {
    /// What to do.
    pub action: Action,
    /// How to compare the answers.
    pub rules: Rules,
    /// What the recorded target answered.
    pub got: Value,
}

/// What to leave out of a comparison of two answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Keys of the answer that are not compared.
    pub skip: Vec<String>,
    /// ANDed onto the first bytes of both data-in.
    pub mask: Vec<u8>,
    /// Data-in is the list of VPD pages: more pages than recorded are fine.
    pub pages_superset: bool,
    /// Data-in is a list of supported operation codes: more than recorded are fine.
    pub superset: bool,
    /// Only these text keys are compared.
    pub text_keys: Option<Vec<String>>,
    /// A unit attention 29h/xx equals any other 29h/xx.
    pub any29: bool,
    /// Length of data-in that was asked for; residual counts follow from it.
    pub in_len: u32,
}

/// One stage of a raw login.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Current stage.
    pub csg: u8,
    /// Next stage.
    pub nsg: u8,
    /// The T bit.
    pub transit: bool,
    /// Keys, in order.
    pub keys: Vec<(String, String)>,
    /// Version-min.
    pub version_min: u8,
    /// Version-max.
    pub version_max: u8,
}

/// Opening a session.
#[derive(Clone, Debug)]
pub struct Open {
    /// Session.
    pub s: String,
    /// Operational keys other than the usual ones.
    pub keys: Vec<(String, String)>,
    /// InitiatorName other than the session's own.
    pub initiator: Option<String>,
    /// Take unit attentions from `luns` afterwards.
    pub clear_ua: bool,
    /// LUNs whose unit attentions are taken.
    pub luns: Vec<u16>,
    /// User, secret, and the secret that the target must know.
    pub chap: Option<(String, String, Option<String>)>,
}

/// A SCSI command.
#[derive(Clone, Debug)]
pub struct Scsi {
    /// Session.
    pub s: String,
    /// LUN field.
    pub lun: [u8; 8],
    /// CDB of any length.
    pub cdb: Vec<u8>,
    /// Data-out.
    pub out: Vec<u8>,
    /// Expected data-in length.
    pub in_len: u32,
    /// Task attribute.
    pub attr: u8,
}

/// An access to the management tree.
#[derive(Clone, Debug)]
pub enum Access {
    /// Read an attribute.
    Read(String),
    /// Write an attribute.
    Write(String, String),
    /// List a directory.
    List(String),
}

impl Access {
    /// What it goes to.
    pub fn path(&self) -> &str {
        match self {
            Self::Read(path) | Self::List(path) | Self::Write(path, _) => path,
        }
    }
}

/// What a step does. `s` names the session.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "named as in the transcripts")]
pub enum Action {
    Open(Open),
    Close {
        s: String,
    },
    Kill {
        s: String,
    },
    Scsi(Scsi),
    Tmf {
        s: String,
        function: u8,
        lun: u16,
        referenced: u32,
    },
    Nop {
        s: String,
        out: Vec<u8>,
        immediate: bool,
    },
    Text {
        s: String,
        keys: Vec<(String, String)>,
    },
    Discover {
        keys: Vec<(String, String)>,
    },
    Login {
        stages: Vec<Stage>,
        tsih: u16,
    },
    Raw {
        s: String,
        bhs: Vec<u8>,
        out: Vec<u8>,
    },
    Drain {
        luns: Vec<u16>,
    },
    PrClean,
    Sleep(Duration),
    Sysfs {
        ops: Vec<Access>,
        settle: Duration,
    },
    NopIns {
        s: String,
        time: Duration,
    },
    Async {
        s: String,
    },
}

/// Why a file is no transcript.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub what: String,
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.what)
    }
}

impl std::error::Error for ParseError {}

impl Case {
    /// The cases of a file.
    ///
    /// # Errors
    ///
    /// The first line that is none; also a step or a field that is not known, so that nothing is silently left out.
    pub fn parse_all(text: &str) -> Result<Vec<Self>, ParseError> {
        let lines = text
            .lines()
            .enumerate()
            .filter(|(_, l)| !l.trim().is_empty());
        lines
            .map(|(n, line)| Self::parse(line).map_err(|what| ParseError { line: n + 1, what }))
            .collect()
    }

    /// One case.
    fn parse(line: &str) -> Result<Self, String> {
        let value: Value = serde_json::from_str(line).map_err(|e| e.to_string())?;
        let name = value.get("case").and_then(Value::as_str);
        let name = name.ok_or("no \"case\"")?.to_owned();
        let steps = value.get("steps").and_then(Value::as_array);
        let steps = steps.ok_or_else(|| format!("{name}: no \"steps\""))?;
        let step = |(n, v)| Step::parse(v).map_err(|e| format!("{name}: step {n}: {e}"));
        let steps = (1..).zip(steps).map(step).collect::<Result<_, _>>()?;
        Ok(Self { name, steps })
    }

    /// True if a step changes the configuration.
    pub fn needs_management(&self) -> bool {
        let is_sysfs = |s: &Step| matches!(s.action, Action::Sysfs { .. });
        self.steps.iter().any(is_sysfs)
    }
}

impl Step {
    fn parse(step: &Value) -> Result<Self, String> {
        let to_do = step.get("do").and_then(Value::as_object);
        let mut fields = Fields {
            members: to_do.ok_or("no \"do\"")?,
            used: Vec::new(),
        };
        let rules = fields.rules()?;
        let action = fields.action()?;
        let unknown = |name: &&String| !fields.used.contains(&name.as_str());
        if let Some(name) = fields.members.keys().find(unknown) {
            return Err(format!("unknown field {name:?}"));
        }
        let got = step.get("got").cloned().unwrap_or_else(|| json!({}));
        Ok(Self { action, rules, got })
    }
}

/// The fields of a `do`, and which of them were looked at.
struct Fields<'a> {
    members: &'a Map<String, Value>,
    used: Vec<&'static str>,
}

type Parsed<T> = Result<T, String>;

impl<'a> Fields<'a> {
    fn find(&mut self, name: &'static str) -> Option<&'a Value> {
        self.used.push(name);
        self.members.get(name)
    }

    /// A field read by `f`; the default where it is absent.
    fn get<T>(
        &mut self,
        name: &'static str,
        default: T,
        f: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Parsed<T> {
        match self.find(name) {
            None | Some(Value::Null) => Ok(default),
            Some(v) => f(v).ok_or_else(|| format!("{name}: {v} is not what it may be")),
        }
    }

    fn text(&mut self, name: &'static str) -> Parsed<String> {
        let v = self.find(name).ok_or_else(|| format!("no {name:?}"))?;
        v.as_str()
            .map(str::to_owned)
            .ok_or_else(|| format!("{name} is no string"))
    }

    fn int<T: TryFrom<i64>>(&mut self, name: &'static str, default: T) -> Parsed<T> {
        self.get(name, default, |v| T::try_from(v.as_i64()?).ok())
    }

    fn hex(&mut self, name: &'static str) -> Parsed<Vec<u8>> {
        self.get(name, Vec::new(), |v| hex::decode(v.as_str()?).ok())
    }

    fn out(&mut self) -> Parsed<Vec<u8>> {
        self.get("out", Vec::new(), data)
    }

    fn flag(&mut self, name: &'static str, default: bool) -> Parsed<bool> {
        self.get(name, default, Value::as_bool)
    }

    fn seconds(&mut self, name: &'static str) -> Parsed<Duration> {
        let duration = |v: &Value| Duration::try_from_secs_f64(v.as_f64()?).ok();
        self.get(name, Duration::ZERO, duration)
    }

    fn luns(&mut self) -> Parsed<Vec<u16>> {
        let lun = |v: &Value| u16::try_from(v.as_i64()?).ok();
        self.get("luns", vec![0], |v| v.as_array()?.iter().map(lun).collect())
    }

    fn keys(&mut self) -> Parsed<Vec<(String, String)>> {
        self.get("keys", Vec::new(), pairs)
    }

    fn rules(&mut self) -> Parsed<Rules> {
        Ok(Rules {
            skip: self.get("skip", Vec::new(), strings)?,
            mask: self.hex("mask")?,
            pages_superset: self.flag("pages_superset", false)?,
            superset: self.flag("superset", false)?,
            text_keys: self.get("text_keys", None, |v| Some(Some(strings(v)?)))?,
            any29: self.flag("any29", false)?,
            in_len: self.int("in", 0)?,
        })
    }

    fn action(&mut self) -> Parsed<Action> {
        let op = self.text("op")?;
        Ok(match op.as_str() {
            "open" => Action::Open(self.open()?),
            "close" => Action::Close { s: self.text("s")? },
            "kill" => Action::Kill { s: self.text("s")? },
            "scsi" => Action::Scsi(self.scsi()?),
            "tmf" => Action::Tmf {
                s: self.text("s")?,
                function: self.int("fn", 0)?,
                lun: self.int("lun", 0)?,
                referenced: self.int("ref", u32::MAX)?,
            },
            "nop" => Action::Nop {
                s: self.text("s")?,
                out: self.out()?,
                immediate: self.flag("immediate", true)?,
            },
            "text" => Action::Text {
                s: self.text("s")?,
                keys: self.keys()?,
            },
            "discover" => Action::Discover { keys: self.keys()? },
            "login" => Action::Login {
                stages: self.get("stages", Vec::new(), |v| {
                    v.as_array()?.iter().map(stage).collect()
                })?,
                tsih: self.int("tsih", 0)?,
            },
            "raw" => Action::Raw {
                s: self.text("s")?,
                bhs: self.hex("bhs")?,
                out: self.out()?,
            },
            "drain" => Action::Drain { luns: self.luns()? },
            "pr_clean" => Action::PrClean,
            "sleep" => Action::Sleep(self.seconds("t")?),
            "sysfs" => Action::Sysfs {
                ops: self.get("ops", Vec::new(), |v| {
                    v.as_array()?.iter().map(access).collect()
                })?,
                settle: self.seconds("settle")?,
            },
            "nopins" => Action::NopIns {
                s: self.text("s")?,
                time: self.seconds("t")?,
            },
            "async" => Action::Async { s: self.text("s")? },
            _ => return Err(format!("unknown op {op:?}")),
        })
    }

    fn open(&mut self) -> Parsed<Open> {
        let chap = |v: &Value| match v.as_array()?.as_slice() {
            [user, secret, mutual] => Some(Some((
                user.as_str()?.to_owned(),
                secret.as_str()?.to_owned(),
                mutual.as_str().map(str::to_owned),
            ))),
            _ => None,
        };
        Ok(Open {
            s: self.text("s")?,
            keys: self.keys()?,
            initiator: self.get("initiator", None, |v| Some(Some(v.as_str()?.to_owned())))?,
            clear_ua: self.flag("clear_ua", true)?,
            luns: self.luns()?,
            chap: self.get("chap", None, chap)?,
        })
    }

    fn scsi(&mut self) -> Parsed<Scsi> {
        let number: u16 = self.int("lun", 0)?;
        let method: u8 = self.int("lun_method", 0)?;
        let [high, low] = number.to_be_bytes();
        // Peripheral addressing below 256, flat above or where asked for (SAM-5 4.7.7).
        let flat = method == 1 || number > 255;
        let first = if flat { 0x40 | (high & 0x3f) } else { 0 };
        let plain = [first, low, 0, 0, 0, 0, 0, 0];
        let raw = |v: &Value| hex::decode(v.as_str()?).ok()?.try_into().ok();
        Ok(Scsi {
            s: self.text("s")?,
            lun: self.get("lun_raw", plain, raw)?,
            cdb: self.hex("cdb")?,
            out: self.out()?,
            in_len: self.int("in", 0)?,
            attr: self.int("attr", 1)?,
        })
    }
}

fn strings(v: &Value) -> Option<Vec<String>> {
    let string = |v: &Value| v.as_str().map(str::to_owned);
    v.as_array()?.iter().map(string).collect()
}

/// Text keys: a list of pairs, or an object.
fn pairs(v: &Value) -> Option<Vec<(String, String)>> {
    if let Some(members) = v.as_object() {
        let pair = |(k, v): (&String, &Value)| Some((k.clone(), v.as_str()?.to_owned()));
        return members.iter().map(pair).collect();
    }
    let pair = |v: &Value| match v.as_array()?.as_slice() {
        [k, v] => Some((k.as_str()?.to_owned(), v.as_str()?.to_owned())),
        _ => None,
    };
    v.as_array()?.iter().map(pair).collect()
}

/// `[CSG, NSG, T, [[key, value]...], options]`.
fn stage(v: &Value) -> Option<Stage> {
    let (csg, nsg, transit, keys, options) = match v.as_array()?.as_slice() {
        [csg, nsg, transit, keys] => (csg, nsg, transit, keys, &Value::Null),
        [csg, nsg, transit, keys, options] => (csg, nsg, transit, keys, options),
        _ => return None,
    };
    let byte = |v: &Value| u8::try_from(v.as_i64()?).ok();
    let mut stage = Stage {
        csg: byte(csg)?,
        nsg: byte(nsg)?,
        transit: transit.as_bool()?,
        keys: pairs(keys)?,
        version_min: 0,
        version_max: 0,
    };
    for (name, v) in options.as_object().into_iter().flatten() {
        match name.as_str() {
            "version_min" => stage.version_min = byte(v)?,
            "version_max" => stage.version_max = byte(v)?,
            _ => return None,
        }
    }
    Some(stage)
}

fn access(v: &Value) -> Option<Access> {
    let strings = strings(v)?;
    let (kind, rest) = strings.split_first()?;
    match (kind.as_str(), rest) {
        ("R", [path] | [path, _]) => Some(Access::Read(path.clone())),
        ("L", [path] | [path, _]) => Some(Access::List(path.clone())),
        ("W", [path, value]) => Some(Access::Write(path.clone(), value.clone())),
        _ => None,
    }
}

/// Data-out: hex, `{"fill": "aa", "len": n}`, `{"seq": n}` or `{"parts": [...]}`.
fn data(v: &Value) -> Option<Vec<u8>> {
    if let Some(digits) = v.as_str() {
        return hex::decode(digits).ok();
    }
    let length = |v: &Value| {
        let n = v.as_i64().filter(|n| (0..=MAX_OUT).contains(n))?;
        usize::try_from(n).ok()
    };
    let members = v.as_object()?;
    let names: Vec<&str> = members.keys().map(String::as_str).collect();
    match names.as_slice() {
        ["fill", "len"] | ["len", "fill"] => {
            let fill = hex::decode(v["fill"].as_str()?).ok()?;
            let &[byte] = fill.as_slice() else {
                return None;
            };
            Some(vec![byte; length(&v["len"])?])
        }
        ["seq"] => {
            let byte = |i: usize| (7 * i + i / 256) as u8;
            Some((0..length(&v["seq"])?).map(byte).collect())
        }
        ["parts"] => {
            let parts: Option<Vec<_>> = v["parts"].as_array()?.iter().map(data).collect();
            Some(parts?.concat())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first(step: &str) -> Result<Step, ParseError> {
        let line = format!(r#"{{"case": "x", "steps": [{{"do": {step}, "got": {{}}}}]}}"#);
        Case::parse_all(&line).map(|mut cases| cases.remove(0).steps.remove(0))
    }

    #[test]
    fn all_recorded_cases_parse() {
        let cases = Case::parse_all(crate::BATTERY).expect("the battery");
        assert_eq!(cases.len(), 489);
        assert!(cases.iter().all(|c| !c.needs_management()));
        let managed = include_str!("../../tests/behaviour/managed.jsonl");
        let managed = Case::parse_all(managed).expect("managed cases");
        assert_eq!(managed.len(), 35);
    }

    #[test]
    fn data_notations() {
        let step = first(
            r#"{"op": "scsi", "s": "A", "cdb": "2a", "lun": 1, "lun_method": 1, "out": {"parts": ["0102", {"fill": "ff", "len": 2}, {"seq": 3}]}}"#,
        );
        let Action::Scsi(scsi) = step.expect("a step").action else {
            panic!("not a command")
        };
        assert_eq!(scsi.out, [1, 2, 255, 255, 0, 7, 14]);
        assert_eq!(scsi.lun, [0x40, 1, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn what_is_not_known_is_refused() {
        for step in [
            r#"{"op": "dance"}"#,
            r#"{"op": "close", "s": "A", "softly": true}"#,
            r#"{"op": "scsi", "s": "A", "cdb": "0"}"#,
            r#"{"op": "scsi", "s": "A", "cdb": "00", "lun": 70000}"#,
            r#"{"op": "raw", "s": "A", "bhs": "00", "out": {"fill": "00", "len": 99999999999}}"#,
            r#"{"op": "login", "stages": [[1, 3, true, [], {"cid": 1}]]}"#,
        ] {
            assert!(first(step).is_err(), "{step}");
        }
    }
}
