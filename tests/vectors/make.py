"""Makes everything in this folder but `README.md` and the encoded pictures: `python -m tests.vectors.make`.

The same files come of it every time. The pictures in `images` are inputs, since encoders change between versions.
"""

import shutil

from tests.conformance import releases
from tests.conformance.form import RELEASES, VECTORS
from tests.conformance.makers import MAKERS, made


def main() -> None:
    """Write the releases, then every file of vectors that is computed from them."""
    shutil.rmtree(RELEASES, ignore_errors=True)
    releases.build(RELEASES)
    for name in MAKERS:
        (VECTORS / f"{name}.json").write_bytes(made(name))


if __name__ == "__main__":
    main()
