//! Comparing answers.

use std::fmt;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::run::Answers;
use crate::transcript::{Action, Case, Rules, Scsi};

/// Longest value that is printed in full.
const PRINT_MAX: usize = 96;

/// One thing that two targets answered differently.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Step of the case, from 1.
    pub step: usize,
    /// What the answer calls it.
    pub key: String,
    /// What was recorded (or what the first target said).
    pub expected: Value,
    /// What the target said.
    pub actual: Value,
}

/// The result of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// Every answer is the same, but for what the case leaves out.
    Identical,
    /// What differs.
    Different(Vec<Difference>),
    /// It could not be run here, for this reason.
    NotRun(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Identical => f.write_str("identical"),
            Self::NotRun(why) => write!(f, "not run: {why}"),
            Self::Different(list) => {
                for (n, d) in list.iter().enumerate() {
                    write!(f, "{}{d}", if n > 0 { "; " } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, key, .. } = self;
        let (expected, actual) = (self.expected.to_string(), self.actual.to_string());
        if expected.len() <= PRINT_MAX && actual.len() <= PRINT_MAX {
            return write!(f, "step {step}: {key} {actual}, expected {expected}");
        }
        let common = expected
            .bytes()
            .zip(actual.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        // Both are ASCII where it matters; a cut inside a character shows the beginning instead.
        let tail = |s: &str| -> String {
            let from = s.get(common..).unwrap_or(s);
            from.chars().take(PRINT_MAX / 2).collect()
        };
        let (e, a) = (tail(&expected), tail(&actual));
        let (el, al) = (expected.len(), actual.len());
        write!(
            f,
            "step {step}: {key} of {al} characters, expected {el}; at {common} ..{a}.., expected ..{e}.."
        )
    }
}

/// Compares what two targets answered to a case, or what was recorded with what one answered.
pub fn judge(case: &Case, expected: &Answers, actual: &Answers) -> Verdict {
    let (expected, actual) = match (expected, actual) {
        (Answers::Ran(e), Answers::Ran(a)) => (e, a),
        (Answers::NotRun(why), _) | (_, Answers::NotRun(why)) => {
            return Verdict::NotRun(why.clone());
        }
    };
    let mut found = Vec::new();
    let nothing = Value::Null;
    for (n, step) in case.steps.iter().enumerate() {
        let e = expected.get(n).unwrap_or(&nothing);
        let a = actual.get(n).unwrap_or(&nothing);
        for (key, e, a) in differences(&step.rules, e, a) {
            found.push(Difference {
                step: n + 1,
                key,
                expected: e,
                actual: a,
            });
        }
    }
    if found.is_empty() {
        Verdict::Identical
    } else {
        Verdict::Different(found)
    }
}

/// INQUIRY for a page of vital product data (SPC-4 6.6), and the pages that say which logical unit it is.
const INQUIRY_VPD: [u8; 2] = [0x12, 0x01];
const UNIT_SERIAL_NUMBER: u8 = 0x80;
const DEVICE_IDENTIFICATION: u8 = 0x83;
/// Bytes before the first designator of page 83h, and before the text of page 80h.
const PAGE_HEADER: usize = 4;

/// Blanks in answers what tells one logical unit from another and may well differ: serial number, and the designators of the
/// logical unit. Their lengths and types stay.
pub fn without_identity(case: &Case, answers: Answers) -> Answers {
    let Answers::Ran(mut answers) = answers else {
        return answers;
    };
    for (step, answer) in case.steps.iter().zip(&mut answers) {
        let Action::Scsi(Scsi { cdb, .. }) = &step.action else {
            continue;
        };
        let page = cdb.strip_prefix(&INQUIRY_VPD).and_then(|rest| rest.first());
        let Some(data) = answer.get_mut("data_in") else {
            continue;
        };
        let Some(mut bytes) = data.as_str().and_then(|s| hex::decode(s).ok()) else {
            continue;
        };
        match page {
            Some(&UNIT_SERIAL_NUMBER) => blank(bytes.get_mut(PAGE_HEADER..)),
            Some(&DEVICE_IDENTIFICATION) => blank_designators(&mut bytes),
            _ => continue,
        }
        *data = json!(hex::encode(bytes));
    }
    Answers::Ran(answers)
}

fn blank(bytes: Option<&mut [u8]>) {
    bytes.into_iter().for_each(|b| b.fill(0));
}

/// Blanks the designators of the logical unit, not those of the port and its group.
fn blank_designators(page: &mut [u8]) {
    let mut at = PAGE_HEADER;
    while let Some(&[_, association, _, len]) = page.get(at..at.saturating_add(4)) {
        let from = at.saturating_add(4);
        let to = from.saturating_add(usize::from(len)).min(page.len());
        if association >> 4 & 3 == 0 {
            blank(page.get_mut(from..to));
        }
        at = to;
    }
}

/// Keys whose values differ, with both values.
fn differences(rules: &Rules, expected: &Value, actual: &Value) -> Vec<(String, Value, Value)> {
    let (Some(e), Some(a)) = (expected.as_object(), actual.as_object()) else {
        let same = expected == actual;
        let all = ("answer".to_owned(), expected.clone(), actual.clone());
        return if same { Vec::new() } else { vec![all] };
    };
    let more = a.iter().filter(|(k, _)| expected.get(k).is_none());
    let keys = e.iter().chain(more).map(|(k, _)| k);
    let mut found = Vec::new();
    for key in keys.filter(|k| !rules.skip.contains(k)) {
        let [e, a] = [expected, actual].map(|v| v.get(key).cloned().unwrap_or(Value::Null));
        let same = match key.as_str() {
            "data_in" => same_data(rules, &e, &a),
            "residual" if rules.superset || rules.pages_superset => {
                explained_residual(rules, expected, actual)
            }
            "residual" => e == a,
            "sense" => e == a || rules.any29 && both_29(&e, &a),
            "text" => kept_text(rules, &e) == kept_text(rules, &a),
            "login" => same_login(rules, &e, &a),
            _ => e == a,
        };
        if !same {
            found.push((key.clone(), e, a));
        }
    }
    found
}

fn same_data(rules: &Rules, expected: &Value, actual: &Value) -> bool {
    if expected == actual {
        return true;
    }
    let (Some(e), Some(a)) = (expected.as_str(), actual.as_str()) else {
        return false;
    };
    if let Some(digest) = e.strip_prefix("sha256:") {
        let bytes = hex::decode(a).unwrap_or_default();
        return digest == format!("{}:{}", bytes.len(), hex::encode(Sha256::digest(&bytes)));
    }
    let (Ok(mut e), Ok(mut a)) = (hex::decode(e), hex::decode(a)) else {
        return false;
    };
    for (i, mask) in rules.mask.iter().enumerate() {
        for bytes in [&mut e, &mut a] {
            if let Some(byte) = bytes.get_mut(i) {
                *byte &= mask;
            }
        }
    }
    if rules.pages_superset {
        let pages = |v: &[u8]| v.get(4..).unwrap_or_default().to_vec();
        return e.get(..2) == a.get(..2) && pages(&e).iter().all(|p| pages(&a).contains(p));
    }
    if rules.superset {
        let (e, a) = (descriptors(&e), descriptors(&a));
        return e.iter().all(|d| a.contains(d));
    }
    e == a
}

/// The command descriptors of a REPORT SUPPORTED OPERATION CODES list (SPC-4 6.35): 8 bytes, or 20 with CTDP.
fn descriptors(list: &[u8]) -> Vec<&[u8]> {
    let mut rest = list.get(4..).unwrap_or_default();
    let mut found = Vec::new();
    while let Some(flags) = rest.get(5) {
        let len = if flags & 0x02 != 0 { 20 } else { 8 };
        let (descriptor, more) = rest.split_at(len.min(rest.len()));
        found.push(descriptor);
        rest = more;
    }
    found
}

/// Where a list may be longer, the residual may be smaller, if each fits its own data.
fn explained_residual(rules: &Rules, expected: &Value, actual: &Value) -> bool {
    [expected, actual].into_iter().all(|answer| {
        let digits = answer.get("data_in").and_then(Value::as_str);
        let len = digits.map_or(0, str::len) / 2;
        let left = u32::try_from(len)
            .ok()
            .and_then(|n| rules.in_len.checked_sub(n));
        let fits = match left {
            Some(0) => json!(["none", 0]),
            Some(n) => json!(["underflow", n]),
            None => return false,
        };
        // A list that was cut has no residual of its own to compare.
        let residual = answer.get("residual");
        residual == Some(&fits) || left == Some(0)
    })
}

/// True if both are unit attentions with additional sense code 29h.
fn both_29(expected: &Value, actual: &Value) -> bool {
    [expected, actual].into_iter().all(|sense| {
        let bytes = sense.as_str().and_then(|s| hex::decode(s).ok());
        let bytes = bytes.unwrap_or_default();
        let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
        let (key, asc) = if at(0) & 0x7f >= 0x72 {
            (at(1), at(2))
        } else {
            (at(2), at(12))
        };
        key & 0x0f == 6 && asc == 0x29
    })
}

/// The text keys that are compared.
fn kept_text(rules: &Rules, text: &Value) -> Option<Vec<Value>> {
    let Some(keys) = &rules.text_keys else {
        return text.as_array().cloned();
    };
    let kept = |pair: &&Value| {
        let name = pair
            .as_array()
            .and_then(|pair| pair.first())
            .and_then(Value::as_str);
        name.is_some_and(|name| keys.iter().any(|k| k == name))
    };
    Some(text.as_array()?.iter().filter(kept).cloned().collect())
}

/// Stage by stage.
fn same_login(rules: &Rules, expected: &Value, actual: &Value) -> bool {
    let (Some(e), Some(a)) = (expected.as_array(), actual.as_array()) else {
        return false;
    };
    e.len() == a.len()
        && e.iter()
            .zip(a)
            .all(|(e, a)| differences(rules, e, a).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(rules: &Rules, expected: &str, actual: &str) -> usize {
        let value = |s| serde_json::from_str(s).expect("JSON");
        differences(rules, &value(expected), &value(actual)).len()
    }

    #[test]
    fn identities_may_be_left_out() {
        let line = r#"{"case": "v", "steps": [{"do": {"op": "scsi", "s": "A", "cdb": "120183010000", "in": 256}, "got": {}}]}"#;
        let case = Case::parse_all(line).expect("a case").remove(0);
        let page = |id: &str, port: &str| {
            let data = format!("0083000e02010002{id}0114000400000{port}");
            without_identity(&case, Answers::Ran(vec![json!({"data_in": data})]))
        };
        assert_eq!(page("6162", "001"), page("7778", "001"));
        assert_ne!(page("6162", "001"), page("6162", "002"), "of the port");
        assert_ne!(page("6162", "001"), page("616263", "001"));
    }

    #[test]
    fn every_key_counts_unless_skipped() {
        let none = Rules::default();
        assert_eq!(count(&none, r#"{"status": 0}"#, r#"{"status": 0}"#), 0);
        assert_eq!(count(&none, r#"{"status": 0}"#, r#"{"status": 2}"#), 1);
        assert_eq!(count(&none, r#"{"status": 0}"#, r#"{"closed": true}"#), 2);
        assert_eq!(count(&none, r#"{}"#, r#"{"timeout": true}"#), 1);
        let skip = Rules {
            skip: vec!["data_in".into()],
            ..none
        };
        let (a, b) = (
            r#"{"data_in": "00", "status": 0}"#,
            r#"{"data_in": "", "status": 0}"#,
        );
        assert_eq!(count(&skip, a, b), 0);
    }

    #[test]
    fn masks_and_digests() {
        let rules = Rules {
            mask: vec![0xff, 0x0f],
            ..Rules::default()
        };
        assert_eq!(
            count(
                &rules,
                r#"{"data_in": "01a203"}"#,
                r#"{"data_in": "015203"}"#
            ),
            0
        );
        assert_eq!(
            count(
                &rules,
                r#"{"data_in": "01a203"}"#,
                r#"{"data_in": "01a204"}"#
            ),
            1
        );
        let digest = format!(
            r#"{{"data_in": "sha256:3:{}"}}"#,
            hex::encode(Sha256::digest(b"abc"))
        );
        assert_eq!(count(&rules, &digest, r#"{"data_in": "616263"}"#), 0);
        assert_eq!(count(&rules, &digest, r#"{"data_in": "616264"}"#), 1);
    }

    #[test]
    fn longer_lists_are_fine_where_said() {
        let rules = Rules {
            pages_superset: true,
            in_len: 64,
            ..Rules::default()
        };
        let e = r#"{"data_in": "000000020080", "residual": ["underflow", 58]}"#;
        let more = r#"{"data_in": "00000003008083", "residual": ["underflow", 57]}"#;
        let less = r#"{"data_in": "0000000100", "residual": ["underflow", 59]}"#;
        let wrong = r#"{"data_in": "00000003008083", "residual": ["underflow", 58]}"#;
        assert_eq!(count(&rules, e, more), 0);
        assert_eq!(count(&rules, e, less), 1);
        assert_eq!(count(&rules, e, wrong), 1);
        let rules = Rules {
            superset: true,
            in_len: 64,
            ..Rules::default()
        };
        let e = r#"{"data_in": "000000081200000000000006"}"#;
        let more = r#"{"data_in": "0000001000000000000000061200000000000006"}"#;
        assert_eq!(count(&rules, e, more), 0);
        assert_eq!(count(&rules, more, e), 1);
    }

    #[test]
    fn unit_attentions_after_reset() {
        let sense = |s: &str| format!(r#"{{"sense": "{s}"}}"#);
        let on = sense("700006000000000a00000000290000000000");
        let loss = sense("700006000000000a00000000290700000000");
        let other = sense("700006000000000a000000002a0900000000");
        let mut rules = Rules::default();
        assert_eq!(count(&rules, &on, &loss), 1);
        rules.any29 = true;
        assert_eq!(count(&rules, &on, &loss), 0);
        assert_eq!(count(&rules, &on, &other), 1);
    }

    #[test]
    fn only_the_named_text_keys() {
        let rules = Rules {
            text_keys: Some(vec!["CHAP_A".into()]),
            ..Rules::default()
        };
        let e = r#"{"login": [{"class": 0, "text": [["CHAP_A", "5"], ["CHAP_I", "1"]]}]}"#;
        let a = r#"{"login": [{"class": 0, "text": [["CHAP_A", "5"], ["CHAP_I", "2"]]}]}"#;
        let b = r#"{"login": [{"class": 0, "text": [["CHAP_A", "7"], ["CHAP_I", "1"]]}]}"#;
        assert_eq!(count(&rules, e, a), 0);
        assert_eq!(count(&rules, e, b), 1);
    }
}
