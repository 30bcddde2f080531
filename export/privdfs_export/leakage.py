"""`privdfs-export leakage RELEASE [RESULTS]`: write what bench/privacy.py measured into a release's manifest.

For every size of a coalition the manifest gets the attack that reconstructs most above the class mean, by the worst
coalition. Devices refuse by it (`max_leakage_db` of the SDK), and `privdfs describe` shows it. Of a coded release these
are coalitions of more servers than may collude; that fewer learn nothing is proven, and an audit that saw otherwise is
refused. Figures of another release of the same name count if its encoder, and what is shared in later rounds, were
the same. The release keeps its id, since no graph changes; a signature of the client folder is of the old manifest, so
it is removed, and the release has to be signed again.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from privdfs._coded_format import CodedManifest
from privdfs._files import read_manifest_bytes
from privdfs._format import (
    CLIENT_FOLDER,
    FUSION_NAME,
    MANIFEST_NAME,
    SIGNATURE_NAME,
    ClientManifest,
    Leakage,
)
from privdfs._manifest import encode_manifest, read_client_manifest
from privdfs._verify import verify
from privdfs_export.errors import ExportError

DESCRIPTION = "Write the measured leakage into a release's manifest."
#: A self-check of bench/privacy.py whose flag says that the attacks break nothing at all: their figures say nothing.
UNDEFENDED = "undefended"
#: Self-checks whose flags say that a coalition of a coded release learns what it must not.
BROKEN_SHARING = frozenset({"not at the floor", "class", "wire"})


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("release", type=Path, metavar="RELEASE", help="folder of a release")
    parser.add_argument(
        "results",
        type=Path,
        nargs="?",
        default=Path("bench/results/privacy.json"),
        metavar="RESULTS",
        help="what bench/privacy.py wrote (default: bench/results/privacy.json)",
    )


def run(options: argparse.Namespace) -> None:
    """Write the leakage, and print it.

    Args:
        options: Of the command line.

    Raises:
        privdfs.Error: The release is not as its manifests say, or the results are not of it; nothing was written.
    """
    was_signed = (options.release / CLIENT_FOLDER / SIGNATURE_NAME).exists()
    for row in record_leakage(options.release, options.results):
        servers = ", ".join(map(str, row.coalition))
        print(f"servers {servers} by {row.attack}: {row.psnr:.2f} dB, {row.above_floor:+.2f} dB above the class mean")
    if was_signed:
        client = options.release / CLIENT_FOLDER
        print(
            f"the signature of {client} was of the old manifest and is removed, so devices with trust= refuse the "
            f"bundle: sign it again, privdfs-export sign {client} --key KEY.pem"
        )


def record_leakage(release: Path, results: Path) -> tuple[Leakage, ...]:
    """Write the measured leakage into the client's manifest, replacing what was there.

    Args:
        release: Folder of a release.
        results: JSON file of bench/privacy.py.

    Returns:
        What was written: one row for every size of a coalition.

    Raises:
        privdfs.BundleError: A file of the release is not what its manifest says.
        ExportError: The results are not of this release, or not fit for a manifest, or the manifest cannot be written.
    """
    client = release / CLIENT_FOLDER
    if not (client / MANIFEST_NAME).exists():
        raise ExportError(f"{release} has no client/{MANIFEST_NAME}. Pass the folder of a whole release.")
    verify(client)
    manifest = read_client_manifest(read_manifest_bytes(client))
    coded = isinstance(manifest, CodedManifest)
    entry = _entry(results, manifest)
    try:
        _refuse_flagged(results, entry, coded=coded)
        rows = tuple(_row(found, entry) for _, found in sorted(entry["worst"].items(), key=lambda one: int(one[0])))
    except (KeyError, TypeError, ValueError, msgspec.ValidationError) as error:
        message = (
            f"{results} lacks what a manifest needs of {manifest.release} ({error!r}). Measure it again with this "
            "version's bench/privacy.py."
        )
        raise ExportError(message) from error
    if coded and any(len(row.coalition) < 2 for row in rows):
        message = (
            f"{results} has a row of one server of {manifest.release}, a coded release: that one learns nothing is "
            "proven, so a manifest has rows of more servers alone. Measure it again with this version's "
            "bench/privacy.py."
        )
        raise ExportError(message)
    data = encode_manifest(msgspec.structs.replace(manifest, leakage=rows))
    _write(client, data)
    return rows


def _refuse_flagged(results: Path, entry: dict[str, Any], *, coded: bool) -> None:
    """Refuse figures whose own self-checks speak against them."""
    for flag in entry.get("flags", []):
        if flag["check"] == UNDEFENDED:
            message = f"the attacks in {results} are too weak for a manifest: {flag['message']}. Run them again."
            raise ExportError(message)
        if coded and flag["check"] in BROKEN_SHARING:
            message = f"{results} speaks against the release itself ({flag['message']}). Do not publish it."
            raise ExportError(message)


def _row(found: dict[str, Any], entry: dict[str, Any]) -> Leakage:
    """One row of the manifest, types checked."""
    made_by = entry["made_by"]
    values = {name: found[name] for name in ("attack", "psnr", "ssim", "floor", "images")}
    about = {"date": made_by["date"], "commit": made_by["commit"], "effort": entry["effort"]}
    return msgspec.convert({"coalition": found["members"], **values, **about}, Leakage)


def _entry(results: Path, manifest: ClientManifest | CodedManifest) -> dict[str, Any]:
    """The entry of a release in a result file, or of one of its name whose graphs before the servers are the same."""
    release = manifest.release
    try:
        entries = json.loads(results.read_text(encoding="utf-8"))["releases"]
        found = [entry for entry in entries.values() if entry.get("release") == release]
        namesake = entries.get(release.rpartition("-")[0], {})
        found += [namesake] if _same_shares(namesake.get("graphs", {}), manifest) else []
        measured = [str(entry.get("release", name)) for name, entry in entries.items()]
    except OSError as error:
        message = f"{results} cannot be read ({error.strerror}). Make it: python bench/privacy.py RELEASE"
        raise ExportError(message) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        message = f"{results} does not hold results of bench/privacy.py ({error!r}). Pass the file that it wrote."
        raise ExportError(message) from error
    if not found:
        message = (
            f"{results} is of {', '.join(measured) or 'no release'}, not of {release}. Measure this release: "
            "python bench/privacy.py RELEASE"
        )
        raise ExportError(message)
    return found[0]


def _same_shares(graphs: Mapping[str, str], manifest: ClientManifest | CodedManifest) -> bool:
    """Whether attacked graphs (name to the beginning of a digest) have the encoder and the relays of a release."""
    makers = [name for name in manifest.files if name.endswith(".onnx") and name != FUSION_NAME]
    return all(manifest.files[name].startswith(graphs.get(name.removesuffix(".onnx")) or "-") for name in makers)


def _write(client: Path, data: bytes) -> None:
    """The new manifest, whole or not at all; before it appears, the signature that would no longer fit is gone."""
    partial = client / f".{MANIFEST_NAME}.partial"
    try:
        partial.write_bytes(data)
        (client / SIGNATURE_NAME).unlink(missing_ok=True)
        partial.replace(client / MANIFEST_NAME)
    except OSError as error:
        message = (
            f"cannot write {client / MANIFEST_NAME}: {error.strerror}. Free some disk space, or check permissions."
        )
        raise ExportError(message) from error
    finally:
        partial.unlink(missing_ok=True)
