//! One transfer, pure: packets and the time go in, packets come out.
