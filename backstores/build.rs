//! Builds the C half of the plug-in interface, and lets this package's tests and examples export what plug-ins import.

use std::fs;

#[expect(clippy::disallowed_methods, reason = "a build script has no kshim")]
fn main() {
    println!("cargo::rerun-if-changed=c/shim.c");
    println!("cargo::rerun-if-changed=abi/tcmu-runner.h");
    println!("cargo::rerun-if-changed=abi/exports.txt");
    cc::Build::new()
        .file("c/shim.c")
        .include("abi")
        .warnings(true)
        .extra_warnings(true)
        .compile("scst_tcmur_shim");
    let target = std::env::var("TARGET").expect("cargo sets it");
    // As Debian names its folders: without the vendor.
    let parts: Vec<&str> = target.split('-').collect();
    let multiarch = match parts.as_slice() {
        [arch, _vendor, os, abi] => format!("{arch}-{os}-{abi}"),
        _ => target.clone(),
    };
    println!("cargo::rustc-env=SCST_MULTIARCH={multiarch}");
    let names = fs::read_to_string("abi/exports.txt").expect("abi/exports.txt can be read");
    for name in names.lines() {
        for kind in ["tests", "examples"] {
            println!("cargo::rustc-link-arg-{kind}=-Wl,-u,{name}");
            println!("cargo::rustc-link-arg-{kind}=-Wl,--export-dynamic-symbol={name}");
        }
    }
}
