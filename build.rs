//! Build script of the server: nothing to do until there are plug-ins that resolve symbols of the executable.

fn main() {
    // Without this, a change of any file of the repository links the server anew.
    println!("cargo::rerun-if-changed=build.rs");
}
