//! The disk as kshim sees it, and its directory.

use crate::proto::export;
use crate::shared::{Conn, Shared, State};
use crate::spec::Spec;
use crate::{DIR, PREFIX};
use kshim::block::{
    BlkMode, BlockOps, Openers, QueueLimits, SubmittedBio, add_disk_attrs, class_dir,
};
use kshim::cpu;
use kshim::kobject::{Attr, Kobject};
use kshim::kthread;
use kshim::prelude::*;
use kshim::time::{Delta, Instant};
use std::sync::Weak;

/// How long closing waits for the connections to end.
const CLOSE_LIMIT: Delta = Delta::from_secs(5);
/// What one discard or write of zeros may cover.
const MAX_RANGE: u64 = 1 << 30;

/// A disk.
#[doc(alias = "nbd_device")]
pub(crate) struct Nbd {
    shared: Arc<Shared>,
    name: String,
    /// With the directory.
    openers: Openers<Arc<Kobject>>,
    me: Weak<Nbd>,
}

impl Nbd {
    /// The driver's part for a path. Errors: `EINVAL`: the path.
    pub(crate) fn probe(path: &str) -> Result<Arc<dyn BlockOps>> {
        Ok(Self::new(path)?)
    }

    /// Errors: `EINVAL`: the path.
    pub(crate) fn new(path: &str) -> Result<Arc<Nbd>> {
        let spec = Spec::parse(path)?;
        let rest = path.strip_prefix(PREFIX).unwrap_or(path);
        let name = rest.split('?').next().unwrap_or(rest).replace('/', "!");
        Ok(Arc::new_cyclic(|me| Nbd {
            shared: Shared::new(spec),
            name,
            openers: Openers::new(),
            me: Weak::clone(me),
        }))
    }

    /// Connects for the first opener.
    fn start(&self) -> Result<Arc<Kobject>> {
        let shared = &self.shared;
        if !self.wait_ended() {
            return Err(EBUSY);
        }
        let (sock, found) = shared.connect().inspect_err(|e| {
            pr_err!("nbd {}: {e}", shared.spec.server());
        })?;
        let wanted = shared.spec.connections;
        let n = if found.can(export::CAN_MULTI_CONN) {
            wanted
        } else {
            1
        };
        if n < wanted {
            pr_warn!(
                "nbd {}: the server wants one connection only",
                shared.spec.server()
            );
        }
        *shared.state.lock() = State {
            export: Some(found),
            conns: (0..n).map(|_| Conn::default()).collect(),
            down_since: Some(Instant::now()),
            ..State::default()
        };
        let dir = self.publish()?;
        let mut first = Some((sock, found));
        for index in 0..n {
            let (theirs, first) = (Arc::clone(shared), first.take());
            shared.state.lock().threads += 1;
            let thread = kthread::run("nbd_rx", move |_| theirs.run_connection(index, first));
            match thread {
                Ok(thread) => thread.detach(),
                Err(e) => {
                    shared.state.lock().threads -= 1;
                    if index == 0 {
                        dir.del();
                        return Err(e);
                    }
                    pr_warn!(
                        "nbd {}: {index} connections only: {e}",
                        shared.spec.server()
                    );
                    break;
                }
            }
        }
        pr_info!(
            "nbd {}: {:?}, {} bytes",
            shared.spec.server(),
            shared.spec.export,
            found.size
        );
        Ok(dir)
    }

    /// Waits until the threads of an earlier opening have ended. Whether they have.
    fn wait_ended(&self) -> bool {
        let end = Instant::now() + CLOSE_LIMIT;
        let mut st = self.shared.state.lock();
        while st.threads > 0 {
            let left = end - Instant::now();
            if left <= Delta::ZERO {
                return false;
            }
            self.shared.changed.wait_timeout(&mut st, left);
        }
        true
    }

