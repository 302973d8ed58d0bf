//! What a disk is to be like.

use kshim::block::BadBlocks;
use kshim::params::Params;
use kshim::prelude::*;
use kshim::time::Delta;

/// Largest block size.
const MAX_BLOCK_SIZE: u32 = 4096;
/// Most queues.
const MAX_QUEUES: usize = 256;
/// Largest depth of a queue.
const MAX_DEPTH: usize = 10_240;
/// Largest rate, in MiB a second.
const MAX_MBPS: u64 = 1 << 20;
/// Longest delay or timeout.
const MAX_DELAY: Delta = Delta::from_secs(3600);

/// How bios get to the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueMode {
    /// Straight.
    #[doc(alias = "NULL_Q_BIO")]
    Bio,
    /// By queues with a depth.
    #[doc(alias = "NULL_Q_MQ")]
    Mq,
}

/// Who completes bios.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IrqMode {
    /// The thread that did the work.
    #[doc(alias = "NULL_IRQ_NONE")]
    None,
    /// Another thread, at once.
    #[doc(alias = "NULL_IRQ_SOFTIRQ")]
    Softirq,
    /// A timer.
    #[doc(alias = "NULL_IRQ_TIMER")]
    Timer,
}

/// The knobs of a disk; the crate's documentation has the table.
#[doc(alias = "nullb_device")]
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table in the crate's documentation")]
pub struct Config {
    pub size: u64,
    pub blocksize: u32,
    pub queue_mode: QueueMode,
    pub submit_queues: usize,
    pub hw_queue_depth: usize,
    pub irqmode: IrqMode,
    pub completion: Delta,
    pub blocking: bool,
    pub memory_backed: bool,
    pub discard: bool,
    pub cache_size: u64,
    pub fua: bool,
    pub mbps: u64,
    pub badblocks: BadBlocks,
    pub badblocks_once: bool,
    pub badblocks_partial_io: bool,
    pub timeout: Option<String>,
    pub requeue: Option<String>,
    pub io_timeout: Delta,
    pub rotational: bool,
    pub read_only: bool,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            size: 1 << 30,
            blocksize: 512,
            queue_mode: QueueMode::Mq,
            submit_queues: 1,
            hw_queue_depth: 64,
            irqmode: IrqMode::None,
            completion: Delta::from_nanos(10_000),
            blocking: false,
            memory_backed: false,
            discard: false,
            cache_size: 0,
            fua: true,
            mbps: 0,
            badblocks: BadBlocks::new(),
            badblocks_once: false,
            badblocks_partial_io: false,
            timeout: None,
            requeue: None,
            io_timeout: Delta::from_secs(30),
            rotational: false,
            read_only: false,
        }
    }
}

impl Config {
    /// The names of the knobs.
    #[doc(alias = "memb_group_features_show")]
    pub const KNOBS: [&str; 21] = [
        "badblocks",
        "badblocks_once",
        "badblocks_partial_io",
        "blocking",
        "blocksize",
        "cache_size",
        "completion_nsec",
        "discard",
        "fua",
        "hw_queue_depth",
        "io_timeout",
        "irqmode",
        "mbps",
        "memory_backed",
        "queue_mode",
        "read_only",
        "requeue",
        "rotational",
        "size",
        "submit_queues",
        "timeout",
    ];

    /// Takes the knobs out of parameters and checks them.
    ///
    /// # Errors
    ///
    /// `EINVAL`: a value that cannot be, or values that do not go together.
    pub fn take(p: &mut Params) -> Result<Config> {
        let d = Config::default();
        let millis = |n: i64| Delta::from_millis(n);
        let mut badblocks = BadBlocks::new();
        for text in p.texts("badblocks") {
            change_badblocks(&mut badblocks, &text)?;
        }
        let config = Config {
            size: p.size("size")?.unwrap_or(d.size),
            blocksize: p.number("blocksize")?.unwrap_or(d.blocksize),
            queue_mode: match p.text("queue_mode").as_deref() {
                None | Some("mq" | "2") => QueueMode::Mq,
                Some("bio" | "0") => QueueMode::Bio,
                Some(_) => return Err(EINVAL),
            },
            submit_queues: p.number("submit_queues")?.unwrap_or(d.submit_queues),
            hw_queue_depth: p.number("hw_queue_depth")?.unwrap_or(d.hw_queue_depth),
            irqmode: match p.text("irqmode").as_deref() {
                None | Some("none" | "0") => IrqMode::None,
                Some("softirq" | "1") => IrqMode::Softirq,
                Some("timer" | "2") => IrqMode::Timer,
                Some(_) => return Err(EINVAL),
            },
            completion: p
                .number("completion_nsec")?
                .map_or(d.completion, Delta::from_nanos),
            blocking: p.flag("blocking")?.unwrap_or(d.blocking),
            memory_backed: p.flag("memory_backed")?.unwrap_or(d.memory_backed),
            discard: p.flag("discard")?.unwrap_or(d.discard),
            cache_size: p.size("cache_size")?.unwrap_or(d.cache_size),
            fua: p.flag("fua")?.unwrap_or(d.fua),
            mbps: p.number("mbps")?.unwrap_or(d.mbps),
            badblocks,
            badblocks_once: p.flag("badblocks_once")?.unwrap_or(d.badblocks_once),
            badblocks_partial_io: p
                .flag("badblocks_partial_io")?
                .unwrap_or(d.badblocks_partial_io),
            timeout: p.text("timeout"),
            requeue: p.text("requeue"),
            io_timeout: p.number("io_timeout")?.map_or(d.io_timeout, millis),
            rotational: p.flag("rotational")?.unwrap_or(d.rotational),
            read_only: p.flag("read_only")?.unwrap_or(d.read_only),
        };
        config.check()?;
        Ok(config)
    }

