//! `scst-primitives [PART]`: kshim's primitives beside what std, parking_lot and crossbeam have for the same, as a table in
//! Markdown. One thread is on CPU 0, the other on CPU 1. Runs are interleaved; medians of nanoseconds.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use kshim::block::{Bio, BioOp, BlkMode, BlockDevice};
use kshim::scatterlist::SGTable;
use kshim::sync::percpu_ref::PercpuRef;
use kshim::sync::{Completion, SpinLock, WaitQueue};
use kshim::workqueue::{FnWork, Queue};
use scst_bench::pin;

/// Runs of each; the median counts.
const ROUNDS: usize = 9;
/// Items that are under way at most, where throughput is measured.
const WINDOW: usize = 256;
/// How long a worker is left alone before its wake-up is measured: long enough to fall asleep.
const NAP: Duration = Duration::from_micros(100);

/// One run: nanoseconds for each operation.
type Run = Box<dyn FnMut() -> f64>;

/// What is compared, and who with.
struct Row {
    what: &'static str,
    sides: Vec<(&'static str, Run)>,
}

fn row(what: &'static str, sides: Vec<(&'static str, Run)>) -> Row {
    Row { what, sides }
}

fn main() -> Result<()> {
    pin(0)?;
    let part = std::env::args().nth(1).unwrap_or_default();
    let mut rows = queues()?;
    rows.extend(wakes());
    rows.extend(locks());
    rows.extend(counts());
    rows.extend(bios()?);
    rows.retain(|r| r.what.contains(&part));
    ensure!(!rows.is_empty(), "no such part");
    println!("| what, ns for each | kshim | others | kshim / best other |");
    println!("|---|---|---|---|");
    for mut row in rows {
        let mut all = vec![Vec::new(); row.sides.len()];
        for _ in 0..ROUNDS {
            for (times, (_, run)) in all.iter_mut().zip(&mut row.sides) {
                times.push(run());
            }
        }
        print_row(&row, all);
    }
    Ok(())
}

fn print_row(row: &Row, all: Vec<Vec<f64>>) {
    let middle = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let all: Vec<f64> = all.into_iter().map(middle).collect();
    let text = |ns: f64| match ns {
        ns if ns < 100.0 => format!("{ns:.1}"),
        ns => format!("{ns:.0}"),
    };
    let named = |((name, _), ns): (&(&str, Run), &f64)| format!("{name} {}", text(*ns));
    let others: Vec<String> = row.sides.iter().zip(&all).skip(1).map(named).collect();
    let best = all.iter().skip(1).copied().fold(f64::INFINITY, f64::min);
    let ratio = match best.is_finite() {
        true => format!("{:.2}", all[0] / best),
        false => String::new(),
    };
    let (what, ours) = (row.what, text(all[0]));
    println!("| {what} | {ours} | {} | {ratio} |", others.join(", "));
}

/// Nanoseconds for each of `n`.
fn timed(n: usize, mut body: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..n {
        body();
    }
    start.elapsed().as_nanos() as f64 / n as f64
}

/// The same `body` on both CPUs at once; nanoseconds for each of the `n` of one thread.
fn on_two(n: usize, body: impl Fn() + Send + Sync) -> f64 {
    let go = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            pin(1).expect("CPU 1");
            while !go.load(Ordering::Acquire) {
                std::hint::spin_loop();
            }
            timed(n, &body)
        });
        thread::sleep(Duration::from_millis(1));
        go.store(true, Ordering::Release);
        let one = timed(n, &body);
        one.max(other.join().expect("the other thread ends"))
    })
}

/// Someone who runs what he is given on CPU 1: `give` gives him an item, unless too many are under way.
struct Server {
    give: Box<dyn FnMut() -> bool>,
    done: Arc<AtomicU64>,
}

impl Server {
    fn wait(&self, n: u64) {
        while self.done.load(Ordering::Acquire) < n {
            std::hint::spin_loop();
        }
    }

    /// As many as there can be.
    fn throughput(&mut self, n: usize) -> f64 {
        let from = self.done.load(Ordering::Acquire);
        timed(1, || {
            for i in 0..n {
                // Else the giver is in the way of the one who takes.
                self.wait((from + i as u64 + 1).saturating_sub(WINDOW as u64));
                while !(self.give)() {
                    std::hint::spin_loop();
                }
            }
            self.wait(from + n as u64);
        }) / n as f64
    }

