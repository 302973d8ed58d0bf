//! Limits against plain sums, statistics against SCST's text.

use super::*;
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn pools(max: u64) -> Arc<SgvPools> {
    SgvPools::new(&SgvConfig {
        max_cmd_mem: max,
        cpus: 2,
    })
}

#[test]
fn memory_comes_in_one_piece_and_is_charged_by_class() {
    let p = pools(64 * MIB);
    let dev = p.device_limit(32 * MIB);
    for (len, pages) in [
        (1, 1),
        (4096, 1),
        (4097, 2),
        (70_000, 32),
        (4 << 20, 1024),
        (5 << 20, 1280),
    ] {
        let mut sg = SGTable::new();
        let obj = p
            .alloc(SgvKind::Norm, &dev, &mut sg, len, SgvInit::Zeroed)
            .expect("fits");
        assert_eq!((sg.len(), sg.nents(), obj.pages()), (len, 1, pages));
        assert_eq!(dev.used_pages(), i64::from(pages));
        assert_eq!(p.global_stats().active_pages, u64::from(pages));
        assert!(
            sg.as_slice(0, len)
                .is_some_and(|s| s.iter().all(|b| *b == 0))
        );
        p.free(obj, &dev, &mut sg);
        assert!(sg.is_empty());
        assert_eq!(dev.used_pages(), 0);
    }
    let mut sg = SGTable::new();
    let none = p
        .alloc(SgvKind::Norm, &dev, &mut sg, 0, SgvInit::Any)
        .expect("nothing fits");
    p.free(none, &dev, &mut sg);
}

#[test]
fn limits_refuse_and_recover() {
    let p = pools(MIB);
    let (a, b) = (p.device_limit(MIB / 2), p.device_limit(8 * MIB));
    let mut sg = SGTable::new();
    let r = p.alloc(SgvKind::Norm, &a, &mut sg, MIB as usize, SgvInit::Any);
    assert_eq!(r.map(|_| ()), Err(code::ENOMEM), "the device's limit");
    let obj = p
        .alloc(SgvKind::Norm, &b, &mut sg, MIB as usize, SgvInit::Any)
        .expect("fits");
    let mut other = SGTable::new();
    let r = p.alloc(SgvKind::Norm, &a, &mut other, 1, SgvInit::Any);
    assert_eq!(r.map(|_| ()), Err(code::ENOMEM), "the high watermark");
    assert_eq!(a.used_pages(), 0, "nothing stays charged");
    let g = p.global_stats();
    assert_eq!((g.hi_releases, g.hi_failures, g.active_pages), (1, 1, 256));
    p.free(obj, &b, &mut sg);
    let obj = p
        .alloc(
            SgvKind::Norm,
            &a,
            &mut other,
            MIB as usize / 2,
            SgvInit::Any,
        )
        .expect("fits");
    p.free(obj, &a, &mut other);
    p.reset_global_stats();
    assert_eq!(p.global_stats().hi_failures, 0);
}

#[test]
fn statistics_have_scst_s_form() {
    let p = pools(64 * MIB);
    p.set_force_global(true);
    let dev = p.device_limit(32 * MIB);
    for _ in 0..4 {
        let mut sg = SGTable::new();
        let obj = p
            .alloc(SgvKind::Clust, &dev, &mut sg, 4096, SgvInit::Any)
            .expect("fits");
        p.free(obj, &dev, &mut sg);
    }
    let names: Vec<String> = p.pools().map(|p| p.name().to_owned()).collect();
    assert_eq!(
        names[..6],
        [
            "sgv",
            "sgv-clust",
            "sgv-dma",
            "sgv-0",
            "sgv-clust-0",
            "sgv-dma-0"
        ]
    );
    let pool = p.pools().nth(1).expect("there");
    let text = pool.stats_text();
    let mut lines = text.lines();
    assert_eq!(
        lines.next(),
        Some("Name                           Hit         Total       % merged    Cached (P/I/O)")
    );
    assert_eq!(
        lines.next(),
        Some("sgv-clust                      3           4           0           1/1/1")
    );
    assert_eq!(
        lines.next(),
        Some("  sgv-clust-4K                 3           4           0")
    );
    assert_eq!(
        text.lines().last(),
        Some("  big/other                                0/0         0/0")
    );
    pool.reset_stats();
    assert!(
        pool.stats_text()
            .contains("sgv-clust                      0           0 ")
    );
    assert!(p.global_stats().to_string().starts_with(
        "Inactive/active pages                      1/0\n\
         Hi/lo watermarks [pages]                   16384/0\n"
    ));
    p.flush();
    assert_eq!(p.global_stats().inactive_pages, 0);
    p.stop();
}

