//! Who uses machines and owns guests: locks and records, the room that is left, and how all that
//! goes away.

pub mod lock;
pub mod probe;
pub mod record;
pub mod room;
pub mod sweep;
