//! What a host tells about its machines.
