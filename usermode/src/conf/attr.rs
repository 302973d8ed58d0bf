//! The attributes of an object as they are now: values, which of them are to be saved, which can be set.
//!
//! An attribute whose text goes on with `[key]` differs from its default: a key attribute, which is saved. Key attributes
//! whose names differ by a number at the end (`IncomingUser`, `IncomingUser1`) are the values of one.

use std::collections::{BTreeMap, BTreeSet};

use kshim::kobject::tree::{Entry, EntryKind, TreeOps};

use super::access::{MGMT, absolute, base_name, is_dir, join, read_text};
use super::object::Object;

/// The attribute whose text explains itself behind its value.
const TRACE_LEVEL: &str = "trace_level";

/// The mark of a key attribute.
const KEY_MARK: &str = "[key]";

/// Only the first page of an attribute is looked at, as tools do.
const PAGE: usize = 4096;

/// One attribute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attr {
    /// The value, unless it cannot be read or the attribute is a key one.
    pub(crate) value: Option<String>,
    /// The values of a key attribute by the number in its name.
    pub(crate) keys: BTreeMap<String, String>,
    /// True when it cannot be set.
    pub(crate) fixed: bool,
    /// The words that a trace level may be made of.
    pub(crate) choices: Option<Vec<String>>,
    /// What stands for no text.
    pub(crate) shape: Shape,
}

/// Whether an attribute is a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shape {
    /// It is.
    #[default]
    Text,
    /// The places a device is exported at.
    Exports,
    /// The devices of a handler.
    Devices,
}

impl Attr {
    fn text(value: &str, fixed: bool) -> Attr {
        Attr {
            value: Some(value.to_owned()),
            fixed,
            ..Attr::default()
        }
    }

    /// True when it differs from its default and is to be saved.
    pub(crate) fn is_key(&self) -> bool {
        !self.keys.is_empty()
    }

    /// All values it has now.
    pub(crate) fn values(&self) -> Vec<&str> {
        if self.is_key() {
            return self.keys.values().map(String::as_str).collect();
        }
        vec![self.value.as_deref().unwrap_or_default()]
    }
}

/// Where a device is exported.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Export {
    pub(crate) driver: String,
    pub(crate) target: String,
    /// Empty for the target's own LUNs.
    pub(crate) group: String,
}

/// All attributes of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) map: BTreeMap<String, Attr>,
    /// Of a device: where it is exported, with the LUN; the copy manager aside.
    pub(crate) exports: BTreeMap<Export, String>,
}

impl Attributes {
    /// Reads the attributes of an object.
    ///
    /// Context: may sleep.
    ///
    /// # Errors
    ///
    /// A sentence about what is not there.
    pub(crate) fn read(tree: &dyn TreeOps, object: &Object) -> Result<Attributes, String> {
        let what = object.query_name();
        if let Some(missing) = object.missing(tree) {
            return Err(format!("{what}(): {}", missing.text));
        }
        let dir = object.dir();
        let entries = match tree.list(&dir) {
            Ok(entries) if !matches!(object, Object::Initiator(..)) => entries,
            // An initiator is an attribute, not a directory: this is what scripts get to see.
            _ => {
                let path = absolute(&dir);
                return Err(format!(
                    "{what}(): Unable to read directory '{path}': Bad file descriptor"
                ));
            }
        };
        let mut all = Attributes::default();
        for entry in &entries {
            all.add(tree, object, &dir, entry);
        }
        if let Object::Handler(name) = object {
            all.map.insert("devices".to_owned(), devices_attr());
            debug_assert!(!name.is_empty());
        }
        Ok(all)
    }

    /// Adds what stands in the directory under one name.
    fn add(&mut self, tree: &dyn TreeOps, object: &Object, dir: &str, entry: &Entry) {
        let path = join(dir, &entry.name);
        match (object, entry.name.as_str()) {
            (_, MGMT) | (Object::Handler(_), "uevent" | "module") => {}
            (Object::Device(_), "exported") => self.add_exports(tree, &path),
            (Object::Device(_), "handler" | "scsi_device")
            | (Object::Target(_), "host")
            | (Object::Lun(..), "device") => {
                let to = tree.readlink(&path).unwrap_or_default();
                let attr = Attr::text(base_name(&to), true);
                self.map.insert(entry.name.clone(), attr);
            }
            (Object::Target(t), "sessions") if t.driver == "scst_local" => {
                self.add_session_names(tree, &path);
            }
            (Object::Handler(_) | Object::Alua, _) if entry.kind != EntryKind::File => {
                // Seen, as any other name, as an attribute without content.
                self.map.insert(entry.name.clone(), Attr::text("", false));
            }
            _ if entry.kind != EntryKind::File => {}
            _ => self.add_file(tree, object, &path, entry),
        }
    }

