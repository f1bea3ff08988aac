//! Bootstrap: from a machine's revision to a copy that tasks start from.
