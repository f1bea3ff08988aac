//! One guest under control: QEMU, its channels, and what comes through them, as one thing that can be polled.
