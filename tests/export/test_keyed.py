"""A keyed release, really trained: its graphs are the trained network under every partition, and fit SDK and Triton."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, numpy_helper
from safetensors.numpy import load_file

from privdfs import Bundle, Client, UserKey
from privdfs._files import read_manifest_bytes
from privdfs._manifest import decode_client_manifest
from privdfs._verify import verify
from privdfs_export import evaluate
from privdfs_training.checkpoint import load_system
from privdfs_training.models.system import System
from privdfs_training.partitions import PartitionFamily, family_id
from tests.trained import shifted_images

PARTITIONS, VALUES = 64, 12


@pytest.fixture(scope="module")
def system(keyed_trained_release: Path) -> System:
    return load_system(keyed_trained_release.parent / "run" / "system.safetensors").system


@pytest.fixture(scope="module")
def family(system: System) -> PartitionFamily:
    assert system.family is not None
    return system.family


@pytest.fixture(scope="module")
def graphs(keyed_trained_release: Path) -> list[onnx.ModelProto]:
    """Encoder, then the branches."""
    branches = (keyed_trained_release / f"server-{server}" / "branch/1/model.onnx" for server in range(3))
    return [onnx.load(path) for path in (keyed_trained_release / "client" / "encoder.onnx", *branches)]


def inputs(model: onnx.ModelProto) -> dict[str, tuple[int, list[int | str]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim],
        )
        for value in model.graph.input
    }


def test_the_partition_is_the_further_input(graphs: list[onnx.ModelProto]) -> None:
    partition = (TensorProto.INT32, ["batch", 1])
    assert inputs(graphs[0]) == {"image": (TensorProto.UINT8, ["batch", 28, 28, 1]), "partition": partition}
    for branch in graphs[1:]:
        assert inputs(branch) == {"share": (TensorProto.INT8, ["batch", VALUES]), "partition": partition}
        assert {node.domain for node in branch.graph.node} == {""}


def test_shares_and_answers_are_the_trained_ones_under_every_partition(
    system: System, graphs: list[onnx.ModelProto]
) -> None:
    pixels = shifted_images(7, seed=9)[0][:128, ..., None]
    partitions = np.arange(128, dtype=np.int32)[:, None] % PARTITIONS
    sessions = [ort.InferenceSession(graph.SerializeToString()) for graph in graphs]
    shares = [np.asarray(share) for share in sessions[0].run(None, {"image": pixels, "partition": partitions})]
    images, chosen = torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.from_numpy(partitions[:, 0]).long()
    with torch.inference_mode():
        encoded = system.encode(images, partitions=chosen)
    for server, share in enumerate(shares):
        scale = system.quantiser.scale(server)
        masks = encoded.masks[:, server].flatten(1) > 0.5
        trained = encoded.shares[:, server].flatten(1)[masks].view(128, VALUES) / scale
        assert (share == trained.round().numpy()).mean() > 0.995
        # The answer to exactly these integers, put back in place by the training code.
        placed = torch.zeros(128, masks.shape[1])
        placed[masks] = torch.from_numpy(share).float().flatten() * scale
        seen = torch.cat([placed, masks.float()], dim=1).view(128, 8, 7, 7)
        with torch.inference_mode():
            expected = system.branches[server](seen).numpy()
        logits = np.asarray(sessions[1 + server].run(None, {"share": share, "partition": partitions})[0])
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_a_branch_holds_the_places_of_its_own_server_only(
    system: System, family: PartitionFamily, graphs: list[onnx.ModelProto]
) -> None:
    tables = family.tables(system.masks.owned).numpy()
    for server, branch in enumerate(graphs[1:]):
        found = [
            array
            for array in map(numpy_helper.to_array, branch.graph.initializer)
            if array.dtype in (np.int32, np.int64) and array.size > VALUES
        ]
        assert len(found) == 1
        np.testing.assert_array_equal(found[0], tables[:, server])


def test_the_runtime_refuses_a_partition_outside_the_family(graphs: list[onnx.ModelProto]) -> None:
    session = ort.InferenceSession(graphs[1].SerializeToString())
    with pytest.raises(Exception, match="out of"):
        session.run(None, {"share": np.zeros((1, VALUES), np.int8), "partition": np.array([[PARTITIONS]], np.int32)})


def test_the_manifest_names_the_family_and_the_release_is_whole(
    keyed_trained_release: Path, system: System, family: PartitionFamily
) -> None:
    manifest = decode_client_manifest(read_manifest_bytes(keyed_trained_release / "client"))
    assert manifest.keys
    assert (manifest.keys.partitions, manifest.keys.family) == (
        PARTITIONS,
        family_id(family.tables(system.masks.owned)),
    )
    assert len(verify(keyed_trained_release)) == 5
    golden = load_file(keyed_trained_release / "client" / "golden.safetensors")
    assert golden["partition"].ravel().tolist() == list(range(8))
    assert Bundle.open(keyed_trained_release / "client", allow_unsigned=True).selftest().differing_values == 0


def test_local_mode_answers_what_the_trained_system_answers(keyed_trained_release: Path, system: System) -> None:
    images, _ = shifted_images(2, seed=12)
    with Client.local(keyed_trained_release, key=UserKey(bytes(range(16))), timeout=60) as client:
        results = client.predict_batch(images[..., None])
        partition = client.bundle.partition(bytes(range(16)))
    assert partition
    with torch.inference_mode():
        fused = system(torch.from_numpy(images)[:, None], torch.full((len(images),), partition)).softmax(dim=1).numpy()
    agreeing = np.mean([result.index == row.argmax() for result, row in zip(results, fused, strict=True)])
    assert agreeing > 0.9


def test_accuracy_by_partition_is_that_of_local_mode(
    keyed_trained_release: Path, graphs: list[onnx.ModelProto]
) -> None:
    images, labels = shifted_images(3, seed=13)
    fusion = (keyed_trained_release / "client" / "fusion.onnx").read_bytes()
    sessions = [evaluate.session(graph.SerializeToString()) for graph in graphs]
    with Client.local(keyed_trained_release, key=bytes(16), timeout=60) as client:
        results = client.predict_batch(images[..., None])
        partition = client.bundle.partition(bytes(16)) or 0
    found = evaluate.measure_partitions(
        encoder=sessions[0],
        branches=sessions[1:],
        fusion=evaluate.session(fusion),
        images=images[..., None],
        labels=labels.astype(np.int64),
        partitions=[partition, (partition + 1) % PARTITIONS],
    )
    assert list(found) == [partition, (partition + 1) % PARTITIONS]
    right = np.mean([result.index == label for result, label in zip(results, labels, strict=True)])
    assert found[partition] == pytest.approx(right)


def test_a_decoder_of_one_partition_misreads_another_and_one_told_the_places_does_not(
    keyed_trained_release: Path, system: System, family: PartitionFamily
) -> None:
    """Both halves of what docs/THREAT_MODEL.md says of keyed partitions, with linear decoders of server 0's share."""
    bundle, tables = (
        Bundle.open(keyed_trained_release / "client", allow_unsigned=True),
        family.tables(system.masks.owned)[:, 0].numpy(),
    )
    train, test = shifted_images(40, seed=21)[0], shifted_images(10, seed=22)[0]

    def shares(images: np.ndarray, partition: int) -> np.ndarray:
        return bundle.encode(images[..., None], partition=partition)[0].astype(np.float64)

    def placed(packed: np.ndarray, partition: int) -> np.ndarray:
        """The values in their places and which places these are, as a server sees them."""
        values, given = np.zeros((len(packed), 196)), np.zeros((len(packed), 196))
        values[:, tables[partition]], given[:, tables[partition]] = packed, 1
        return np.concatenate([values, given], axis=1)

    def fit(seen: np.ndarray, images: np.ndarray) -> np.ndarray:
        seen = np.c_[seen, np.ones(len(seen))]
        return np.linalg.solve(seen.T @ seen + np.eye(seen.shape[1]), seen.T @ images.reshape(len(images), -1))

    def error(decoder: np.ndarray, seen: np.ndarray) -> float:
        return float(((np.c_[seen, np.ones(len(seen))] @ decoder - test.reshape(len(test), -1)) ** 2).mean())

    mine, others = 5, range(6, 22)
    narrow = fit(shares(train, mine), train)
    # Trained on all partitions but the one that is attacked.
    wide = fit(np.concatenate([placed(shares(train, other), other) for other in others]), np.tile(train, (16, 1, 1)))
    mean = float(((train.mean(axis=0) - test) ** 2).mean())
    own = error(narrow, shares(test, mine))
    misread = np.mean([error(narrow, shares(test, other)) for other in others])
    told = error(wide, placed(shares(test, mine), mine))
    assert own < 0.9 * mean
    # Misreading is worse than knowing nothing; knowing the places is better, even of a partition never trained on.
    assert told < mean < misread
