//! A management tree for tests: a recorded one, and on it an SCST that knows just enough of the commands.

use std::collections::BTreeMap;

use kshim::error::{Error, Result, code};
use kshim::kobject::tree::{Entry, EntryKind, TreeOps};
use kshim::sync::Mutex;

const RECORDED: &str = include_str!("../../../tests/sysfs/tree.txt");
const ROOT: &str = "/sys/kernel/scst_tgt";

#[derive(Clone, Debug, PartialEq, Eq)]
enum Node {
    Dir,
    File { mode: u16, text: String },
    Link(String),
}

type Nodes = BTreeMap<String, Node>;

/// The tree. Paths are absolute inside it, without a leading slash.
pub(crate) struct Fake {
    nodes: Mutex<Nodes>,
    /// A store whose path ends so fails.
    pub(crate) fails: Mutex<Option<(String, Error)>>,
    /// What was stored, as `path: value`.
    pub(crate) log: Mutex<Vec<String>>,
}

fn unescape(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, if c == '\\' { chars.next() } else { None }) {
            ('\\', Some('n')) => out.push('\n'),
            ('\\', Some('t')) => out.push('\t'),
            ('\\', Some(other)) => out.push(other),
            (c, _) => out.push(c),
        }
    }
    out
}

fn section(letter: char) -> Nodes {
    let mut nodes = Nodes::new();
    let mut inside = false;
    for line in RECORDED.lines() {
        if let Some(name) = line.strip_prefix("##### SECTION ") {
            inside = name.starts_with(letter);
            continue;
        }
        let mut cols = line.splitn(4, '\t');
        let (Some(path), Some(kind), Some(mode)) = (cols.next(), cols.next(), cols.next()) else {
            continue;
        };
        if !inside || !path.starts_with(ROOT) {
            continue;
        }
        let path = path[ROOT.len()..].trim_start_matches('/').to_owned();
        let content = cols.next().unwrap_or_default();
        let node = match kind {
            "dir" => Node::Dir,
            "link" => Node::Link(content.to_owned()),
            _ => Node::File {
                mode: u16::from_str_radix(mode, 8).unwrap(),
                text: unescape(content),
            },
        };
        nodes.insert(path, node);
    }
    nodes
}

fn parent(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Fake {
    /// The tree as recorded in section `A`, `B` or `C`.
    pub(crate) fn recorded(letter: char) -> Fake {
        Fake {
            nodes: Mutex::new(section(letter)),
            fails: Mutex::new(None),
            log: Mutex::new(Vec::new()),
        }
    }

    /// Everything in it, to compare.
    pub(crate) fn dump(&self) -> Vec<String> {
        let nodes = self.nodes.lock();
        nodes
            .iter()
            .map(|(path, node)| format!("{path} {node:?}"))
            .collect()
    }
}

/// Follows links on the way, and at the end when asked.
fn resolve(nodes: &Nodes, path: &str, last: bool) -> Result<String> {
    let mut at: Vec<String> = Vec::new();
    let mut todo: Vec<String> = path
        .split('/')
        .filter(|p| !p.is_empty())
        .rev()
        .map(str::to_owned)
        .collect();
    while let Some(part) = todo.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        at.push(part);
        match nodes.get(&at.join("/")).ok_or(code::ENOENT)? {
            Node::Link(to) if last || !todo.is_empty() => {
                at.pop();
                todo.extend(to.split('/').rev().map(str::to_owned));
            }
            Node::File { .. } if !todo.is_empty() => return Err(code::ENOTDIR),
            _ => {}
        }
    }
    Ok(at.join("/"))
}

fn entry(path: &str, node: &Node) -> Entry {
    let (kind, mode) = match node {
        Node::Dir => (EntryKind::Dir, 0o755),
        Node::File { mode, .. } => (EntryKind::File, *mode),
        Node::Link(_) => (EntryKind::Link, 0o777),
    };
    Entry {
        name: parent(path).1.to_owned(),
        kind,
        mode,
    }
}

