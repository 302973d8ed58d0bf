//! Build script of the server: lets the executable export what handler plug-ins of tcmu-runner import from it.

use std::fs;

/// One symbol a line.
const EXPORTS: &str = "backstores/abi/exports.txt";

include!("backstores/abi/spdk_build.rs");

#[expect(clippy::disallowed_methods, reason = "a build script has no kshim")]
fn main() {
    // Without this, a change of any file of the repository links the server anew.
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={EXPORTS}");
    let names = fs::read_to_string(EXPORTS).expect("the list of exported symbols can be read");
    for name in names.lines() {
        // Taken out of the archive though nothing in the executable needs it, and put into its dynamic symbol table.
        println!("cargo::rustc-link-arg-bin=scstd=-Wl,-u,{name}");
        println!("cargo::rustc-link-arg-bin=scstd=-Wl,--export-dynamic-symbol={name}");
    }
    println!("cargo::rerun-if-changed=backstores/abi/spdk_build.rs");
    if std::env::var_os("CARGO_FEATURE_SPDK").is_some() {
        spdk_link("bin=scstd");
    }
}
