"""System interfaces for the guest: WASI preview 1 and WASIX."""
