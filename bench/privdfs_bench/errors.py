"""Errors of the benchmarks."""

from privdfs import Error


class BenchError(Error):
    """A benchmark cannot be run, or its results cannot be written, as asked."""
