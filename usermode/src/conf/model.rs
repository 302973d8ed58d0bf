//! What a configuration file says: handlers with devices, target drivers with targets, device groups, attributes.

use std::collections::BTreeMap;

use super::syntax::{self, Pos, Problem, Statement, Word};

/// At most this many problems are reported at a time.
pub(crate) const PROBLEMS_MAX: usize = 20;

/// Attributes by name, each with its values and the places they were given at. An attribute without a value has one empty
/// value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attrs {
    /// What is to be set.
    pub set: BTreeMap<String, BTreeMap<String, Pos>>,
    /// What is only told (`-write_config -nonkey`): values that need no saving. A parsed file has none.
    pub nonkey: BTreeMap<String, String>,
}

impl Attrs {
    /// Adds a value.
    pub fn insert(&mut self, name: &str, value: &str, pos: Pos) {
        self.set
            .entry(name.to_owned())
            .or_default()
            .insert(value.to_owned(), pos);
    }

    /// The only or first value of an attribute.
    pub fn get(&self, name: &str) -> Option<&str> {
        Some(self.set.get(name)?.keys().next()?.as_str())
    }

    /// Every value with its place, by name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, Pos)> {
        self.set.iter().flat_map(|(name, values)| {
            let name = name.as_str();
            values.iter().map(move |(v, pos)| (name, v.as_str(), *pos))
        })
    }
}

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Attributes of SCST itself.
    pub attrs: Attrs,
    /// `HANDLER` sections.
    pub handlers: BTreeMap<String, Handler>,
    /// `TARGET_DRIVER` sections.
    pub drivers: BTreeMap<String, Driver>,
    /// The `ALUA` section.
    pub alua: Attrs,
    /// `DEVICE_GROUP` sections.
    pub device_groups: BTreeMap<String, DeviceGroup>,
}

/// A `HANDLER` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handler {
    /// Where it stands.
    pub pos: Pos,
    /// Attributes of the handler.
    pub attrs: Attrs,
    /// Its devices.
    pub devices: BTreeMap<String, Leaf>,
}

/// A section that holds attributes only.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaf {
    /// Where it stands.
    pub pos: Pos,
    /// Its attributes.
    pub attrs: Attrs,
}

/// A `TARGET_DRIVER` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Driver {
    /// Where it stands.
    pub pos: Pos,
    /// Attributes of the driver.
    pub attrs: Attrs,
    /// Its targets.
    pub targets: BTreeMap<String, Target>,
}

/// A `TARGET` section of a driver.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Where it stands.
    pub pos: Pos,
    /// Attributes of the target.
    pub attrs: Attrs,
    /// LUNs that every initiator in no group sees.
    pub luns: BTreeMap<u64, LunDef>,
    /// Initiator groups.
    pub groups: BTreeMap<String, Group>,
}

/// A `LUN` line or section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LunDef {
    /// Where it stands.
    pub pos: Pos,
    /// The device behind it.
    pub device: String,
    /// Its attributes.
    pub attrs: Attrs,
}

/// A `GROUP` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// Where it stands.
    pub pos: Pos,
    /// Attributes of the group.
    pub attrs: Attrs,
    /// What its initiators see.
    pub luns: BTreeMap<u64, LunDef>,
    /// Names or patterns of initiators.
    pub initiators: BTreeMap<String, Leaf>,
}

/// A `DEVICE_GROUP` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceGroup {
    /// Where it stands.
    pub pos: Pos,
    /// Attributes of the group.
    pub attrs: Attrs,
    /// Its devices.
    pub devices: BTreeMap<String, Pos>,
    /// Its target groups.
    pub target_groups: BTreeMap<String, TargetGroup>,
}

/// A `TARGET_GROUP` section.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetGroup {
    /// Where it stands.
    pub pos: Pos,
    /// Attributes: `group_id`, `state`, `preferred`.
    pub attrs: Attrs,
    /// Targets of this and of other hosts.
    pub targets: BTreeMap<String, Leaf>,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    ///
    /// Everything that is wrong with the text by itself, in the order of the file, at most 20 things.
    pub fn parse(text: &str) -> Result<Config, Vec<Problem>> {
        let statements = syntax::parse(text).map_err(|p| vec![p])?;
        let mut reader = Reader::default();
        let config = reader.top(&statements);
        if reader.problems.is_empty() {
            return Ok(config);
        }
        reader.problems.truncate(PROBLEMS_MAX);
        Err(reader.problems)
    }

    /// True when the file says nothing at all.
    pub fn is_empty(&self) -> bool {
        *self == Config::default()
    }
}

