//! `targets/iscsi` of the management tree: attributes of the driver and of its targets.
//!
//! [`IscsiDriver::publish`] shows the driver in a tree that is published. What is written acts on the driver and its targets as
//! the functions of [`IscsiDriver`] and [`IscsiTarget`] do; the texts are those that `iscsi-scstd` answers.
//!
//! Accounts and allowed portals are attributes that come and go: `IncomingUser`, `IncomingUser1` and so on, in the order in
//! which they are added. Which name belongs to what is remembered here ([`State`]).
//!
//! C source: `iscsi-scst/kernel/target.c`, `config.c`, `iscsi-scst/usr/event.c`, `config.c`

mod session;

pub(crate) use session::show_session;

use crate::accounts::{AccountError, Accounts, Secret};
use crate::driver::IscsiDriver;
use crate::param::{KeyValues, SESSION_KEYS, SessionKey, TARGET_KEYS, TgtParams};
use crate::portal::{Redirection, parse_addresses};
use crate::target::IscsiTarget;
use kshim::error::{Error, Result, code};
use kshim::kobject::{Attr, Kobject};
use kshim::sync::SpinLock;
use scst_core::core::ConfigError;
use scst_core::sysfs::text::{self, KEY_MARK, Lexems};
use scst_core::sysfs::{DEFAULT_FLAGS, SCST_VERSION, ScstTree, TraceLog, TraceTable};
use std::collections::HashMap;
use std::sync::{Arc, Weak};

const INCOMING_USER: &str = "IncomingUser";
const OUTGOING_USER: &str = "OutgoingUser";
const ALLOWED_PORTAL: &str = "allowed_portal";

const MGMT_HELP: &str = "Usage: echo \"add_target target_name [parameters]\" >mgmt\n       \
    echo \"del_target target_name\" >mgmt\n       \
    echo \"add_attribute <attribute> <value>\" >mgmt\n       \
    echo \"del_attribute <attribute> <value>\" >mgmt\n       \
    echo \"add_target_attribute target_name <attribute> <value>\" >mgmt\n       \
    echo \"del_target_attribute target_name <attribute> <value>\" >mgmt\n\n\
    where parameters are one or more param_name=value pairs separated by ';'\n\n\
    The following target driver attributes available: IncomingUser, OutgoingUser\n\
    The following target attributes available: IncomingUser, OutgoingUser, allowed_portal\n\n";

/// Most attributes of one kind at a target.
const MAX_NUMBERED: u32 = 10_000;

/// What an attribute with a number stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Incoming,
    Outgoing,
    Portal,
}

impl Kind {
    /// From an attribute's name, whatever number it has. Also answers whether it has one.
    #[doc(alias = "params_index_by_name_numwild")]
    fn of(name: &str) -> Option<(Self, bool)> {
        let base = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let numbered = base.len() != name.len();
        [Self::Incoming, Self::Outgoing, Self::Portal]
            .into_iter()
            .find(|k| k.name().eq_ignore_ascii_case(base))
            .map(|k| (k, numbered))
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Incoming => INCOMING_USER,
            Self::Outgoing => OUTGOING_USER,
            Self::Portal => ALLOWED_PORTAL,
        }
    }
}

/// An account or an allowed portal with the name of its attribute.
#[derive(Clone)]
struct Listed {
    attr: String,
    kind: Kind,
    /// The account's user, or the portal's pattern.
    key: String,
    /// The account's secret.
    secret: String,
}

impl std::fmt::Debug for Listed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listed")
            .field("attr", &self.attr)
            .finish_non_exhaustive()
    }
}

/// What the attributes that come and go stand for: those of the driver, and those of each target by its TID.
#[derive(Debug, Default)]
pub(crate) struct State {
    lists: SpinLock<HashMap<Option<u32>, Vec<Listed>>>,
    entity_name: SpinLock<String>,
    dir: SpinLock<Option<Arc<Kobject>>>,
}

impl State {
    fn list(&self, of: Option<u32>) -> Vec<Listed> {
        self.lists.lock().get(&of).cloned().unwrap_or_default()
    }
}

