//! PDU headers.
