//! Login and discovery.
