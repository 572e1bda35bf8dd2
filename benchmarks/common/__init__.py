"""What several benchmarks share: the machine's peaks, timing in turn, tables."""
