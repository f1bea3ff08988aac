//! The machine directory: volumes, machines, revisions behind a link, bootstrapped copies, toolchains.
