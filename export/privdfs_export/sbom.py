"""`privdfs-export sbom WHEEL|FOLDER`: what a wheel, or one folder of a release, is made of, as CycloneDX JSON.

- Of the wheel: the wheel itself by its SHA-256, and every package that it needs, in the versions that are installed
  here. Make it in an environment with the pins of constraints.txt.
- Of a folder: the files that its manifest lists, by their SHA-256.

The same input gives the same bytes: the date is the wheel's own or the manifest's, and the serial number is made from
the contents.
"""

import argparse
import datetime as dt
import hashlib
import importlib.metadata
import json
import uuid
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email import message_from_bytes, message_from_string
from email.message import Message
from pathlib import Path
from typing import Any, cast

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import LicenseExpression
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from privdfs_export.errors import ExportError
from privdfs_export.sealed import SealedFolder, read_sealed

# The library's decorators hide from type checkers what these classes take.
_Bom, _About, _Component, _Hash, _Licence = cast("Any", (Bom, BomMetaData, Component, HashType, LicenseExpression))
DESCRIPTION = "List what a wheel, or one folder of a release, is made of: CycloneDX 1.6, JSON."
MEDIA_TYPE = "application/vnd.cyclonedx+json"
#: Serial numbers are made in this name space, from the digest of what they describe.
_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://cyclonedx.org/privdfs")


@dataclass(frozen=True)
class _Part:
    """One thing that something is made of."""

    name: str
    version: str | None
    kind: ComponentType
    digest: str | None = None
    licence: str | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Say what the command takes.

    Args:
        parser: Of the command.
    """
    parser.add_argument("subject", type=Path, metavar="WHEEL|FOLDER", help="a wheel, or one folder of a release")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where it goes; without it, to the terminal")


def run(options: argparse.Namespace) -> None:
    """Make the list, and write or print it.

    Args:
        options: Of the command line.

    Raises:
        privdfs.Error: The subject cannot be read, or a package that it needs is not installed here.
    """
    subject: Path = options.subject
    made = folder_sbom(read_sealed(subject)) if subject.is_dir() else wheel_sbom(subject)
    if options.out is None:
        print(made.decode(), end="")
        return
    try:
        options.out.write_bytes(made)
    except OSError as error:
        message = f"cannot write {options.out}: {error.strerror}. Choose another file with --out."
        raise ExportError(message) from error
    print(f"{options.out}: written")


def folder_sbom(folder: SealedFolder) -> bytes:
    """List the files of one folder of a release.

    Args:
        folder: Checked.

    Returns:
        CycloneDX JSON.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in folder.files.items()}
    root = _Part(folder.name, folder.release, ComponentType.MACHINE_LEARNING_MODEL)
    files = [_Part(name, None, ComponentType.FILE, digest) for name, digest in digests.items()]
    day = dt.datetime.fromisoformat(folder.date).replace(tzinfo=dt.timezone.utc)
    return _written(root, {root: files, **{file: [] for file in files}}, day, json.dumps(digests, sort_keys=True))


def wheel_sbom(wheel: Path) -> bytes:
    """List what a wheel needs.

    Args:
        wheel: The file.

    Returns:
        CycloneDX JSON.

    Raises:
        ExportError: It is not a wheel, or a package that it needs is not installed here.
    """
    try:
        data = wheel.read_bytes()
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            about = message_from_bytes(archive.read(name))
            made = dt.datetime(*max(one.date_time for one in archive.infolist()), tzinfo=dt.timezone.utc)
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        message = (
            f"{wheel} cannot be read as a wheel ({type(error).__name__}): build one with `python -m build --wheel`."
        )
        raise ExportError(message) from error
    digest = hashlib.sha256(data).hexdigest()
    root = _package(about, digest)
    found = {root.name: root}
    needs: dict[_Part, list[_Part]] = {}
    waiting = [(root, about.get_all("Requires-Dist", []))]
    while waiting:
        part, lines = waiting.pop()
        needs[part] = []
        for name in _needed(lines):
            if name not in found:
                metadata = _installed(name, part.name)
                found[name] = _package(metadata)
                waiting.append((found[name], metadata.get_all("Requires-Dist", [])))
            needs[part].append(found[name])
    return _written(root, needs, made, digest)


def _needed(lines: Iterable[str]) -> list[str]:
    """Names of the packages that apply here and belong to no extra."""
    requirements = map(Requirement, lines)
    return sorted(
        canonicalize_name(one.name) for one in requirements if one.marker is None or one.marker.evaluate({"extra": ""})
    )


def _installed(name: str, wanted_by: str) -> Message:
    try:
        return message_from_string(importlib.metadata.distribution(name).read_text("METADATA") or "")
    except importlib.metadata.PackageNotFoundError as error:
        message = (
            f"{wanted_by} needs {name}, which is not installed here, so its version is not known: install the wheel "
            "with the pins first, pip install --constraint constraints.txt WHEEL."
        )
        raise ExportError(message) from error


def _package(about: Message, digest: str | None = None) -> _Part:
    licence = about["License-Expression"]
    return _Part(
        canonicalize_name(str(about["Name"])),
        str(about["Version"]),
        ComponentType.LIBRARY,
        digest,
        None if licence is None else str(licence),
    )


def _component(part: _Part) -> Any:
    packaged = part.kind is ComponentType.LIBRARY
    return _Component(
        name=part.name,
        version=part.version,
        type=part.kind,
        bom_ref=part.name,
        purl=PackageURL("pypi", name=part.name, version=part.version) if packaged else None,
        licenses=[] if part.licence is None else [_Licence(part.licence)],
        hashes=[] if part.digest is None else [_Hash(alg=HashAlgorithm.SHA_256, content=part.digest)],
    )


def _written(root: _Part, needs: Mapping[_Part, Sequence[_Part]], made: dt.datetime, contents: str) -> bytes:
    """The document: what it describes, every part, and which needs which."""
    components = {part: _component(part) for part in needs}
    bom = _Bom(
        components=[component for part, component in components.items() if part is not root],
        serial_number=uuid.uuid5(_SPACE, contents),
        metadata=_About(component=components[root], timestamp=made),
    )
    for part, others in needs.items():
        bom.register_dependency(components[part], [components[other] for other in others])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
