//! `docs/kernel-api-map.md`: where kshim has what the kernel calls so, from the doc aliases of its source.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result, bail};

use crate::sh;

/// The document.
const MAP: &str = "docs/kernel-api-map.md";
/// Where the source is.
const SOURCE: &str = "kshim/src/";
const HEAD: &str = "\
# From the kernel's API to kshim

Made by `cargo xtask api-map` from the doc aliases in kshim; do not edit. `cargo doc -p kshim --open` finds the same names by its
search; items that have the kernel's own name are not listed. A row is no promise of the same signature: the documentation of the item says where it differs, and
[porting-a-driver.md](porting-a-driver.md) how to use it.
";
/// What is not there, by the kernel's names.
const MISSING: &str = "
## What is missing, and why

| kernel | why |
|---|---|
| interrupts, `local_irq_*`, `preempt_*`, softirqs, tasklets | there are none: a reactor takes their place, and `SpinLock::lock_irqsave` only keeps ported code readable |
| `kmalloc`, `kfree`, `krealloc`, GFP flags | `Box`, `Vec`, `Arc`; `Gfp` is there for mempools alone |
| `list_head`, `hlist_head`, `rbtree`, `xarray` | the standard collections; an object in several lists is an `Arc` in several |
| `kref`, `refcount_t`, `container_of` | `Arc`, and `Weak` for what refers upwards |
| `copy_from_user`, `ioctl`, character devices, netlink | no border between user and kernel: attributes ([`kshim::kobject`]) and the control socket |
| `seq_file`, debugfs, configfs, procfs | attributes; nothing that was ported needed more |
| request queues, I/O schedulers, `blk_plug`, partitions, `blk_mq_*` | bios go straight to the driver; the host's block layer is below |
| `bio_split`, `bio_chain` | a driver keeps the bio and works on parts of its table by offset (ports/nbd); clones of data are `SharedTable`s (ports/raid1) |
| `dm_kcopyd_copy` | raid1, which alone copies, does it in its resync thread, where the pace and the lock of a region are |
| `kfifo`, notifier chains, `seqlock_t` | no port uses them: queues are `VecDeque`s under the lock that the driver has anyway, and `RwSem` or RCU serve who reads much |
| DMA, IOMMU, PCI, device model beyond kobjects | no hardware |
| `struct sk_buff`, net devices, protocols | sockets only |
| DLM, crypto API beyond CRC32C | no port uses them |

## Beside Rust-for-Linux

Where the crate `kernel` has an item, it has the same name here. What is different, and why:

| `kernel` | here | why |
|---|---|---|
| `new_mutex!`, `new_spinlock!`, pinned, with a `LockClassKey` | `Mutex::new`, `SpinLock::new`, `const`, may be moved | no lockdep, and a futex needs no stable address while nobody waits; the order of locks is in `docs/lock-order.md` |
| `SpinLock`: preemption off while it is held | spins for a moment, then sleeps | the holder may be preempted by the host, and nobody can forbid that |
| `CondVar::wait_interruptible`, by signals | the same by a kthread's `Stop` | no signals: a thread is told to stop |
| `CondVar::wait_interruptible_timeout` in jiffies | `wait_timeout` with a `Delta` | one unit of time everywhere |
| `WorkItem` with `impl_has_work!` and an offset | `WorkItem::work(&self) -> &Work` | without `unsafe` an object cannot be found from a field of it; a method can give the field |
| `Queue::enqueue` gives `Result<(), Arc<T>>` | the same | |
| `Queue::try_spawn(flags, f)` | `try_spawn(f)` | no GFP flags: memory runs out by the host's rules |
| `block::mq::Operations`, `TagSet`, `Request` | `block::BlockOps`, `SubmittedBio` | bios instead of requests, as in `submit_bio`: there is no scheduler above that would merge; tags are `idr::Idr` |
| `GenDiskBuilder` | `register_disk`, `register_prober` | paths in place of device numbers |
| `time::Instant<C>` for several clocks | `time::Instant`, monotonic | nothing ported needed another |
| `hrtimer` embedded in the structure that it serves | `HrTimer` owns a closure | as for work items |
| `xarray::XArray` | `idr::Idr`, or standard collections under a lock | |
| `rcu::Guard`, `rcu::read_lock` | the same; and `Rcu<T>`, the pointer with its life | C's `rcu_dereference` needs a type that says who frees |
| `ThisModule`, `module!` | `pub fn init() -> Result` of a crate | a driver is linked, not loaded; parameters are in the path ([`kshim::params`]) |
| `error::Result`, `code::EINVAL`, `pr_info!` | the same | |
";

