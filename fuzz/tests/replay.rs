//! The entries without a server as ordinary tests: seeds, corpus, and some thousand mutations of them.

mod common;

use common::replay;
use proptest::prelude::*;

#[test]
fn pdus_are_parsed_whatever_they_are() {
    replay("pdus", 20_000);
}

#[test]
fn logins_end_whatever_they_say() {
    replay("login", 20_000);
}

#[test]
fn text_is_read_whatever_it_says() {
    replay("text", 20_000);
}

#[test]
fn configuration_files_are_read_whatever_they_say() {
    replay("conf", 20_000);
}

proptest! {
    #[test]
    fn random_bytes_do_no_harm(data in proptest::collection::vec(any::<u8>(), 0..600)) {
        scst_fuzz::pdus(&data);
        scst_fuzz::login(&data);
        scst_fuzz::text(&data);
    }
}
