//! Configuration files.

use scst_usermode::conf::model::Config;
use scst_usermode::conf::writer::write;

/// Reads the bytes as an scst.conf. One that is read, and has nothing quoted, is written so that it reads the same.
pub fn conf(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Config::parse(&text) {
        Err(problems) => {
            assert!(!problems.is_empty());
            for problem in problems {
                assert!(problem.in_file("f").starts_with("f:"), "{problem:?}");
            }
        }
        Ok(config) if !text.contains(['"', '\\']) => {
            let written = write(&config);
            let again = Config::parse(&written).expect("what is written is good");
            assert_eq!(write(&again), written);
        }
        Ok(config) => drop(write(&config)),
    }
}
