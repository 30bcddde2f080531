"""How much the tests that draw at random draw: little by default, much with PRIVDFS_THOROUGH=1 (`make thorough`)."""

import os

THOROUGH = os.environ.get("PRIVDFS_THOROUGH") == "1"


def count(quick: int, thorough: int) -> int:
    """How many examples to draw."""
    return thorough if THOROUGH else quick
