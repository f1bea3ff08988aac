//! Faults by name.
