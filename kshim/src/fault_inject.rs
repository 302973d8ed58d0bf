//! Fault injection: when something is to fail, for tests of what then happens.
//!
//! C header: `include/linux/fault-inject.h`

use crate::error::{Result, code};
use crate::sync::SpinLock;
use crate::sys::rand;

/// When to fail. At first: never.
///
/// A call of [`FaultAttr::should_fail`] fails when `space` is used up, it is a multiple of `interval`, chance says so
/// (`probability` in percent), and less than `times` have failed.
///
/// ```
/// use kshim::fault_inject::FaultAttr;
///
/// let fail = FaultAttr::new();
/// assert!(!fail.should_fail(1));
/// fail.setup("2,100,0,1")?;
/// assert_eq!([fail.should_fail(1), fail.should_fail(1)], [false, true]);
/// assert!((0..10).all(|_| !fail.should_fail(1)));
/// assert_eq!(fail.show(), "2,100,0,0\n");
/// # Ok::<(), kshim::error::Error>(())
/// ```
#[doc(alias = "fault_attr")]
#[derive(Debug)]
pub struct FaultAttr(SpinLock<State>);

#[derive(Debug, Clone, Copy)]
struct State {
    interval: u64,
    probability: u32,
    space: u64,
    /// -1: no limit.
    times: i64,
    count: u64,
    random: u64,
}

impl FaultAttr {
    /// One that never fails.
    #[doc(alias = "DECLARE_FAULT_ATTR")]
    #[doc(alias = "FAULT_ATTR_INITIALIZER")]
    pub fn new() -> FaultAttr {
        FaultAttr(SpinLock::new(State {
            interval: 1,
            probability: 0,
            space: 0,
            times: 1,
            count: 0,
            // Any number but 0 will do where the host has no randomness.
            random: rand::random_u64().unwrap_or(1) | 1,
        }))
    }

    /// Sets it from `INTERVAL,PROBABILITY,SPACE,TIMES`, as the kernel's boot parameters have it; counting begins anew.
    ///
    /// Context: any. Errors: `EINVAL`: other text, a percentage above 100, or less than -1 times; nothing changes.
    #[doc(alias = "setup_fault_attr")]
    pub fn setup(&self, text: &str) -> Result {
        let mut parts = text.trim().split(',');
        let mut next = || parts.next().ok_or(code::EINVAL);
        let (interval, probability, space, times) = (next()?, next()?, next()?, next()?);
        let probability: u32 = probability.parse().map_err(|_| code::EINVAL)?;
        let times: i64 = times.parse().map_err(|_| code::EINVAL)?;
        if parts.next().is_some() || probability > 100 || times < -1 {
            return Err(code::EINVAL);
        }
        let interval = interval.parse().map_err(|_| code::EINVAL)?;
        let space = space.parse().map_err(|_| code::EINVAL)?;
        let mut st = self.0.lock();
        *st = State {
            interval,
            probability,
            space,
            times,
            count: 0,
            random: st.random,
        };
        Ok(())
    }

    /// Whether this one fails. `size` is what it takes of `space`.
    ///
    /// Context: any.
    pub fn should_fail(&self, size: u64) -> bool {
        let mut st = self.0.lock();
        if st.probability == 0 || st.times == 0 {
            return false;
        }
        if st.space > size {
            st.space -= size;
            return false;
        }
        if st.interval > 1 {
            st.count = st.count.wrapping_add(1);
            if !st.count.is_multiple_of(st.interval) {
                return false;
            }
        }
        // Marsaglia's xorshift64: enough for chance.
        st.random ^= st.random << 13;
        st.random ^= st.random >> 7;
        st.random ^= st.random << 17;
        if u64::from(st.probability) <= (st.random >> 11) % 100 {
            return false;
        }
        if st.times > 0 {
            st.times -= 1;
        }
        true
    }

    /// The text that [`FaultAttr::setup`] takes, with what is left of space and times.
    pub fn show(&self) -> String {
        let st = self.0.lock();
        let State {
            interval,
            probability,
            space,
            times,
            ..
        } = *st;
        format!("{interval},{probability},{space},{times}\n")
    }
}

impl Default for FaultAttr {
    fn default() -> FaultAttr {
        FaultAttr::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_used_up_before_anything_fails() {
        let f = FaultAttr::new();
        f.setup("1,100,10,-1").unwrap();
        let failed: Vec<bool> = (0..5).map(|_| f.should_fail(4)).collect();
        assert_eq!(failed, [false, false, true, true, true]);
    }

    #[test]
    fn chance_is_about_what_was_asked_for() {
        let f = FaultAttr::new();
        f.setup("1,25,0,-1").unwrap();
        let n = (0..4000).filter(|_| f.should_fail(1)).count();
        assert!((700..1300).contains(&n), "{n}");
    }

    #[test]
    fn nonsense_is_refused_and_changes_nothing() {
        let f = FaultAttr::default();
        f.setup("3,50,0,-1").unwrap();
        for bad in [
            "",
            "1",
            "1,101,0,1",
            "1,1,0,-2",
            "1,1,0,1,1",
            "x,1,0,1",
            "-1,1,0,1",
        ] {
            assert_eq!(f.setup(bad), Err(code::EINVAL), "{bad}");
        }
        assert_eq!(f.show(), "3,50,0,-1\n");
    }
}
