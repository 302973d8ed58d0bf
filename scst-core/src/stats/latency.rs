//! How long commands stay in each state, by direction and size.

use crate::consts::DataDirection;
use kshim::sync::SpinLock;
use std::fmt::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Number of size classes: up to 512 bytes, up to 1 KiB, ... up to 512 KiB and everything above.
#[doc(alias = "SCST_STATS_MAX_LOG2_SZ")]
pub const LAT_SIZE_CLASSES: usize = 11;

/// Logarithm of the size of the first class.
#[doc(alias = "SCST_STATS_LOG2_SZ_OFFSET")]
const FIRST_CLASS_LOG2: u32 = 9;

/// Samples above this are taken for a clock error and count as 0 (as SCST does).
const MAX_SAMPLE_NS: u64 = 1_000_000_000;

/// Times are kept in units of 100 ns, so that the squares of a day's samples fit.
const UNIT_NS: u64 = 100;

/// Cores that measure.
static MEASURING: AtomicUsize = AtomicUsize::new(0);

/// Whether any core of the process measures latencies now (`measure_latency`): one load, for the hot path.
#[inline]
pub fn latency_on() -> bool {
    MEASURING.load(Ordering::Relaxed) != 0
}

/// One core more, or less, measures. It discards the tables of its sessions ([`LatStats::discard`]) at either.
#[doc(alias = "scst_measure_latency")]
pub(crate) fn measure_latency(on: bool) {
    if on {
        MEASURING.fetch_add(1, Ordering::Relaxed);
    } else {
        MEASURING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Direction, as far as latency is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LatDirection {
    /// No data, or not known: attributes `n...`.
    None = 0,
    /// Attributes `r...`.
    Read = 1,
    /// Attributes `w...`.
    Write = 2,
    /// Attributes `b...`.
    Bidi = 3,
}

impl LatDirection {
    const COUNT: usize = Self::ALL.len();
    /// All of them.
    pub const ALL: [Self; 4] = [Self::None, Self::Read, Self::Write, Self::Bidi];

    /// The letter of the attribute names.
    pub const fn letter(self) -> char {
        match self {
            Self::None => 'n',
            Self::Read => 'r',
            Self::Write => 'w',
            Self::Bidi => 'b',
        }
    }
}

impl From<DataDirection> for LatDirection {
    fn from(d: DataDirection) -> Self {
        match d {
            DataDirection::Unknown | DataDirection::None => Self::None,
            DataDirection::Read => Self::Read,
            DataDirection::Write => Self::Write,
            DataDirection::Bidi => Self::Bidi,
        }
    }
}

/// Class of the expected transfer length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatSizeClass(u8);

impl LatSizeClass {
    /// The class of `len` bytes: the smallest whose size is not less, or the last.
    #[inline]
    pub fn of(len: u32) -> Self {
        let log2 = 32 - len.saturating_sub(1).leading_zeros();
        let class = log2
            .saturating_sub(FIRST_CLASS_LOG2)
            .min(LAT_SIZE_CLASSES as u32 - 1);
        Self(u8::try_from(class).unwrap_or(LAT_SIZE_CLASSES as u8 - 1))
    }

    /// All classes, smallest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..LAT_SIZE_CLASSES as u8).map(Self)
    }

    /// The size in the attribute name.
    pub const fn bytes(self) -> u32 {
        1 << (FIRST_CLASS_LOG2 + self.0 as u32)
    }
}

/// Samples of one state, direction and size.
#[doc(alias = "scst_lat_stat_entry")]
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    count: u32,
    min: u64,
    max: u64,
    sum: u64,
    sumsq: u64,
}

impl Entry {
    fn add(&mut self, t: u64) {
        if self.count == 0 {
            (self.min, self.max) = (t, t);
        } else {
            self.min = self.min.min(t);
            self.max = self.max.max(t);
        }
        self.count = self.count.saturating_add(1);
        self.sum = self.sum.saturating_add(t);
        self.sumsq = self.sumsq.saturating_add(t.saturating_mul(t));
    }
}

/// Standard deviation from count, sum and sum of squares.
fn stddev(count: u64, sum: u64, sumsq: u64) -> u64 {
    if count == 0 {
        return 0;
    }
    let (count, sum) = (u128::from(count), u128::from(sum));
    let variance = (u128::from(sumsq) - (sum * sum / count).min(u128::from(sumsq))) / count;
    u64::try_from(variance).unwrap_or(u64::MAX).isqrt()
}

/// Latencies of one session's commands. Takes no memory until the first sample.
///
/// Context: any thread; nothing sleeps.
///
/// # Examples
///
/// ```
/// use scst_core::stats::{LatDirection, LatSizeClass, LatStats};
///
/// let lat = LatStats::new(2);
/// lat.sample(1, LatDirection::Read, LatSizeClass::of(4096), 1_500);
/// let text = lat.show(LatDirection::Read, LatSizeClass::of(4096), |_| "REAL_EXEC");
/// assert!(text.contains("REAL_EXEC 1 1.5 1.5 1.5 0.0 us\n"));
/// ```
#[doc(alias = "scst_lat_stats")]
#[derive(Debug)]
pub struct LatStats {
    states: usize,
    /// By direction, size class and state.
    #[doc(alias = "lat_stats_lock")]
    table: SpinLock<Vec<Entry>>,
}

impl LatStats {
    /// Nothing sampled yet, for a state machine with so many states.
    pub const fn new(states: usize) -> Self {
        Self {
            states,
            table: SpinLock::new(Vec::new()),
        }
    }

    fn at(&self, state: usize, dir: LatDirection, size: LatSizeClass) -> usize {
        (dir as usize * LAT_SIZE_CLASSES + usize::from(size.0)) * self.states + state
    }

