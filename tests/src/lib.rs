//! Raw initiator and server harness for the integration tests.
#![forbid(unsafe_code)]
