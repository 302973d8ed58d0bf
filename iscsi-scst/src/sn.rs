//! Serial numbers of iSCSI.
//!
//! CmdSN, StatSN, DataSN and R2TSN are 32-bit counters that wrap; they are compared by serial-number arithmetic
//! (RFC 1982; RFC 7143 4.2.2.1 demands it with SERIAL_BITS = 32). Plain `<` is wrong for them half of the time,
//! so the types here have no `Ord`: ask [`CmdSn::precedes`] or [`CmdSn::in_window`] instead.
//!
//! Key types: [`CmdSn`], [`StatSn`], [`DataSn`], [`R2tSn`]. Any context; nothing here blocks or allocates.
//!
//! C source: `iscsi-scst/kernel/iscsi.h` (`before`, `after`).

use zerocopy::big_endian::U32;

/// Half of the number space: the largest distance that still has a direction (RFC 1982 3.2).
const HALF: u32 = 1 << 31;

macro_rules! serial_number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
        pub struct $name(pub u32);

        impl $name {
            /// The number after this one; 2^32 - 1 is followed by 0.
            #[must_use]
            pub const fn next(self) -> Self {
                self.advance(1)
            }

            /// The number `n` steps ahead.
            #[must_use]
            pub const fn advance(self, n: u32) -> Self {
                Self(self.0.wrapping_add(n))
            }

            /// The number `n` steps back.
            #[must_use]
            pub const fn back(self, n: u32) -> Self {
                Self(self.0.wrapping_sub(n))
            }

            /// Returns this number and steps to the next one, as a sender numbers its PDUs.
            #[must_use]
            pub const fn take(&mut self) -> Self {
                let taken = *self;
                *self = self.next();
                taken
            }

            /// How many steps lead from `earlier` forward to this number, modulo 2^32.
            #[must_use]
            pub const fn distance_from(self, earlier: Self) -> u32 {
                self.0.wrapping_sub(earlier.0)
            }

            /// Whether this number comes before `other` (RFC 1982 3.2). Two numbers exactly 2^31 apart have no
            /// order: neither precedes the other.
            #[doc(alias = "before")]
            #[must_use]
            pub const fn precedes(self, other: Self) -> bool {
                let ahead = other.distance_from(self);
                ahead != 0 && ahead < HALF
            }

            /// Whether this number comes after `other`.
            #[doc(alias = "after")]
            #[must_use]
            pub const fn follows(self, other: Self) -> bool {
                other.precedes(self)
            }

            /// Whether this number lies in the window that starts with `first` and ends with `last`, both
            /// included. A window whose `last` is the number just before `first` is empty, which is how a target
            /// with no room announces itself (MaxCmdSN = ExpCmdSN - 1, RFC 7143 4.2.2.1).
            #[must_use]
            pub const fn in_window(self, first: Self, last: Self) -> bool {
                let len = last.next().distance_from(first);
                len <= HALF && self.distance_from(first) < len
            }
        }

        impl From<U32> for $name {
            fn from(wire: U32) -> Self {
                Self(wire.get())
            }
        }

        impl From<$name> for U32 {
            fn from(sn: $name) -> Self {
                Self::new(sn.0)
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                std::fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

serial_number! {
    /// Command sequence number: orders the commands of a session (RFC 7143 4.2.2.1). ExpCmdSN and MaxCmdSN are
    /// values of this type.
    ///
    /// ```
    /// use iscsi_scst::sn::CmdSn;
    ///
    /// let exp_cmd_sn = CmdSn(u32::MAX);
    /// let max_cmd_sn = exp_cmd_sn.advance(31);
    /// assert!(CmdSn(5).in_window(exp_cmd_sn, max_cmd_sn));
    /// assert!(exp_cmd_sn.precedes(CmdSn(0)));
    /// ```
    CmdSn
}

serial_number! {
    /// Status sequence number: numbers the responses of a connection (RFC 7143 4.2.2.2). ExpStatSN is a value of
    /// this type.
    StatSn
}

serial_number! {
    /// Data sequence number within a command or an R2T (RFC 7143 4.2.2.3).
    DataSn
}

serial_number! {
    /// R2T sequence number within a command (RFC 7143 4.2.2.3).
    R2tSn
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn take_numbers_in_order_and_wraps() {
        let mut sn = StatSn(u32::MAX);
        assert_eq!(sn.take(), StatSn(u32::MAX));
        assert_eq!(sn.take(), StatSn(0));
        assert_eq!(sn, StatSn(1));
    }

    #[test]
    fn opposite_numbers_have_no_order() {
        assert!(!CmdSn(0).precedes(CmdSn(HALF)));
        assert!(!CmdSn(HALF).precedes(CmdSn(0)));
        assert!(!CmdSn(0).follows(CmdSn(HALF)));
    }

    #[test]
    fn closed_window_holds_nothing() {
        for start in [0, 1, 77, u32::MAX] {
            let exp = CmdSn(start);
            let max = exp.back(1);
            assert!(!exp.in_window(exp, max));
            assert!(!max.in_window(exp, max));
            assert!(!exp.advance(HALF).in_window(exp, max));
        }
    }

    proptest! {
        #[test]
        fn precedes_is_antisymmetric(a: u32, b: u32) {
            let (a, b) = (CmdSn(a), CmdSn(b));
            prop_assert!(!(a.precedes(b) && b.precedes(a)));
            prop_assert_eq!(a.precedes(b), b.follows(a));
            prop_assert_eq!(a == b || a.precedes(b) || b.precedes(a), a.0 ^ b.0 != HALF);
        }

        #[test]
        fn order_agrees_with_wide_arithmetic(a: u32, step in 1u32..HALF) {
            prop_assert!(CmdSn(a).precedes(CmdSn(a).advance(step)));
            prop_assert!(!CmdSn(a).advance(step).precedes(CmdSn(a)));
            prop_assert_eq!(CmdSn(a).advance(step).back(step), CmdSn(a));
        }

        #[test]
        fn window_agrees_with_wide_arithmetic(first: u32, len in 0u32..=HALF, offset: u32) {
            let exp = CmdSn(first);
            let max = exp.advance(len).back(1);
            prop_assert_eq!(exp.advance(offset).in_window(exp, max), u64::from(offset) < u64::from(len));
        }

        #[test]
        fn wire_round_trip(a: u32) {
            prop_assert_eq!(StatSn::from(U32::from(StatSn(a))), StatSn(a));
        }
    }
}
