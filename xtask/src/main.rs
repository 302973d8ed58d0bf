//! House tasks: `cargo xtask ci|tidy|nightly`.
fn main() {}