/// Text of the daemon, which the kernel puts a newline behind.
fn daemon(text: &str) -> String {
    format!("{text}\n")
}

/// A line with the mark behind it, as the daemon has it.
fn marked(value: &str) -> String {
    daemon(&format!("{value}\n{KEY_MARK}\n"))
}

fn config_errno(e: &ConfigError) -> Error {
    kshim::pr_err!("{e}");
    e.errno()
}

fn account_errno(e: AccountError) -> Error {
    kshim::pr_err!("{e}");
    match e {
        AccountError::Exists => code::EEXIST,
        _ => code::EINVAL,
    }
}

/// Words of the daemon's language: separated by white space.
fn words(s: &str) -> impl Iterator<Item = &str> {
    s.split_ascii_whitespace()
}

/// The only word of a value. Errors: EINVAL (more of them).
fn one_word(s: &str) -> Result<&str> {
    let mut all = words(s);
    let word = all.next().unwrap_or_default();
    match all.next() {
        None => Ok(word),
        Some(_) => Err(code::EINVAL),
    }
}

fn zero_or_one(s: &str) -> Result<bool> {
    match words(s).next() {
        Some("0") => Ok(false),
        Some("1") => Ok(true),
        _ => Err(code::EINVAL),
    }
}

fn driver_attr<T>(
    driver: &Weak<IscsiDriver>,
    name: &str,
    show: impl Fn(&IscsiDriver) -> String + Send + Sync + 'static,
    store: impl Fn(&Arc<IscsiDriver>, &str) -> Result<T> + Send + Sync + 'static,
) -> Attr {
    let (shown, stored) = (Weak::clone(driver), Weak::clone(driver));
    Attr::rw(
        name,
        move || Ok(show(&*shown.upgrade().ok_or(code::ENODEV)?)),
        move |s| store(&stored.upgrade().ok_or(code::ENODEV)?, s).map(|_| ()),
    )
}

fn target_attr(
    target: &Weak<IscsiTarget>,
    name: &str,
    show: impl Fn(&IscsiTarget) -> String + Send + Sync + 'static,
    store: impl Fn(&IscsiTarget, &str) -> Result + Send + Sync + 'static,
) -> Attr {
    let (shown, stored) = (Weak::clone(target), Weak::clone(target));
    Attr::rw(
        name,
        move || Ok(show(&*shown.upgrade().ok_or(code::ENODEV)?)),
        move |s| store(&*stored.upgrade().ok_or(code::ENODEV)?, s),
    )
}

/// A flag of the driver or a target, with the mark when it is not what it is in the beginning.
fn flag_text(on: bool, default: bool) -> String {
    let digit = u8::from(on);
    if on == default {
        daemon(&format!("{digit}\n"))
    } else {
        marked(&digit.to_string())
    }
}

/// What `trace_level` of the driver is about.
#[doc(alias = "iscsi_local_trace_tbl")]
fn trace_log() -> Arc<TraceLog> {
    const CONN: u64 = 0x4000_0000;
    const TABLE: TraceTable = &[
        (0x8000_0000, "d_write"),
        (CONN, "conn"),
        (0x0400_0000, "conn_dbg"),
        (0x2000_0000, "iov"),
        (0x1000_0000, "pdu"),
        (0x0800_0000, "net_page"),
    ];
    TraceLog::new(
        "iscsi-scst",
        &["iscsi_scst"],
        TABLE,
        ", d_write, conn, conn_dbg, iov, pdu, net_page",
        DEFAULT_FLAGS | CONN,
    )
}

impl IscsiDriver {
    /// Shows the driver and its targets, those to come too, in a tree. Once for a driver. Errors: EEXIST. Context: may sleep.
    pub fn publish(self: &Arc<Self>, tree: &ScstTree) -> Result {
        let dir = tree.driver("iscsi")?;
        let weak = Arc::downgrade(self);
        dir.add_attrs(driver_attrs(&weak))?;
        dir.add_attr(trace_log().attr())?;
        dir.add_attr(Attr::ro("version", || {
            Ok(format!("{SCST_VERSION}\nTRACING\nDEBUG\n"))
        }))?;
        *self.sysfs.dir.lock() = Some(dir);
        for target in self.targets() {
            self.show_target(&target);
        }
        Ok(())
    }

