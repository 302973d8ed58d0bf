//! `scst-steps [NAME] [--iters N]`: the hot steps of a command, one by one, in nanoseconds each (least of several
//! batches, as the machine may be shared). With a name and `--iters` it runs exactly that: for callgrind.
#![forbid(unsafe_code)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use iscsi_scst::pdu::hdr::{DataInHdr, ScsiRspHdr};
use iscsi_scst::pdu::{Bhs, Digests, Request};
use iscsi_scst::sn::{CmdSn, StatSn};
use kshim::crypto::{crc32c, crc32c_append};
use kshim::page::LentMem;
use kshim::scatterlist::SGTable;
use kshim::sync::percpu_ref::PercpuRef;
use kshim::sync::rcu::{self, Rcu};
use scst_bench::wire::{FINAL, header, op, put32, put64};
use scst_core::cdb::{get_cdb_info, sbc_generic_parse};
use scst_core::consts::QueueType;
use scst_core::lun::Lun;
use scst_core::order::{CheckSn, HasTicket, OrderData, OrderTicket};
use scst_core::parking::Abortable;
use scst_core::sgv::{SgvConfig, SgvInit, SgvKind, SgvPools};
use zerocopy::IntoBytes as _;

/// Iterations of a batch, and batches.
const BATCH: u64 = 20_000;
const BATCHES: u32 = 25;
/// Direct access, 512-byte blocks.
const DISK: u8 = 0;
const BLOCK_SHIFT: u8 = 9;

/// Times the hot steps of a command
#[derive(Debug, Parser)]
struct Cli {
    /// Only this step
    name: Option<String>,
    /// Run it so many times, without a clock
    #[arg(long, requires = "name")]
    iters: Option<u64>,
}

/// Runs a step so many times.
type Step = Box<dyn FnMut(u64)>;

fn main() -> Result<()> {
    let cli = Cli::parse();
    let mut found = false;
    for (name, mut step) in steps()? {
        if cli.name.as_ref().is_some_and(|n| n != name) {
            continue;
        }
        found = true;
        if let Some(n) = cli.iters {
            step(n);
            continue;
        }
        step(BATCH / 10);
        let mut best = f64::MAX;
        for _ in 0..BATCHES {
            let start = Instant::now();
            step(BATCH);
            best = best.min(start.elapsed().as_nanos() as f64 / BATCH as f64);
        }
        println!("{name:<24} {best:>9.1} ns");
    }
    ensure!(found, "no such step");
    Ok(())
}

fn steps() -> Result<Vec<(&'static str, Step)>> {
    let mut all = protocol();
    all.extend(core_steps()?);
    all.extend(memory()?);
    Ok(all)
}

/// `body` in a loop.
fn looped<T>(mut body: impl FnMut() -> T + 'static) -> Step {
    Box::new(move |n| {
        for _ in 0..n {
            black_box(body());
        }
    })
}

fn read_cdb() -> [u8; 16] {
    let mut cdb = [0; 16];
    cdb[0] = 0x88;
    put64(&mut cdb, 2, 0x1234_5678);
    put32(&mut cdb, 10, 8);
    cdb
}

fn protocol() -> Vec<(&'static str, Step)> {
    let mut cmd = header(op::SCSI_CMD, FINAL | 0x41, 0);
    put32(&mut cmd, 20, 4096);
    cmd[32..].copy_from_slice(&read_cdb());
    let digests = Digests::default();
    let parse = looped(move || {
        let (bhs, _) = Bhs::split(black_box(&cmd))?;
        let layout = bhs.layout(digests)?;
        match bhs.request() {
            Request::ScsiCmd(c) => Some((layout.total, c.cmd_sn.get(), bhs.itt())),
            _ => None,
        }
    });
    let mut sn = 0_u32;
    let data_in = looped(move || {
        sn = sn.wrapping_add(1);
        let mut h = DataInHdr::new();
        h.flags = 0x80;
        h.data_segment_len = [0, 16, 0];
        h.itt = sn.into();
        h.set_sns(
            Some((0, StatSn(sn))),
            CmdSn(sn),
            CmdSn(sn.wrapping_add(255)),
        );
        black_box(h.as_bytes());
    });
    let response = looped(move || {
        sn = sn.wrapping_add(1);
        let mut h = ScsiRspHdr::new();
        h.itt = sn.into();
        h.set_sns(StatSn(sn), CmdSn(sn), CmdSn(sn.wrapping_add(255)));
        black_box(h.as_bytes());
    });
    vec![
        ("pdu_parse", parse),
        ("response_data_in", data_in),
        ("response_scsi", response),
        ("crc32c_48", crc(48)),
        ("crc32c_4096", crc(4096)),
        ("crc32c_131072", crc(131_072)),
    ]
}

