//! What dead guests left in the machine directory goes away.
