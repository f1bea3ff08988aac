//! A task in a guest, from the lock to the end of the snapshot.
