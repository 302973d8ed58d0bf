//! `device_groups/`: ALUA.
//!
//! The directories follow the core's groups: after each change [`ScstTree::sync_device_groups`] makes and removes what differs.
//! A change may come from here, from the core's functions, or with a device or target that is unregistered.
//!
//! C source: `scst/src/scst_sysfs.c` from `scst_dg_dev_sysfs_add` to `scst_dg_sysfs_del`

use super::ScstTree;
use super::hooks::shown;
use super::text::{self, Lexems};
use crate::alua::{DevGroupInfo, TargetGroupInfo, TgState};
use crate::core::Core;
use kshim::error::{Result, code};
use kshim::kobject::tree::{EntryKind, Tree, TreeOps};
use kshim::kobject::{Attr, Kobject};
use std::sync::{Arc, Weak};

fn help(add: &str, del: &str, what: &str) -> String {
    format!("Usage: echo \"{add} {what}\" >mgmt\n       echo \"{del} {what}\" >mgmt\n")
}

/// A `mgmt` file with two commands of one word.
fn mgmt(
    core: Weak<Core>,
    (add, del, what): (&'static str, &'static str, &'static str),
    on_add: impl Fn(&Core, &str) -> Result + Send + Sync + 'static,
    on_del: impl Fn(&Core, &str) -> Result + Send + Sync + 'static,
) -> Attr {
    let store = move |s: &str| {
        let core = core.upgrade().ok_or(code::ENODEV)?;
        let mut words = Lexems::new(text::first_line(s));
        let (action, name) = (words.next_lexem(), words.next_lexem());
        if name.is_empty() {
            return Err(code::EINVAL);
        }
        // What is created may be added as well; scstadmin does so.
        let adds = [add, "add"].iter().any(|a| action.eq_ignore_ascii_case(a));
        if adds {
            on_add(&core, name)
        } else if action.eq_ignore_ascii_case(del) {
            on_del(&core, name)
        } else {
            Err(code::EINVAL)
        }
    };
    Attr::rw("mgmt", move || Ok(help(add, del, what)), store)
}

/// A target port group for its attributes.
#[derive(Clone)]
struct TgRef {
    core: Weak<Core>,
    dg: String,
    tg: String,
}

impl TgRef {
    fn core(&self) -> Result<Arc<Core>> {
        self.core.upgrade().ok_or(code::ENODEV)
    }

    fn info(&self) -> Result<TargetGroupInfo> {
        let groups = self.core()?.dev_groups();
        let dg = groups.into_iter().find(|g| g.name == self.dg);
        let tgs = dg.map(|g| g.tgs).unwrap_or_default();
        let tg = tgs.into_iter().find(|g| g.name == self.tg);
        tg.ok_or(code::ENODEV)
    }

    fn attrs(&self) -> Vec<Attr> {
        vec![self.mgmt(), self.group_id(), self.preferred(), self.state()]
    }

    fn mgmt(&self) -> Attr {
        let (add, del) = (self.clone(), self.clone());
        mgmt(
            Weak::clone(&self.core),
            ("add", "del", "target"),
            move |core, name| core.tg_tgt_add(&add.dg, &add.tg, name),
            move |core, name| core.tg_tgt_remove(&del.dg, &del.tg, name),
        )
    }

    #[doc(alias = "scst_tg_group_id_store")]
    fn group_id(&self) -> Attr {
        let (shown, stored) = (self.clone(), self.clone());
        Attr::rw(
            "group_id",
            move || Ok(text::line(shown.info()?.id, true)),
            move |s| {
                let id = u16::try_from(text::parse_u64(s)?).map_err(|_| code::EINVAL)?;
                stored.core()?.tg_set_id(&stored.dg, &stored.tg, id)
            },
        )
    }

    #[doc(alias = "scst_tg_preferred_store")]
    fn preferred(&self) -> Attr {
        let (shown, stored) = (self.clone(), self.clone());
        Attr::rw(
            "preferred",
            move || {
                let on = shown.info()?.preferred;
                Ok(text::flag(on, on))
            },
            move |s| {
                let on = text::parse_flag(s)?;
                stored.core()?.tg_set_preferred(&stored.dg, &stored.tg, on)
            },
        )
    }

    #[doc(alias = "scst_tg_state_store")]
    fn state(&self) -> Attr {
        let (shown, stored) = (self.clone(), self.clone());
        Attr::rw(
            "state",
            move || Ok(text::line(shown.info()?.state.name(), true)),
            move |s| {
                let state = TgState::from_name(text::first_line(s)).ok_or(code::EINVAL)?;
                stored.core()?.tg_set_state(&stored.dg, &stored.tg, state)
            },
        )
    }

    /// `rel_tgt_id` of a remote target.
    #[doc(alias = "scst_tg_tgt_rel_tgt_id_store")]
    fn rel_tgt_id(&self, tgt: &str) -> Attr {
        let (shown, stored) = (self.clone(), self.clone());
        let (of_shown, of_stored) = (tgt.to_owned(), tgt.to_owned());
        Attr::rw(
            "rel_tgt_id",
            move || {
                let tgts = shown.info()?.tgts;
                let tgt = tgts.into_iter().find(|t| t.name == of_shown);
                Ok(text::line(tgt.ok_or(code::ENODEV)?.rel_tgt_id, true))
            },
            move |s| {
                let id = u16::try_from(text::parse_u64(s)?).map_err(|_| code::EINVAL)?;
                let core = stored.core()?;
                core.tg_tgt_set_rel_tgt_id(&stored.dg, &stored.tg, &of_stored, id)
            },
        )
    }
}

/// Removes the directories that are not wanted.
fn prune(dir: &Arc<Kobject>, wanted: impl Fn(&str) -> bool) {
    for child in dir.children() {
        if !wanted(child.name()) {
            child.del();
        }
    }
}

/// The child of that name, and whether it is new.
fn ensure(dir: &Arc<Kobject>, name: &str) -> Result<(Arc<Kobject>, bool)> {
    match dir.child(name) {
        Some(child) => Ok((child, false)),
        None => Ok((dir.add(name)?, true)),
    }
}

impl ScstTree {
    pub(super) fn add_device_groups(&self) -> Result {
        self.device_groups().add_attr(mgmt(
            Weak::clone(&self.core),
            ("create", "del", "group_name"),
            |core, name| core.dg_add(name),
            |core, name| core.dg_remove(name),
        ))
    }

    /// Shows the device groups as they are; what cannot be shown is logged and does not keep the rest from it. Context: may
    /// sleep, without the locks that the callbacks of the directories take.
    pub(crate) fn sync_device_groups(&self) {
        let Some(core) = self.core() else { return };
        let groups = core.dev_groups();
        let _one = self.dg_sync.lock();
        prune(self.device_groups(), |name| {
            groups.iter().any(|g| g.name == name)
        });
        for dg in &groups {
            let done = self.sync_device_group(&core, dg);
            shown("device group", &dg.name, done);
        }
    }

    #[doc(alias = "scst_dg_sysfs_add")]
    fn sync_device_group(&self, core: &Arc<Core>, dg: &DevGroupInfo) -> Result {
        let (dir, is_new) = ensure(self.device_groups(), &dg.name)?;
        let weak = Arc::downgrade(core);
        if is_new {
            let (add, del) = (dg.name.clone(), dg.name.clone());
            dir.add("devices")?.add_attr(mgmt(
                Weak::clone(&weak),
                ("add", "del", "device"),
                move |core, name| core.dg_dev_add(&add, name),
                move |core, name| core.dg_dev_remove(&del, name),
            ))?;
            let (add, del) = (dg.name.clone(), dg.name.clone());
            dir.add("target_groups")?.add_attr(mgmt(
                Weak::clone(&weak),
                ("create", "del", "group_name"),
                move |core, name| core.tg_add(&add, name),
                move |core, name| core.tg_remove(&del, name),
            ))?;
        }
        if let Some(devices) = dir.child("devices") {
            let done = self.sync_links(&devices, &dg.devs, |name| {
                core.device(name).and_then(|d| d.kobj.get())
            });
            shown("the devices of", &dg.name, done);
        }
        let Some(tgs) = dir.child("target_groups") else {
            return Ok(());
        };
        prune(&tgs, |name| dg.tgs.iter().any(|t| t.name == name));
        for tg in &dg.tgs {
            let tg_ref = TgRef {
                core: Weak::clone(&weak),
                dg: dg.name.clone(),
                tg: tg.name.clone(),
            };
            let done = self.sync_target_group(&tgs, tg, &tg_ref);
            shown("target group", &tg.name, done);
        }
        Ok(())
    }

    #[doc(alias = "scst_tg_sysfs_add")]
    fn sync_target_group(
        &self,
        tgs: &Arc<Kobject>,
        tg: &TargetGroupInfo,
        tg_ref: &TgRef,
    ) -> Result {
        let (dir, is_new) = ensure(tgs, &tg.name)?;
        if is_new {
            dir.add_attrs(tg_ref.attrs())?;
        }
        let (local, remote): (Vec<_>, Vec<_>) = tg.tgts.iter().partition(|t| t.local);
        prune(&dir, |name| remote.iter().any(|t| t.name == name));
        let names: Vec<String> = local.iter().map(|t| t.name.clone()).collect();
        self.sync_links(&dir, &names, |name| {
            let t = local.iter().find(|t| t.name == name)?;
            self.targets().child(&t.driver)?.child(name)
        })?;
        for t in remote {
            let done = ensure(&dir, &t.name).and_then(|(tgt_dir, is_new)| match is_new {
                true => tgt_dir.add_attr(tg_ref.rel_tgt_id(&t.name)),
                false => Ok(()),
            });
            shown("target", &t.name, done);
        }
        Ok(())
    }

    /// Makes the links of a directory those of `names`; what is gone has no target any more.
    fn sync_links(
        &self,
        dir: &Arc<Kobject>,
        names: &[String],
        target: impl Fn(&str) -> Option<Arc<Kobject>>,
    ) -> Result {
        let there = Tree::new(self.root()).list(&dir.path())?;
        let links: Vec<String> = there
            .into_iter()
            .filter(|e| e.kind == EntryKind::Link)
            .map(|e| e.name)
            .collect();
        for gone in links.iter().filter(|l| !names.contains(l)) {
            shown("the end of", gone, dir.remove_link(gone));
        }
        for name in names.iter().filter(|n| !links.contains(n)) {
            if let Some(target) = target(name) {
                shown("link", name, dir.add_link(name, &target));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::core::{Core, CoreParams};
    use crate::sysfs::ScstTree;
    use kshim::error::code;
    use kshim::kobject::tree::{Tree, TreeOps};

    #[test]
    fn groups_are_created_and_added() {
        let core = Core::new(CoreParams::default()).expect("core");
        let tree = ScstTree::publish(&core).expect("tree");
        let view = Tree::new(tree.root());
        let write = |path: &str, value: &str| {
            let path = format!("device_groups/{path}mgmt");
            view.write(&path, value.as_bytes())
        };
        assert_eq!(write("", "create dg1\n"), Ok(()));
        assert_eq!(write("", "add dg2"), Ok(()));
        assert_eq!(write("", "add dg1"), Err(code::EEXIST));
        assert_eq!(write("dg1/target_groups/", "add tg1"), Ok(()));
        assert_eq!(write("dg1/target_groups/", "create tg2"), Ok(()));
        assert_eq!(write("dg1/target_groups/tg1/", "add tgt"), Ok(()));
        assert_eq!(
            write("dg1/target_groups/tg1/", "create tgt2"),
            Err(code::EINVAL)
        );
        assert_eq!(write("", "add"), Err(code::EINVAL));
        assert_eq!(write("", "nonsense dg1"), Err(code::EINVAL));
        tree.unpublish();
        core.shutdown();
    }

    /// What would have no directory, or another's, is refused; what comes after it is shown.
    #[test]
    fn groups_have_names_that_can_be_shown() {
        let core = Core::new(CoreParams::default()).expect("core");
        let tree = ScstTree::publish(&core).expect("tree");
        let view = Tree::new(tree.root());
        core.dg_add("dg").expect("new");
        core.tg_add("dg", "tg").expect("new");
        let long = "x".repeat(256);
        for bad in ["", ".", "..", "a/b", "a b", "a\nb", &long] {
            assert_eq!(core.dg_add(bad), Err(code::EINVAL), "{bad}");
            assert_eq!(core.tg_add("dg", bad), Err(code::EINVAL), "{bad}");
            let port = core.tg_tgt_add("dg", "tg", bad);
            assert_eq!(port, Err(code::EINVAL), "{bad}");
        }
        let there = |path: &str| view.list(path).expect("a directory").into_iter();
        for e in there("device_groups").filter(|e| e.name != "dg") {
            assert_eq!(core.dg_add(&e.name), Err(code::EEXIST), "{}", e.name);
        }
        for e in there("device_groups/dg/target_groups").filter(|e| e.name != "tg") {
            let taken = core.tg_add("dg", &e.name);
            assert_eq!(taken, Err(code::EEXIST), "{}", e.name);
        }
        let attrs: Vec<_> = there("device_groups/dg/target_groups/tg").collect();
        assert_eq!(attrs.len(), 4);
        for e in attrs {
            let taken = core.tg_tgt_add("dg", "tg", &e.name);
            assert_eq!(taken, Err(code::EEXIST), "{}", e.name);
        }
        core.tg_tgt_add("dg", "tg", &long[1..]).expect("a name");
        let port = format!("device_groups/dg/target_groups/tg/{}", &long[1..]);
        assert_eq!(there(&port).count(), 1);
        tree.unpublish();
        core.shutdown();
    }
}
