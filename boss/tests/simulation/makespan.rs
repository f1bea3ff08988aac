//! How good the plans are.
