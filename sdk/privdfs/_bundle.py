"""The bundle: what an edge application embeds of a release."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from privdfs._canaries import Canaries
from privdfs._coded import CodedGraphs
from privdfs._coded_format import CodedManifest
from privdfs._coded_selftest import find_canaries, replay_coded
from privdfs._constants import ONNX_THREADS, SELFTEST_PROBABILITY_TOLERANCE, SELFTEST_SHARE_TOLERANCE
from privdfs._describe import describe
from privdfs._errors import BundleFormatError, BundleIntegrityError, BundleSignatureError, ConfigError, SelfTestError
from privdfs._files import read_manifest_bytes, read_verified
from privdfs._format import (
    ANSWERED,
    CLIENT_FOLDER,
    ENCODER_NAME,
    FUSION_NAME,
    GOLDEN_NAME,
    IMAGE,
    IMAGES,
    LOGITS,
    MANIFEST_NAME,
    PARTITION,
    PROBABILITIES,
    ClientManifest,
    encoder_signature,
    fusion_signature,
    key_spec,
    share_name,
)
from privdfs._given import check_flag, check_path
from privdfs._keys import UserKey, check_partition, partition_of
from privdfs._manifest import AnyClientManifest, read_client_manifest
from privdfs._onnx import Array, Graph, partition_feed
from privdfs._result import SelfTest
from privdfs._signature import Trust, check_signature

_INT8, _FLOAT32 = np.dtype(np.int8), np.dtype(np.float32)


class Bundle:
    """The client's part of a release, verified and ready to run. Make one with `Bundle.open`.

    A bundle may be shared by several clients and threads, but not with a forked child process.
    """

    def __init__(self, folder: Path, manifest: AnyClientManifest, files: Mapping[str, bytes]) -> None:
        """Build from verified bytes; applications use `Bundle.open`."""
        self._folder = folder
        self._manifest = manifest
        self._pid = os.getpid()
        if isinstance(manifest, CodedManifest):
            self._graphs, self._keys = CodedGraphs(manifest, files), None
        else:
            self._keys = key_spec(manifest)
            encoder = Graph(ENCODER_NAME, files[ENCODER_NAME], encoder_signature(manifest), ONNX_THREADS)
            fusion = Graph(FUSION_NAME, files[FUSION_NAME], fusion_signature(manifest), 1)
            self._graphs = encoder, fusion

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], *, trust: Trust | None = None, allow_unsigned: bool = False
    ) -> "Bundle":
        """Open the `client` folder of a release.

        The signature of the manifest is checked before it is parsed, and every file is compared with its SHA-256 in the
        manifest before ONNX Runtime sees a byte of it.

        Args:
            path: the folder.
            trust: Ed25519 public key of the signer (the path of a PEM file, what is in one, or the
                key's 32 bytes), or several, of which one must have signed.
            allow_unsigned: open it without a signature check, for development.

        Raises:
            BundleSignatureError: it is not signed by a trusted key, or none was named.
            BundleVersionError: the manifest's format is not the one this version of privdfs reads.
            BundleFormatError: the manifest or a graph is not what the format promises.
            BundleIntegrityError: a file is missing or changed.
            ConfigError: a key cannot be read, or both `trust` and `allow_unsigned` were given.
        """
        folder = check_path(path, "the bundle")
        check_flag(allow_unsigned, "allow_unsigned")
        whole = folder / CLIENT_FOLDER / MANIFEST_NAME
        if not os.path.exists(folder / MANIFEST_NAME) and os.path.exists(whole):  # noqa: PTH110 - pathlib's raise
            raise BundleIntegrityError(
                f"{folder} is a whole release: give its client folder, {folder / CLIENT_FOLDER}", MANIFEST_NAME
            )
        if trust is not None and allow_unsigned:
            raise ConfigError("`trust` and `allow_unsigned` contradict each other: drop one of them")
        data = read_manifest_bytes(folder)
        if trust is not None:
            check_signature(folder, data, trust)
        elif not allow_unsigned:
            raise BundleSignatureError(
                f"{folder} could be anyone's bundle: pass trust=<public key of the signer>, or allow_unsigned=True for "
                "development"
            )
        manifest = read_client_manifest(data)
        return cls(folder, manifest, read_verified(folder, manifest.files))

    def __repr__(self) -> str:
        kind = "coded" if isinstance(self._manifest, CodedManifest) else f"servers={self.n_servers}"
        return f"Bundle(release={self.release!r}, {kind}, classes={len(self.classes)})"

    @property
    def manifest(self) -> AnyClientManifest:
        """Everything that the release states about itself; its type tells masked from coded."""
        return self._manifest

    @property
    def masked(self) -> ClientManifest:
        """The manifest of a masked release.

        Raises:
            ConfigError: the release is coded.
        """
        if isinstance(self._manifest, CodedManifest):
            raise ConfigError(
                f"{self.release} is a coded release, and this is for masked ones: a client makes and decodes its shares"
            )
        return self._manifest

    @property
    def coded(self) -> CodedGraphs:
        """The graphs of a coded release; a client drives them.

        Raises:
            ConfigError: the release is masked.
        """
        if not isinstance(self._graphs, CodedGraphs):
            raise ConfigError(f"{self.release} is a masked release, and this is for coded ones")
        self._refuse_fork()
        return self._graphs

    @property
    def release(self) -> str:
        """Id of the release; only servers of the same release fit."""
        return self._manifest.release

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        return self._manifest.classes

    @property
    def n_servers(self) -> int:
        """Number of servers of a masked release, N.

        Raises:
            ConfigError: the release is coded; then a client has as many as it is given.
        """
        return len(self.masked.servers)

    def partition(self, key: UserKey | bytes | None) -> int | None:
        """The partition that a user's key picks; None for a release without keys.

        Raises:
            ConfigError: a keyed release and no key, a key for a release without keys, or an invalid key.
        """
        return partition_of(key, self._keys)

    def encode(self, images: npt.NDArray[np.uint8], *, partition: int | None = None) -> list[npt.NDArray[np.int8]]:
        """Turn images into shares: the head, the mask and the quantisation, in one call of ONNX Runtime.

        Args:
            images: uint8 [batch, height, width, channels] of the bundle's image size.
            partition: of a keyed release, as `partition` gives it.

        Returns:
            N arrays, the i-th int8 [batch, K_i]: what server i is sent.

        Raises:
            ConfigError: another shape or type, a partition that the release does not have, or called in a forked
                child process.
            BundleFormatError: the graph gives shares of another shape.
        """
        manifest, (encoder, _) = self.masked, self._masked_graphs
        self._refuse_fork()
        check_partition(partition, self._keys)
        spec = manifest.image
        shape = (spec.height, spec.width, spec.channels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape or not len(images):
            raise ConfigError(
                f"encode takes uint8 [batch, {spec.height}, {spec.width}, {spec.channels}] with at least one image, "
                f"not {images.dtype} {list(images.shape)}: Client.encode takes images of any size and form"
            )
        shares = encoder.run({IMAGE: images, **partition_feed(partition, len(images))})
        for share, server in zip(shares, manifest.servers, strict=True):
            _require_output(ENCODER_NAME, share, _INT8, (len(images), server.share_length))
        return shares

    def fuse(self, logits: npt.NDArray[np.float32], answered: npt.NDArray[np.bool_]) -> npt.NDArray[np.float32]:
        """Turn the servers' answers into class probabilities.

        Args:
            logits: float32 [batch, N, classes], finite; rows of servers that did not answer are ignored (put zeros).
            answered: bool [batch, N], at least one true in every row.

        Returns:
            float32 [batch, classes].

        Raises:
            ConfigError: another shape or type, or called in a forked child process.
            BundleFormatError: the graph does not give probabilities.
        """
        shape, (_, fusion) = (self.n_servers, len(self.classes)), self._masked_graphs
        self._refuse_fork()
        fits = logits.dtype == np.float32 and logits.ndim == 3 and logits.shape[1:] == shape and len(logits) > 0
        if not fits or answered.dtype != np.bool_ or answered.shape != logits.shape[:2]:
            raise ConfigError(
                f"fuse takes logits float32 [batch, {shape[0]}, {shape[1]}] and answered bool [batch, {shape[0]}], "
                f"not {logits.dtype} {list(logits.shape)} and {answered.dtype} {list(answered.shape)}"
            )
        (probabilities,) = fusion.run({LOGITS: logits, ANSWERED: answered})
        _require_output(FUSION_NAME, probabilities, _FLOAT32, (len(logits), shape[1]))
        if not np.isfinite(probabilities).all():
            raise BundleFormatError(f"{FUSION_NAME} gives NaN or infinite probabilities: run the bundle's self-test")
        return probabilities

    @property
    def _masked_graphs(self) -> tuple[Graph, Graph]:
        """Encoder and fusion of a masked release."""
        if isinstance(self._graphs, CodedGraphs):
            raise ConfigError(f"{self.release} is a coded release, and this is for masked ones")
        return self._graphs

    def selftest(self) -> SelfTest:
        """Replay the golden examples on this device: images to shares, recorded answers to probabilities.

        Of a coded release, all but the head has to give the very integers that were recorded.

        Raises:
            SelfTestError: they differ by more than rounding explains.
            BundleError: the golden file is missing, changed or incomplete.
        """
        golden = self._golden()
        if isinstance(self._manifest, CodedManifest):
            return replay_coded(self.coded, self._manifest, golden)
        self._check_golden(golden)
        images, logits, recorded = golden[IMAGES], golden[LOGITS], golden[PROBABILITIES]
        # One image at a time: whatever the batch, a release must give what was recorded.
        partitions = [None] * len(images) if self._keys is None else golden[PARTITION][:, 0].tolist()
        encoded = [
            self.encode(image[np.newaxis], partition=partition)
            for image, partition in zip(images, partitions, strict=True)
        ]
        differing = 0
        for i in range(self.n_servers):
            share = np.concatenate([shares[i] for shares in encoded])
            differing += int(np.count_nonzero(share != golden[share_name(i)]))
        fraction = differing / sum(golden[share_name(i)].size for i in range(self.n_servers))
        probabilities = self.fuse(logits, np.ones(logits.shape[:2], dtype=np.bool_))
        error = float(np.abs(probabilities - recorded).max())
        same_label = bool((probabilities.argmax(axis=1) == recorded.argmax(axis=1)).all())
        if fraction > SELFTEST_SHARE_TOLERANCE or not error <= SELFTEST_PROBABILITY_TOLERANCE or not same_label:
            raise SelfTestError(
                f"the golden examples give different results here: {fraction:.2%} of the share values differ "
                f"(allowed {SELFTEST_SHARE_TOLERANCE:.0%}), probabilities by up to {error:.2g} "
                f"(allowed {SELFTEST_PROBABILITY_TOLERANCE:g}), labels {'agree' if same_label else 'differ'}: "
                "try another version of onnxruntime; do not use the bundle on this device until this passes"
            )
        return SelfTest(images=len(images), differing_values=fraction, probability_error=error)

    def canaries(self) -> Canaries:
        """The golden examples of a coded release that can be canaries on this device.

        Raises:
            ConfigError: the release is masked, or none comes out here as it was recorded.
            BundleError: the golden file is missing, changed or incomplete.
        """
        if not isinstance(self._manifest, CodedManifest):
            raise ConfigError(
                f"{self.release} has masked shares, and a server would know the share of a golden example: drop "
                "`canary_rate`, which is for coded releases"
            )
        return find_canaries(self.coded, self._manifest, self._golden())

    def _golden(self) -> dict[str, Array]:
        """The golden examples, as the manifest lists them."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        files = {GOLDEN_NAME: self._manifest.files[GOLDEN_NAME]}
        try:
            return load(read_verified(self._folder, files)[GOLDEN_NAME])
        except SafetensorError as error:
            raise BundleFormatError(f"{GOLDEN_NAME} is not a safetensors file: get the release again") from error

    def describe(self, *, servers: int | None = None, colluding: int | None = None) -> str:
        """A page of plain text on the release: what it classifies, its accuracy, cost and leakage.

        Args:
            servers: N, for a coded release: how many silent and lying servers a call can stand; None shows the usual N.
            colluding: T, how many servers together must learn nothing, for a coded release; None: every minority.

        Raises:
            ConfigError: a number out of range, or one for a masked release, which has fixed ones.
        """
        return describe(self._manifest, servers=servers, colluding=colluding)

    def _check_golden(self, golden: Mapping[str, Array]) -> None:
        n_images = len(golden.get(IMAGES, ()))
        encoder, fusion = encoder_signature(self.masked), fusion_signature(self.masked)
        specs = (*encoder.inputs, *encoder.outputs, *fusion.inputs, *fusion.outputs)
        wanted = {spec.name: (spec.dtype, (n_images, *spec.shape)) for spec in specs if spec.name != ANSWERED}
        wanted[IMAGES] = wanted.pop(IMAGE)
        found = {name: (str(array.dtype), array.shape) for name, array in golden.items()}
        if n_images == 0 or found != wanted:
            raise BundleFormatError(f"{GOLDEN_NAME} does not hold the tensors of this release: get the release again")

    def _refuse_fork(self) -> None:
        if os.getpid() != self._pid:
            raise ConfigError(
                "the bundle was opened before this process was forked, and threads do not survive a fork: open the "
                "bundle and make the client in the child process"
            )


def _require_output(name: str, array: Array, dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise BundleFormatError(
            f"{name} gives {array.dtype} {list(array.shape)} where the manifest promises {dtype} {list(shape)}: "
            "get the release again"
        )
