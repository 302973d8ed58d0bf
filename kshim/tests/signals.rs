//! Termination signals, in a process whose first thread blocks them: this test has no harness.

#![expect(
    clippy::disallowed_methods,
    reason = "the test is a program of its own"
)]

use kshim::sys::signal::{
    Termination, block_termination, ignore_sigpipe, raise_termination, wait_termination,
};

fn main() {
    block_termination().expect("block");
    ignore_sigpipe().expect("ignore SIGPIPE");
    // A thread started after blocking inherits it, and so may wait for the process.
    for sig in [
        Termination::Term,
        Termination::Int,
        Termination::Hup,
        Termination::Term,
    ] {
        let waiter = std::thread::spawn(wait_termination);
        raise_termination(sig).expect("kill");
        assert_eq!(waiter.join().expect("the waiter ends"), Ok(sig));
    }
    println!("signals: ok");
}
