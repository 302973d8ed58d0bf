//! `sessions/SESSION`: counters, latencies, LUNs of a session.

use super::ScstTree;
use super::text::line;
use crate::cmd::CmdState;
use crate::consts::DataDirection;
use crate::session::Session;
use crate::stats::{IoStats, LatDirection, LatSizeClass};
use crate::tgt_dev::TgtDev;
use kshim::error::{Result, code};
use kshim::kobject::{Attr, Kobject};
use std::sync::{Arc, Weak};

/// Most sessions of one initiator name at a target that can be told apart.
const MAX_SAME_NAME: u32 = 10_000;

/// A new directory for a session: the initiator's name, with a number behind it when there is one already.
fn new_dir(sessions: &Arc<Kobject>, initiator: &str) -> Result<Arc<Kobject>> {
    // A path cannot have what some transports have in names; sysfs puts this in its place.
    let base = initiator.replace('/', "!");
    let mut r = sessions.add(&base);
    for n in 1..MAX_SAME_NAME {
        if !matches!(r, Err(code::EEXIST)) {
            break;
        }
        r = sessions.add(&format!("{base}_{n}"));
    }
    r
}

/// The session that attributes belong to, which may be gone.
#[derive(Clone)]
struct Owner(Weak<Session>);

impl Owner {
    fn get(&self) -> Result<Arc<Session>> {
        self.0.upgrade().ok_or(code::ENODEV)
    }

    fn ro(&self, name: &str, show: fn(&Session) -> String) -> Attr {
        let me = self.clone();
        Attr::ro(name, move || Ok(show(&*me.get()?)))
    }

    fn attrs(&self) -> [Attr; 4] {
        let me = self.clone();
        [
            self.ro("initiator_name", |s| line(s.initiator_name(), false)),
            self.ro("commands", |s| line(s.live_cmds(), false)),
            self.ro("active_commands", |s| {
                let n: u32 = s.tgt_devs().iter().map(|t| t.active_commands()).sum();
                line(n, false)
            }),
            Attr::wo("force_close", move |_| {
                me.get()?.close();
                Ok(())
            }),
        ]
    }

    /// The 11 counters; writing one sets those of its direction to zero.
    #[doc(alias = "SCST_SESS_SYSFS_STAT_ATTR")]
    fn counters(&self) -> Vec<Attr> {
        let attr = |(name, dir): (&'static str, DataDirection)| {
            let (a, b) = (self.clone(), self.clone());
            let show = move || {
                let sess = a.get()?;
                let mut all = sess.stats.attributes();
                let value = all.find(|(n, _)| *n == name).map(|(_, v)| v);
                Ok(line(value.ok_or(code::ENODEV)?, false))
            };
            let store = move |_: &str| {
                b.get()?.stats.reset(dir);
                Ok(())
            };
            Attr::rw(name, show, store).direct()
        };
        IoStats::names().map(attr).collect()
    }

    /// A file for each direction and size class; writing one sets all of them to zero.
    #[doc(alias = "scst_create_latency_attrs")]
    fn latencies(&self) -> Vec<Attr> {
        let mut attrs = Vec::new();
        for dir in LatDirection::ALL {
            for size in LatSizeClass::all() {
                let (a, b) = (self.clone(), self.clone());
                let show = move || {
                    let name = |n| CmdState::from_index(n).map_or("?", CmdState::name);
                    Ok(a.get()?.lat.show(dir, size, name))
                };
                let store = move |_: &str| {
                    b.get()?.lat.reset();
                    Ok(())
                };
                let name = format!("{}{}", dir.letter(), size.bytes());
                attrs.push(Attr::rw(&name, show, store).direct());
            }
        }
        attrs
    }
}

impl ScstTree {
    /// Context: under the configuration lock.
    #[doc(alias = "scst_sess_sysfs_create")]
    pub(super) fn add_session(&self, sess: &Arc<Session>) -> Result {
        let sessions = sess.tgt().kobj.get().and_then(|d| d.child("sessions"));
        let dir = new_dir(&sessions.ok_or(code::ENODEV)?, sess.initiator_name())?;
        sess.kobj.set(&dir);
        let owner = Owner(Arc::downgrade(sess));
        dir.add_attrs(owner.attrs())?;
        dir.add_attrs(owner.counters())?;
        dir.add("latency")?.add_attrs(owner.latencies())?;
        self.link_session_luns(sess)?;
        sess.tgt().template().show_session(sess, &dir)
    }

    /// The link `luns` of a session, to the LUNs of its group; anew when the session has come into another group.
    /// Context: under the configuration lock.
    #[doc(alias = "scst_recreate_sess_luns_link")]
    pub(super) fn link_session_luns(&self, sess: &Session) -> Result {
        let dir = sess.kobj.get().ok_or(code::ENODEV)?;
        // There is none at first.
        let _: Result = dir.remove_link("luns");
        let acg = sess.tgt().acg(sess.acg()).ok_or(code::ENODEV)?;
        let luns = Self::luns_dir(sess.tgt(), &acg).ok_or(code::ENODEV)?;
        dir.add_link("luns", &luns)
    }

    /// Context: under the configuration lock.
    #[doc(alias = "scst_tgt_dev_sysfs_create")]
    pub(super) fn add_tgt_dev(&self, sess: &Session, t: &Arc<TgtDev>) -> Result {
        let dir = sess.kobj.get().ok_or(code::ENODEV)?;
        let dir = dir.add(&format!("lun{}", t.lun))?;
        t.kobj.set(&dir);
        let ro = |name: &str, show: fn(&TgtDev) -> String| {
            let t = Arc::downgrade(t);
            Attr::ro(name, move || Ok(show(&*t.upgrade().ok_or(code::ENODEV)?)))
        };
        dir.add_attrs([
            ro("active_commands", |t| line(t.active_commands(), false)),
            // A number by which drivers choose a thread of theirs; nobody here does.
            ro("thread_index", |_| line(-1, false)),
            ro("thread_pid", |t| {
                let ids = t.pool_thread_ids();
                let ids: Vec<String> = ids.iter().rev().map(ToString::to_string).collect();
                if ids.is_empty() {
                    return String::new();
                }
                line(ids.join(" "), false)
            }),
        ])
    }
}
