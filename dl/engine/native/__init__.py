"""What the adapters of engines with a C interface share: values, callbacks, calls, endings, and the rules of stores."""
