//! Compares the behaviour of iSCSI targets, byte for byte.
//!
//! A [`Case`] is a recorded conversation: steps that an initiator (or an administrator, see [`Manage`]) takes, and what
//! the recorded target answered. [`Runner`] takes the steps of a case on a live target, [`judge`] compares the answers
//! with the recorded ones, or with those of another target, by the rules that the case states.
//!
//! The program `scst-compare` does this from the command line.
//!
//! ```no_run
//! use scst_compare::{Case, Options, Runner, Target, judge, recorded};
//!
//! let cases = Case::parse_all(scst_compare::BATTERY)?;
//! let target: Target = "iscsi://127.0.0.1:3260/iqn.2026-01.org.example:scst".parse()?;
//! let mut runner = Runner::new(target, Options::default(), None);
//! for case in &cases {
//!     println!("{}: {}", case.name, judge(case, &recorded(case), &runner.run(case)));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod chap;
mod diff;
mod manage;
mod run;
mod transcript;

pub use diff::{Difference, Verdict, judge, without_identity};
pub use manage::{Errno, Manage};
pub use run::{Answers, Options, Runner, Target, recorded};
pub use transcript::{Access, Action, Case, Open, ParseError, Rules, Scsi, Stage, Step};

/// The recorded conversations with kernel SCST that need no management.
pub const BATTERY: &str = include_str!("../../tests/behaviour/kernel-scst.jsonl");
