"""The small releases in `tests/vectors/releases`: client folders, signed, and the servers' models."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray
from safetensors.numpy import save

from privdfs import coding
from privdfs._coded import CodedGraphs
from privdfs._coded_format import (
    CODED_FORMAT_VERSION,
    CodedAccuracy,
    CodedManifest,
    CodedServerManifest,
    RoundSpec,
    branch_file,
    numbered,
    relay_name,
    round_signature,
    server_round,
)
from privdfs._files import sha256_file
from privdfs._format import (
    BRANCH_FILE,
    FORMAT_VERSION,
    Accuracy,
    CalibrationError,
    ClientManifest,
    ImageSpec,
    KeySpec,
    Leakage,
    Macs,
    MadeBy,
    MaliciousAccuracy,
    ServerManifest,
    ServerSpec,
    SubsetAccuracy,
    branch_signature,
    encoder_signature,
    fusion_signature,
    key_spec,
)
from privdfs._manifest import encode_manifest
from privdfs._onnx import Graph
from privdfs._signature import signature_line
from tests.conformance import exact_graphs
from tests.conformance.exact_graphs import drawn

#: A key for these files alone: everybody knows it.
SIGNER = Ed25519PrivateKey.from_private_bytes(bytes([7] * 32))

CLASSES = ("ankle boot", "bag", "coat", "dress")
RGB, GREY = ImageSpec(height=9, width=8, channels=3), ImageSpec(height=8, width=11, channels=1)
MADE_BY = MadeBy(
    command="tests/vectors/make.py", commit="0" * 40, date="2026-01-01", seed=0, config={}, versions={"onnx": "17"}
)
MACS = Macs(head=3888, fusion=30, branch=72, baseline=100_000)
SCALE = 0.0625
GOLDEN_IMAGES = 6


def build(folder: Path) -> None:
    """Write all releases into a folder, one folder each."""
    build_masked(folder / "masked", masked_manifest("vectors-masked-1"))
    keys = KeySpec(partitions=5, family="000102030405060708090a0b0c0d0e0f")
    build_masked(folder / "keyed", masked_manifest("vectors-keyed-1", keys))
    build_coded(folder / "coded", _coded("vectors-coded-1", RGB, (_round(12, 20, 4, 2),)))
    following = _round(10, 10, 4, 1, levels=9)
    build_coded(folder / "coded-rounds", _coded("vectors-coded-2", GREY, (_round(7, 10, 10, 2, added=1), following)))


def images(label: str, count: int, spec: ImageSpec) -> NDArray[np.uint8]:
    """Noise, uint8 [count, height, width, channels]."""
    return (drawn(label, (count, spec.height, spec.width, spec.channels), 127).astype(np.int16) + 127).astype(np.uint8)


def build_masked(folder: Path, manifest: ClientManifest) -> None:
    client, servers = folder / "client", range(len(manifest.servers))
    client.mkdir(parents=True)
    encoder, fusion = exact_graphs.masked_encoder(manifest), exact_graphs.masked_fusion(manifest)
    branches = [exact_graphs.masked_branch(manifest, server) for server in servers]
    keys = key_spec(manifest)
    partitions = (
        {} if keys is None else {"partition": np.arange(GOLDEN_IMAGES, dtype=np.int32)[:, None] % keys.partitions}
    )
    pixels = images(f"{manifest.release} golden", GOLDEN_IMAGES, manifest.image)
    shares = Graph("encoder", encoder, encoder_signature(manifest), 1).run({"image": pixels, **partitions})
    answers = [
        Graph("branch", branch, branch_signature(manifest, server), 1).run({"share": share, **partitions})[0]
        for server, (branch, share) in enumerate(zip(branches, shares, strict=True))
    ]
    logits = np.stack(answers, axis=1)
    everybody = np.ones(logits.shape[:2], np.bool_)
    (fused,) = Graph("fusion", fusion, fusion_signature(manifest), 1).run({"logits": logits, "answered": everybody})
    golden = {"images": pixels, "logits": logits, "probabilities": fused, **partitions}
    golden |= {f"share_{server}": share for server, share in enumerate(shares)}
    files = {"encoder.onnx": encoder, "fusion.onnx": fusion, "golden.safetensors": save(golden)}
    _write_client(client, files, manifest)
    for server, branch in enumerate(branches):
        own = ServerManifest(
            format_version=FORMAT_VERSION,
            release=manifest.release,
            server=server,
            share_length=manifest.servers[server].share_length,
            scale=SCALE,
            classes=len(CLASSES),
            engine="onnxruntime",
            files={},
            made_by=MADE_BY,
            keys=manifest.keys,
        )
        _write(folder / f"server-{server}", {BRANCH_FILE: branch}, own)


def build_coded(folder: Path, manifest: CodedManifest, servers: int = 5) -> None:
    client, numbers = folder / "client", range(1, len(manifest.rounds) + 1)
    client.mkdir(parents=True)
    files = {"encoder.onnx": exact_graphs.coded_encoder(manifest), "fusion.onnx": exact_graphs.coded_fusion(manifest)}
    files |= {relay_name(number): exact_graphs.coded_relay(manifest, number) for number in numbers[:-1]}
    branches = [exact_graphs.coded_branch(manifest, number) for number in numbers]
    files["golden.safetensors"] = save(_coded_golden(manifest, files, branches))
    _write_client(client, files, manifest)
    for server in range(servers):
        own = CodedServerManifest(
            format_version=CODED_FORMAT_VERSION,
            release=manifest.release,
            server=server,
            rounds=tuple(map(server_round, manifest.rounds)),
            engine="onnxruntime",
            files={},
            made_by=MADE_BY,
        )
        _write(folder / f"server-{server}", dict(zip(map(branch_file, numbers), branches, strict=True)), own)


def _coded_golden(
    manifest: CodedManifest, files: Mapping[str, bytes], branches: Sequence[bytes]
) -> dict[str, NDArray[np.generic]]:
    """Images, what each round shares and the answers of as many servers as decode it, and the probabilities."""
    graphs = CodedGraphs(manifest, files)
    pixels = images(f"{manifest.release} golden", GOLDEN_IMAGES, manifest.image)
    golden: dict[str, NDArray[np.generic]] = {"images": pixels}
    answers = weights = None
    for number, (about, branch) in enumerate(zip(manifest.rounds, branches, strict=True), 1):
        needed = coding.needed_answers(about.degree, 1)
        label = f"{manifest.release} golden {number}"
        randomness = residues(label, (GOLDEN_IMAGES, 1, about.values), about.moduli)
        powers = coding.powers(about.moduli, needed, 1)
        if answers is None or weights is None:
            shares, values = graphs.encode(pixels, randomness, powers)
        else:
            before = manifest.rounds[number - 2]
            added = golden[numbered("values", before.added)] if before.added else None
            shares, values = graphs.relay(number - 2, answers, weights, randomness, powers, added)
        run = Graph("branch", branch, round_signature(about), 1).run
        answers = np.stack([run({"share": np.array(shares[:, i])})[0] for i in range(needed)], axis=1)
        weights = coding.weights(about.moduli, range(1, needed + 1))
        golden |= {numbered("values", number): values, numbered("answers", number): answers}
    assert answers is not None
    assert weights is not None
    return {**golden, "probabilities": graphs.fuse(answers, weights)}


def residues(label: str, shape: tuple[int, int, int], moduli: Sequence[int]) -> NDArray[np.int8]:
    """What a client draws from its generator, here from a label: centred, [batch, T, primes, values]."""
    batch, colluding, values = shape
    found = drawn(label, (batch, colluding, len(moduli), values), 120)
    for column, prime in enumerate(moduli):
        found[:, :, column] = coding.centred(found[:, :, column].astype(np.int64), prime)
    return found


def masked_manifest(release: str, keys: KeySpec | msgspec.UnsetType = msgspec.UNSET) -> ClientManifest:
    lied = MaliciousAccuracy(liars=1, random=0.45, constant=0.4, flipped=0.46, runner_up=0.41, adversarial=0.35)
    subsets = [((0,), 0.25), ((1,), 0.25), ((2,), 0.25), ((0, 1), 0.4), ((0, 2), 0.41), ((1, 2), 0.42)]
    return ClientManifest(
        format_version=FORMAT_VERSION,
        release=release,
        made_by=MADE_BY,
        classes=CLASSES,
        image=RGB,
        servers=tuple(ServerSpec(share_length=length, levels=15, scale=SCALE) for length in (5, 6, 7)),
        max_batch=4,
        files={},
        accuracy=Accuracy(
            data="noise",
            images=8,
            baseline=0.6,
            fused=0.5,
            branches=(0.25, 0.25, 0.25),
            subsets=tuple(SubsetAccuracy(answered=who, accuracy=rate) for who, rate in subsets),
            malicious=(lied,),
            calibration=CalibrationError(before=0.2, after=0.05, fitted_on="noise"),
        ),
        macs=MACS,
        leakage=(
            Leakage(
                coalition=(0,), attack="ridge", psnr=9.0, ssim=0.1, floor=8.5, images=8, date="2026-01-01", commit="abc"
            ),
        ),
        keys=keys,
    )


def _coded(release: str, image: ImageSpec, rounds: tuple[RoundSpec, ...]) -> CodedManifest:
    return CodedManifest(
        format_version=CODED_FORMAT_VERSION,
        release=release,
        made_by=MADE_BY,
        classes=CLASSES,
        image=image,
        rounds=tuple(
            msgspec.structs.replace(each, bound=bound, moduli=coding.fewest_moduli(bound) or ())
            for each, bound in ((each, _bound(release, number, each)) for number, each in enumerate(rounds, 1))
        ),
        max_batch=4,
        files={},
        accuracy=CodedAccuracy(data="noise", images=8, baseline=0.6, fused=0.5, readout=0.4),
        macs=MACS,
    )


def _round(values: int, elements: int, outputs: int, degree: int, *, added: int = 0, levels: int = 15) -> RoundSpec:
    return RoundSpec(
        values=values, elements=elements, levels=levels, outputs=outputs, degree=degree, moduli=(241,), bound=1, seen=0,
        added=added, macs=72,
    )  # fmt: skip


def _bound(release: str, number: int, about: RoundSpec) -> int:
    """What no result of a round can exceed, from the weights."""
    first, constant, second = (
        np.abs(each.astype(np.int64)) for each in exact_graphs.polynomial(release, number, about)
    )
    hidden = first.sum(axis=0) * (about.levels // 2) + constant
    return int((hidden if about.degree == 1 else hidden**2 @ second).max())


def _write_client(client: Path, files: Mapping[str, bytes], manifest: ClientManifest | CodedManifest) -> None:
    _write(client, files, manifest)
    data = (client / "manifest.json").read_bytes()
    (client / "manifest.sig").write_bytes(signature_line(data, SIGNER))


def _write(
    folder: Path,
    files: Mapping[str, bytes],
    manifest: ClientManifest | CodedManifest | ServerManifest | CodedServerManifest,
) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    digests = {name: sha256_file(folder / name) for name in files}
    (folder / "manifest.json").write_bytes(encode_manifest(msgspec.structs.replace(manifest, files=digests)))
