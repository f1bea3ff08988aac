//! The process of a guest, with the descriptors that lead into it.