fn crc(len: usize) -> Step {
    let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
    if len > 4096 {
        return looped(move || crc32c_append(0, black_box(&data)));
    }
    looped(move || crc32c(black_box(&data)))
}

struct Item(OrderTicket);

impl Abortable for Item {
    fn is_aborted(&self) -> bool {
        false
    }
}

impl HasTicket for Item {
    fn ticket(&mut self) -> &mut OrderTicket {
        &mut self.0
    }
}

fn core_steps() -> Result<Vec<(&'static str, Step)>> {
    let cdb = read_cdb();
    let decode = looped(move || {
        let info = get_cdb_info(DISK, BLOCK_SHIFT, black_box(&cdb)).ok()?;
        sbc_generic_parse(&info, BLOCK_SHIFT).ok()?;
        Some(info.lba)
    });
    let table = Rcu::new((0..64_u64).map(|n| Some(Arc::new(n))).collect::<Vec<_>>());
    let lookup = looped(move || {
        let lun = Lun::unpack(black_box(&[0, 17, 0, 0, 0, 0, 0, 0]))?;
        let guard = rcu::read_lock();
        let at = usize::try_from(u64::from(lun)).ok()?;
        table.read(&guard).get(at)?.as_deref().copied()
    });
    let nested = looped({
        let cell = Rcu::new(5_u64);
        let mut outer = None;
        move || {
            // As on a reactor, which holds the lock for a whole round.
            let outer = outer.get_or_insert_with(rcu::read_lock);
            let inner = rcu::read_lock();
            *cell.read(outer) + *cell.read(&inner)
        }
    });
    let order = OrderData::<Item>::new();
    let sn = looped(move || {
        let mut item = Item(OrderTicket::default());
        order.set_sn(&mut item.0, QueueType::Simple, false);
        let CheckSn::Proceed(mut item) = order.check_sn(item) else {
            return false;
        };
        let released = order.post_exec(&mut item.0).is_empty();
        released && order.finish(&mut item.0).is_empty()
    });
    let count = PercpuRef::new(|| {});
    let getput = looped(move || {
        count.get();
        count.put();
    });
    Ok(vec![
        ("cdb_decode", decode),
        ("lun_lookup", lookup),
        ("sn_set_check_post", sn),
        ("percpu_ref_get_put", getput),
        // Last of these: it keeps its read lock to the end.
        ("rcu_read_nested", nested),
    ])
}

fn memory() -> Result<Vec<(&'static str, Step)>> {
    let config = SgvConfig {
        max_cmd_mem: 64 << 20,
        cpus: 2,
    };
    let pools = SgvPools::new(&config);
    let device = pools.device_limit(config.max_dev_cmd_mem());
    let sgv = |len: usize| {
        let (pools, device, mut sg) = (Arc::clone(&pools), Arc::clone(&device), SGTable::new());
        looped(move || {
            let got = pools.alloc(SgvKind::Norm, &device, &mut sg, len, SgvInit::Any);
            if let Ok(obj) = got {
                pools.free(obj, &device, &mut sg);
            }
        })
    };
    let lent = LentMem::anonymous(1 << 20).context("memory")?;
    let from = lent.clone();
    let mut table = SGTable::new();
    let lend = looped(move || {
        table.clear();
        let range = from.range(8192, 4096)?;
        table.push_lent(range)
    });
    let mut table = SGTable::alloc(4096)?;
    let mut copy = vec![7; 4096];
    let copies = looped(move || {
        table.copy_from_slice(0, &copy)?;
        table.copy_to_slice(0, &mut copy)
    });
    let source = SGTable::alloc_zeroed(4096)?;
    let to_lent = looped(move || source.copy_to_lent(0, &lent, 0, 4096));
    Ok(vec![
        ("sgv_4096", sgv(4096)),
        ("sgv_131072", sgv(131_072)),
        ("sg_push_lent", lend),
        ("sg_copy_in_out_4096", copies),
        ("sg_copy_to_lent_4096", to_lent),
    ])
}
