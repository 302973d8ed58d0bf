//! The obsolete configuration file of SCST before its sysfs interface (`[HANDLER vdisk]`, `[GROUP x]`, `[ASSIGNMENT x]`),
//! converted for migration.

use std::collections::BTreeMap;
use std::io::Write;

use kshim::kobject::tree::TreeOps;

use super::attr::{Attributes, makes_targets};
use super::live::Live;
use super::model::{Config, LunDef, Target};
use super::object::Object;
use super::syntax::Pos;

/// What is said when one is met.
pub(crate) const NOTE: &str =
    "\nNOTE: Using a deprecated configuration file. I will attempt to convert it for you.\n\n";

/// Options of devices and the attributes they became.
const OPTIONS: [(&str, &str); 8] = [
    ("WRITE_THROUGH", "write_through"),
    ("WT", "write_through"),
    ("READ_ONLY", "read_only"),
    ("RO", "read_only"),
    ("NV_CACHE", "nv_cache"),
    ("NV", "nv_cache"),
    ("REMOVABLE", "removable"),
    ("RM", "removable"),
];

/// Section, argument, attribute: values in the order of the file.
type Sections = BTreeMap<String, BTreeMap<String, BTreeMap<String, Vec<String>>>>;

/// The kind and the argument of a section line.
fn section_line(line: &str) -> Option<(&str, &str)> {
    let inner = line.trim().strip_prefix('[')?.strip_suffix(']')?;
    let (kind, argument) = inner
        .split_once(char::is_whitespace)
        .unwrap_or((inner, "default"));
    Some((kind, argument.trim()))
}

/// True for a file of the obsolete kind.
pub(crate) fn is_old(text: &str) -> bool {
    let lines = text.lines().filter(|l| !l.starts_with('#'));
    let kinds = lines.filter_map(|l| section_line(l.split('#').next().unwrap_or_default()));
    kinds
        .into_iter()
        .any(|(kind, _)| matches!(kind, "HANDLER" | "GROUP" | "ASSIGNMENT"))
}

fn sections(text: &str) -> Sections {
    let mut all = Sections::new();
    let mut at = None;
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if let Some((kind, argument)) = section_line(line) {
            all.entry(kind.to_owned())
                .or_default()
                .entry(argument.to_owned())
                .or_default();
            at = Some((kind.to_owned(), argument.to_owned()));
        } else if let Some((kind, argument)) = &at
            && !line.is_empty()
        {
            let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
            let section = all
                .entry(kind.clone())
                .or_default()
                .entry(argument.clone())
                .or_default();
            section
                .entry(name.to_owned())
                .or_default()
                .push(value.trim().to_owned());
        }
    }
    all
}

/// Converts an obsolete file for the server whose targets it means.
///
/// Context: may sleep.
///
/// # Errors
///
/// A sentence: the server cannot be read, or has no driver for a target.
pub(crate) fn convert(
    text: &str,
    tree: &dyn TreeOps,
    out: &mut dyn Write,
) -> Result<Config, String> {
    let mut converter = Converter {
        old: sections(text),
        live: Live::read(tree)?,
        tree,
        config: Config::default(),
    };
    converter.devices();
    converter.default_groups(out);
    converter.targets(out)?;
    converter.enable();
    Ok(converter.config)
}

struct Converter<'a> {
    old: Sections,
    live: Live,
    tree: &'a dyn TreeOps,
    config: Config,
}

