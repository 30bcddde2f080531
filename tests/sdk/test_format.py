"""What readers and writers of a release share: coalitions, and the signatures of the graphs."""

from pathlib import Path

import pytest

from privdfs import Bundle
from privdfs._format import (
    Signature,
    TensorSpec,
    baseline_signature,
    branch_signature,
    encoder_signature,
    fusion_signature,
    largest_coalition,
    largest_minority,
    server_folder,
    share_name,
)
from tests.sdk.tiny_release import build_release


@pytest.mark.parametrize(
    ("servers", "minority", "coalition"), [(1, 0, 1), (2, 0, 1), (3, 1, 1), (4, 1, 1), (5, 2, 2), (6, 2, 2), (7, 3, 3)]
)
def test_a_minority_is_fewer_than_half(servers: int, minority: int, coalition: int) -> None:
    assert (largest_minority(servers), largest_coalition(servers)) == (minority, coalition)
    assert 2 * minority < servers <= 2 * minority + 2


@pytest.mark.parametrize("partitions", [None, 4])
def test_signatures_say_what_every_graph_takes_and_gives(tmp_path: Path, partitions: int | None) -> None:
    folder = build_release(tmp_path / "release", partitions=partitions)
    manifest = Bundle.open(folder / "client", allow_unsigned=True).masked
    keyed = () if partitions is None else (TensorSpec("partition", "int32", (1,)),)
    image, logits = TensorSpec("image", "uint8", (12, 10, 3)), TensorSpec("logits", "float32", (4,))
    shares = tuple(TensorSpec(f"share_{server}", "int8", (length,)) for server, length in enumerate((5, 6, 7)))
    assert encoder_signature(manifest) == Signature((image, *keyed), shares)
    assert branch_signature(manifest, 1) == Signature((TensorSpec("share", "int8", (6,)), *keyed), (logits,))
    assert fusion_signature(manifest) == Signature(
        (TensorSpec("logits", "float32", (3, 4)), TensorSpec("answered", "bool", (3,))),
        (TensorSpec("probabilities", "float32", (4,)),),
    )
    assert baseline_signature(manifest.image, len(manifest.classes)) == Signature((image,), (logits,))
    assert (server_folder(2), share_name(2)) == ("server-2", "share_2")
