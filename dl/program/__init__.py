"""What all threads of a program share: memory, table, names, the linker state and the operations on it."""
