//! The guest agent: `crewboss guest`, the same binary, runs a task inside a guest and talks to the host over a virtio-serial
//! port.
