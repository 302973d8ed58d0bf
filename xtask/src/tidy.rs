//! House checks on the tree: what a reviewer would otherwise have to look for by hand.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::{lex, sh};

/// A file that is longer gets a warning.
const LINES_WARN: usize = 1000;
/// A file that is longer fails.
const LINES_FAIL: usize = 1300;
/// Where the number of `unsafe` of each file is kept.
const LEDGER: &str = "docs/unsafe.tsv";
/// What no code may be left with, and why. In pieces, so that no search for these finds them here.
const NOT_LEFT: [(&str, &str); 3] = [
    (concat!("todo", "!("), "panics in the caller's face"),
    (
        concat!("unimplemented", "!("),
        "panics in the caller's face",
    ),
    (concat!("#[", "ignore]"), "without a reason"),
];
/// Crate roots that must forbid unsafe code.
const FORBID_UNSAFE: [&str; 14] = [
    "ports/raid1/src/lib.rs",
    "ports/nbd/src/lib.rs",
    "ports/brd/src/lib.rs",
    "ports/null_blk/src/lib.rs",
    "scst-core/src/lib.rs",
    "iscsi-scst/src/lib.rs",
    "usermode/src/lib.rs",
    "usermode/src/main.rs",
    "initiator/src/lib.rs",
    "compare/src/lib.rs",
    "compare/src/main.rs",
    "tests/src/lib.rs",
    "xtask/src/main.rs",
    "benches/src/lib.rs",
];
/// Folders whose files may contain `unsafe`.
const MAY_BE_UNSAFE: [&str; 2] = ["kshim/", "backstores/"];
/// What each crate may depend on inside the workspace: arrows point down only.
const MAY_DEPEND: [(&str, &[&str]); 14] = [
    ("ports/raid1", &["kshim"]),
    ("ports/nbd", &["kshim"]),
    ("ports/brd", &["kshim"]),
    ("ports/null_blk", &["kshim"]),
    ("kshim", &[]),
    ("scst-core", &["kshim"]),
    ("iscsi-scst", &["kshim", "scst-core"]),
    ("backstores", &["kshim"]),
    ("tests", &["kshim", "scst-core", "iscsi-scst", "backstores"]),
    ("initiator", &[]),
    ("compare", &[]),
    ("benches", &["kshim", "scst-core", "iscsi-scst", "null_blk"]),
    (
        "fuzz",
        &[
            "kshim",
            "scst-core",
            "iscsi-scst",
            "backstores",
            "scst-usermode",
        ],
    ),
    ("xtask", &[]),
];

/// Places that know nothing of what is built on them, and the words of it that they may not use. Whole words, but for the
/// first three, which no word may contain.
const GENERAL: [&str; 2] = ["kshim/", "ports/"];
const PARTS_OF_OURS: [&str; 3] = ["scst", "vdisk", "iscsi"];
const OURS: [&str; 10] = [
    "tgt",
    "acg",
    "sgv",
    "lun",
    "luns",
    "nexus",
    "initiator",
    "initiators",
    "backstore",
    "tcmu",
];
/// Where one of them is right, and why.
const OURS_ALLOWED: [(&str, &str, &str); 1] = [(
    "ports/raid1/tests/model.rs",
    "SCST_RAID1_CASES",
    "variables that set the size of a test begin so in all crates",
)];

/// What to do with the unsafe ledger.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ledger {
    /// Fail when it differs from the tree.
    Check,
    /// Write it from the tree.
    Rewrite,
}

/// Runs all house checks; fails with the list of what is wrong.
pub(crate) fn check(ledger: Ledger) -> Result<()> {
    let files = tracked()?;
    let mut found = Vec::new();
    for path in &FORBID_UNSAFE {
        let text = fs::read_to_string(sh::top().join(path)).unwrap_or_default();
        if !lex::code_only(&text).contains("#![forbid(unsafe_code)]") {
            found.push(format!("{path}: lacks #![forbid(unsafe_code)]"));
        }
    }
    let mut counts = BTreeMap::new();
    for (path, text) in &files {
        machine_paths(path, text, &mut found);
        words_of_ours(path, text, &mut found);
        if path.ends_with(".rs") {
            rust_file(path, text, &mut counts, &mut found);
        }
    }
    unsafe_ledger(ledger, &counts, &mut found)?;
    dependencies(&mut found)?;
    ci_is_executable(&mut found)?;
    if found.is_empty() {
        println!("== tidy: ok, {} files", files.len());
        return Ok(());
    }
    bail!(
        "tidy found {} problem(s):\n  {}",
        found.len(),
        found.join("\n  ")
    );
}

