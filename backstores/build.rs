//! Builds the C half of the plug-in interface, and lets this package's tests and examples export what plug-ins import.

use std::fs;

include!("abi/spdk_build.rs");

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
    println!("cargo::rerun-if-changed=abi/spdk_build.rs");
    if std::env::var_os("CARGO_FEATURE_SPDK").is_some() {
        spdk();
    }
}

/// Makes the bindings to the SPDK that is installed, and links what is used of it.
#[expect(clippy::disallowed_methods, reason = "a build script has no kshim")]
fn spdk() {
    println!("cargo::rerun-if-changed=abi/spdk.h");
    let dir = std::env::var("OUT_DIR").expect("cargo sets it");
    let raw = format!("{dir}/spdk-raw.rs");
    let mut bindgen = std::process::Command::new("bindgen");
    bindgen.args(["abi/spdk.h", "-o", &raw, "--no-layout-tests"]);
    bindgen.args(["--no-doc-comments", "--no-prepend-enum-name"]);
    for (option, pattern) in [
        (
            "--allowlist-function",
            "spdk_(env|thread|bdev|iobuf|subsystem|rpc|log)_.*",
        ),
        (
            "--allowlist-function",
            "spdk_(vtophys|dma_zmalloc|dma_free|put_io_channel|set_thread)",
        ),
        ("--allowlist-var", "SCST_SPDK_.*"),
    ] {
        bindgen.args([option, pattern]);
    }
    // Packed, with an aligned part, which Rust has not; not used.
    bindgen.args(["--opaque-type", "spdk_bdev_ext_io_opts"]);
    bindgen.arg("--").args(spdk_pkg_config("--cflags"));
    let status = bindgen.status();
    let made = status.is_ok_and(|s| s.success());
    assert!(made, "feature spdk: bindgen failed, or is not installed");
    let text = fs::read_to_string(&raw).expect("bindgen wrote it");
    // As edition 2024 wants it; older releases of bindgen don't know.
    let text = text.replace("\nextern \"C\" {", "\nunsafe extern \"C\" {");
    fs::write(format!("{dir}/spdk.rs"), text).expect("the bindings can be written");
    // What is used directly, for whoever links this library; the modules come by `spdk_link`.
    for arg in spdk_pkg_config("--libs") {
        if let Some(path) = arg.strip_prefix("-L") {
            println!("cargo::rustc-link-search=native={path}");
        }
    }
    for lib in ["bdev", "env_dpdk", "init", "log", "rpc", "thread"] {
        println!("cargo::rustc-link-lib=dylib=spdk_{lib}");
    }
    for lib in ["ssl", "crypto"] {
        println!("cargo::rustc-link-lib=dylib={lib}");
    }
    spdk_link("tests");
}
