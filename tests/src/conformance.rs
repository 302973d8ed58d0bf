//! Output of libiscsi's `iscsi-test-cu`, and tables of what it gave on other targets.

use std::collections::BTreeMap;

/// Result of one test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All assertions held.
    Pass,
    /// At least one did not, or the test did not come to an end.
    Fail,
    /// The test skipped itself, at least in part.
    Skip,
}

/// One line of a table: result and the first line that says why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Result.
    pub verdict: Verdict,
    /// First failure (or skip) line.
    pub why: String,
}

/// Test name (`Family.Test`) to result.
pub type Table = BTreeMap<String, Row>;

/// Reads a table of three columns: test, result, first failure line; the first line is a heading.
pub fn parse_table(text: &str) -> Table {
    let mut table = Table::new();
    for line in text.lines().skip(1) {
        let mut columns = line.splitn(3, '\t');
        let (Some(name), Some(result)) = (columns.next(), columns.next()) else {
            continue;
        };
        let verdict = match result {
            "pass" => Verdict::Pass,
            "skip" => Verdict::Skip,
            _ => Verdict::Fail,
        };
        let why = columns.next().unwrap_or_default().to_owned();
        table.insert(name.to_owned(), Row { verdict, why });
    }
    table
}

/// Reads the output of `iscsi-test-cu -d -v -V` for one family. Lines look so (CUnit's verbose mode):
///
/// ```text
/// Suite: TestUnitReady
///   Test: Simple ...
///     [...]
///     [SKIPPED] ... or [FAILED] ...
/// passed
/// ```
pub fn parse_output(text: &str) -> Table {
    let mut table = Table::new();
    let mut suite = String::new();
    let mut current: Option<Open> = None;
    for line in text.lines() {
        let trimmed = line.trim();
        if let Some(name) = trimmed.strip_prefix("Suite: ") {
            close(&mut table, current.take());
            suite = name.trim().to_owned();
        } else if let Some(rest) = trimmed.strip_prefix("Test: ") {
            close(&mut table, current.take());
            let (name, tail) = rest.split_once(" ...").unwrap_or((rest, ""));
            let mut open = Open {
                name: format!("{suite}.{}", name.trim()),
                ..Open::default()
            };
            // Without log lines between, the verdict stands on this line.
            open.line(tail);
            current = Some(open);
        } else if let Some(open) = current.as_mut() {
            open.line(trimmed);
        }
        if trimmed.starts_with("Run Summary:") {
            close(&mut table, current.take());
        }
    }
    close(&mut table, current);
    table
}

/// A test whose lines are being read.
#[derive(Default)]
struct Open {
    name: String,
    passed: bool,
    failed: bool,
    skipped: bool,
    why: String,
}

impl Open {
    fn line(&mut self, line: &str) {
        let line = line.trim();
        // What the tool prints while it cleans up after the last test is no part of the test.
        let ended = self.passed || self.failed;
        if line.contains("[SKIPPED]") && !ended {
            self.skipped = true;
            self.remember(line);
        } else if line.contains("[FAILED]") {
            self.remember(line);
        } else if line.starts_with("FAILED") {
            self.failed = true;
        } else if line.starts_with("passed") {
            // The last test's verdict may be followed by what the tool prints while it cleans up.
            self.passed = true;
        } else if self.failed && line.contains(" - CU_") {
            self.remember(line);
        }
    }

    fn remember(&mut self, line: &str) {
        if self.why.is_empty() {
            self.why = line.to_owned();
        }
    }
}

fn close(table: &mut Table, open: Option<Open>) {
    let Some(open) = open else { return };
    let verdict = match (open.failed, open.passed, open.skipped) {
        (false, true, true) => Verdict::Skip,
        (false, true, false) => Verdict::Pass,
        _ => Verdict::Fail,
    };
    let why = if open.why.is_empty() && verdict == Verdict::Fail {
        "no verdict: the run ended in this test".to_owned()
    } else {
        open.why
    };
    table.insert(open.name, Row { verdict, why });
}

/// The inverse of [`parse_table`].
pub fn print_table(table: &Table) -> String {
    let mut text = "test\tresult\tfirst failure line\n".to_owned();
    for (name, row) in table {
        let verdict = match row.verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Skip => "skip",
        };
        text += &format!(
            "{name}\t{verdict}\t{}\n",
            row.why.replace(['\t', '\n'], " ")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
Suite: Fam
  Test: Good ...
    [OK] READ10 returned SUCCESS
passed
  Test: Bad ...
    [FAILED] READ10 failed with wrong sense.
FAILED
    1. test_bad.c:38  - CU_ASSERT_EQUAL(_r,0)
  Test: Silent ...FAILED
    1. test_silent.c:1  - CU_ASSERT_TRUE(x)
  Test: Skipped ...
    [SKIPPED] Not implemented.
passed    Send PRIN/READ_KEYS

Suite: Last
  Test: Clean ...
    [OK] READ10 returned SUCCESS
passed    Send PRIN/READ_KEYS
    [SKIPPED] PERSISTENT RESERVE IN is not implemented.

Run Summary:    Type  Total
               tests      4
Suite: Other
  Test: Ended ...
    Send READ10";

    #[test]
    fn verdicts_of_each_kind() {
        let table = parse_output(OUTPUT);
        let verdict = |name: &str| table[name].verdict;
        assert_eq!(table.len(), 6, "{table:#?}");
        assert_eq!(verdict("Fam.Good"), Verdict::Pass);
        assert_eq!(verdict("Fam.Bad"), Verdict::Fail);
        assert!(table["Fam.Bad"].why.starts_with("[FAILED] READ10"));
        assert_eq!(verdict("Fam.Silent"), Verdict::Fail);
        assert!(table["Fam.Silent"].why.contains("test_silent.c:1"));
        assert_eq!(verdict("Fam.Skipped"), Verdict::Skip);
        assert_eq!(verdict("Last.Clean"), Verdict::Pass);
        assert_eq!(verdict("Other.Ended"), Verdict::Fail);
    }

    #[test]
    fn tables_are_read_back() {
        let ours = parse_output(OUTPUT);
        assert!(ours.len() > 3);
        assert_eq!(parse_table(&print_table(&ours)), ours);
    }
}