    /// Shows a target in its directory, if there is one.
    pub(crate) fn show_target(&self, target: &Arc<IscsiTarget>) {
        let Some(dir) = target.tgt().kobj.get() else {
            return;
        };
        if let Err(e) = dir.add_attrs(target_attrs(&Arc::downgrade(target))) {
            kshim::pr_err!("Cannot show target {} in the tree: {e}", target.name());
        }
    }

    /// The name by which the driver speaks to a name server; empty if it has none of its own.
    #[doc(alias = "isns_entity_target_name")]
    pub(crate) fn isns_entity_name(&self) -> String {
        self.sysfs.entity_name.lock().clone()
    }

    /// A target is gone.
    pub(crate) fn forget_target(&self, target: &IscsiTarget) {
        self.sysfs.lists.lock().remove(&Some(target.tid()));
    }

    fn target_by_name(&self, name: &str) -> Result<Arc<IscsiTarget>> {
        let targets = self.targets();
        let found = targets.into_iter().find(|t| t.name() == name);
        found.ok_or(code::ENOENT)
    }

    #[doc(alias = "scst_process_tgtt_mgmt_store")]
    fn mgmt_store(self: &Arc<Self>, s: &str) -> Result {
        let mut lexems = Lexems::new(s);
        let action = lexems.next_lexem().to_ascii_lowercase();
        match action.as_str() {
            "add_target" => {
                let name = lexems.next_lexem();
                self.mgmt_add_target(name, lexems.rest())
            }
            "del_target" => {
                let name = lexems.next_lexem();
                if name.is_empty() || !lexems.next_lexem().is_empty() {
                    return Err(code::EINVAL);
                }
                let target = self.target_by_name(name)?;
                self.remove_target(&target).map_err(|e| config_errno(&e))
            }
            "add_attribute" | "del_attribute" => {
                let mut rest = words(s).skip(1);
                let attr = rest.next().unwrap_or_default();
                self.change_listed(None, action == "add_attribute", attr, rest)
            }
            "add_target_attribute" | "del_target_attribute" => {
                let mut rest = words(s).skip(1);
                let target = self.target_by_name(rest.next().unwrap_or_default())?;
                let attr = rest.next().unwrap_or_default();
                let add = action == "add_target_attribute";
                self.change_listed(Some(&target), add, attr, rest)
            }
            _ => Err(code::EINVAL),
        }
    }

    #[doc(alias = "handle_e_add_target")]
    fn mgmt_add_target(self: &Arc<Self>, name: &str, params: &str) -> Result {
        if name.is_empty() {
            return Err(code::EINVAL);
        }
        let (mut keys, mut tgt_params) = (KeyValues::default(), TgtParams::default());
        for param in params.split([';', '\n']) {
            let mut words = Lexems::new(param);
            let (key, value) = (words.next_lexem(), words.next_lexem());
            if key.is_empty() {
                continue;
            }
            let session_key = SessionKey::by_name(key).is_some_and(|k| keys.set_text(k, value));
            if !words.next_lexem().is_empty() || !(session_key || tgt_params.set_text(key, value)) {
                kshim::pr_err!("Wrong parameter {param}");
                return Err(code::EINVAL);
            }
        }
        let added = self.add_target(name, None, keys, tgt_params);
        added.map(|_| ()).map_err(|e| config_errno(&e))
    }