impl TreeOps for Fake {
    fn list(&self, path: &str) -> Result<Vec<Entry>> {
        let nodes = self.nodes.lock();
        let path = resolve(&nodes, path, true)?;
        if !path.is_empty() && nodes.get(&path) != Some(&Node::Dir) {
            return Err(code::ENOTDIR);
        }
        let children = nodes
            .iter()
            .filter(|(p, _)| !p.is_empty() && parent(p).0 == path);
        Ok(children.map(|(p, n)| entry(p, n)).collect())
    }

    fn read(&self, path: &str) -> Result<Vec<u8>> {
        let nodes = self.nodes.lock();
        match nodes.get(&resolve(&nodes, path, true)?) {
            Some(Node::File { mode, text }) if mode & 0o444 != 0 => Ok(text.clone().into_bytes()),
            Some(Node::File { .. }) => Err(code::EACCES),
            _ => Err(code::EISDIR),
        }
    }

    fn write(&self, path: &str, value: &[u8]) -> Result {
        let value = String::from_utf8(value.to_vec()).unwrap();
        let value = value.trim_end();
        self.log.lock().push(format!("{path}: {value}"));
        if let Some((end, e)) = &*self.fails.lock()
            && format!("{path}: {value}").contains(end.as_str())
        {
            return Err(*e);
        }
        let mut nodes = self.nodes.lock();
        let path = resolve(&nodes, path, true)?;
        let mut scst = Scst { nodes: &mut nodes };
        scst.store(&path, value)
    }

    fn readlink(&self, path: &str) -> Result<String> {
        let nodes = self.nodes.lock();
        match nodes.get(&resolve(&nodes, path, false)?) {
            Some(Node::Link(to)) => Ok(to.clone()),
            _ => Err(code::EINVAL),
        }
    }

    fn stat(&self, path: &str) -> Result<Entry> {
        let nodes = self.nodes.lock();
        let path = resolve(&nodes, path, false)?;
        Ok(nodes.get(&path).map(|n| entry(&path, n)).unwrap())
    }
}

struct Scst<'a> {
    nodes: &'a mut Nodes,
}

