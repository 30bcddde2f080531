"""A coded release on disk. Every server gets the same networks; its folder says which place it has."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec

from privdfs import coding
from privdfs._coded_format import (
    CODED_FORMAT_VERSION,
    CodedManifest,
    CodedServerManifest,
    branch_model,
    round_signature,
    server_round,
)
from privdfs._errors import BundleIntegrityError
from privdfs._files import read_manifest_bytes
from privdfs._format import BASELINE_FOLDER, CLIENT_FOLDER, RELEASE_PARAMETER, SERVER_PARAMETER, server_folder
from privdfs._manifest import read_client_manifest
from privdfs._verify import server_folders, verify
from privdfs_export.coded_contents import CodedGraphs
from privdfs_export.errors import ExportError
from privdfs_export.repository import Model, Repository, Tensors, read_repository, write_models
from privdfs_export.triton import GraphEngine, ModelSpec
from privdfs_export.writing import Sidecar, whole_release, write_baseline, write_client


def write_coded_release(
    out: Path,
    client: CodedManifest,
    built: CodedGraphs,
    *,
    engine: GraphEngine,
    servers: int,
    golden: Tensors,
    server_golden: Tensors,
    baseline: Sidecar,
) -> None:
    """Write a coded release whole or not at all.

    Args:
        out: Its folder; must not exist.
        client: The client's manifest; its files are filled in.
        built: The graphs.
        engine: What Triton runs them with.
        servers: How many servers get a folder.
        golden: The client's examples, by name.
        server_golden: Every server's, by name.
        baseline: What lies beside the baseline.

    Raises:
        ExportError: The folder exists or cannot be written; nothing was left behind.
    """
    check_servers(servers)
    with whole_release(out) as folder:
        write_client(folder / CLIENT_FOLDER, client, built.client_files, golden)
        graphs = [graph.data for graph in built.rounds]
        for server in range(servers):
            write_coded_server(folder / server_folder(server), client, server, graphs, engine, server_golden)
        write_baseline(folder / BASELINE_FOLDER, client, built.baseline.data, engine, baseline)


def check_servers(servers: int, degree: int = 1) -> None:
    """Refuse a number of servers that no client takes.

    Args:
        servers: How many get a folder.
        degree: The largest of the rounds; the least before they are known.

    Raises:
        ExportError: They cannot decode while one of them learns nothing, or are more than liars can be found among.
    """
    if not degree < servers <= coding.MAX_SERVERS:
        message = (
            f"--servers is {servers}: a coded release of degree {degree} has folders for {degree + 1} to "
            f"{coding.MAX_SERVERS} servers."
        )
        raise ExportError(message)


def write_coded_server(
    folder: Path, client: CodedManifest, server: int, graphs: Sequence[bytes], engine: GraphEngine, golden: Tensors
) -> None:
    """Write the folder of one server.

    Args:
        folder: `server-<i>`; made when it is not there.
        client: The client's manifest.
        server: Index of the server; its place is one more.
        graphs: Of each round, serialised ONNX.
        engine: What Triton runs them with.
        golden: `share_<round>` and `residues_<round>`.

    Raises:
        OSError: It cannot be written.
    """
    models = list[Model]()
    for number, (about, graph) in enumerate(zip(client.rounds, graphs, strict=True), 1):
        tensors = round_signature(about)
        spec = ModelSpec(
            name=branch_model(number),
            engine=engine,
            inputs=tensors.inputs,
            output=tensors.outputs[0],
            max_batch=client.max_batch,
            parameters={RELEASE_PARAMETER: client.release, SERVER_PARAMETER: str(server)},
        )
        models.append(Model(spec, graph))
    manifest = CodedServerManifest(
        format_version=CODED_FORMAT_VERSION,
        release=client.release,
        server=server,
        rounds=tuple(map(server_round, client.rounds)),
        engine=engine,
        files={},
        made_by=client.made_by,
    )
    write_models(folder, manifest, models, golden=golden)


def add_servers(release: Path, servers: int) -> list[Path]:
    """Give a coded release folders for more servers; what is there stays as it is.

    Args:
        release: Its folder.
        servers: How many there shall be.

    Returns:
        The folders that were made.

    Raises:
        ExportError: The release is not coded, has as many already, has plans, or cannot be written.
        privdfs.BundleError: The release is not as it was exported.
    """
    check_servers(servers)
    verify(release)
    client = read_client_manifest(read_manifest_bytes(release / CLIENT_FOLDER))
    if not isinstance(client, CodedManifest):
        message = f"{release} is a masked release: its servers have networks of their own, made by training."
        raise ExportError(message)
    there = server_folders(release, client)
    if len(there) >= servers:
        message = f"{release} has {len(there)} servers already. Ask for more, or let clients use fewer."
        raise ExportError(message)
    first = read_repository(there[0])
    made = [release / server_folder(server) for server in range(len(there), servers)]
    try:
        for server, folder in enumerate(made, len(there)):
            _copy_server(folder, client, server, first)
    except OSError as error:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        message = f"cannot write in {release}: {error.strerror}. Free some disk space; nothing was left behind."
        raise ExportError(message) from error
    return made


def _copy_server(folder: Path, client: CodedManifest, server: int, first: Repository) -> None:
    manifest = first.manifest
    if manifest.engine == "tensorrt":
        message = f"{first.path} has plans. Add servers to the release as it was exported, then build plans for them."
        raise ExportError(message)
    golden = first.golden
    if golden is None:
        raise BundleIntegrityError(f"{first.path} has no golden examples: get the release again", first.path.name)
    graphs = [model.graph for model in first.models]
    source = msgspec.structs.replace(client, made_by=manifest.made_by)
    write_coded_server(folder, source, server, graphs, manifest.engine, golden)
