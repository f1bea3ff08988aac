//! Which accelerator guests run with: found out by starting a tiny guest, with a time limit.