    /// Errors: `EINVAL`, with a message.
    pub(crate) fn check(&self) -> Result {
        let block = u64::from(self.blocksize);
        let blocks = self.blocksize.is_power_of_two()
            && (512..=MAX_BLOCK_SIZE).contains(&self.blocksize)
            && self.size >= block
            && self.size.is_multiple_of(block);
        let queues = (1..=MAX_QUEUES).contains(&self.submit_queues)
            && (1..=MAX_DEPTH).contains(&self.hw_queue_depth);
        let times = [self.completion, self.io_timeout];
        let times = times.iter().all(|t| !t.is_negative() && *t <= MAX_DELAY);
        // A cache without memory behind it has nothing to lose.
        let cache = self.cache_size == 0 || self.memory_backed;
        // A bio that is done straight cannot be kept back.
        let faults = self.timeout.is_some() || self.requeue.is_some();
        let straight = self.queue_mode == QueueMode::Mq || !faults;
        let checks = [
            (blocks, "size or blocksize"),
            (queues, "submit_queues or hw_queue_depth"),
            (times, "completion_nsec or io_timeout"),
            (cache, "cache_size without memory_backed"),
            (straight, "faults need queue_mode=mq"),
            (self.mbps <= MAX_MBPS, "mbps"),
        ];
        for (good, what) in checks {
            if !good {
                pr_err!("null_blk: {what}: not valid");
                return Err(EINVAL);
            }
        }
        Ok(())
    }

    /// Whether bios end inside the submit.
    pub(crate) fn is_inline(&self) -> bool {
        self.queue_mode == QueueMode::Bio
            && self.irqmode == IrqMode::None
            && !self.blocking
            && self.mbps == 0
    }
}

/// Applies `+FIRST-LAST` (bad) or `-FIRST-LAST` (good). Errors: `EINVAL`, `ENOSPC`.
#[doc(alias = "nullb_device_badblocks_store")]
pub(crate) fn change_badblocks(bb: &mut BadBlocks, text: &str) -> Result {
    let text = text.trim();
    let (bad, range) = match text.split_at_checked(1) {
        // A space is what is left of a plus in a URL.
        Some(("+" | " ", range)) => (true, range),
        Some(("-", range)) => (false, range),
        _ => (true, text),
    };
    let (first, last) = range.split_once('-').ok_or(EINVAL)?;
    let number = |t: &str| t.parse::<u64>().map_err(|_| EINVAL);
    let (first, last) = (number(first)?, number(last)?);
    let sectors = last.checked_sub(first).and_then(|n| n.checked_add(1));
    let sectors = sectors.ok_or(EINVAL)?;
    if bad {
        bb.set(first, sectors)
    } else {
        bb.clear(first, sectors)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<Config> {
        let mut p = Params::parse(text)?;
        let config = Config::take(&mut p)?;
        p.finish()?;
        Ok(config)
    }

    #[test]
    fn each_knob_is_known() {
        for knob in Config::KNOBS {
            let mut p = Params::parse(&format!("{knob}=zzz")).unwrap();
            // Refused for its value, or taken.
            assert!(
                Config::take(&mut p).is_err() || p.finish().is_ok(),
                "{knob}"
            );
        }
        assert!(Config::KNOBS.is_sorted());
    }

    #[test]
    fn knobs_are_taken_and_checked() {
        assert_eq!(take(""), Ok(Config::default()));
        let c = take(
            "size=8M&blocksize=4096&queue_mode=bio&irqmode=timer&badblocks=+8-15&badblocks=-9-9",
        )
        .unwrap();
        assert_eq!(
            (c.size, c.blocksize, c.irqmode),
            (8 << 20, 4096, IrqMode::Timer)
        );
        assert_eq!(c.badblocks.show(), "8 1\n10 6\n");
        assert!(!c.is_inline() && take("queue_mode=0").unwrap().is_inline());
        for bad in [
            "size=0",
            "size=100",
            "blocksize=256",
            "blocksize=8192",
            "blocksize=1000",
            "queue_mode=1",
            "irqmode=3",
            "submit_queues=0",
            "hw_queue_depth=0",
            "completion_nsec=-1",
            "cache_size=1M",
            "queue_mode=bio&timeout=1,1,0,1",
            "mbps=x",
            "badblocks=5",
            "badblocks=+5-4",
            "nonsense=1",
        ] {
            assert_eq!(take(bad), Err(EINVAL), "{bad}");
        }
    }
}
