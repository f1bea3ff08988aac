//! The record of a guest: written before anything of it exists, removed after everything of it is gone.
