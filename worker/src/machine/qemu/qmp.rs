//! QMP, the monitor protocol, as far as it is needed.
