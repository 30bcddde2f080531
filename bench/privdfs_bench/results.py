"""Result files: where a result comes from, and how it is read and written."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from privdfs_bench.errors import BenchError
from privdfs_training import provenance

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
#: A list that holds numbers only, as `json` spreads it over many lines.
_NUMBERS = re.compile(r"\[\s+(-?[0-9][-+.0-9eE,\s]*?)\s+\]")


def made_by(config: Mapping[str, Any], *, seed: int, endpoint: str | None = None) -> dict[str, Any]:
    """Where a result comes from.

    Args:
        config: the benchmark's own settings.
        seed: of whatever the benchmark draws at random.
        endpoint: of a tritonserver that was measured, if one was; it is asked for its version.

    Returns:
        Command line, commit, config, seed, versions, machine and date.
    """
    return {
        "command": provenance.command_line(),
        "commit": provenance.git_commit(),
        "date": provenance.today(),
        "seed": seed,
        "config": dict(config),
        "versions": provenance.versions() | ({"tritonserver": _tritonserver_version(endpoint)} if endpoint else {}),
        "machine": provenance.machine(),
    }


def _tritonserver_version(endpoint: str) -> str:
    from tritonclient.grpc import InferenceServerClient

    with InferenceServerClient(endpoint, channel_args=[("grpc.enable_http_proxy", 0)]) as client:
        metadata = client.get_server_metadata(as_json=True, client_timeout=10) or {}
    return str(metadata.get("version", "unknown"))


def merge_release(results: Mapping[str, Any], name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Results with one release's entry added or replaced; those of other releases stay.

    Args:
        results: as read; {} for none.
        name: of the release.
        entry: its numbers and its own `made_by`, since other entries may come from other runs.

    Returns:
        The new results; `made_by` at the top is that of the latest entry.
    """
    others = {key: value for key, value in results.get("releases", {}).items() if key != name}
    together = dict(sorted({**others, name: dict(entry)}.items()))
    return {**results, "made_by": entry["made_by"], "releases": together}


def read_results(path: Path) -> dict[str, Any]:
    """A result file; {} when there is none yet.

    Raises:
        BenchError: it is not a result file.
    """
    if not path.exists():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        msg = f"{path} is not JSON ({error}): repair it or remove it"
        raise BenchError(msg) from error
    if not isinstance(found, dict) or not isinstance(found.get("releases", {}), dict):
        msg = f"{path} does not hold results of this benchmark: repair it or remove it"
        raise BenchError(msg)
    return found


def write_results(path: Path, results: Mapping[str, Any]) -> None:
    """Write a result file; the old one stays whole until the new one is.

    Raises:
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(to_json(results), encoding="utf-8")
    partial.replace(path)


def to_json(results: Mapping[str, Any]) -> str:
    """Indented JSON in which a list of numbers takes one line; NaN and infinity are refused."""
    text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    return _NUMBERS.sub(lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
