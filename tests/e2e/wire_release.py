"""A release that tritonserver serves and a client opens, made in milliseconds."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import msgspec

from privdfs._files import sha256_file
from privdfs._manifest import encode_manifest
from privdfs._verify import server_manifest
from privdfs_export.triton import ModelSpec, TensorSpec, write_model
from tests.sdk.tiny_release import CLASSES, MAX_BATCH, build_release

RELEASE = "wire-1"
#: Long enough that no share is found anywhere by chance.
LENGTHS = (64, 72, 80)


def write_wire_release(
    folder: Path,
    scripts: Mapping[int, str] | None = None,
    *,
    release: str = RELEASE,
    seed: int = 0,
    queues: Mapping[int, int] | None = None,
) -> Path:
    """The tiny release with branches that tritonserver runs.

    Args:
        folder: where to write it.
        scripts: of servers that run another script than ours.
        release: its id.
        seed: of its weights.
        queues: how many requests may wait at a server, by its number; at others any number.
    """
    build_release(folder, release=release, share_lengths=LENGTHS, seed=seed)
    for i, length in enumerate(LENGTHS):
        server = folder / f"server-{i}"
        graph = (server / "branch" / "1" / "model.onnx").read_bytes()
        shutil.rmtree(server / "branch")
        spec = ModelSpec(
            "branch",
            "python",
            (TensorSpec("share", "int8", (length,)),),
            TensorSpec("logits", "float32", (len(CLASSES),)),
            MAX_BATCH,
            {"privdfs_release": release, "privdfs_server": str(i)},
        )
        written = write_model(server, spec, graph)
        if scripts and i in scripts:
            (server / "branch" / "1" / "model.py").write_text(scripts[i], encoding="utf-8")
        if queues and i in queues:
            config = server / "branch" / "config.pbtxt"
            policy = f"dynamic_batching {{ default_queue_policy {{ max_queue_size: {queues[i]} }} }}"
            config.write_text(config.read_text(encoding="utf-8").replace("dynamic_batching {\n}", policy))
        files = {name: sha256_file(server / name) for name in written}
        manifest = msgspec.structs.replace(server_manifest(server), files=files)
        (server / "manifest.json").write_bytes(encode_manifest(manifest))
    return folder
