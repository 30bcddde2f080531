"""What the benchmarks share: the commands in bench/ parse arguments, call this package, and print its tables."""
