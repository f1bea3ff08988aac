//! A machine's manifest.
