"""The wasmtime adapter: `dl.engine.protocol` over the C interface of wasmtime."""