    /// Counts that a command was `ns` nanoseconds in state number `state`. Call it only while [`latency_on`].
    #[doc(alias = "scst_update_latency_stats")]
    pub fn sample(&self, state: usize, dir: LatDirection, size: LatSizeClass, ns: u64) {
        let t = if ns > MAX_SAMPLE_NS { 0 } else { ns / UNIT_NS };
        let at = self.at(state.min(self.states.saturating_sub(1)), dir, size);
        let mut table = self.table.lock();
        if table.is_empty() {
            table.resize(
                LatDirection::COUNT * LAT_SIZE_CLASSES * self.states,
                Entry::default(),
            );
        }
        if let Some(e) = table.get_mut(at) {
            e.add(t);
        }
    }

    /// Sets everything to zero (a write to one of the attributes).
    pub fn reset(&self) {
        self.table.lock().fill(Entry::default());
    }

    /// Gives the memory back: measuring was switched off.
    pub fn discard(&self) {
        *self.table.lock() = Vec::new();
    }

    /// The text of an attribute: a line for every state with samples, and the sum.
    #[doc(alias = "scst_sess_latency_show")]
    pub fn show<'a>(
        &self,
        dir: LatDirection,
        size: LatSizeClass,
        state_name: impl Fn(usize) -> &'a str,
    ) -> String {
        let mut text = String::from("state count min max avg stddev\n");
        let rows: Vec<Entry> = {
            let table = self.table.lock();
            let first = self.at(0, dir, size);
            table
                .get(first..first + self.states)
                .map(<[Entry]>::to_vec)
                .unwrap_or_default()
        };
        let us = |t: u64| format!("{}.{}", t / 10, t % 10);
        let (mut states, mut count, mut sum, mut sumsq) = (0u64, 0u64, 0u64, 0u64);
        for (state, e) in rows.iter().enumerate().filter(|(_, e)| e.count > 0) {
            let n = u64::from(e.count);
            let _ = writeln!(
                text,
                "{} {} {} {} {} {} us",
                state_name(state),
                n,
                us(e.min),
                us(e.max),
                us(e.sum / n),
                us(stddev(n, e.sum, e.sumsq)),
            );
            states += 1;
            count += n;
            sum = sum.saturating_add(e.sum);
            sumsq = sumsq.saturating_add(e.sumsq);
        }
        // A command is once in each state, so its total is the sum over the states of the averages.
        if let Some(avg) = states.saturating_mul(sum).checked_div(count) {
            let dev = stddev(count, sum, sumsq).saturating_mul(states);
            let _ = writeln!(
                text,
                "total {} - - {} {} us",
                count / states,
                us(avg),
                us(dev)
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn size_classes_are_the_attribute_names() {
        for (len, bytes) in [
            (0, 512),
            (1, 512),
            (512, 512),
            (513, 1024),
            (1024, 1024),
            (4096, 4096),
            (4097, 8192),
            (524_288, 524_288),
            (524_289, 524_288),
            (u32::MAX, 524_288),
        ] {
            assert_eq!(LatSizeClass::of(len).bytes(), bytes, "{len}");
        }
        assert_eq!(LatSizeClass::all().count(), LAT_SIZE_CLASSES);
        let name = |d: LatDirection, s: LatSizeClass| format!("{}{}", d.letter(), s.bytes());
        assert_eq!(
            name(LatDirection::Bidi, LatSizeClass::of(131_072)),
            "b131072"
        );
    }

    #[test]
    fn shows_states_and_total_as_scst_does() {
        let lat = LatStats::new(3);
        let (d, s) = (LatDirection::Write, LatSizeClass::of(8192));
        assert_eq!(lat.show(d, s, |_| "?"), "state count min max avg stddev\n");
        for ns in [1000, 3000] {
            lat.sample(0, d, s, ns);
        }
        lat.sample(2, d, s, 10_000);
        lat.sample(2, d, s, 10_000);
        lat.sample(2, LatDirection::Read, s, 77);
        assert_eq!(
            lat.show(d, s, |n| ["INIT", "PARSE", "EXEC"][n]),
            "state count min max avg stddev\n\
             INIT 2 1.0 3.0 2.0 1.0 us\n\
             EXEC 2 10.0 10.0 10.0 0.0 us\n\
             total 2 - - 12.0 8.0 us\n"
        );
        lat.reset();
        assert_eq!(lat.show(d, s, |_| "?").lines().count(), 1);
        lat.discard();
        assert!(lat.table.lock().is_empty());
    }

    #[test]
    fn absurd_times_count_as_nothing() {
        let lat = LatStats::new(1);
        let (d, s) = (LatDirection::None, LatSizeClass::of(0));
        lat.sample(0, d, s, u64::MAX);
        assert!(lat.show(d, s, |_| "X").contains("X 1 0.0 0.0 0.0 0.0 us"));
    }

    proptest! {
        #[test]
        fn agrees_with_the_textbook(ns in proptest::collection::vec(0u64..1_000_000_000, 1..50)) {
            let mut e = Entry::default();
            let t: Vec<u64> = ns.iter().map(|n| n / UNIT_NS).collect();
            t.iter().for_each(|n| e.add(*n));
            let mean = t.iter().sum::<u64>() as f64 / t.len() as f64;
            let var = t.iter().map(|n| (*n as f64 - mean).powi(2)).sum::<f64>() / t.len() as f64;
            prop_assert_eq!(e.min, *t.iter().min().expect("not empty"));
            prop_assert_eq!(e.max, *t.iter().max().expect("not empty"));
            let got = stddev(u64::from(e.count), e.sum, e.sumsq) as f64;
            prop_assert!((got - var.sqrt()).abs() <= 1.5, "{got} {}", var.sqrt());
        }
    }
}