    fn add_file(&mut self, tree: &dyn TreeOps, object: &Object, path: &str, entry: &Entry) {
        const OWNER_READ: u16 = 0o400;
        if entry.mode & OWNER_READ == 0 {
            self.map.insert(entry.name.clone(), Attr::default());
            return;
        }
        let mut text = read_text(tree, path).unwrap_or_default();
        if text.len() > PAGE {
            let end = (0..=PAGE).rev().find(|&i| text.is_char_boundary(i));
            text.truncate(end.unwrap_or(0));
        }
        let (value, rest) = text.split_once('\n').unwrap_or((&text, ""));
        let second = rest.split('\n').next().unwrap_or_default();
        let marked = if matches!(object, Object::Device(_)) {
            rest.contains(KEY_MARK)
        } else {
            second.contains(KEY_MARK)
        };
        let (name, number) = if marked {
            split_number(&entry.name)
        } else {
            (entry.name.as_str(), "0")
        };
        let fixed = is_fixed(object, name, entry.mode);
        let has_type = matches!(object, Object::Device(_) | Object::Handler(_));
        if name == "type" && has_type {
            self.add_type(value, fixed);
            return;
        }
        let attr = self.map.entry(name.to_owned()).or_default();
        attr.fixed = fixed;
        let has_choices = matches!(
            object,
            Object::Scst | Object::Driver(_) | Object::Handler(_)
        );
        if name == TRACE_LEVEL && has_choices {
            attr.value = Some(value.to_owned());
            attr.choices = Some(choices(rest));
        } else if marked {
            attr.keys.insert(number.to_owned(), value.to_owned());
        } else {
            attr.value = Some(value.to_owned());
        }
    }

    /// `0 - Direct-access device` is a number and its meaning.
    fn add_type(&mut self, value: &str, fixed: bool) {
        let (number, meaning) = value.split_once(" - ").unwrap_or((value, ""));
        self.map
            .insert("type".to_owned(), Attr::text(number, fixed));
        self.map
            .insert("type_string".to_owned(), Attr::text(meaning, true));
    }

    fn add_exports(&mut self, tree: &dyn TreeOps, path: &str) {
        for entry in tree.list(path).unwrap_or_default() {
            let to = tree.readlink(&join(path, &entry.name)).unwrap_or_default();
            if let Some((export, lun)) = parse_export(&to)
                && export.driver != "copy_manager"
            {
                self.exports.insert(export, lun);
            }
        }
        let attr = Attr {
            fixed: !self.exports.is_empty(),
            shape: if self.exports.is_empty() {
                Shape::Text
            } else {
                Shape::Exports
            },
            ..Attr::default()
        };
        self.map.insert("exported".to_owned(), attr);
    }

    fn add_session_names(&mut self, tree: &dyn TreeOps, path: &str) {
        let sessions = tree.list(path).unwrap_or_default();
        if sessions.is_empty() {
            return;
        }
        let keys = sessions.into_iter().enumerate();
        let attr = Attr {
            keys: keys.map(|(i, e)| (i.to_string(), e.name)).collect(),
            ..Attr::default()
        };
        self.map.insert("session_name".to_owned(), attr);
    }
}

fn devices_attr() -> Attr {
    Attr {
        fixed: true,
        shape: Shape::Devices,
        ..Attr::default()
    }
}

/// Whether an attribute cannot be set. Some can although their files say otherwise.
fn is_fixed(object: &Object, name: &str, mode: u16) -> bool {
    const OWNER_WRITE: u16 = 0o200;
    let settable = match object {
        Object::Device(_) => {
            matches!(
                name,
                "cpu_mask" | "filename" | "threads_num" | "threads_pool_type"
            )
        }
        Object::Target(_) => matches!(name, "enabled" | "cpu_mask"),
        Object::Group(..) => name == "cpu_mask",
        _ => false,
    };
    !settable && mode & OWNER_WRITE == 0
}

/// The name and the number at its end, `0` when there is none.
fn split_number(name: &str) -> (&str, &str) {
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = name.get(stem.len()..).unwrap_or_default();
    if stem.is_empty() || number.is_empty() || stem.contains(|c: char| c.is_ascii_digit()) {
        return (name, "0");
    }
    (stem, number)
}

