"""The link plan, compiled: small WebAssembly modules in which the outcome of linking is written down.

For each load operation the linker generates

* one *import module* per linked module, which exports exactly what that module imports: pass-through functions, GOT
  globals with their values, stubs;
* one *placement module* for the operation, which puts every exported function at its table index and can set up the
  thread-local storage of a new thread.

Every instance group instantiates the same compiled code, so a thread's share of a link is native work: no resolution,
no Python per symbol. The *base module*, one per program, defines what no module of the program does.
"""
