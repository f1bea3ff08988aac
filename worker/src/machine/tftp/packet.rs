//! The packets of TFTP (RFC 1350) with options (RFC 2347 to 2349, 7440).
