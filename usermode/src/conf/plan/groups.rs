//! Steps for device groups.

use super::super::live::LiveDeviceGroup;
use super::super::model::{DeviceGroup, TargetGroup};
use super::super::object::Object;
use super::super::op::Op;
use super::Planner;

impl Planner<'_> {
    pub(super) fn device_groups(&mut self) {
        let config = self.config;
        for (group, live) in self.live.device_groups.clone() {
            match config.device_groups.get(&group) {
                Some(section) => self.obsolete_members(&group, &live, section),
                None if self.removes() => {
                    self.op(Op::RemoveDeviceGroup {
                        group: group.clone(),
                    });
                    self.live.device_groups.remove(&group);
                }
                None => self.say(format!(
                    "\t-> Device Group '{group}' is not in configuration. Use -force to remove.\n"
                )),
            }
        }
        for (name, section) in &config.device_groups {
            self.device_group(name, section);
        }
    }

    fn obsolete_members(&mut self, group: &str, live: &LiveDeviceGroup, section: &DeviceGroup) {
        let group = group.to_owned();
        for device in live
            .devices
            .iter()
            .filter(|d| !section.devices.contains_key(*d))
        {
            if self.removes() {
                let device = device.clone();
                self.op(Op::RemoveDeviceGroupDevice {
                    group: group.clone(),
                    device,
                });
            } else {
                self.say(format!(
                    "\t-> Device '{device}' within device group '{group}' is not in configuration. Use -force \
                     to remove.\n"
                ));
            }
        }
        for (tgroup, targets) in &live.target_groups {
            match section.target_groups.get(tgroup) {
                Some(section) => self.obsolete_tg_targets(&group, tgroup, targets, section),
                None if self.removes() => {
                    self.op(Op::RemoveTargetGroup {
                        group: group.clone(),
                        tgroup: tgroup.clone(),
                    });
                }
                None => self.say(format!(
                    "\t-> Target Group '{group}/{tgroup}' is not in configuration. Use -force to remove.\n"
                )),
            }
        }
    }

    fn obsolete_tg_targets(
        &mut self,
        group: &str,
        tgroup: &str,
        live: &[String],
        section: &TargetGroup,
    ) {
        for target in live.iter().filter(|t| !section.targets.contains_key(*t)) {
            if self.removes() {
                self.op(Op::RemoveTargetGroupTarget {
                    group: group.to_owned(),
                    tgroup: tgroup.to_owned(),
                    target: target.clone(),
                });
            } else {
                self.say(format!(
                    "\t-> Target '{group}/{tgroup}/{target}' is not in configuration. Use -force to remove.\n"
                ));
            }
        }
    }

    fn device_group(&mut self, name: &str, section: &DeviceGroup) {
        let object = Object::DeviceGroup(name.to_owned());
        let live = self.live.device_groups.get(name).cloned();
        if live.is_none() {
            self.op(Op::AddDeviceGroup {
                group: name.to_owned(),
            });
            self.fresh.insert(object.clone());
        }
        let live = live.unwrap_or_default();
        for device in section.devices.keys().filter(|d| !live.devices.contains(d)) {
            self.op(Op::AddDeviceGroupDevice {
                group: name.to_owned(),
                device: device.clone(),
            });
        }
        for (tgroup, inner) in &section.target_groups {
            self.target_group(name, tgroup, inner, live.target_groups.get(tgroup));
        }
        if self.fresh.contains(&object) {
            // A device group has no attributes of its own in SCST.
            for (attr, _, pos) in section.attrs.iter() {
                self.problem(pos, format!("a device group has no attribute '{attr}'"));
            }
        } else {
            self.set(&object, &section.attrs);
        }
    }

    fn target_group(
        &mut self,
        group: &str,
        tgroup: &str,
        section: &TargetGroup,
        live: Option<&Vec<String>>,
    ) {
        let object = Object::TargetGroup(group.to_owned(), tgroup.to_owned());
        if live.is_none() {
            self.op(Op::AddTargetGroup {
                group: group.to_owned(),
                tgroup: tgroup.to_owned(),
            });
            self.fresh.insert(object.clone());
        }
        for (target, leaf) in &section.targets {
            let there = live.is_some_and(|list| list.contains(target));
            let object =
                Object::TargetGroupTarget(group.to_owned(), tgroup.to_owned(), target.clone());
            if !there {
                self.op(Op::AddTargetGroupTarget {
                    group: group.to_owned(),
                    tgroup: tgroup.to_owned(),
                    target: target.clone(),
                });
                self.fresh.insert(object.clone());
            }
            self.set(&object, &leaf.attrs);
        }
        self.set(&object, &section.attrs);
    }
}
