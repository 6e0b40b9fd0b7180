"""What users hold beside the linker and its groups: libraries, functions, blocks of memory, executors, descriptions."""
