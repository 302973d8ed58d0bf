//! The entry `connection` as an ordinary test. A program of its own: it counts the panics of all threads.

mod common;

#[test]
fn connections_end_and_the_server_goes_on() {
    common::replay("connection", 300);
}
