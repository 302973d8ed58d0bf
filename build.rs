//! Build script of the server: nothing to do until there are plug-ins that resolve symbols of the executable.

fn main() {}
