//! How the memory of a host is divided among the guests of one task.