impl Scst<'_> {
    fn store(&mut self, path: &str, value: &str) -> Result {
        let parts: Vec<&str> = path.split('/').collect();
        let words: Vec<&str> = value.split_whitespace().collect();
        match (parts.as_slice(), words.as_slice()) {
            (["handlers", h, "mgmt"], ["add_device", name, params @ ..]) => {
                self.add_device(h, name, &params.concat())
            }
            (["handlers", _, "mgmt"], ["del_device", name]) => self.del_device(name),
            (["targets", d, "mgmt"], ["add_target", name, params @ ..]) => {
                self.add_target(d, name, &params.concat())
            }
            (["targets", d, "mgmt"], ["del_target", name]) => {
                self.remove(&format!("targets/{d}/{name}"))
            }
            (["targets", d, "mgmt"], ["add_attribute", name, rest @ ..]) => {
                self.add_dynamic(&format!("targets/{d}"), name, &rest.join(" "))
            }
            (["targets", d, "mgmt"], ["del_attribute", name, rest @ ..]) => {
                self.del_dynamic(&format!("targets/{d}"), name, &rest.join(" "))
            }
            (["targets", d, "mgmt"], ["add_target_attribute", t, name, rest @ ..]) => {
                self.add_dynamic(&format!("targets/{d}/{t}"), name, &rest.join(" "))
            }
            (["targets", d, "mgmt"], ["del_target_attribute", t, name, rest @ ..]) => {
                self.del_dynamic(&format!("targets/{d}/{t}"), name, &rest.join(" "))
            }
            ([.., "luns", "mgmt"], words) => self.luns(parent(path).0, words),
            ([.., "ini_groups", "mgmt"], ["create", name]) => self.add_group(parent(path).0, name),
            ([.., "initiators", "mgmt"], words) => self.initiators(parent(path).0, words),
            (["device_groups", .., "mgmt"], words) => self.device_groups(parent(path).0, words),
            ([.., "ini_groups", "mgmt"], ["del", name]) => {
                self.remove(&format!("{}/{name}", parent(path).0))
            }
            ([.., "mgmt"], _) => Err(code::EINVAL),
            _ => self.set(path, value),
        }
    }

    fn set(&mut self, path: &str, value: &str) -> Result {
        match self.nodes.get_mut(path) {
            Some(Node::File { mode, text }) if *mode & 0o222 != 0 => {
                let key = if parent(path).1 == "enabled" || path.starts_with("max_tasklet") {
                    ""
                } else {
                    "[key]\n"
                };
                *text = format!("{value}\n{key}");
                Ok(())
            }
            Some(_) => Err(code::EACCES),
            None => Err(code::ENOENT),
        }
    }

    fn file(&mut self, path: &str, mode: u16, text: &str) {
        let text = text.to_owned();
        self.nodes
            .insert(path.to_owned(), Node::File { mode, text });
    }

    /// Copies what was recorded below a path.
    fn template(&mut self, letter: char, from: &str, to: &str) -> Result {
        if self.nodes.contains_key(to) {
            return Err(code::EEXIST);
        }
        for (path, node) in section(letter) {
            if path == from || path.starts_with(&format!("{from}/")) {
                self.nodes
                    .insert(format!("{to}{}", &path[from.len()..]), node);
            }
        }
        Ok(())
    }

    fn remove(&mut self, path: &str) -> Result {
        if !self.nodes.contains_key(path) {
            return Err(code::ENOENT);
        }
        let below = format!("{path}/");
        self.nodes
            .retain(|p, _| p != path && !p.starts_with(&below));
        Ok(())
    }

    fn add_device(&mut self, handler: &str, name: &str, params: &str) -> Result {
        let of = match handler {
            "vdisk_fileio" => "disk0",
            "vdisk_blockio" => "disk1",
            "vdisk_nullio" => "disk2",
            "vcdrom" => "cd5",
            _ => return Err(code::EINVAL),
        };
        let dir = format!("devices/{name}");
        self.template('B', &format!("devices/{of}"), &dir)?;
        self.nodes
            .retain(|p, _| !p.starts_with(&format!("{dir}/exported/")));
        for (path, node) in self.nodes.range_mut(dir.clone()..) {
            if let Node::File { text, .. } = node
                && path.starts_with(&dir)
                && !path.ends_with("/size")
            {
                *text = text.replace("\n[key]", "");
                if path.ends_with("/filename") {
                    "\n".clone_into(text);
                }
                if path.ends_with("thin_provisioned") {
                    "0\n".clone_into(text);
                }
            }
        }
        for param in params.split(';').filter(|p| !p.is_empty()) {
            let (key, value) = param.split_once('=').ok_or(code::EINVAL)?;
            let path = format!("{dir}/{key}");
            let Some(Node::File { text, .. }) = self.nodes.get_mut(&path) else {
                return Err(code::EINVAL);
            };
            *text = format!("{value}\n[key]\n");
        }
        let link = Node::Link(format!("../../devices/{name}"));
        self.nodes
            .insert(format!("handlers/{handler}/{name}"), link);
        let cm = "targets/copy_manager/copy_manager_tgt/luns";
        let lun = (0..)
            .find(|n| !self.nodes.contains_key(&format!("{cm}/{n}")))
            .unwrap();
        let read_only = handler == "vcdrom" || params.contains("read_only=1");
        self.add_lun(cm, name, &lun.to_string(), read_only)
    }

    fn del_device(&mut self, name: &str) -> Result {
        self.remove(&format!("devices/{name}"))?;
        let end = format!("/{name}");
        let gone: Vec<String> = self
            .nodes
            .iter()
            .filter(|(_, n)| matches!(n, Node::Link(to) if to.ends_with(&end)))
            .map(|(p, _)| p.clone())
            .collect();
        for path in gone {
            let dir = if path.ends_with("/device") {
                parent(&path).0
            } else {
                &path
            };
            self.remove(dir)?;
        }
        Ok(())
    }

    fn add_target(&mut self, driver: &str, name: &str, params: &str) -> Result {
        let of = match driver {
            "iscsi" => "iqn.2026-01.org.example:scst",
            "scst_local" => "scst_local_tgt",
            _ => return Err(code::EINVAL),
        };
        let dir = format!("targets/{driver}/{name}");
        self.template('B', &format!("targets/{driver}/{of}"), &dir)?;
        self.nodes.retain(|p, _| {
            let rest = p.strip_prefix(&dir).unwrap_or_default();
            (rest.ends_with("mgmt") || !rest.starts_with("/luns/"))
                && !rest.starts_with("/sessions/")
        });
        if driver == "iscsi" {
            self.file(&format!("{dir}/enabled"), 0o644, "0\n");
            self.file(&format!("{dir}/rel_tgt_id"), 0o644, "0\n");
        }
        for param in params.split(';').filter(|p| !p.is_empty()) {
            let session = param.strip_prefix("session_name=").ok_or(code::EINVAL)?;
            self.nodes
                .insert(format!("{dir}/sessions/{session}"), Node::Dir);
        }
        Ok(())
    }

    fn add_dynamic(&mut self, dir: &str, name: &str, value: &str) -> Result {
        let free = (0..)
            .map(|n| {
                if n == 0 {
                    name.to_owned()
                } else {
                    format!("{name}{n}")
                }
            })
            .find(|n| !self.nodes.contains_key(&format!("{dir}/{n}")))
            .unwrap();
        self.file(
            &format!("{dir}/{free}"),
            0o600,
            &format!("{value}\n[key]\n\n"),
        );
        Ok(())
    }

    fn del_dynamic(&mut self, dir: &str, name: &str, value: &str) -> Result {
        let start = format!("{dir}/{name}");
        let found = self.nodes.iter().find(|(p, n)| {
            p.starts_with(&start)
                && matches!(n, Node::File { text, .. } if text.starts_with(&format!("{value}\n")))
        });
        let path = found.ok_or(code::ENOENT)?.0.clone();
        self.remove(&path)
    }

    fn luns(&mut self, dir: &str, words: &[&str]) -> Result {
        match words {
            ["add", device, lun, params @ ..] => {
                if self.nodes.contains_key(&format!("{dir}/{lun}")) {
                    return Err(code::EEXIST);
                }
                self.add_lun(dir, device, lun, params.concat().contains("read_only=1"))
            }
            ["replace", device, lun, ..] => {
                self.remove(&format!("{dir}/{lun}"))?;
                self.add_lun(dir, device, lun, false)
            }
            ["del", lun] => self.remove(&format!("{dir}/{lun}")),
            ["clear"] => {
                let start = format!("{dir}/");
                let mgmt = format!("{dir}/mgmt");
                self.nodes
                    .retain(|p, _| !p.starts_with(&start) || *p == mgmt);
                Ok(())
            }
            _ => Err(code::EINVAL),
        }
    }

    fn add_lun(&mut self, dir: &str, device: &str, lun: &str, read_only: bool) -> Result {
        let Some(Node::Link(handler)) = self.nodes.get(&format!("devices/{device}/handler")) else {
            return Err(code::EINVAL);
        };
        let fixed = handler.ends_with("vcdrom")
            || matches!(self.nodes.get(&format!("devices/{device}/read_only")),
                Some(Node::File { text, .. }) if text.starts_with('1'));
        let path = format!("{dir}/{lun}");
        self.nodes.insert(path.clone(), Node::Dir);
        let text = if read_only || fixed {
            "1\n[key]\n"
        } else {
            "0\n"
        };
        self.file(&format!("{path}/read_only"), 0o444, text);
        let up = "../".repeat(path.split('/').count());
        self.nodes.insert(
            format!("{path}/device"),
            Node::Link(format!("{up}devices/{device}")),
        );
        let exports = format!("devices/{device}/exported");
        let n = (0..)
            .find(|n| !self.nodes.contains_key(&format!("{exports}/export{n}")))
            .unwrap();
        let link = Node::Link(format!("../../../{path}"));
        self.nodes.insert(format!("{exports}/export{n}"), link);
        Ok(())
    }

    fn add_group(&mut self, dir: &str, name: &str) -> Result {
        let from = "targets/iscsi/iqn.2026-01.org.example:scst/ini_groups/grp1";
        let to = format!("{dir}/{name}");
        self.template('C', from, &to)?;
        self.nodes.retain(|p, _| {
            let rest = p.strip_prefix(&to).unwrap_or_default();
            let inner = rest.starts_with("/luns/") || rest.starts_with("/initiators/");
            !inner || rest.ends_with("/mgmt")
        });
        Ok(())
    }

    fn initiators(&mut self, dir: &str, words: &[&str]) -> Result {
        match words {
            ["add", name] => {
                self.file(&format!("{dir}/{name}"), 0o444, &format!("{name}\n"));
                Ok(())
            }
            ["del", name] => self.remove(&format!("{dir}/{name}")),
            ["move", name, to] => {
                self.remove(&format!("{dir}/{name}"))?;
                let groups = parent(parent(dir).0).0.to_owned();
                self.file(
                    &format!("{groups}/{to}/initiators/{name}"),
                    0o444,
                    &format!("{name}\n"),
                );
                Ok(())
            }
            ["clear"] => {
                let start = format!("{dir}/");
                let mgmt = format!("{dir}/mgmt");
                self.nodes
                    .retain(|p, _| !p.starts_with(&start) || *p == mgmt);
                Ok(())
            }
            _ => Err(code::EINVAL),
        }
    }

    fn device_groups(&mut self, dir: &str, words: &[&str]) -> Result {
        let depth = dir.split('/').count();
        let (&[verb, name], devices) = (words, dir.ends_with("/devices")) else {
            return Err(code::EINVAL);
        };
        let path = format!("{dir}/{name}");
        if verb == "del" {
            return self.remove(&path);
        }
        if self.nodes.contains_key(&path) {
            return Err(code::EEXIST);
        }
        match (depth, devices) {
            (1, _) => {
                for sub in ["", "/devices", "/target_groups"] {
                    self.nodes.insert(format!("{path}{sub}"), Node::Dir);
                }
                for sub in ["/devices/mgmt", "/target_groups/mgmt"] {
                    self.file(&format!("{path}{sub}"), 0o644, "");
                }
            }
            (3, true) => {
                let link = Node::Link(format!("../../../devices/{name}"));
                self.nodes.insert(path, link);
            }
            (3, false) => {
                self.nodes.insert(path.clone(), Node::Dir);
                for (name, text) in [
                    ("mgmt", ""),
                    ("group_id", "0\n"),
                    ("preferred", "0\n"),
                    ("state", "active\n[key]\n"),
                ] {
                    self.file(&format!("{path}/{name}"), 0o644, text);
                }
            }
            _ => self.add_tg_target(&path, name),
        }
        Ok(())
    }

    fn add_tg_target(&mut self, path: &str, name: &str) {
        let local = ["iscsi", "scst_local"].map(|d| format!("targets/{d}/{name}"));
        match local.iter().find(|p| self.nodes.contains_key(*p)) {
            Some(at) => {
                let link = Node::Link(format!("../../../../{at}"));
                self.nodes.insert(path.to_owned(), link);
            }
            None => {
                self.nodes.insert(path.to_owned(), Node::Dir);
                self.file(&format!("{path}/rel_tgt_id"), 0o644, "0\n");
            }
        }
    }
}