    fn publish(&self) -> Result<Arc<Kobject>> {
        let dir = class_dir(DIR)?.add(&self.name)?;
        let ops: Weak<dyn BlockOps> = Weak::<Nbd>::clone(&self.me);
        let filled = add_disk_attrs(&dir, &ops).and_then(|()| dir.add_attrs(self.attrs()));
        if filled.is_err() {
            dir.del();
        }
        filled.map(|()| dir)
    }

    fn attrs(&self) -> Vec<Attr> {
        type Show = fn(&Spec, &State) -> String;
        let attrs: [(&str, Show); 10] = [
            ("server", |s, _| s.server()),
            ("export", |s, _| s.export.clone()),
            ("cache", |s, _| {
                if s.writethrough {
                    "writethrough"
                } else {
                    "writeback"
                }
                .to_owned()
            }),
            ("timeout", |s, _| s.timeout.as_secs().to_string()),
            ("reconnect", |s, _| s.reconnect.as_secs().to_string()),
            ("connections", |_, st| {
                let up = st.conns.iter().filter(|c| c.up).count();
                format!("{up} of {}", st.conns.len())
            }),
            ("connections_lost", |_, st| {
                st.epoch.saturating_sub(st.renewals).to_string()
            }),
            ("requeued", |_, st| st.requeued.to_string()),
            ("pending", |_, st| st.jobs.to_string()),
            ("lost_writes", |_, st| u8::from(st.lost).to_string()),
        ];
        let make = |(name, show): (&str, Show)| {
            let shared = Arc::downgrade(&self.shared);
            Attr::ro(name, move || {
                let shared = shared.upgrade().ok_or(ENODEV)?;
                let st = shared.state.lock();
                Ok(show(&shared.spec, &st) + "\n")
            })
        };
        attrs.into_iter().map(make).collect()
    }
}

impl BlockOps for Nbd {
    #[doc(alias = "nbd_queue_rq")]
    fn submit_bio(&self, bio: SubmittedBio) {
        self.shared.submit(bio);
    }

    fn limits(&self) -> QueueLimits {
        let Some(e) = self.shared.state.lock().export else {
            return QueueLimits::default();
        };
        let preferred = e.preferred_block.clamp(e.min_block, e.min_block.max(4096));
        let physical = if preferred.is_power_of_two() {
            preferred
        } else {
            e.min_block
        };
        let if_can = |flag| if e.can(flag) { MAX_RANGE } else { 0 };
        QueueLimits {
            logical_block_size: e.min_block,
            physical_block_size: physical,
            io_min: physical,
            max_discard_bytes: if_can(export::SEND_TRIM),
            discard_granularity: if e.can(export::SEND_TRIM) {
                physical
            } else {
                0
            },
            max_write_zeroes_bytes: if_can(export::SEND_WRITE_ZEROES),
            write_cache: e.can(export::SEND_FLUSH) && !self.shared.spec.writethrough,
            fua: e.can(export::SEND_FUA),
            rotational: e.can(export::ROTATIONAL),
            read_only: e.can(export::READ_ONLY),
            ..QueueLimits::default()
        }
    }

    fn capacity_bytes(&self) -> u64 {
        self.shared.state.lock().export.map_or(0, |e| e.size)
    }

    /// By a connection of its own: the protocol has no other way. A server that takes no further one says nothing.
    #[doc(alias = "nbd_set_size")]
    fn revalidate(&self) -> Result<u64> {
        self.shared.look()
    }

    #[doc(alias = "nbd_open")]
    fn open(&self, mode: BlkMode) -> Result {
        self.openers.open(mode, || self.start())
    }

    #[doc(alias = "nbd_release")]
    #[doc(alias = "nbd_disconnect")]
    fn release(&self, _mode: BlkMode) {
        self.openers.release(|dir| {
            self.shared.state.lock().closing = true;
            self.shared.changed.notify_all();
            dir.del();
            // The threads end by themselves; waiting has a server that takes one client ready for the next.
            if !cpu::in_atomic() {
                self.wait_ended();
            }
        });
    }
}