/// Every tracked or new, not ignored, text file with its contents.
fn tracked() -> Result<Vec<(String, String)>> {
    let list = sh::output(&[
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
    ])?;
    let mut files = Vec::new();
    for path in list.lines() {
        // What is not UTF-8 or was deleted but not yet committed has nothing to check.
        if let Ok(text) = fs::read_to_string(sh::top().join(path)) {
            files.push((path.to_owned(), text));
        }
    }
    Ok(files)
}

fn rust_file(
    path: &str,
    text: &str,
    counts: &mut BTreeMap<String, usize>,
    found: &mut Vec<String>,
) {
    let lines = text.lines().count();
    if lines > LINES_FAIL {
        found.push(format!("{path}: {lines} lines, more than {LINES_FAIL}"));
    } else if lines > LINES_WARN {
        println!("tidy: warning: {path}: {lines} lines, split it before it passes {LINES_FAIL}");
    }
    let code = lex::code_only(text);
    for (n, line) in code.lines().enumerate() {
        let at = format!("{path}:{}", n + 1);
        for (what, why) in NOT_LEFT {
            if line.contains(what) {
                found.push(format!("{at}: {what}: {why}"));
            }
        }
        if line.contains("#[allow(") && !path.starts_with("kshim/src/sys/") {
            let attr: String = code.lines().skip(n).take(8).collect::<Vec<_>>().join(" ");
            let attr = attr.split("]").next().unwrap_or_default().to_owned();
            if !attr.contains("reason") {
                found.push(format!("{at}: #[allow] without a reason; prefer #[expect]"));
            }
        }
    }
    for (n, line) in macro_with_unsafe(&code) {
        found.push(format!(
            "{path}:{n}: exported macro expands to unsafe: {line}"
        ));
    }
    let unsafes = words(&code, "unsafe");
    if unsafes > 0 {
        counts.insert(path.to_owned(), unsafes);
        if !MAY_BE_UNSAFE.iter().any(|p| path.starts_with(p)) {
            found.push(format!("{path}: unsafe outside {MAY_BE_UNSAFE:?}"));
        }
    }
}

/// Number of times `word` stands alone in `code`.
fn words(code: &str, word: &str) -> usize {
    code.split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|w| *w == word)
        .count()
}

/// Lines with `unsafe` inside the body of a `#[macro_export]` macro: `forbid(unsafe_code)` in the crate that uses
/// the macro does not see them.
fn macro_with_unsafe(code: &str) -> Vec<(usize, String)> {
    let mut hits = Vec::new();
    let mut exported = false;
    let mut depth: Option<i32> = None;
    for (n, line) in code.lines().enumerate() {
        if line.contains("#[macro_export]") {
            exported = true;
        }
        if exported && line.contains("macro_rules!") {
            depth = Some(0);
            exported = false;
        }
        if let Some(d) = depth.as_mut() {
            if words(line, "unsafe") > 0 {
                hits.push((n + 1, line.trim().to_owned()));
            }
            for c in line.chars() {
                match c {
                    '{' | '(' => *d += 1,
                    '}' | ')' => *d -= 1,
                    _ => {}
                }
            }
            if *d <= 0 && line.contains(['}', ')']) {
                depth = None;
            }
        }
    }
    hits
}

/// No path of one developer's machine may get into the tree.
fn machine_paths(path: &str, text: &str, found: &mut Vec<String>) {
    if path.ends_with(".lock") {
        return;
    }
    // Spelled in parts, so that this file does not find itself.
    let needles = [
        ["/wo", "rk/"],
        ["/fa", "rm/"],
        ["/ro", "ot/"],
        ["/ho", "me/"],
    ];
    for (n, line) in text.lines().enumerate() {
        for needle in needles {
            let needle = needle.concat();
            let mut rest = line;
            let mut before = ' ';
            while let Some(i) = rest.find(&needle) {
                before = rest[..i].chars().next_back().unwrap_or(before);
                if !before.is_alphanumeric() && !"_./$}".contains(before) {
                    found.push(format!(
                        "{path}:{}: path of one machine: {}",
                        n + 1,
                        line.trim()
                    ));
                    break;
                }
                rest = &rest[i + needle.len()..];
                before = '/';
            }
        }
    }
}

/// kshim and the ports are for others, too: no word of what stands above them.
fn words_of_ours(path: &str, text: &str, found: &mut Vec<String>) {
    if !GENERAL.iter().any(|place| path.starts_with(place)) {
        return;
    }
    let allowed = |line: &str| {
        OURS_ALLOWED
            .iter()
            .any(|(file, what, _why)| path == *file && line.contains(what))
    };
    for (n, line) in text.lines().enumerate().filter(|(_, l)| !allowed(l)) {
        let lower = line.to_lowercase();
        let mut words = lower.split(|c: char| !c.is_alphanumeric());
        let word = words.find(|w| OURS.contains(w) || PARTS_OF_OURS.iter().any(|p| w.contains(p)));
        if let Some(word) = word {
            found.push(format!(
                "{path}:{}: {word:?} is no word for {GENERAL:?}",
                n + 1
            ));
        }
    }
}

