// Shared by the build scripts of `backstores` and of the server: what pkg-config says about SPDK.

/// The pkg-config modules that are needed.
const SPDK_MODULES: [&str; 3] = ["spdk_event_bdev", "spdk_env_dpdk", "spdk_syslibs"];

/// Output of pkg-config, word by word.
#[expect(clippy::disallowed_methods, reason = "a build script has no kshim")]
fn spdk_pkg_config(what: &str) -> Vec<String> {
    println!("cargo::rerun-if-env-changed=PKG_CONFIG_PATH");
    let out = std::process::Command::new("pkg-config")
        .arg(what)
        .args(SPDK_MODULES)
        .output()
        .unwrap_or_else(|e| panic!("feature spdk: pkg-config cannot be run: {e}"));
    assert!(
        out.status.success(),
        "feature spdk: pkg-config does not find SPDK (docs/spdk.md): {}",
        String::from_utf8_lossy(&out.stderr)
    );
    let text = String::from_utf8(out.stdout).expect("pkg-config writes UTF-8");
    text.split_whitespace().map(str::to_owned).collect()
}

/// Links all of SPDK into `kind` ("bins", "tests", ...): its modules register themselves when they are loaded, so that the linker
/// must not leave out what nothing refers to.
fn spdk_link(kind: &str) {
    let mut args = vec!["-Wl,--push-state,--no-as-needed".to_owned()];
    args.extend(spdk_pkg_config("--libs"));
    args.push("-Wl,--pop-state".to_owned());
    for arg in args {
        println!("cargo::rustc-link-arg-{kind}={arg}");
    }
}
