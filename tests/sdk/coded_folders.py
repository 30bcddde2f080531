"""The folders of a coded release without a graph in it: manifests and digests are true, the files are a few bytes."""

from pathlib import Path
from typing import Any

import msgspec

from privdfs._coded_format import (
    CODED_FORMAT_VERSION,
    CodedAccuracy,
    CodedManifest,
    CodedServerManifest,
    RoundSpec,
    branch_file,
    relay_name,
    server_round,
)
from privdfs._format import FORMAT_VERSION, ImageSpec, Leakage, Macs, ServerManifest
from privdfs._manifest import encode_manifest
from privdfs.coding import PRIMES
from tests.sdk.tiny_release import CLASSES, HEIGHT, MADE_BY, WIDTH, digests

RELEASE = "tiny-coded-1"


def a_round(**fields: Any) -> RoundSpec:
    values = {
        "values": 12, "elements": 20, "levels": 15, "outputs": 8, "degree": 2, "moduli": PRIMES[:3], "bound": 1_000_000,
        "seen": 900, "added": 0, "macs": 5000,
    }  # fmt: skip
    return RoundSpec(**{**values, **fields})


#: Of degree 2 and 1, over three primes and two.
TWO_ROUNDS = a_round(), a_round(values=8, elements=8, outputs=4, degree=1, moduli=PRIMES[:2], bound=20_000, macs=64)


def a_leakage(coalition: tuple[int, ...], above: float = 11.5) -> Leakage:
    return Leakage(
        coalition=coalition,
        attack="dense",
        psnr=9.0 + above,
        ssim=0.7,
        floor=9.0,
        images=8,
        date="2026-01-01",
        commit="abc",
    )


def coded_manifest(**fields: Any) -> CodedManifest:
    """What `client/manifest.json` says; with another `rounds` or `leakage`, for example."""
    rounds = fields.get("rounds", TWO_ROUNDS)
    names = ["encoder.onnx", *(relay_name(i) for i in range(1, len(rounds))), "fusion.onnx", "golden.safetensors"]
    accuracy = CodedAccuracy(data="noise", images=8, baseline=0.9, fused=0.85, readout=0.75)
    values = {
        "format_version": CODED_FORMAT_VERSION, "release": RELEASE, "made_by": MADE_BY, "classes": CLASSES,
        "image": ImageSpec(height=HEIGHT, width=WIDTH, channels=3), "rounds": rounds, "max_batch": 4,
        "files": dict.fromkeys(names, "0" * 64), "accuracy": accuracy, "leakage": (),
        "macs": Macs(head=100, fusion=10, branch=5064, baseline=1000),
    }  # fmt: skip
    return CodedManifest(**{**values, **fields})


def write_coded_release(folder: Path, servers: int = 3) -> Path:
    """Write the folders of a release, with its baseline."""
    manifest = coded_manifest()
    write_files(folder / "client", manifest.files)
    write_manifest(folder / "client", manifest)
    for index in range(servers):
        write_coded_server(folder / f"server-{index}", manifest, index)
    baseline = folder / "baseline"
    write_files(baseline, ["baseline/1/model.onnx"])
    own = ServerManifest(
        format_version=FORMAT_VERSION,
        release=RELEASE,
        server=0,
        share_length=HEIGHT * WIDTH * 3,
        scale=1.0,
        classes=len(CLASSES),
        engine="python",
        files={},
        made_by=MADE_BY,
    )
    write_manifest(baseline, own)
    return folder


def write_coded_server(folder: Path, client: CodedManifest, index: int) -> None:
    numbers = range(1, len(client.rounds) + 1)
    write_files(folder, ["golden.safetensors", *map(branch_file, numbers)])
    own = CodedServerManifest(
        format_version=CODED_FORMAT_VERSION,
        release=client.release,
        server=index,
        rounds=tuple(map(server_round, client.rounds)),
        engine="python",
        files={},
        made_by=MADE_BY,
    )
    write_manifest(folder, own)


def write_manifest(folder: Path, manifest: CodedManifest | CodedServerManifest | ServerManifest) -> None:
    """Write it with the digests of what lies beside it."""
    (folder / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=digests(folder))))


def write_files(folder: Path, names: Any) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"{name}\n")
