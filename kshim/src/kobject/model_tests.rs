//! The tree against a list of paths.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::tree::{EntryKind, Tree, TreeOps};
use super::*;

#[derive(Debug, Clone)]
enum Op {
    Add(usize, usize),
    AddAttr(usize, usize),
    AddLink(usize, usize, usize),
    Del(usize),
    RemoveAttr(usize, usize),
    RemoveLink(usize, usize),
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

fn arb_op() -> impl Strategy<Value = Op> {
    let (dir, name) = (0..12_usize, 0..NAMES.len());
    prop_oneof![
        4 => (dir.clone(), name.clone()).prop_map(|(d, n)| Op::Add(d, n)),
        3 => (dir.clone(), name.clone()).prop_map(|(d, n)| Op::AddAttr(d, n)),
        2 => (dir.clone(), name.clone(), dir.clone()).prop_map(|(d, n, t)| Op::AddLink(d, n, t)),
        1 => dir.clone().prop_map(Op::Del),
        1 => (dir.clone(), name.clone()).prop_map(|(d, n)| Op::RemoveAttr(d, n)),
        1 => (dir, name).prop_map(|(d, n)| Op::RemoveLink(d, n)),
    ]
}

/// What the tree should be: kinds by path; of directories that were made also those that are gone.
struct Model {
    nodes: BTreeMap<String, EntryKind>,
    dirs: Vec<Arc<Kobject>>,
}

impl Model {
    fn has_dir(&self, k: &Kobject) -> bool {
        // A path may be that of a later directory.
        let path = k.path();
        let known = path.is_empty() || self.nodes.get(&path) == Some(&EntryKind::Dir);
        let current = self.dirs.iter().rev().find(|d| d.path() == path);
        known && current.is_some_and(|d| std::ptr::eq(&**d, k))
    }

    fn add(&mut self, dir: &Kobject, name: &str, kind: EntryKind) -> Result {
        if !self.has_dir(dir) {
            return Err(code::ENODEV);
        }
        let path = join(&dir.path(), name);
        if self.nodes.contains_key(&path) {
            return Err(code::EEXIST);
        }
        self.nodes.insert(path, kind);
        Ok(())
    }

    fn remove(&mut self, dir: &Kobject, name: &str, kind: EntryKind) -> Result {
        let path = join(&dir.path(), name);
        if !self.has_dir(dir) || self.nodes.get(&path) != Some(&kind) {
            return Err(code::ENOENT);
        }
        self.nodes.remove(&path);
        Ok(())
    }

    fn del(&mut self, dir: &Kobject) {
        if self.has_dir(dir) {
            let path = dir.path();
            let below = format!("{path}/");
            self.nodes
                .retain(|p, _| *p != path && !p.starts_with(&below));
        }
    }
}

fn join(dir: &str, name: &str) -> String {
    if dir.is_empty() {
        return name.to_owned();
    }
    format!("{dir}/{name}")
}

/// All that a view shows, without following links.
fn walk(tree: &Tree, dir: &str, out: &mut BTreeMap<String, EntryKind>) {
    for e in tree.list(dir).unwrap() {
        let path = join(dir, &e.name);
        assert_eq!(tree.stat(&path).unwrap(), e);
        out.insert(path.clone(), e.kind);
        if e.kind == EntryKind::Dir {
            walk(tree, &path, out);
        }
    }
}

fn apply(model: &mut Model, op: &Op) -> (Result, Result) {
    let pick = |m: &Model, d: usize| Arc::clone(&m.dirs[d % m.dirs.len()]);
    match *op {
        Op::Add(d, n) => {
            let (dir, name) = (pick(model, d), NAMES[n]);
            let real = dir.add(name);
            let expected = model.add(&dir, name, EntryKind::Dir);
            let real = real.map(|k| model.dirs.push(k));
            (real, expected)
        }
        Op::AddAttr(d, n) => {
            let (dir, name) = (pick(model, d), NAMES[n]);
            let text = dir.path();
            let real = dir.add_attr(Attr::ro(name, move || Ok(text.clone())));
            (real, model.add(&dir, name, EntryKind::File))
        }
        Op::AddLink(d, n, t) => {
            let (dir, name, target) = (pick(model, d), NAMES[n], pick(model, t));
            let expected = if model.has_dir(&target) {
                model.add(&dir, name, EntryKind::Link)
            } else {
                Err(code::ENOENT)
            };
            (dir.add_link(name, &target), expected)
        }
        Op::Del(d) => {
            // The root stays.
            let dir = Arc::clone(&model.dirs[d % model.dirs.len()]);
            if !dir.path().is_empty() {
                dir.del();
                model.del(&dir);
            }
            (Ok(()), Ok(()))
        }
        Op::RemoveAttr(d, n) => {
            let dir = pick(model, d);
            let real = dir.remove_attr(NAMES[n]);
            (real, model.remove(&dir, NAMES[n], EntryKind::File))
        }
        Op::RemoveLink(d, n) => {
            let dir = pick(model, d);
            let real = dir.remove_link(NAMES[n]);
            (real, model.remove(&dir, NAMES[n], EntryKind::Link))
        }
    }
}

proptest! {
    #[test]
    fn the_tree_is_what_was_done_to_it(ops in proptest::collection::vec(arb_op(), 1..60)) {
        let root = Kobject::root("root", Arc::new(Inline));
        let tree = Tree::new(&root);
        let mut model = Model { nodes: BTreeMap::new(), dirs: vec![root] };
        for op in &ops {
            let (real, expected) = apply(&mut model, op);
            prop_assert_eq!(real, expected, "{:?}", op);
        }
        let mut seen = BTreeMap::new();
        walk(&tree, "", &mut seen);
        prop_assert_eq!(&seen, &model.nodes);
        for (path, kind) in &seen {
            match kind {
                EntryKind::File => {
                    let dir = path.rsplit_once('/').map_or("", |(d, _)| d);
                    prop_assert_eq!(tree.read(path).unwrap(), dir.as_bytes());
                }
                // Dangling where its target went.
                EntryKind::Link => prop_assert!(tree.list(path).map_or_else(
                    |e| e == code::ENOENT || e == code::ENOTDIR || e == code::ELOOP,
                    |_| true,
                )),
                EntryKind::Dir => {}
            }
        }
    }
}