fn unsafe_ledger(
    ledger: Ledger,
    counts: &BTreeMap<String, usize>,
    found: &mut Vec<String>,
) -> Result<()> {
    let path = sh::top().join(LEDGER);
    let mut text = String::from("file\tunsafe\n");
    for (file, count) in counts {
        writeln!(text, "{file}\t{count}")?;
    }
    if ledger == Ledger::Rewrite {
        return fs::write(&path, text).with_context(|| format!("cannot write {LEDGER}"));
    }
    let mut recorded = BTreeMap::new();
    for line in fs::read_to_string(&path)
        .unwrap_or_default()
        .lines()
        .skip(1)
    {
        if let Some((file, count)) = line.split_once('\t') {
            recorded.insert(file.to_owned(), count.trim().parse::<usize>().unwrap_or(0));
        }
    }
    for (file, &count) in counts {
        let was = recorded.remove(file).unwrap_or(0);
        if was != count {
            found.push(format!(
                "{LEDGER}: {file} has {count} unsafe, recorded {was}; run `cargo xtask tidy --bless` and say why"
            ));
        }
    }
    for file in recorded.keys() {
        found.push(format!(
            "{LEDGER}: {file} has no unsafe any more; run `cargo xtask tidy --bless`"
        ));
    }
    Ok(())
}

fn dependencies(found: &mut Vec<String>) -> Result<()> {
    let crates = MAY_DEPEND.iter();
    let ours: Vec<&str> = crates
        .map(|(path, _)| path.rsplit('/').next().unwrap_or(path))
        .collect();
    for (name, allowed) in MAY_DEPEND {
        let path = format!("{name}/Cargo.toml");
        let text = fs::read_to_string(sh::top().join(&path)).with_context(|| path.clone())?;
        let mut in_dependencies = false;
        for (n, line) in text.lines().enumerate() {
            if line.starts_with('[') {
                // What only tests need does not end up in the product; those may look sideways.
                in_dependencies =
                    line.contains("dependencies") && !line.contains("dev-dependencies");
                continue;
            }
            let key = line.split(['.', '=', ' ']).next().unwrap_or_default();
            if in_dependencies && ours.contains(&key) && key != name && !allowed.contains(&key) {
                found.push(format!("{path}:{}: {name} must not depend on {key}", n + 1));
            }
        }
    }
    Ok(())
}

fn ci_is_executable(found: &mut Vec<String>) -> Result<()> {
    for path in [".ci/run", "tools/setup"] {
        let mode = sh::output(&["git", "ls-files", "--stage", path])?;
        if !mode.is_empty() && !mode.starts_with("100755") {
            found.push(format!("{path}: has no run bit"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_alone() {
        assert_eq!(
            words("unsafe { not_unsafe } unsafe_code unsafe", "unsafe"),
            2
        );
    }

    #[test]
    fn exported_macro_with_unsafe_is_found() {
        let bad =
            "#[macro_export]\nmacro_rules! m {\n () => { unsafe { f() } };\n}\nunsafe fn f() {}\n";
        let hits = macro_with_unsafe(bad);
        assert_eq!(hits.len(), 1, "{hits:?}");
        assert_eq!(hits[0].0, 3);
        assert!(macro_with_unsafe("macro_rules! m {\n () => { unsafe {} };\n}\n").is_empty());
    }

    #[test]
    fn words_of_what_stands_above_are_found() {
        let hits = |path: &str, text: &str| {
            let mut found = Vec::new();
            words_of_ours(path, text, &mut found);
            found.len()
        };
        assert_eq!(hits("kshim/src/x.rs", "a SCST_X\nMyVdiskName\na LUN\n"), 3);
        assert_eq!(
            hits("ports/x/README.md", "column, lunar, SCSI, target\n"),
            0
        );
        assert_eq!(hits("docs/ports.md", "a LUN of scst\n"), 0);
        let allowed = "let n = var(\"SCST_RAID1_CASES\");\n";
        assert_eq!(hits("ports/raid1/tests/model.rs", allowed), 0);
        assert_eq!(hits("ports/nbd/tests/fake.rs", allowed), 1);
    }

    #[test]
    fn machine_paths_are_found_but_not_parts_of_other_paths() {
        let mut found = Vec::new();
        machine_paths("a", &["x /wo", "rk/y\n"].concat(), &mut found);
        assert_eq!(found.len(), 1);
        machine_paths(
            "a",
            &["frame/wo", "rk/y $HOME/wo", "rk/y\n"].concat(),
            &mut found,
        );
        assert_eq!(found.len(), 1);
    }
}
