//! An idle shim sleeps: none of its service threads, workers and kthreads wakes up without a reason.
#![allow(
    clippy::disallowed_methods,
    reason = "the test looks at the process from outside"
)]

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use kshim::kthread::{self, WorkerQueue};
use kshim::sync::{Arc, Completion, PercpuRef, rcu};
use kshim::time::{Delta, Timer};
use kshim::workqueue::{self, FnWork, Queue};

/// How long nothing may happen.
const QUIET: Duration = Duration::from_millis(700);

/// How often each thread of the process was put on a CPU so far, by id, with its name.
fn switches() -> BTreeMap<String, (String, u64)> {
    let mut all = BTreeMap::new();
    for task in fs::read_dir("/proc/self/task").expect("procfs").flatten() {
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name));
            line.unwrap_or_default().trim().to_owned()
        };
        // Not the involuntary ones: those are the host's.
        let n = field("voluntary_ctxt_switches:").parse().unwrap_or(0);
        let id = task.file_name().to_string_lossy().into_owned();
        all.insert(id, (field("Name:"), n));
    }
    all
}

#[test]
fn idle_threads_sleep() {
    // Bring everything to life once.
    let fired = Arc::new(Completion::new());
    let done = Arc::clone(&fired);
    let timer = Timer::new(move || done.complete());
    timer.mod_timer_after(Delta::from_millis(1));
    fired.wait_for_completion();
    timer.mod_timer_after(Delta::from_secs(3600));
    rcu::barrier();
    let count = PercpuRef::new(|| ());
    count.kill();
    count.wait_zero();
    let own = Queue::alloc("own", 3).expect("queue");
    for queue in [workqueue::system(), workqueue::system_unbound(), &own] {
        for _ in 0..20 {
            queue.enqueue(FnWork::new(|| ())).expect("idle item");
        }
        queue.flush();
    }
    let items = Arc::new(WorkerQueue::new());
    let workers: Vec<_> = (0..3)
        .map(|_| {
            let items = Arc::clone(&items);
            kthread::run("pool", move |stop| while items.wait_next(stop).is_some() {})
                .expect("kthread")
        })
        .collect();
    let sleepers = [
        kthread::run("waits", |stop| stop.wait()).expect("kthread"),
        kthread::run("naps", |stop| {
            stop.sleep(Delta::from_secs(3600));
        })
        .expect("kthread"),
    ];
    for item in 0..10 {
        items.push(item);
    }
    std::thread::sleep(Duration::from_millis(300));

    let before = switches();
    std::thread::sleep(QUIET);
    let after = switches();
    let names: Vec<_> = after.values().map(|(name, _)| name.as_str()).collect();
    for service in ["ktimerd", "rcud", "events", "own", "pool", "waits", "naps"] {
        assert!(names.contains(&service), "{service} is missing: {names:?}");
    }
    for (id, (name, n)) in &after {
        // This thread and the harness's wake up by themselves.
        if name.starts_with("idle") {
            continue;
        }
        let was = before.get(id).map_or(0, |(_, n)| *n);
        assert_eq!(n - was, 0, "thread {name} woke up while idle");
    }
    drop((workers, sleepers));
}
