use super::tree::{EntryKind, Tree, TreeOps};
use super::*;
use crate::error::Error;
use crate::kthread::{self, Kthread, WorkerQueue};
use crate::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use crate::sync::{Completion, OnceLock};

/// An executor with a thread of its own, as the core's management thread is.
fn worker() -> (Arc<dyn Executor>, Kthread) {
    let queue: Arc<WorkerQueue<Work>> = Arc::new(WorkerQueue::new());
    let own = Arc::clone(&queue);
    let thread = kthread::run("stores", move |stop| {
        while let Some(work) = own.wait_next(stop) {
            work();
        }
    });
    let executor = move |work| {
        queue.push(work);
    };
    (Arc::new(executor), thread.unwrap())
}

fn inline() -> Arc<Kobject> {
    Kobject::root("root", Arc::new(Inline))
}

fn text(t: &str) -> impl Fn() -> Result<String> + Send + Sync + 'static {
    let t = t.to_owned();
    move || Ok(t.clone())
}

#[test]
fn names_are_unique_and_plain() {
    let root = inline();
    let a = root.add("a").unwrap();
    assert_eq!(root.add("a").unwrap_err(), code::EEXIST);
    assert_eq!(root.add_attr(Attr::ro("a", text(""))), Err(code::EEXIST));
    for bad in ["", ".", "..", "x/y", "x\0"] {
        assert_eq!(root.add(bad).unwrap_err(), code::EINVAL, "{bad:?}");
    }
    assert_eq!(root.add(&"x".repeat(256)).unwrap_err(), code::ENAMETOOLONG);
    assert_eq!(a.path(), "a");
    assert_eq!(a.add("b").unwrap().path(), "a/b");
    assert!(Arc::ptr_eq(&a.parent().unwrap(), &root));
    assert_eq!(root.children().len(), 1);
    assert!(root.child("b").is_none());
}

#[test]
fn links_lead_where_sysfs_would() {
    for (from, to, text) in [
        (
            "buses/net/t/ports/0",
            "devices/d",
            "../../../../../devices/d",
        ),
        ("devices/d/exported", "devices/d", "../../d"),
        ("devices", "devices/d", "d"),
        ("", "a/b", "a/b"),
        ("a/b", "a/c", "../c"),
    ] {
        assert_eq!(relative(from, to), text, "{from} -> {to}");
    }
}

#[test]
fn paths_lead_through_links() {
    let root = inline();
    let disk = root.add("devices").unwrap().add("disk").unwrap();
    disk.add_attr(Attr::ro("size", text("16\n"))).unwrap();
    let port = root.add("ports").unwrap().add("0").unwrap();
    port.add_link("device", &disk).unwrap();
    let tree = Tree::new(&root);
    assert_eq!(
        tree.readlink("ports/0/device").unwrap(),
        "../../devices/disk"
    );
    assert_eq!(tree.read("ports/0/device/size").unwrap(), b"16\n");
    assert_eq!(
        tree.read("/ports//0/./device/../disk/size").unwrap(),
        b"16\n"
    );
    assert_eq!(tree.list("ports/0/device").unwrap().len(), 1);
    assert_eq!(tree.stat("ports/0/device").unwrap().kind, EntryKind::Link);
    assert_eq!(tree.stat("").unwrap().name, "");
    assert_eq!(tree.readlink("ports/0"), Err(code::EINVAL));
    assert_eq!(tree.read("ports/0"), Err(code::EISDIR));
    assert_eq!(tree.read("ports/1"), Err(code::ENOENT));
    assert_eq!(tree.read("devices/disk/size/x"), Err(code::ENOTDIR));
    assert_eq!(tree.list("devices/disk/size"), Err(code::ENOTDIR));
    disk.del();
    assert_eq!(tree.read("ports/0/device/size"), Err(code::ENOENT));
    assert_eq!(port.add_link("again", &disk), Err(code::ENOENT));
    assert_eq!(port.remove_link("device"), Ok(()));
    assert_eq!(port.remove_link("device"), Err(code::ENOENT));
}

#[test]
fn what_has_no_callback_is_refused_at_open() {
    let root = inline();
    root.add_attr(Attr::ro("ro", text("x"))).unwrap();
    root.add_attr(Attr::wo("wo", |_| Ok(()))).unwrap();
    let tree = Tree::new(&root);
    assert_eq!(tree.write("ro", b"1"), Err(code::EACCES));
    assert_eq!(tree.read("wo"), Err(code::EACCES));
    assert_eq!(tree.write("wo", b"1"), Ok(()));
    let modes: Vec<u16> = tree.list("").unwrap().iter().map(|e| e.mode).collect();
    assert_eq!(modes, [0o444, 0o200]);
}