#[derive(Default)]
struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn wrong(&mut self, pos: Pos, what: impl Into<String>) {
        self.problems.push(Problem::at(pos, what));
    }

    fn top(&mut self, statements: &[Statement]) -> Config {
        let mut config = Config::default();
        for s in statements {
            match s.head().0 {
                "HANDLER" => self.section(s, &mut config.handlers, Reader::handler),
                "TARGET_DRIVER" => self.section(s, &mut config.drivers, Reader::driver),
                "DEVICE_GROUP" => self.section(s, &mut config.device_groups, Reader::device_group),
                "ALUA" => self.alua(s, &mut config.alua),
                _ => self.attribute(s, &mut config.attrs, "at the top of the file"),
            }
        }
        config
    }

    /// `KEYWORD name { ... }`, with the body read by `read`.
    fn section<T>(
        &mut self,
        s: &Statement,
        into: &mut BTreeMap<String, T>,
        read: fn(&mut Reader, Pos, &[Statement]) -> T,
    ) {
        let (keyword, pos) = s.head();
        let [_, name] = s.words.as_slice() else {
            self.wrong(pos, format!("{keyword} takes one name"));
            return;
        };
        if !self.name_is_good(keyword, name) {
            return;
        }
        let value = read(self, pos, s.body.as_deref().unwrap_or_default());
        if into.insert(name.text.clone(), value).is_some() {
            self.wrong(
                name.pos,
                format!("{keyword} '{}' is defined twice", name.text),
            );
        }
    }

    fn name_is_good(&mut self, keyword: &str, name: &Word) -> bool {
        let text = name.text.as_str();
        let initiator = keyword == "INITIATOR";
        let what = if text.is_empty() {
            "is empty"
        } else if text == "." || text == ".." {
            "is not a name"
        } else if !initiator && text.contains(char::is_whitespace) {
            "contains a blank"
        } else if text.contains('/') && keyword != "DEVICE" && !initiator {
            "contains a '/'"
        } else {
            return true;
        };
        self.wrong(name.pos, format!("the name of this {keyword} {what}"));
        false
    }

    /// `name` or `name value`.
    fn attribute(&mut self, s: &Statement, into: &mut Attrs, place: &str) {
        let (name, pos) = s.head();
        if s.body.is_some() {
            self.wrong(pos, format!("there is no section '{name}' {place}"));
            return;
        }
        match s.words.as_slice() {
            [_] => into.insert(name, "", pos),
            [_, value] => into.insert(name, &value.text, pos),
            [_, _, third, ..] => {
                let what = format!(
                    "attribute '{name}' takes one value; put quotes around a value with blanks"
                );
                self.wrong(third.pos, what);
            }
            [] => {}
        }
    }

    /// A section of attributes only.
    fn attributes(&mut self, statements: &[Statement], place: &str) -> Attrs {
        let mut attrs = Attrs::default();
        for s in statements {
            self.attribute(s, &mut attrs, place);
        }
        attrs
    }

    fn handler(&mut self, pos: Pos, statements: &[Statement]) -> Handler {
        let mut handler = Handler {
            pos,
            ..Handler::default()
        };
        for s in statements {
            match s.head().0 {
                "DEVICE" => self.section(s, &mut handler.devices, |r, pos, body| Leaf {
                    pos,
                    attrs: r.attributes(body, "in a DEVICE"),
                }),
                _ => self.attribute(s, &mut handler.attrs, "in a HANDLER"),
            }
        }
        handler
    }

    fn driver(&mut self, pos: Pos, statements: &[Statement]) -> Driver {
        let mut driver = Driver {
            pos,
            ..Driver::default()
        };
        for s in statements {
            match s.head().0 {
                "TARGET" => self.section(s, &mut driver.targets, Reader::target),
                _ => self.attribute(s, &mut driver.attrs, "in a TARGET_DRIVER"),
            }
        }
        driver
    }

    fn target(&mut self, pos: Pos, statements: &[Statement]) -> Target {
        let mut target = Target {
            pos,
            ..Target::default()
        };
        for s in statements {
            match s.head().0 {
                "LUN" => self.lun(s, &mut target.luns),
                "GROUP" => self.section(s, &mut target.groups, Reader::group),
                _ => self.attribute(s, &mut target.attrs, "in a TARGET"),
            }
        }
        target
    }

    fn group(&mut self, pos: Pos, statements: &[Statement]) -> Group {
        let mut group = Group {
            pos,
            ..Group::default()
        };
        for s in statements {
            match s.head().0 {
                "LUN" => self.lun(s, &mut group.luns),
                "INITIATOR" => self.initiator(s, &mut group.initiators),
                _ => self.attribute(s, &mut group.attrs, "in a GROUP"),
            }
        }
        group
    }

    /// An initiator may be named twice: it is the same one.
    fn initiator(&mut self, s: &Statement, into: &mut BTreeMap<String, Leaf>) {
        let mut one = BTreeMap::new();
        self.section(s, &mut one, |r, pos, body| Leaf {
            pos,
            attrs: r.attributes(body, "in an INITIATOR"),
        });
        into.append(&mut one);
    }

    fn lun(&mut self, s: &Statement, into: &mut BTreeMap<u64, LunDef>) {
        let pos = s.head().1;
        let [_, number, device] = s.words.as_slice() else {
            self.wrong(pos, "LUN takes a number and a device");
            return;
        };
        let Ok(lun) = number.text.parse::<u64>() else {
            self.wrong(
                number.pos,
                format!("'{}' is not the number of a LUN", number.text),
            );
            return;
        };
        let attrs = self.attributes(s.body.as_deref().unwrap_or_default(), "in a LUN");
        let def = LunDef {
            pos,
            device: device.text.clone(),
            attrs,
        };
        if let Some(old) = into.insert(lun, def) {
            let what = format!(
                "LUN {lun} is defined twice here, first in line {} for device '{}'",
                old.pos.line, old.device
            );
            self.wrong(number.pos, what);
        }
    }

    fn alua(&mut self, s: &Statement, into: &mut Attrs) {
        let (_, pos) = s.head();
        if s.words.len() != 1 {
            self.wrong(pos, "ALUA takes no name");
        }
        let body = s.body.as_deref().unwrap_or_default();
        into.set.append(&mut self.attributes(body, "in ALUA").set);
    }

    fn device_group(&mut self, pos: Pos, statements: &[Statement]) -> DeviceGroup {
        let mut group = DeviceGroup {
            pos,
            ..DeviceGroup::default()
        };
        for s in statements {
            match s.head().0 {
                "DEVICE" => {
                    let mut one: BTreeMap<String, Leaf> = BTreeMap::new();
                    self.section(s, &mut one, |r, pos, body| Leaf {
                        pos,
                        attrs: r.attributes(body, "in a DEVICE of a DEVICE_GROUP"),
                    });
                    group
                        .devices
                        .extend(one.into_iter().map(|(k, v)| (k, v.pos)));
                }
                "TARGET_GROUP" => {
                    self.section(s, &mut group.target_groups, Reader::target_group);
                }
                _ => self.attribute(s, &mut group.attrs, "in a DEVICE_GROUP"),
            }
        }
        group
    }

    fn target_group(&mut self, pos: Pos, statements: &[Statement]) -> TargetGroup {
        let mut group = TargetGroup {
            pos,
            ..TargetGroup::default()
        };
        for s in statements {
            match s.head().0 {
                "TARGET" => self.section(s, &mut group.targets, |r, pos, body| Leaf {
                    pos,
                    attrs: r.attributes(body, "in a TARGET of a TARGET_GROUP"),
                }),
                _ => self.attribute(s, &mut group.attrs, "in a TARGET_GROUP"),
            }
        }
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> String {
        let problems = Config::parse(text).unwrap_err();
        problems
            .iter()
            .map(|p| p.in_file("f"))
            .collect::<Vec<_>>()
            .join("; ")
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        assert_eq!(
            wrong("HANDLER h {\n\tDEVICE d {\n\t\tfilename /a\n\t}\n"),
            "f:1:1: section 'HANDLER h' is not closed: '}' is missing"
        );
        assert_eq!(
            wrong("TARGET_DRIVER d {\nTARGET t {\nLUN 0 a\nLUN 0 b\n}\n}"),
            "f:4:5: LUN 0 is defined twice here, first in line 3 for device 'a'"
        );
        assert_eq!(
            wrong("HANDLER h {\n}\nHANDLER h {\n}"),
            "f:3:9: HANDLER 'h' is defined twice"
        );
        assert_eq!(
            wrong("TARGET_DRIVER iscsi {\n  IncomingUser joe secret\n}"),
            "f:2:20: attribute 'IncomingUser' takes one value; put quotes around a value with blanks"
        );
        assert_eq!(
            wrong("TARGET_DRIVER d {\n TARGET t {\n  LUN x a\n }\n}\nHANDLER a b\n"),
            "f:3:7: 'x' is not the number of a LUN; f:6:1: HANDLER takes one name"
        );
        assert_eq!(
            wrong("TARGET_DRIVER d {\n DEVICE x {\n }\n}"),
            "f:2:2: there is no section 'DEVICE' in a TARGET_DRIVER"
        );
        assert_eq!(
            wrong("TARGET_DRIVER d {\n TARGET ../x {\n }\n}"),
            "f:2:9: the name of this TARGET contains a '/'"
        );
    }

    #[test]
    fn values_gather_and_initiators_may_repeat() {
        let text = "setup_id 1\nTARGET_DRIVER i {\n IncomingUser \"a b\"\n IncomingUser \"c d\"\n TARGET t {\n  HW_TARGET\n  \
                    GROUP g {\n   INITIATOR i1\n   INITIATOR i1\n  }\n }\n}\n";
        let config = Config::parse(text).unwrap();
        assert_eq!(config.attrs.get("setup_id"), Some("1"));
        let driver = &config.drivers["i"];
        assert_eq!(driver.attrs.set["IncomingUser"].len(), 2);
        assert_eq!(driver.targets["t"].attrs.get("HW_TARGET"), Some(""));
        assert_eq!(driver.targets["t"].groups["g"].initiators.len(), 1);
    }
}
