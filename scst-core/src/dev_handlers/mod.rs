//! Device handlers.
