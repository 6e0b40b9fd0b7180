"""The Wasmer adapter: `dl.engine.protocol` over the library of the distribution `wasix-dl-wasmer`."""