    /// One at a time, after a nap: from the call to the run.
    fn latency(&mut self, n: usize) -> f64 {
        let mut times: Vec<f64> = (0..n)
            .map(|_| {
                let from = self.done.load(Ordering::Acquire);
                let nap = Instant::now();
                while nap.elapsed() < NAP {
                    std::hint::spin_loop();
                }
                timed(1, || {
                    assert!((self.give)(), "nothing is under way");
                    self.wait(from + 1);
                })
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times[n / 2]
    }
}

type Job = Arc<dyn Fn() + Send + Sync>;

fn job(done: &Arc<AtomicU64>) -> Job {
    let done = Arc::clone(done);
    Arc::new(move || {
        done.fetch_add(1, Ordering::Release);
    })
}

fn kshim_queue() -> Result<Server> {
    let queue = Queue::alloc_ordered("bench")?;
    queue.try_spawn(|| pin(1).expect("CPU 1"))?;
    queue.flush();
    let done = Arc::new(AtomicU64::new(0));
    let item = |_| {
        let job = job(&done);
        FnWork::new(move || job())
    };
    let items: Vec<_> = (0..WINDOW).map(item).collect();
    let mut next = 0;
    let give = move || {
        let given = queue.enqueue(Arc::clone(&items[next])).is_ok();
        if given {
            next = (next + 1) % WINDOW;
        }
        given
    };
    Ok(Server {
        give: Box::new(give),
        done,
    })
}

/// A thread that takes jobs out of a channel.
fn channel(
    mut send: impl FnMut(Job) -> bool + 'static,
    recv: impl Fn() -> Option<Job> + Send + 'static,
) -> Server {
    thread::spawn(move || {
        pin(1).expect("CPU 1");
        while let Some(job) = recv() {
            job();
        }
    });
    let done = Arc::new(AtomicU64::new(0));
    let job = job(&done);
    Server {
        give: Box::new(move || send(Arc::clone(&job))),
        done,
    }
}

fn crossbeam_channel() -> Server {
    let (tx, rx) = crossbeam_channel::bounded::<Job>(WINDOW);
    channel(move |job| tx.try_send(job).is_ok(), move || rx.recv().ok())
}

fn std_channel() -> Server {
    let (tx, rx) = mpsc::sync_channel::<Job>(WINDOW);
    channel(move |job| tx.try_send(job).is_ok(), move || rx.recv().ok())
}

fn queues() -> Result<Vec<Row>> {
    let throughput = |mut s: Server| -> Run { Box::new(move || s.throughput(50_000)) };
    let latency = |mut s: Server| -> Run { Box::new(move || s.latency(300)) };
    Ok(vec![
        row(
            "queue_work, throughput of one worker",
            vec![
                ("kshim", throughput(kshim_queue()?)),
                (
                    "crossbeam channel and thread",
                    throughput(crossbeam_channel()),
                ),
                ("std channel and thread", throughput(std_channel())),
            ],
        ),
        row(
            "queue_work to an idle worker, until it runs",
            vec![
                ("kshim", latency(kshim_queue()?)),
                ("crossbeam channel and thread", latency(crossbeam_channel())),
                ("std channel and thread", latency(std_channel())),
            ],
        ),
    ])
}

/// Two threads that wake each other in turns: a wake-up.
fn ping_pong<T: Send + Sync + 'static>(
    cpu: usize,
    make: fn() -> T,
    wake: fn(&T),
    wait: fn(&T),
) -> Run {
    Box::new(move || {
        const N: usize = 3_000;
        let pair = Arc::new((make(), make()));
        let other = Arc::clone(&pair);
        let echo = thread::spawn(move || {
            pin(cpu).expect("the CPU");
            for _ in 0..N {
                wait(&other.0);
                wake(&other.1);
            }
        });
        let ns = timed(N, || {
            wake(&pair.0);
            wait(&pair.1);
        });
        echo.join().expect("the echo ends");
        ns / 2.0
    })
}

/// Something that is set, and a way to wait for it.
struct Event<M, C>(M, C);

fn by_std(cpu: usize) -> Run {
    ping_pong(
        cpu,
        || Event(std::sync::Mutex::new(false), std::sync::Condvar::new()),
        |e| {
            *e.0.lock().expect("not poisoned") = true;
            e.1.notify_one();
        },
        |e| {
            let held = e.0.lock().expect("not poisoned");
            let mut held = e.1.wait_while(held, |set| !*set).expect("not poisoned");
            *held = false;
        },
    )
}

fn by_parking_lot() -> Run {
    ping_pong(
        1,
        || Event(parking_lot::Mutex::new(false), parking_lot::Condvar::new()),
        |e| {
            *e.0.lock() = true;
            e.1.notify_one();
        },
        |e| {
            let mut held = e.0.lock();
            e.1.wait_while(&mut held, |set| !*set);
            *held = false;
        },
    )
}

/// Threads know each other only by channels of handles, so that this one is written out.
fn by_park() -> Run {
    Box::new(|| {
        const N: usize = 3_000;
        let turn = Arc::new(AtomicBool::new(false));
        let (theirs, me) = (Arc::clone(&turn), thread::current());
        let echo = thread::spawn(move || {
            pin(1).expect("CPU 1");
            for _ in 0..N {
                while !theirs.load(Ordering::Acquire) {
                    thread::park();
                }
                theirs.store(false, Ordering::Release);
                me.unpark();
            }
        });
        let ns = timed(N, || {
            turn.store(true, Ordering::Release);
            echo.thread().unpark();
            while turn.load(Ordering::Acquire) {
                thread::park();
            }
        });
        echo.join().expect("the echo ends");
        ns / 2.0
    })
}

fn wakes() -> Vec<Row> {
    let completion = ping_pong(
        1,
        Completion::new,
        Completion::complete,
        Completion::wait_for_completion,
    );
    let queue = ping_pong(
        1,
        || Event(AtomicBool::new(false), WaitQueue::new()),
        |e| {
            e.0.store(true, Ordering::Relaxed);
            e.1.wake_up();
        },
        |e| e.1.wait_event(|| e.0.swap(false, Ordering::Relaxed)),
    );
    let with = |ours: Run| {
        vec![
            ("kshim", ours),
            ("std Condvar", by_std(1)),
            ("parking_lot Condvar", by_parking_lot()),
            ("std park", by_park()),
        ]
    };
    vec![
        row("wake-up by complete()", with(completion)),
        row("wake-up by wake_up()", with(queue)),
    ]
}

/// Ten increments under a lock, then as much outside of it: alone, or against another thread.
fn locked(threads: u32, add: impl Fn() + Send + Sync + 'static) -> Run {
    let body = move || {
        add();
        for _ in 0..10 {
            std::hint::spin_loop();
        }
    };
    Box::new(move || match threads {
        1 => timed(300_000, &body),
        _ => on_two(100_000, &body),
    })
}

fn locks() -> Vec<Row> {
    let make = |what, threads| {
        let ours = SpinLock::new(0_u64);
        let std_lock = std::sync::Mutex::new(0_u64);
        let lot = parking_lot::Mutex::new(0_u64);
        let ours = locked(threads, move || *ours.lock() += 1);
        let std_lock = locked(threads, move || {
            *std_lock.lock().expect("not poisoned") += 1;
        });
        let lot = locked(threads, move || *lot.lock() += 1);
        let sides = vec![
            ("kshim", ours),
            ("std Mutex", std_lock),
            ("parking_lot Mutex", lot),
        ];
        row(what, sides)
    };
    vec![
        make("spin lock, alone (with a pause of 10 spins)", 1),
        make("spin lock, two threads (with a pause of 10 spins)", 2),
    ]
}

fn counts() -> Vec<Row> {
    let make = |what, two| {
        let run = |body: Box<dyn Fn() + Send + Sync>| -> Run {
            Box::new(move || match two {
                false => timed(500_000, &body),
                true => on_two(300_000, &body),
            })
        };
        let count = PercpuRef::new(|| {});
        let ours = Box::new(move || {
            count.get();
            count.put();
        });
        let shared = Arc::new(0_u64);
        let theirs = Box::new(move || drop(std::hint::black_box(Arc::clone(&shared))));
        let sides = vec![
            ("kshim", run(ours)),
            ("std Arc clone and drop", run(theirs)),
        ];
        row(what, sides)
    };
    vec![
        make("percpu_ref get and put, alone", false),
        make("percpu_ref get and put, two threads", true),
    ]
}

/// A read through a disk of null_blk, waited for.
fn waited(name: &str, knobs: &str) -> Result<Run> {
    let path = format!("/dev/null_blk/{name}?{knobs}");
    let disk = BlockDevice::open(&path, BlkMode::READ).context(path)?;
    let mut table = Some(SGTable::alloc(4096)?);
    let mut read = move || {
        let sg = table.take().expect("it came back");
        let bio = Bio::new(BioOp::Read, 8, 4096, Arc::new(|_: Bio, _| {}));
        let (bio, status) = disk.submit_bio_wait(bio.with_sg(sg, 0));
        status.expect("null_blk reads");
        table = Some(bio.sg);
    };
    read();
    Ok(Box::new(move || timed(10_000, &mut read)))
}

fn bios() -> Result<Vec<Row>> {
    null_blk::init()?;
    let inline = waited("a", "queue_mode=bio&irqmode=none")?;
    let worker = waited("b", "queue_mode=mq&irqmode=softirq")?;
    Ok(vec![
        row(
            "4 KiB read through null_blk, ended in the submit",
            vec![("kshim", inline)],
        ),
        row(
            "4 KiB read through null_blk, ended by another thread of the same CPU",
            vec![
                ("kshim", worker),
                ("there and back by std Condvar", twice(by_std(0))),
            ],
        ),
    ])
}

fn twice(mut run: Run) -> Run {
    Box::new(move || run() * 2.0)
}
