//! Who uses which machine: flock(2) files that say by whom.
