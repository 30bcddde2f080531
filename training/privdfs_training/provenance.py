"""Where a result comes from: commit, versions, machine, date. Every manifest and every result file carries it."""

import datetime as dt
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

from privdfs_training.errors import TrainingError

PACKAGES = ("privdfs", "torch", "numpy", "onnx", "onnxruntime", "tritonclient")


def command_line() -> str:
    """The command as a person would type it, without the path of the interpreter or the script."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def git_commit() -> str:
    """The commit of the working folder, with `+changes` when files differ from it; `unknown` outside a checkout."""
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}+changes" if changed else commit


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that shape a result, where installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, str]:
    """Processor, cores and system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return {"processor": model, "cores": str(os.cpu_count()), "system": f"{platform.system()} {platform.machine()}"}


def today() -> str:
    """Date in ISO format, UTC; where SOURCE_DATE_EPOCH is set its own, so that the same inputs give the same files."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return dt.datetime.now(dt.timezone.utc).date().isoformat()
    if not (epoch.isascii() and epoch.isdigit()):
        raise TrainingError("SOURCE_DATE_EPOCH is not a number of seconds since 1970: correct it, or unset it")
    return dt.datetime.fromtimestamp(int(epoch), dt.timezone.utc).date().isoformat()


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)  # noqa: S607  fixed words
    return done.stdout.strip()
