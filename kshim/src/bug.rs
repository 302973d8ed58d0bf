//! bug