impl Converter<'_> {
    fn values(&self, kind: &str, argument: &str, name: &str) -> Vec<String> {
        let section = self.old.get(kind).and_then(|s| s.get(argument));
        section
            .and_then(|s| s.get(name))
            .cloned()
            .unwrap_or_default()
    }

    fn arguments(&self, kind: &str) -> Vec<String> {
        self.old
            .get(kind)
            .map(|s| s.keys().cloned().collect())
            .unwrap_or_default()
    }

    /// `DEVICE name,path,options,block size,T10 id`.
    fn devices(&mut self) {
        let pos = Pos::default();
        for old in self.arguments("HANDLER") {
            for line in self.values("HANDLER", &old, "DEVICE") {
                let mut fields = line.split(',').map(str::trim);
                let mut next = || fields.next().unwrap_or_default();
                let (name, path, options, blocksize, t10) =
                    (next(), next(), next(), next(), next());
                let options: Vec<&str> = options.split('|').map(str::trim).collect();
                let has = |a: &str, b: &str| options.iter().any(|o| *o == a || *o == b);
                let handler = match old.as_str() {
                    "vdisk" if has("NULLIO", "NIO") => "vdisk_nullio",
                    "vdisk" if has("BLOCKIO", "BIO") => "vdisk_blockio",
                    "vdisk" => "vdisk_fileio",
                    other => other,
                };
                let section = self.config.handlers.entry(handler.to_owned()).or_default();
                let attrs = &mut section.devices.entry(name.to_owned()).or_default().attrs;
                for (_, attr) in OPTIONS.iter().filter(|(o, _)| options.contains(o)) {
                    attrs.insert(attr, "1", pos);
                }
                for (attr, value) in [
                    ("t10_dev_id", t10),
                    ("filename", path),
                    ("blocksize", blocksize),
                ] {
                    if !value.is_empty() {
                        attrs.insert(attr, value, pos);
                    }
                }
            }
        }
    }

    fn target(&mut self, driver: &str, target: &str) -> &mut Target {
        let section = self.config.drivers.entry(driver.to_owned()).or_default();
        section.targets.entry(target.to_owned()).or_default()
    }

    /// `DEVICE name,lun` lines.
    fn luns(&self, group: &str) -> BTreeMap<u64, LunDef> {
        let lines = self.values("ASSIGNMENT", group, "DEVICE");
        let parsed = lines.iter().filter_map(|line| {
            let (device, lun) = line.split_once(',')?;
            let lun = lun.split(',').next()?.trim().parse().ok()?;
            let device = device.trim().to_owned();
            Some((
                lun,
                LunDef {
                    device,
                    ..LunDef::default()
                },
            ))
        });
        parsed.collect()
    }

    /// `Default` is for all targets, `Default_TARGET` for one.
    fn default_groups(&mut self, out: &mut dyn Write) {
        for group in self.arguments("ASSIGNMENT") {
            let Some(rest) = group.strip_prefix("Default") else {
                continue;
            };
            let luns = self.luns(&group);
            let wanted = rest.strip_prefix('_').unwrap_or(rest);
            let mut found = false;
            for (driver, targets) in self.live.drivers.clone() {
                for target in targets
                    .into_keys()
                    .filter(|t| rest.is_empty() || t == wanted)
                {
                    self.target(&driver, &target).luns.extend(luns.clone());
                    found = true;
                }
            }
            if !found && !rest.is_empty() {
                let _ = writeln!(
                    out,
                    "NOTE: Unable to find target {group}. I will add this target to all drivers capable of \
                     creating targets."
                );
                let drivers: Vec<String> = self.live.drivers.keys().cloned().collect();
                for driver in drivers.into_iter().filter(|d| makes_targets(self.tree, d)) {
                    self.target(&driver, wanted).luns.extend(luns.clone());
                }
            }
        }
    }

    /// Targets that were enabled get all groups; if none was, all targets do.
    fn targets(&mut self, out: &mut dyn Write) -> Result<(), String> {
        let enabled = self.values("TARGETS", "enable", "HOST");
        for wwn in &enabled {
            let name = port_name(wwn);
            let (driver, target) = self.live_target(&name).ok_or_else(|| {
                format!(
                    "Unable to determine target driver information for target '{wwn}'. Please ensure this \
                     target driver is loaded."
                )
            })?;
            self.target(&driver, &target)
                .attrs
                .insert("enabled", "1", Pos::default());
            self.all_groups(&driver, &target);
        }
        if enabled.is_empty() {
            let _ = out.write_all(
                b"NOTE: No targets set to 'enable' within your configuration file. Please be sure to save \
                  write your configuration with -write_config and review it carefully.\n\n",
            );
            let mut all: Vec<(String, String)> = Vec::new();
            for (driver, targets) in &self.live.drivers {
                all.extend(targets.keys().map(|t| (driver.clone(), t.clone())));
            }
            for (driver, section) in &self.config.drivers {
                all.extend(section.targets.keys().map(|t| (driver.clone(), t.clone())));
            }
            for (driver, target) in all {
                self.all_groups(&driver, &target);
            }
        }
        Ok(())
    }

    fn live_target(&self, name: &str) -> Option<(String, String)> {
        self.live.drivers.iter().find_map(|(driver, targets)| {
            let target = targets.keys().find(|t| t.to_ascii_lowercase() == name)?;
            Some((driver.clone(), target.clone()))
        })
    }

    fn all_groups(&mut self, driver: &str, target: &str) {
        for name in self.arguments("GROUP") {
            let users = self.values("GROUP", &name, "USER");
            if !users.is_empty() {
                let group = self.target(driver, target).groups.entry(name).or_default();
                group
                    .initiators
                    .extend(users.into_iter().map(|u| (u, Default::default())));
            }
        }
        for name in self.arguments("ASSIGNMENT") {
            let luns = self.luns(&name);
            if !name.starts_with("Default") && !luns.is_empty() {
                let group = self.target(driver, target).groups.entry(name).or_default();
                group.luns.extend(luns);
            }
        }
    }

    /// Drivers and targets had no switch then.
    fn enable(&mut self) {
        for (name, driver) in &mut self.config.drivers {
            let has = |object: &Object| {
                Attributes::read(self.tree, object).is_ok_and(|a| a.map.contains_key("enabled"))
            };
            if name.starts_with("qla") || !has(&Object::Driver(name.clone())) {
                continue;
            }
            driver.attrs.insert("enabled", "1", Pos::default());
            for target in driver.targets.values_mut() {
                target.attrs.insert("enabled", "1", Pos::default());
            }
        }
    }
}

/// `0x500605b000...` with colons, in lower case.
fn port_name(wwn: &str) -> String {
    let lower = wwn.to_ascii_lowercase();
    let Some(hex) = lower.strip_prefix("0x") else {
        return lower;
    };
    let digits: Vec<char> = hex.chars().take(16).collect();
    let pairs: Vec<String> = digits.chunks(2).map(|c| c.iter().collect()).collect();
    pairs.join(":")
}