/// What to do with the document.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Write it.
    Write,
    /// Fail when it is not current.
    Check,
}

/// Makes or compares the map.
pub(crate) fn run(mode: Mode) -> Result<()> {
    let text = render(&collect()?)?;
    let path = sh::top().join(MAP);
    if mode == Mode::Write {
        return fs::write(&path, text).with_context(|| format!("cannot write {MAP}"));
    }
    if fs::read_to_string(&path).unwrap_or_default() != text {
        bail!("{MAP} is not current: run `cargo xtask api-map`");
    }
    println!("== api-map: ok");
    Ok(())
}

/// Kernel names with where they are, by module.
type Map = BTreeMap<String, Vec<(String, String)>>;

fn collect() -> Result<Map> {
    let list = sh::output(&[
        "git",
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        SOURCE,
    ])?;
    let mut sources = BTreeMap::new();
    for path in list.lines().filter(|p| p.ends_with(".rs")) {
        // A file that was deleted but not yet committed has nothing.
        if let Ok(text) = fs::read_to_string(sh::top().join(path)) {
            sources.insert(path.to_owned(), text);
        }
    }
    let mut map = Map::new();
    for (path, text) in &sources {
        let module = module(path, &sources);
        let group = module.split("::").take(2).collect::<Vec<_>>().join("::");
        for (alias, item) in aliases(text) {
            let place = format!("{module}::{item}");
            map.entry(group.clone()).or_default().push((alias, place));
        }
    }
    for rows in map.values_mut() {
        rows.sort();
        rows.dedup();
    }
    Ok(map)
}

/// The public path of a file's module: private ones export their items to their parent.
fn module(path: &str, sources: &BTreeMap<String, String>) -> String {
    let inner = path.strip_prefix(SOURCE).unwrap_or(path);
    let inner = inner.strip_suffix(".rs").unwrap_or(inner);
    let inner = inner.strip_suffix("/mod").unwrap_or(inner);
    let mut public = "kshim".to_owned();
    let mut folder = SOURCE.to_owned();
    let mut parent = format!("{SOURCE}lib.rs");
    for part in inner.split('/').filter(|p| *p != "lib") {
        let text = sources.get(&parent).map_or("", String::as_str);
        if text.contains(&format!("pub mod {part};")) {
            public += "::";
            public += part;
        }
        folder += part;
        let file = format!("{folder}.rs");
        parent = if sources.contains_key(&file) {
            file
        } else {
            format!("{folder}/mod.rs")
        };
        folder.push('/');
    }
    public
}

/// The aliases in a file, and the items they stand at.
fn aliases(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut waiting: Vec<String> = Vec::new();
    let mut owner = String::new();
    for line in text.lines() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        if let Some(rest) = code.strip_prefix("#[doc(alias = \"") {
            waiting.extend(rest.split('"').next().map(str::to_owned));
            continue;
        }
        if code.starts_with("//") || code.starts_with("#[") || code.is_empty() {
            continue;
        }
        let container = container(code);
        if let Some(name) = &container
            && (indent == 0 || code.starts_with("pub struct"))
        {
            owner.clone_from(name);
        }
        if waiting.is_empty() {
            continue;
        }
        let item = match (container, item(code)) {
            (Some(name), _) => Some(name),
            (None, Some(name)) if indent == 0 || owner.is_empty() => Some(name),
            (None, Some(name)) => Some(format!("{owner}::{name}")),
            (None, None) => None,
        };
        let aliases = std::mem::take(&mut waiting);
        if let Some(item) = item {
            found.extend(aliases.into_iter().map(|a| (a, item.clone())));
        }
    }
    found
}

