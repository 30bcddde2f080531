"""PrivDFS edge SDK."""

__version__ = "0.1.0"