    /// Adds or removes an account or allowed portal of a target, or of discovery.
    fn change_listed<'a>(
        self: &Arc<Self>,
        target: Option<&Arc<IscsiTarget>>,
        add: bool,
        attr: &str,
        mut rest: impl Iterator<Item = &'a str>,
    ) -> Result {
        let (kind, numbered) = Kind::of(attr).ok_or(code::EINVAL)?;
        if kind == Kind::Portal && target.is_none() {
            return Err(code::EINVAL);
        }
        let key = rest.next().unwrap_or_default().to_owned();
        let secret = rest.next().unwrap_or_default().to_owned();
        let of = target.map(|t| t.tid());
        let mut list = self.sysfs.list(of);
        if !add {
            let not_there = match kind {
                Kind::Portal => code::EINVAL,
                _ => code::ENOENT,
            };
            let is = |l: &Listed| l.kind == kind && l.key == key;
            let at = list.iter().position(is).ok_or(not_there)?;
            let gone = list.remove(at);
            self.apply(target, &list)?;
            if let Some(dir) = self.listed_dir(target) {
                dir.remove_attr(&gone.attr)?;
            }
            return Ok(());
        }
        let extra = kind == Kind::Portal && !secret.is_empty();
        let missing = key.is_empty() || (kind != Kind::Portal && secret.is_empty());
        if extra || missing {
            return Err(code::EINVAL);
        }
        let same_key = |l: &Listed| l.kind == kind && l.key == key;
        if list.iter().any(same_key) || (kind == Kind::Outgoing && has(&list, &kind)) {
            return Err(code::EEXIST);
        }
        let attr = free_name(&list, &kind, numbered.then_some(attr))?;
        list.push(Listed {
            attr: attr.clone(),
            kind,
            key,
            secret,
        });
        self.apply(target, &list)?;
        match self.listed_dir(target) {
            Some(dir) => dir.add_attr(self.listed_attr(target, &attr)),
            None => Ok(()),
        }
    }

    fn listed_dir(&self, target: Option<&Arc<IscsiTarget>>) -> Option<Arc<Kobject>> {
        match target {
            Some(t) => t.tgt().kobj.get(),
            None => self.sysfs.dir.lock().clone(),
        }
    }

    /// Has a list of accounts and portals in effect. Errors: EEXIST, EINVAL; nothing has changed then.
    fn apply(&self, target: Option<&Arc<IscsiTarget>>, list: &[Listed]) -> Result {
        let mut accounts = Accounts::default();
        for l in list.iter().filter(|l| l.kind != Kind::Portal) {
            let secret = Secret::new(l.secret.as_bytes()).map_err(account_errno)?;
            let added = match l.kind {
                Kind::Outgoing => accounts.set_outgoing(&l.key, secret),
                _ => accounts.add_incoming(&l.key, secret),
            };
            added.map_err(account_errno)?;
        }
        let of = target.map(|t| t.tid());
        let Some(target) = target else {
            self.set_discovery_accounts(accounts);
            self.sysfs.lists.lock().insert(of, list.to_vec());
            return Ok(());
        };
        let portals = list.iter().filter(|l| l.kind == Kind::Portal);
        target.edit_allowed_portals(|filter| {
            let mut new = filter.clone();
            for old in filter.patterns() {
                new.remove(old)?;
            }
            for l in portals {
                new.add(&l.key)?;
            }
            *filter = new;
            Ok::<_, Error>(())
        })?;
        target.set_accounts(accounts);
        self.sysfs.lists.lock().insert(of, list.to_vec());
        Ok(())
    }

    /// The attribute of an account or allowed portal.
    fn listed_attr(self: &Arc<Self>, target: Option<&Arc<IscsiTarget>>, attr: &str) -> Attr {
        let (shown, stored) = (Arc::downgrade(self), Arc::downgrade(self));
        let of = target.map(|t| t.tid());
        let (show_name, store_name) = (attr.to_owned(), attr.to_owned());
        // Secrets are not for everybody.
        let mode = match Kind::of(attr) {
            Some((Kind::Portal, _)) => 0o644,
            _ => 0o600,
        };
        let rw = Attr::rw(
            attr,
            move || {
                let driver = shown.upgrade().ok_or(code::ENODEV)?;
                let list = driver.sysfs.list(of);
                let l = list.iter().find(|l| l.attr == show_name);
                let l = l.ok_or(code::EINVAL)?;
                Ok(match l.kind {
                    Kind::Portal => marked(&l.key),
                    _ => marked(&format!("{} {}", l.key, l.secret)),
                })
            },
            move |s| {
                let driver = stored.upgrade().ok_or(code::ENODEV)?;
                driver.replace_listed(of, &store_name, s)
            },
        );
        rw.mode(mode)
    }

    #[doc(alias = "iscsi_attr_replace")]
    fn replace_listed(&self, of: Option<u32>, attr: &str, s: &str) -> Result {
        let targets = self.targets();
        let target = targets.iter().find(|t| Some(t.tid()) == of);
        if of.is_some() && target.is_none() {
            return Err(code::ENODEV);
        }
        let mut list = self.sysfs.list(of);
        let l = list.iter_mut().find(|l| l.attr == attr);
        let l = l.ok_or(code::EINVAL)?;
        let mut words = words(s);
        let (key, secret) = (words.next(), words.next());
        l.key = key.ok_or(code::EINVAL)?.to_owned();
        match (&l.kind, secret) {
            (Kind::Portal, None) => {}
            (Kind::Incoming | Kind::Outgoing, Some(secret)) => l.secret = secret.to_owned(),
            _ => return Err(code::EINVAL),
        }
        self.apply(target, &list)
    }
}