/// The name of a type or trait that a line begins, or of the type of an `impl`.
fn container(code: &str) -> Option<String> {
    let code = code
        .strip_prefix("pub(crate) ")
        .or(code.strip_prefix("pub "))
        .unwrap_or(code);
    let code = code.strip_prefix("unsafe ").unwrap_or(code);
    if let Some(rest) = code.strip_prefix("impl") {
        let rest = rest.split(" where").next().unwrap_or(rest);
        let of = rest.rsplit(" for ").next().unwrap_or(rest);
        // What follows the generics of the `impl` itself.
        let of = if of.starts_with('<') {
            after_generics(of)
        } else {
            of
        };
        return Some(ident(of.trim_start()));
    }
    ["struct ", "enum ", "trait "]
        .iter()
        .find_map(|k| code.strip_prefix(k))
        .map(ident)
}

fn after_generics(text: &str) -> &str {
    let mut depth = 0;
    for (i, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[i + 1..];
        }
    }
    ""
}

/// The name of a function, constant, field or variant that a line begins.
fn item(code: &str) -> Option<String> {
    let code = code
        .strip_prefix("pub(crate) ")
        .or(code.strip_prefix("pub "))
        .unwrap_or(code);
    let mut rest = code;
    for word in ["const ", "unsafe ", "async "] {
        if rest
            .strip_prefix(word)
            .is_some_and(|r| r.starts_with("fn ") || r.starts_with("unsafe "))
        {
            rest = rest.strip_prefix(word).unwrap_or(rest);
        }
    }
    let keywords = ["fn ", "const ", "static ", "type ", "macro_rules! ", "mod "];
    let named = keywords
        .iter()
        .find_map(|k| rest.strip_prefix(k))
        .unwrap_or(rest);
    let name = ident(named);
    let word = !name.is_empty() && !["use", "let", "return"].contains(&name.as_str());
    word.then(|| {
        if rest.starts_with("macro_rules!") {
            name + "!"
        } else {
            name
        }
    })
}

fn ident(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

fn render(map: &Map) -> Result<String> {
    let mut text = HEAD.to_owned();
    let rows: usize = map.values().map(Vec::len).sum();
    writeln!(text, "\n{rows} names in {} modules.", map.len())?;
    for (module, rows) in map {
        writeln!(text, "\n## {module}\n\n| kernel | kshim |\n|---|---|")?;
        for (alias, place) in rows {
            writeln!(text, "| `{alias}` | `{place}` |")?;
        }
    }
    text += MISSING;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_find_their_items() {
        let source = "\
/// A disk.
#[doc(alias = \"gendisk\")]
#[derive(Debug)]
pub struct GenDisk {
    /// Its name.
    #[doc(alias = \"disk_name\")]
    pub name: String,
}
impl<T: Into<u8>> Drop for GenDisk {}
impl<'a, T> GenDisk {
    /// Removes it.
    #[doc(alias = \"del_gendisk\")]
    #[doc(alias = \"put_disk\")]
    pub const fn unregister(&self) {}
}
#[doc(alias = \"add_disk\")]
pub fn register_disk() {}
enum Op {
    #[doc(alias = \"REQ_OP_READ\")]
    Read,
}
";
        let found = aliases(source);
        let pairs: Vec<(&str, &str)> = found
            .iter()
            .map(|(a, i)| (a.as_str(), i.as_str()))
            .collect();
        assert_eq!(
            pairs,
            [
                ("gendisk", "GenDisk"),
                ("disk_name", "GenDisk::name"),
                ("del_gendisk", "GenDisk::unregister"),
                ("put_disk", "GenDisk::unregister"),
                ("add_disk", "register_disk"),
                ("REQ_OP_READ", "Op::Read"),
            ]
        );
    }
}