/// The words in brackets in the text behind a trace level.
fn choices(rest: &str) -> Vec<String> {
    let joined: String = rest
        .split('\n')
        .skip(1)
        .skip_while(|line| line.contains('['))
        .collect();
    let (Some(from), Some(to)) = (joined.find('['), joined.rfind(']')) else {
        return Vec::new();
    };
    let inner = joined.get(from + 1..to).unwrap_or_default();
    inner.split(',').map(|t| t.trim().to_owned()).collect()
}

/// `../../../targets/DRIVER/TARGET[/ini_groups/GROUP]/luns/LUN`.
fn parse_export(link: &str) -> Option<(Export, String)> {
    let mut parts = link.split('/').skip_while(|p| *p == "..");
    let mut next = || parts.next();
    if next()? != "targets" {
        return None;
    }
    let (driver, target) = (next()?, next()?);
    let (group, lun) = match next()? {
        "luns" => ("", next()?),
        "ini_groups" => {
            let group = next()?;
            (next()? == "luns").then_some(())?;
            (group, next()?)
        }
        _ => return None,
    };
    let export = Export {
        driver: driver.to_owned(),
        target: target.to_owned(),
        group: group.to_owned(),
    };
    Some((export, lun.to_owned()))
}

/// Which list in a file of commands is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listed {
    /// What may be given when something is created.
    Create,
    /// What may be added to and removed from a driver.
    DriverDynamic,
    /// What may be added to and removed from a target.
    TargetDynamic,
}

/// The names that the file of commands in a directory lists; none when there is no such file.
///
/// Context: may sleep.
pub(crate) fn listed(tree: &dyn TreeOps, dir: &str, which: Listed) -> BTreeSet<String> {
    let start = match which {
        Listed::Create => "The following parameters available:",
        Listed::DriverDynamic => "The following target driver attributes available:",
        Listed::TargetDynamic => "The following target attributes available:",
    };
    let text = read_text(tree, &join(dir, MGMT)).unwrap_or_default();
    let Some(names) = text
        .lines()
        .filter_map(|l| l.strip_prefix(start))
        .next_back()
    else {
        return BTreeSet::new();
    };
    let names = names.strip_suffix('.').unwrap_or(names).split(',');
    let names = names.map(str::trim).filter(|n| !n.is_empty());
    names.map(str::to_owned).collect()
}

/// True when the driver makes targets on request.
///
/// Context: may sleep.
pub(crate) fn makes_targets(tree: &dyn TreeOps, driver: &str) -> bool {
    const WRITABLE: u16 = 0o222;
    let mgmt = tree.stat(&format!("targets/{driver}/{MGMT}"));
    mgmt.is_ok_and(|e| e.mode & WRITABLE != 0)
}

/// True when the target was made on request and is not hardware.
///
/// Context: may sleep.
pub(crate) fn is_virtual(tree: &dyn TreeOps, driver: &str, target: &str) -> bool {
    if !makes_targets(tree, driver) || !is_dir(tree, &format!("targets/{driver}/{target}")) {
        return false;
    }
    let hw = read_text(tree, &format!("targets/{driver}/{target}/hw_target"));
    hw.map_or("0".to_owned(), |t| {
        t.lines().next().unwrap_or("0").to_owned()
    }) != "1"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_at_the_end_of_names() {
        assert_eq!(split_number("IncomingUser"), ("IncomingUser", "0"));
        assert_eq!(split_number("IncomingUser12"), ("IncomingUser", "12"));
        assert_eq!(split_number("a1b2"), ("a1b2", "0"));
        assert_eq!(split_number("12"), ("12", "0"));
    }

    #[test]
    fn links_of_exports() {
        let (e, lun) = parse_export("../../../targets/iscsi/iqn.x:y/ini_groups/g/luns/7").unwrap();
        assert_eq!(
            (e.driver.as_str(), e.group.as_str(), lun.as_str()),
            ("iscsi", "g", "7")
        );
        let (e, lun) = parse_export("../../../targets/d/t/luns/0").unwrap();
        assert_eq!(
            (e.target.as_str(), e.group.as_str(), lun.as_str()),
            ("t", "", "0")
        );
        assert!(parse_export("../../handlers/x").is_none());
    }

    #[test]
    fn words_of_a_trace_level() {
        let rest = "\n\nUsage:\n\techo \"all\" >trace_level\n\nwhere TOKEN is one of [debug, pid,\n\t\t   mem]\n";
        assert_eq!(choices(rest), ["debug", "pid", "mem"]);
    }
}
