"""Building programs and libraries: a driver over one pinned toolchain, and a C library for programs that open libraries."""