#[test]
fn values_are_text_of_at_most_a_page() {
    let seen = Arc::new(SpinLock::new(Vec::new()));
    let to = Arc::clone(&seen);
    let root = inline();
    let store = move |t: &str| {
        to.lock().push(t.to_owned());
        Ok(())
    };
    root.add_attr(Attr::wo("a", store)).unwrap();
    let tree = Tree::new(&root);
    assert_eq!(tree.write("a", b"one\n"), Ok(()));
    assert_eq!(tree.write("a", b""), Ok(()));
    assert_eq!(tree.write("a", b"\xff"), Err(code::EINVAL));
    assert_eq!(tree.write("a", &[b'x'; VALUE_MAX]), Ok(()));
    assert_eq!(tree.write("a", &[b'x'; VALUE_MAX + 1]), Err(code::E2BIG));
    assert_eq!(seen.lock().len(), 2);
    assert_eq!(seen.lock()[0], "one\n");
}

#[test]
fn an_open_file_outlives_its_object_but_not_its_use() {
    let root = inline();
    let held = Arc::new(());
    let mine = Arc::clone(&held);
    let dir = root.add("d").unwrap();
    let show = move || Ok(format!("{}\n", Arc::strong_count(&mine)));
    dir.add_attr(Attr::rw("a", show, |_| Ok(()))).unwrap();
    let open = Tree::new(&root).open("d/a", true, true).unwrap();
    assert_eq!(open.read().unwrap(), b"2\n");
    dir.del();
    dir.del();
    assert_eq!(Arc::strong_count(&held), 1, "callbacks are freed at once");
    assert_eq!(open.read(), Err(code::ENODEV));
    assert_eq!(open.write(b"1"), Err(code::ENODEV));
    assert_eq!(dir.add("x").unwrap_err(), code::ENODEV);
    // Another object of that name is another object.
    let again = root.add("d").unwrap();
    again.add_attr(Attr::ro("a", text("new"))).unwrap();
    assert_eq!(open.read(), Err(code::ENODEV));
    assert_eq!(Tree::new(&root).read("d/a").unwrap(), b"new");
}

#[test]
fn removal_waits_for_a_running_reader() {
    let root = inline();
    let dir = root.add("d").unwrap();
    let entered = Arc::new(Completion::new());
    let leave = Arc::new(Completion::new());
    let left = Arc::new(AtomicBool::new(false));
    let (e, l, f) = (Arc::clone(&entered), Arc::clone(&leave), Arc::clone(&left));
    let show = move || {
        e.complete_all();
        l.wait_for_completion();
        f.store(true, Ordering::SeqCst);
        Ok("late\n".to_owned())
    };
    dir.add_attr(Attr::ro("a", show)).unwrap();
    let tree = Tree::new(&root);
    let reader = std::thread::spawn(move || tree.read("d/a"));
    entered.wait_for_completion();
    let remover = std::thread::spawn({
        let dir = Arc::clone(&dir);
        move || dir.del()
    });
    while !dir.is_removed() {
        std::thread::yield_now();
    }
    assert!(!remover.is_finished());
    leave.complete_all();
    remover.join().unwrap();
    assert!(left.load(Ordering::SeqCst));
    assert_eq!(reader.join().unwrap().unwrap(), b"late\n");
}

#[test]
fn a_store_may_remove_its_own_object() {
    let (executor, thread) = worker();
    let root = Kobject::root("root", executor);
    let dir = root.add("d").unwrap();
    let me = Arc::downgrade(&dir);
    let store = move |_: &str| {
        me.upgrade().ok_or(code::ENODEV)?.del();
        Ok(())
    };
    dir.add_attr(Attr::wo("force_close", store)).unwrap();
    let tree = Tree::new(&root);
    assert_eq!(tree.write("d/force_close", b"1"), Ok(()));
    assert_eq!(tree.write("d/force_close", b"1"), Err(code::ENOENT));
    assert!(root.children().is_empty());
    thread.stop();
}

#[test]
fn a_store_whose_object_went_while_it_waited_fails() {
    let (executor, thread) = worker();
    let root = Kobject::root("root", executor);
    let dir = root.add("d").unwrap();
    let (entered, leave) = (Arc::new(Completion::new()), Arc::new(Completion::new()));
    let (e, l, d) = (Arc::clone(&entered), Arc::clone(&leave), Arc::clone(&dir));
    let remove = move |_: &str| {
        e.complete_all();
        l.wait_for_completion();
        d.del();
        Ok(())
    };
    root.add_attr(Attr::wo("mgmt", remove)).unwrap();
    dir.add_attr(Attr::wo("a", |_| Ok(()))).unwrap();
    let tree = Tree::new(&root);
    let file = tree.open("d/a", false, true).unwrap();
    let first = std::thread::spawn(move || tree.write("mgmt", b"del d"));
    entered.wait_for_completion();
    let second = std::thread::spawn(move || file.write(b"1"));
    leave.complete_all();
    assert_eq!(first.join().unwrap(), Ok(()));
    assert_eq!(second.join().unwrap(), Err(code::ENODEV));
    thread.stop();
}

