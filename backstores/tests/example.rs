//! The backstore of `examples/sparse.rs` does what it says, also under the tests' own requests.
#![allow(
    clippy::disallowed_types,
    unreachable_pub,
    reason = "the example is compiled as it stands"
)]

#[path = "../examples/sparse.rs"]
mod sparse;

#[test]
fn a_backstore_in_a_hundred_lines() {
    sparse::main().unwrap();
}