#[test]
fn a_free_schedules_the_purge_and_stop_cancels_it() {
    let p = pools(MIB);
    let dev = p.device_limit(MIB);
    assert!(!p.purge_work.pending());
    let mut sg = SGTable::new();
    let obj = p
        .alloc(SgvKind::Dma, &dev, &mut sg, 1, SgvInit::Any)
        .expect("fits");
    p.free(obj, &dev, &mut sg);
    assert!(p.purge_work.pending());
    p.stop();
    assert!(!p.purge_work.pending());
    Arc::clone(&p).run();
    p.stop();
    assert_eq!(Arc::strong_count(&p), 1, "no work holds the pools");
}

#[test]
#[expect(clippy::disallowed_methods, reason = "a plain thread is enough")]
fn memory_freed_elsewhere_is_no_longer_in_use() {
    let p = pools(16 * MIB);
    let dev = p.device_limit(8 * MIB);
    let mut sg = SGTable::new();
    let obj = p
        .alloc(SgvKind::Norm, &dev, &mut sg, 9000, SgvInit::Any)
        .expect("fits");
    std::thread::scope(|s| {
        s.spawn(|| p.free(obj, &dev, &mut sg));
    });
    assert_eq!(dev.used_pages(), 0);
    let g = p.global_stats();
    assert_eq!((g.active_pages, g.inactive_pages), (0, 4));
    p.stop();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn a_limit_is_a_plain_sum_for_one_thread(
        limit in 0u64..3000,
        ops in proptest::collection::vec((any::<bool>(), 1u32..600), 0..200),
    ) {
        let lim = MemLim::new(limit << PAGE_SHIFT, None);
        let mut held: Vec<u32> = Vec::new();
        let mut sum = 0u64;
        for (free, n) in ops {
            if free {
                if let Some(n) = held.pop() {
                    lim.uncharge(n);
                    sum -= u64::from(n);
                }
            } else {
                let fits = sum + u64::from(n) <= limit;
                prop_assert_eq!(lim.charge(n).is_ok(), fits);
                if fits {
                    held.push(n);
                    sum += u64::from(n);
                }
            }
            prop_assert_eq!(lim.used_pages() as u64, sum);
            prop_assert!(lim.credit_pages() <= 3 * 64, "hoards {}", lim.credit_pages());
        }
        held.drain(..).for_each(|n| lim.uncharge(n));
        lim.reclaim();
        prop_assert_eq!(lim.charged_pages(), 0);
    }
}

#[test]
#[expect(
    clippy::disallowed_methods,
    reason = "plain threads, to race on purpose"
)]
fn threads_together_never_exceed_a_limit() {
    use std::sync::atomic::AtomicI64;
    let lim = MemLim::new(500 << PAGE_SHIFT, None);
    let used = AtomicI64::new(0);
    std::thread::scope(|s| {
        for t in 0..4u32 {
            let (lim, used) = (&lim, &used);
            s.spawn(move || {
                let mut held = Vec::new();
                for i in 0..50_000u32 {
                    let n = (i * 7919 + t * 31) % 60 + 1;
                    if held.len() < 8 && lim.charge(n).is_ok() {
                        let now = used.fetch_add(i64::from(n), Ordering::SeqCst) + i64::from(n);
                        assert!(now <= 500, "{now} pages in use");
                        held.push(n);
                    } else if let Some(n) = held.pop() {
                        used.fetch_sub(i64::from(n), Ordering::SeqCst);
                        lim.uncharge(n);
                    }
                }
                held.into_iter().for_each(|n| {
                    used.fetch_sub(i64::from(n), Ordering::SeqCst);
                    lim.uncharge(n);
                });
            });
        }
    });
    assert_eq!(lim.used_pages(), 0);
    assert!(lim.charge(500).is_ok(), "all of it can be used");
    lim.uncharge(500);
}