fn has(list: &[Listed], kind: &Kind) -> bool {
    list.iter().any(|l| l.kind == *kind)
}

/// A name for a new attribute: that which is asked for, else the first that is free. Errors: EEXIST.
fn free_name(list: &[Listed], kind: &Kind, wanted: Option<&str>) -> Result<String> {
    let is_free = |name: &String| !list.iter().any(|l| l.attr == *name);
    if let Some(name) = wanted {
        let name = Some(name.to_owned()).filter(is_free);
        return name.ok_or(code::EEXIST);
    }
    let base = kind.name();
    let numbered = (1..MAX_NUMBERED).map(|n| format!("{base}{n}"));
    let mut names = std::iter::once(base.to_owned()).chain(numbered);
    names.find(is_free).ok_or(code::EEXIST)
}

fn driver_attrs(driver: &Weak<IscsiDriver>) -> Vec<Attr> {
    let open = Weak::clone(driver);
    vec![
        driver_attr(
            driver,
            "mgmt",
            |_| MGMT_HELP.to_owned(),
            IscsiDriver::mgmt_store,
        ),
        driver_attr(
            driver,
            "enabled",
            |d| daemon(&format!("{}\n", u8::from(d.is_enabled()))),
            |d, s| zero_or_one(s).map(|on| d.set_enabled(on)),
        ),
        driver_attr(
            driver,
            "link_local",
            |d| flag_text(d.link_local(), true),
            |d, s| zero_or_one(s).map(|on| d.set_link_local(on)),
        ),
        driver_attr(
            driver,
            "internal_portal",
            |d| {
                let all: Vec<_> = d
                    .internal_portals()
                    .iter()
                    .map(ToString::to_string)
                    .collect();
                match all.is_empty() {
                    true => daemon("\n"),
                    false => marked(&all.join(" ")),
                }
            },
            |d, s| parse_addresses(s).map(|all| d.set_internal_portals(all)),
        ),
        driver_attr(
            driver,
            "isns_entity_name",
            |d| daemon(&d.sysfs.entity_name.lock()),
            |d, s| {
                *d.sysfs.entity_name.lock() = words(s).next().unwrap_or_default().to_owned();
                Ok(())
            },
        ),
        // DIFFERS: SCST refuses a server that is not there at this moment, and then has none.
        driver_attr(
            driver,
            "iSNSServer",
            |d| {
                d.isns()
                    .map_or_else(|| daemon("\n"), |c| marked(&c.to_string()))
            },
            |d, s| match words(s).next() {
                None => d.set_isns(None),
                Some(_) => d.set_isns(Some(s.parse()?)),
            },
        ),
        Attr::ro("open_state", move || {
            let state = if open.strong_count() == 0 {
                "closed"
            } else {
                "open"
            };
            Ok(text::line(state, false))
        }),
    ]
}

