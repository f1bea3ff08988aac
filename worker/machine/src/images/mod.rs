//! Which machines there are: their directory, their manifests, and what lies in a guest of them.

pub mod directory;
pub mod files;
pub mod manifest;
