//! Events over the control socket: the server's side.

use super::engine::Listener;
use super::wire;
use crate::core::Core;
use kshim::error::{Result, code};
use kshim::kobject::control::{Extension, OpenExtension, Sink};
use kshim::kthread::{self, Kthread};
use std::sync::Arc;

/// The listener of one client.
#[derive(Debug)]
pub struct Control {
    listener: Arc<Listener>,
    /// Sends what there is to hear. Ends with the listener or the connection.
    teller: Option<Kthread>,
}

impl Control {
    /// For [`kshim::kobject::control::Server::start`].
    pub fn extension(core: &Arc<Core>) -> OpenExtension {
        let core = Arc::downgrade(core);
        Box::new(move |sink| {
            let core = core.upgrade().ok_or(code::ENODEV)?;
            let control: Box<dyn Extension> = Box::new(Self::start(&core, sink)?);
            Ok(control)
        })
    }

    fn start(core: &Core, sink: Sink) -> Result<Self> {
        let listener = Arc::new(core.events().listen());
        let own = Arc::clone(&listener);
        let teller = kthread::run("scst_ctl_event", move |_| {
            while let Ok(event) = own.wait_next() {
                if sink.send(wire::OP_EVENT, &wire::event(&event)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self {
            listener,
            teller: Some(teller),
        })
    }
}

impl Extension for Control {
    fn execute(&mut self, op: u8, body: &[u8]) -> Result<Vec<u8>> {
        match op {
            wire::OP_ALLOW => self.listener.allow(wire::parse_filter(body)?)?,
            wire::OP_DISALLOW => self.listener.disallow(&wire::parse_filter(body)?)?,
            wire::OP_DONE => {
                let (id, status) = wire::parse_answer(body)?;
                self.listener.done(id, status)?;
            }
            _ => return Err(code::EOPNOTSUPP),
        }
        Ok(Vec::new())
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.listener.close();
        if let Some(teller) = self.teller.take() {
            teller.join();
        }
    }
}
