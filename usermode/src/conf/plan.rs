//! What has to be done to make a server what a configuration says: computed before anything is done.
//!
//! The order is SCST's: removals first (only with force), then devices, targets with LUNs and groups, drivers' attributes,
//! device groups; targets and drivers are enabled at the end. Without force, what is there and not in the configuration
//! draws a remark and stays.
//!
//! The planner works on a picture of the server, changes it with each step, and so sees what a removal takes along.

mod assign;
mod attrs;
mod devices;
mod groups;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use kshim::kobject::tree::TreeOps;

use super::attr::{Attributes, Listed, listed};
use super::live::Live;
use super::model::Config;
use super::object::Object;
use super::op::Op;
use super::syntax::{Pos, Problem};

/// Whether what is there and not in the configuration goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Removals {
    /// It stays, with a remark.
    #[default]
    Remark,
    /// It is removed (`-force`).
    Remove,
}

/// When a planned change is left out after all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unless {
    /// Never.
    Never,
    /// When the attribute has this value already. What a new object comes with is known only when it is there.
    Equal,
    /// When there is such a LUN: the copy manager has LUNs of its own accord.
    LunExists,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A line to print.
    Say(String),
    /// A change.
    Do(Op, Unless),
}

/// A plan: steps, and what is wrong with the configuration on this server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) steps: Vec<Step>,
    pub(crate) problems: Vec<Problem>,
}

/// What SCST's scstadmin says when it looks at the server again.
const COLLECTED: &str = "\nCollecting current configuration: done.\n\n";

/// Computes the plan.
///
/// Context: may sleep.
pub(crate) fn plan(tree: &dyn TreeOps, live: &Live, config: &Config, removals: Removals) -> Plan {
    let mut planner = Planner {
        tree,
        config,
        removals,
        live: live.clone(),
        fresh: BTreeSet::new(),
        cache: RefCell::default(),
        plan: Plan::default(),
    };
    if removals == Removals::Remove {
        planner.obsolete_assignments();
        planner.say(COLLECTED.to_owned());
    }
    planner.devices();
    planner.obsolete_assignments();
    planner.assignments();
    planner.set(&Object::Alua, &config.alua);
    planner.device_groups();
    planner.enable_targets();
    planner.enable_drivers();
    planner.set(&Object::Scst, &config.attrs);
    planner
        .plan
        .problems
        .sort_by_key(|p| p.pos.map(|p| (p.line, p.col)));
    planner.plan
}

struct Planner<'a> {
    tree: &'a dyn TreeOps,
    config: &'a Config,
    removals: Removals,
    /// The server as it will be after the steps so far.
    live: Live,
    /// What the steps create.
    fresh: BTreeSet<Object>,
    cache: RefCell<BTreeMap<Object, Rc<Attributes>>>,
    plan: Plan,
}

impl Planner<'_> {
    fn removes(&self) -> bool {
        self.removals == Removals::Remove
    }

    fn say(&mut self, line: String) {
        self.plan.steps.push(Step::Say(line));
    }

    fn op(&mut self, op: Op) {
        self.plan.steps.push(Step::Do(op, Unless::Never));
    }

    fn op_unless(&mut self, op: Op, unless: Unless) {
        self.plan.steps.push(Step::Do(op, unless));
    }

    fn problem(&mut self, pos: Pos, what: impl Into<String>) {
        self.plan.problems.push(Problem::at(pos, what));
    }

    /// The attributes of an object that is there; none of one that is to be created.
    fn attributes(&self, object: &Object) -> Rc<Attributes> {
        if self.fresh.contains(object) {
            return Rc::default();
        }
        if let Some(found) = self.cache.borrow().get(object) {
            return Rc::clone(found);
        }
        let read = Rc::new(Attributes::read(self.tree, object).unwrap_or_default());
        self.cache
            .borrow_mut()
            .insert(object.clone(), Rc::clone(&read));
        read
    }

    fn listed(&self, dir: &str, which: Listed) -> BTreeSet<String> {
        listed(self.tree, dir, which)
    }
}
