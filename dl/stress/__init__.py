"""The stress test behind `dlrun stress`: many threads that load, call, wait and fail."""