fn target_attrs(target: &Weak<IscsiTarget>) -> Vec<Attr> {
    let shown = SESSION_KEYS.iter().filter(|info| info.show_in_sysfs);
    let keys = shown.map(|info| {
        target_attr(
            target,
            info.name,
            move |t| {
                let keys = t.keys();
                let text = keys.text(info.key);
                match keys.get(info.key) == info.local_default {
                    true => daemon(&text),
                    false => marked(&text),
                }
            },
            move |t, s| t.set_key(info.key, one_word(s)?),
        )
    });
    let params = TARGET_KEYS.iter().map(|info| {
        target_attr(
            target,
            info.name,
            move |t| match t.params().get(info.name) {
                Some(v) if v != info.default => marked(&v.to_string()),
                v => daemon(&v.unwrap_or(info.default).to_string()),
            },
            move |t, s| t.set_param(info.name, one_word(s)?),
        )
    });
    keys.chain(params)
        .chain(other_target_attrs(target))
        .collect()
}

fn other_target_attrs(target: &Weak<IscsiTarget>) -> [Attr; 4] {
    let tid = Weak::clone(target);
    [
        target_attr(
            target,
            "per_portal_acl",
            |t| flag_text(t.per_portal_acl(), false),
            |t, s| zero_or_one(s).map(|on| t.set_per_portal_acl(on)),
        ),
        target_attr(
            target,
            "redirect",
            |t| {
                t.redirect()
                    .map_or_else(|| daemon(""), |to| marked(&to.to_string()))
            },
            |t, s| {
                let to = match s.trim() {
                    "" => None,
                    s => Some(s.parse::<Redirection>()?),
                };
                t.set_redirect(to);
                Ok(())
            },
        ),
        target_attr(
            target,
            "alias",
            |t| t.alias().map_or_else(|| daemon(""), |a| marked(&a)),
            |t, s| {
                let s = s.trim();
                t.set_alias((!s.is_empty()).then(|| s.to_owned()));
                Ok(())
            },
        ),
        Attr::ro("tid", move || {
            let target = tid.upgrade().ok_or(code::ENODEV)?;
            Ok(text::line(target.tid(), false))
        }),
    ]
}

/// Attributes of a group of initiators: whether each of its sessions has network threads of its own.
///
/// DIFFERS: kept and shown. Connections are served by the reactors.
pub(crate) fn group_attrs() -> Vec<Attr> {
    let dedicated = Arc::new(SpinLock::new(false));
    let shown = Arc::clone(&dedicated);
    vec![Attr::rw(
        "per_sess_dedicated_tgt_threads",
        move || {
            let on = *shown.lock();
            Ok(text::flag(on, on))
        },
        move |s| {
            *dedicated.lock() = text::parse_u64(s)? != 0;
            Ok(())
        },
    )]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_with_numbers() {
        assert_eq!(Kind::of("IncomingUser"), Some((Kind::Incoming, false)));
        assert_eq!(Kind::of("incominguser12"), Some((Kind::Incoming, true)));
        assert_eq!(Kind::of("allowed_portal3"), Some((Kind::Portal, true)));
        assert_eq!(Kind::of("Frob"), None);
        let listed = |attr: &str| Listed {
            attr: attr.to_owned(),
            kind: Kind::Incoming,
            key: attr.to_owned(),
            secret: String::new(),
        };
        let name = |list: &[Listed], wanted| free_name(list, &Kind::Incoming, wanted);
        assert_eq!(name(&[], None).as_deref(), Ok("IncomingUser"));
        let two = [listed("IncomingUser"), listed("IncomingUser2")];
        assert_eq!(name(&two, None).as_deref(), Ok("IncomingUser1"));
        assert_eq!(name(&two, Some("IncomingUser2")), Err(code::EEXIST));
        assert_eq!(name(&two[1..], None).as_deref(), Ok("IncomingUser"));
    }
}
