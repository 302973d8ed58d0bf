//! Whether a configuration makes sense on this server: what SCST's scstadmin says with `-check_config`, in its words.
//!
//! What only draws a warning is taken out of the configuration where it cannot be applied.

use std::collections::BTreeSet;
use std::io::Write;

use super::live::Live;
use super::model::{Config, Group, LunDef, Target};

/// How many lines of which weight were printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) warnings: usize,
    pub(crate) errors: usize,
}

/// Checks, prints, and takes out what cannot be applied.
///
/// Context: may sleep.
pub(crate) fn check(config: &mut Config, live: &Live, out: &mut dyn Write) -> Counts {
    let mut checker = Checker {
        live,
        out,
        counts: Counts::default(),
    };
    checker.sections(config);
    checker.drivers(config);
    let devices = checker.handlers(config);
    for (driver, section) in &mut config.drivers {
        for (name, target) in &mut section.targets {
            checker.luns(driver, name, target, &devices);
        }
    }
    for (name, group) in &mut config.device_groups {
        group.devices.retain(|device, _| {
            let known = devices.contains(device);
            if !known {
                checker.warn(&format!(
                    "Device '{device}' associated with device group '{name}' is not defined within \
                     configuration, removing it.\n"
                ));
            }
            known
        });
    }
    checker.counts
}

struct Checker<'a> {
    live: &'a Live,
    out: &'a mut dyn Write,
    counts: Counts,
}

impl Checker<'_> {
    fn print(&mut self, text: &str) {
        // A reader that has gone away is no reason to fail.
        let _ = self.out.write_all(text.as_bytes());
    }

    fn warn(&mut self, what: &str) {
        self.counts.warnings += 1;
        self.print(&format!("\t-> WARNING: {what}\n"));
    }

    fn fatal(&mut self, what: &str) {
        self.counts.errors += 1;
        self.print(&format!("\t-> FATAL: {what}\n"));
    }

    fn sections(&mut self, config: &Config) {
        if config.drivers.is_empty() {
            self.warn("No TARGET_DRIVER section defined. No target drivers will be configured.\n");
        }
        if config.handlers.is_empty() {
            self.warn(
                "No HANDLER section defined. Only physical media will be configured for targets.\n",
            );
        }
        if config.drivers.is_empty() && config.handlers.is_empty() {
            self.counts.errors += 1;
            self.print("FATAL: No target drivers or handlers defined, aborting!\n");
        }
    }

    fn drivers(&mut self, config: &Config) {
        for (driver, section) in &config.drivers {
            if !self.live.drivers.contains_key(driver) {
                self.warn(&format!(
                    "Target driver '{driver}' is not loaded or available.\n"
                ));
                continue;
            }
            if section.targets.is_empty() {
                self.warn(&format!("Driver '{driver}' has no configured targets.\n"));
            }
            // Whether a target can be made is for the plan to say, with its place.
            for target in section.targets.values() {
                self.initiators(target);
            }
        }
    }

    fn initiators(&mut self, target: &Target) {
        let mut seen = BTreeSet::new();
        for name in target.groups.values().flat_map(|g| g.initiators.keys()) {
            if !seen.insert(name) {
                self.fatal(&format!(
                    "Initiator '{name}' belongs to more than one group.\n\t     Initiators can only belong \
                     to one group at a time for a given target."
                ));
            }
        }
    }

    /// The names of all devices.
    fn handlers(&mut self, config: &mut Config) -> BTreeSet<String> {
        let mut all = BTreeSet::new();
        config.handlers.retain(|handler, section| {
            if !self.live.handlers.contains_key(handler) {
                self.warn(&format!("No such handler '{handler}' available, ignoring."));
                return false;
            }
            let names: Vec<String> = section.devices.keys().cloned().collect();
            for device in names {
                if let Some(short) = device.strip_prefix("/dev/") {
                    self.warn(&format!(
                        "Device '{device}' configured for handler '{handler}' may not contain the full /dev \
                         path, please change to '{short}'.\n"
                    ));
                    if let Some(leaf) = section.devices.remove(&device) {
                        section.devices.insert(short.to_owned(), leaf);
                    }
                } else if device.contains('/') {
                    self.fatal(&format!(
                        "Device '{device}' configured for handler '{handler}' may not contain character '/'."
                    ));
                }
                all.insert(device);
            }
            true
        });
        all
    }

    fn luns(&mut self, driver: &str, name: &str, target: &mut Target, devices: &BTreeSet<String>) {
        let place = format!("driver/target '{driver}/{name}'");
        self.lun_map(&mut target.luns, &place, driver, devices);
        for (group, Group { luns, .. }) in &mut target.groups {
            let before = luns.len();
            luns.retain(|lun, def| self.keep_lun(*lun, def, &place, devices));
            if before > 0 && !luns.contains_key(&0) {
                self.no_lun_0(&format!("driver/target/group '{driver}/{name}/{group}'"));
            }
        }
    }

    fn lun_map(
        &mut self,
        luns: &mut std::collections::BTreeMap<u64, LunDef>,
        place: &str,
        driver: &str,
        devices: &BTreeSet<String>,
    ) {
        let before = luns.len();
        luns.retain(|lun, def| self.keep_lun(*lun, def, place, devices));
        if before > 0 && driver != "copy_manager" && !luns.contains_key(&0) {
            self.no_lun_0(place);
        }
    }

    fn keep_lun(
        &mut self,
        lun: u64,
        def: &LunDef,
        place: &str,
        devices: &BTreeSet<String>,
    ) -> bool {
        let known = devices.contains(&def.device);
        if !known {
            self.warn(&format!(
                "Device '{}' associated with {place} at LUN {lun} is not defined within configuration, \
                 removing it.\n",
                def.device
            ));
        }
        known
    }

    fn no_lun_0(&mut self, place: &str) {
        self.warn(&format!(
            "No LUN 0 defined for {place}. Many initiators require a LUN 0 to be defined.\n"
        ));
    }
}
