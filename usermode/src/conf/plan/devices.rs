//! Steps that open and close devices.

use std::collections::BTreeMap;

use super::super::attr::Listed;
use super::super::model::Leaf;
use super::super::object::Object;
use super::super::op::Op;
use super::Planner;
use super::attrs::Many;

impl Planner<'_> {
    pub(super) fn devices(&mut self) {
        self.obsolete_devices();
        let config = self.config;
        for (handler, section) in &config.handlers {
            if !self.live.handlers.contains_key(handler) {
                continue;
            }
            for (device, leaf) in &section.devices {
                self.device(handler, device, leaf);
            }
            self.set(&Object::Handler(handler.clone()), &section.attrs);
        }
    }

    fn obsolete_devices(&mut self) {
        let config = self.config;
        for (handler, devices) in self.live.handlers.clone() {
            for device in devices {
                let section = config.handlers.get(&handler);
                if section.is_some_and(|s| s.devices.contains_key(&device)) {
                    continue;
                }
                if self.removes() {
                    self.close(&handler, &device);
                } else {
                    self.say(format!(
                        "\t-> Device '{device}' is not in configuration. Use -force to close it.\n"
                    ));
                }
            }
        }
    }

    fn close(&mut self, handler: &str, device: &str) {
        self.op(Op::CloseDevice {
            handler: handler.to_owned(),
            device: device.to_owned(),
        });
        self.live.forget_device(device);
    }

    fn device(&mut self, handler: &str, device: &str, leaf: &Leaf) {
        let object = Object::Device(device.to_owned());
        let create = self.listed(&format!("handlers/{handler}"), Listed::Create);
        let params = self.create_params(&leaf.attrs, &create, Many::Wrong);
        let others: BTreeMap<_, _> = leaf
            .attrs
            .set
            .iter()
            .filter(|(name, _)| !create.contains(*name))
            .map(|(name, values)| (name.clone(), values.clone()))
            .collect();
        let (mut open, mut reopened) = (true, false);
        if self.live.has_device(handler, device) {
            open = self.differs(&params, &object, &create);
            if open {
                self.say(format!(
                    "\t-> Device '{device}' is configured differently.\n"
                ));
                if self.removes() {
                    self.say("\t  -> Closing and re-opening with new attributes.\n".to_owned());
                    self.close(handler, device);
                    reopened = true;
                } else {
                    self.say(
                        "\t  -> Use -force to re-open device with new attributes. NOTE: This will disrupt \
                         all initiators using this device.\n"
                            .to_owned(),
                    );
                    open = false;
                }
            }
        } else if let Some(other) = self.other_handler_of(handler, device) {
            let what = format!("device '{device}' is open with handler '{other}'");
            self.problem(leaf.pos, what);
            return;
        }
        if open {
            self.op(Op::OpenDevice {
                handler: handler.to_owned(),
                device: device.to_owned(),
                params,
            });
            self.fresh.insert(object.clone());
            if reopened {
                self.say(super::COLLECTED.to_owned());
                self.live.copy_manager_takes(device);
            }
            let list = self.live.handlers.entry(handler.to_owned()).or_default();
            list.push(device.to_owned());
        }
        self.set_values(&object, &others);
    }

    /// The handler that has a device of this name open and is not `handler`.
    fn other_handler_of(&self, handler: &str, device: &str) -> Option<String> {
        let mut handlers = self.live.handlers.keys();
        let other = handlers.find(|h| *h != handler && self.live.has_device(h, device));
        other.cloned()
    }
}