#[test]
fn a_slow_store_goes_on_and_its_result_can_be_read() {
    let (executor, thread) = worker();
    let root = Kobject::root("root", executor);
    root.set_store_timeout(Delta::from_millis(1));
    let leave = Arc::new(Completion::new());
    let l = Arc::clone(&leave);
    let slow = move |_: &str| {
        l.wait_for_completion();
        Err(code::EBUSY)
    };
    root.add_attr(Attr::wo("slow", slow)).unwrap();
    root.add_attr(Attr::wo("direct", |_| Err(code::EPERM)).direct())
        .unwrap();
    root.add_attr(root.last_result_attr("last")).unwrap();
    let tree = Tree::new(&root);
    assert_eq!(tree.read("last").unwrap(), b"0\n");
    assert_eq!(tree.write("slow", b"1"), Err(code::EAGAIN));
    assert_eq!(tree.read("last"), Err(code::EAGAIN));
    assert_eq!(tree.write("direct", b"1"), Err(code::EPERM));
    leave.complete_all();
    thread.stop();
    assert_eq!(tree.read("last").unwrap(), b"-16\n");
}

#[test]
fn stores_that_never_run_and_stores_that_panic_are_answered() {
    let gone = Kobject::root("root", Arc::new(|work: Work| drop(work)));
    gone.add_attr(Attr::wo("a", |_| Ok(()))).unwrap();
    assert_eq!(Tree::new(&gone).write("a", b"1"), Err(code::ENODEV));

    let (executor, thread) = worker();
    let root = Kobject::root("root", executor);
    let boom = || -> Result<String> { panic!("boom") };
    root.add_attr(Attr::rw("a", boom, |_| panic!("boom")))
        .unwrap();
    let tree = Tree::new(&root);
    assert_eq!(tree.read("a"), Err(code::EIO));
    assert_eq!(tree.write("a", b"1"), Err(code::EIO));
    assert_eq!(tree.write("a", b"1"), Err(code::EIO));
    root.del();
    thread.stop();
}

#[test]
fn a_store_may_write_other_attributes() {
    let (executor, thread) = worker();
    let root = Kobject::root("root", executor);
    let count = Arc::new(AtomicU32::new(0));
    let c = Arc::clone(&count);
    let add = move |_: &str| {
        c.fetch_add(1, Ordering::SeqCst);
        Ok(())
    };
    root.add_attr(Attr::wo("one", add)).unwrap();
    let me = Tree::new(&root);
    root.add_attr(Attr::wo("two", move |t| me.write("one", t.as_bytes())))
        .unwrap();
    assert_eq!(Tree::new(&root).write("two", b"1"), Ok(()));
    assert_eq!(count.load(Ordering::SeqCst), 1);
    // The tree holds itself through the attribute.
    root.remove_attr("two").unwrap();
    thread.stop();
}

#[test]
fn groups_of_attributes_are_added_whole() {
    let root = inline();
    root.add_attr(Attr::ro("b", text(""))).unwrap();
    let some = ["a", "b", "c"].map(|n| Attr::ro(n, text("")));
    assert_eq!(root.add_attrs(some), Err(code::EEXIST));
    assert_eq!(Tree::new(&root).list("").unwrap().len(), 1);
    assert_eq!(root.remove_attr("a"), Err(code::ENOENT));
    assert_eq!(root.remove_attr("b"), Ok(()));
}

#[test]
fn readers_writers_and_removers_at_once() {
    let (executor, thread) = worker();
    let root = Kobject::root("root", executor);
    let alive = Arc::new([const { AtomicBool::new(false) }; 4]);
    let stop = Arc::new(AtomicBool::new(false));
    let broken = Arc::new(OnceLock::new());
    let check = |i: usize| {
        let (alive, broken) = (Arc::clone(&alive), Arc::clone(&broken));
        move || {
            if !alive[i].load(Ordering::SeqCst) {
                let _ = broken.set(format!("a callback of {i} runs after its removal"));
            }
        }
    };
    let mut users = Vec::new();
    for n in 0..2 {
        let (tree, stop) = (Tree::new(&root), Arc::clone(&stop));
        users.push(std::thread::spawn(move || {
            let fine = |e: Error| e == code::ENOENT || e == code::ENODEV;
            let mut i = n;
            while !stop.load(Ordering::SeqCst) {
                i = (i + 1) % 4;
                let path = format!("{i}/a");
                assert!(tree.read(&path).map_or_else(fine, |v| v == b"ok"));
                assert!(tree.write(&path, b"1").map_or_else(fine, |()| true));
                assert!(
                    tree.list(&i.to_string())
                        .map_or_else(fine, |v| v.len() <= 1)
                );
            }
        }));
    }
    for round in 0..300 {
        let i = round % 4;
        let dir = root.add(&i.to_string()).unwrap();
        alive[i].store(true, Ordering::SeqCst);
        let (on_read, on_write) = (check(i), check(i));
        let show = move || {
            on_read();
            Ok("ok".to_owned())
        };
        let store = move |_: &str| {
            on_write();
            Ok(())
        };
        dir.add_attr(Attr::rw("a", show, store)).unwrap();
        std::thread::yield_now();
        dir.del();
        alive[i].store(false, Ordering::SeqCst);
    }
    stop.store(true, Ordering::SeqCst);
    for user in users {
        user.join().unwrap();
    }
    assert_eq!(broken.get(), None);
    thread.stop();
}
