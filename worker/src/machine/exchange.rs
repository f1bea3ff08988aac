//! What travels between host and guest: the source as a tar archive in, the archive of artifacts out.
