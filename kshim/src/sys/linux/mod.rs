//! Linux tenant.
