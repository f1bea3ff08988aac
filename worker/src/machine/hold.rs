//! Held guests: stopped, saved and kept for a person.
