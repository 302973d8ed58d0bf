//! The licences and sources of all crates, held against `deny.toml`: what `cargo deny check licenses sources bans`
//! would say of them, for machines that have no cargo-deny.

use std::fs;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use spdx::{Expression, Licensee, ParseMode};
use toml::Table;

use crate::sh;

/// What `deny.toml` allows and forbids.
struct Rules {
    targets: Vec<String>,
    allowed: Vec<Licensee>,
    banned: Vec<String>,
}

impl Rules {
    fn parse(text: &str) -> Result<Self> {
        let table: Table = text.parse()?;
        let list = |section: &str, key: &str| {
            let list = table
                .get(section)
                .and_then(|s| s.get(key)?.as_array().cloned());
            list.with_context(|| format!("no {section}.{key}"))
        };
        let strings = |list: Vec<toml::Value>| -> Vec<String> {
            let string = |v: &toml::Value| Some(v.as_str()?.to_owned());
            list.iter().filter_map(string).collect()
        };
        let crates = |v: &toml::Value| Some(v.get("crate")?.as_str()?.to_owned());
        Ok(Self {
            targets: strings(list("graph", "targets")?),
            allowed: strings(list("licenses", "allow")?)
                .iter()
                .map(|l| licensee(l))
                .collect::<Result<_>>()?,
            banned: list("bans", "deny")?.iter().filter_map(crates).collect(),
        })
    }

    /// Why a crate may not be here.
    fn objection(&self, package: &Value) -> Option<String> {
        let text = |key: &str| package.get(key).and_then(Value::as_str);
        let name = text("name").unwrap_or_default();
        if self.banned.iter().any(|b| b == name) {
            return Some("banned".into());
        }
        // Crates of the workspace have no source.
        if let Some(source) = text("source")
            && source != "registry+https://github.com/rust-lang/crates.io-index"
        {
            return Some(format!("from {source}, not from crates.io"));
        }
        let Some(licence) = text("license") else {
            return Some("no licence is stated".into());
        };
        match Expression::parse_mode(licence, ParseMode::LAX) {
            Err(e) => Some(format!("licence {licence:?}: {e}")),
            Ok(expression) => {
                let fits = expression.evaluate(|r| self.allowed.iter().any(|a| a.satisfies(r)));
                (!fits).then(|| format!("licence {licence} is not allowed"))
            }
        }
    }
}

/// A licence that is allowed. The crate spdx has a licensee take a GNU licence in one version, whatever the suffix.
fn licensee(id: &str) -> Result<Licensee> {
    let bare = id.trim_end_matches("-only").trim_end_matches("-or-later");
    Licensee::parse(bare).with_context(|| format!("licenses.allow: {id}"))
}

/// Checks all crates that any part of the workspace uses, tests and tools as well.
pub(crate) fn check() -> Result<()> {
    let text = fs::read_to_string(sh::top().join("deny.toml"))?;
    let rules = Rules::parse(&text).context("deny.toml")?;
    let mut wrong = Vec::new();
    let mut count = 0;
    for target in &rules.targets {
        let metadata = sh::output(&[
            "cargo",
            "metadata",
            "--format-version=1",
            "--locked",
            "--filter-platform",
            target,
        ])?;
        let metadata: Value = serde_json::from_str(&metadata)?;
        let packages = metadata.get("packages").and_then(Value::as_array);
        let packages = packages.context("cargo metadata: no packages")?;
        count = count.max(packages.len());
        for package in packages {
            if let Some(why) = rules.objection(package) {
                let id = package.get("id").and_then(Value::as_str);
                wrong.push(format!("{}: {why}", id.unwrap_or("?")));
            }
        }
    }
    wrong.sort();
    wrong.dedup();
    if !wrong.is_empty() {
        bail!("licences:\n{}", wrong.join("\n"));
    }
    println!("== licences: ok, {count} crates");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objection(package: &str) -> Option<String> {
        let rules = r#"
            [graph]
            targets = ["x"]
            [licenses]
            allow = ["MIT", "GPL-2.0-only"]
            [bans]
            deny = [{ crate = "bad", reason = "so" }]
        "#;
        let package = serde_json::from_str(package).expect("JSON");
        Rules::parse(rules).expect("rules").objection(&package)
    }

    #[test]
    fn only_what_is_allowed() {
        for (licence, fits) in [
            ("MIT", true),
            ("GPL-2.0-only", true),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("Apache-2.0", false),
            ("(MIT OR Apache-2.0) AND Unicode-3.0", false),
            ("AGPL-3.0-only", false),
            ("what", false),
        ] {
            let package = format!(r#"{{"name": "a", "source": null, "license": "{licence}"}}"#);
            assert_eq!(objection(&package).is_none(), fits, "{licence}");
        }
        assert!(objection(r#"{"name": "bad", "license": "MIT"}"#).is_some());
        assert!(objection(r#"{"name": "a", "license": null}"#).is_some());
        let elsewhere = r#"{"name": "a", "source": "git+https://example.org/a", "license": "MIT"}"#;
        assert!(objection(elsewhere).is_some());
    }
}
