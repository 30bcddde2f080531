"""The bundle: what an edge application embeds of a release."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from privdfs._constants import ONNX_THREADS, SELFTEST_PROBABILITY_TOLERANCE, SELFTEST_SHARE_TOLERANCE
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
    bytes_up,
    encoder_signature,
    fusion_signature,
    key_spec,
    share_name,
)
from privdfs._given import check_flag, check_path
from privdfs._keys import UserKey, check_partition, partition_of
from privdfs._manifest import decode_client_manifest
from privdfs._onnx import Array, Graph, partition_feed
from privdfs._signature import Trust, check_signature

_INT8, _FLOAT32 = np.dtype(np.int8), np.dtype(np.float32)


@dataclass(frozen=True)
class SelfTest:
    """How close this device comes to the golden examples.

    Attributes:
        images: number of golden examples.
        differing_values: fraction of int8 share values that differ from the recorded ones.
        probability_error: largest difference of a probability from the recorded one.
    """

    images: int
    differing_values: float
    probability_error: float


class Bundle:
    """The client's part of a release, verified and ready to run. Make one with `Bundle.open`.

    A bundle may be shared by several clients and threads, but not with a forked child process.
    """

    def __init__(self, folder: Path, manifest: ClientManifest, files: Mapping[str, bytes]) -> None:
        """Build from verified bytes; applications use `Bundle.open`."""
        self._folder = folder
        self._manifest = manifest
        self._keys = key_spec(manifest)
        self._pid = os.getpid()
        self._encoder = Graph(ENCODER_NAME, files[ENCODER_NAME], encoder_signature(manifest), ONNX_THREADS)
        self._fusion = Graph(FUSION_NAME, files[FUSION_NAME], fusion_signature(manifest), 1)

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
        manifest = decode_client_manifest(data)
        return cls(folder, manifest, read_verified(folder, manifest.files))

    def __repr__(self) -> str:
        return f"Bundle(release={self.release!r}, servers={self.n_servers}, classes={len(self.classes)})"

    @property
    def manifest(self) -> ClientManifest:
        """Everything that the release states about itself."""
        return self._manifest

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
        """Number of servers, N."""
        return len(self._manifest.servers)

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
        self._refuse_fork()
        check_partition(partition, self._keys)
        spec = self._manifest.image
        shape = (spec.height, spec.width, spec.channels)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != shape or not len(images):
            raise ConfigError(
                f"encode takes uint8 [batch, {spec.height}, {spec.width}, {spec.channels}] with at least one image, "
                f"not {images.dtype} {list(images.shape)}: Client.encode takes images of any size and form"
            )
        shares = self._encoder.run({IMAGE: images, **partition_feed(partition, len(images))})
        for share, server in zip(shares, self._manifest.servers, strict=True):
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
        self._refuse_fork()
        shape = (self.n_servers, len(self.classes))
        fits = logits.dtype == np.float32 and logits.ndim == 3 and logits.shape[1:] == shape and len(logits) > 0
        if not fits or answered.dtype != np.bool_ or answered.shape != logits.shape[:2]:
            raise ConfigError(
                f"fuse takes logits float32 [batch, {shape[0]}, {shape[1]}] and answered bool [batch, {shape[0]}], "
                f"not {logits.dtype} {list(logits.shape)} and {answered.dtype} {list(answered.shape)}"
            )
        (probabilities,) = self._fusion.run({LOGITS: logits, ANSWERED: answered})
        _require_output(FUSION_NAME, probabilities, _FLOAT32, (len(logits), shape[1]))
        if not np.isfinite(probabilities).all():
            raise BundleFormatError(f"{FUSION_NAME} gives NaN or infinite probabilities: run the bundle's self-test")
        return probabilities

    def selftest(self) -> SelfTest:
        """Replay the golden examples of the release on this device: images to shares, recorded logits to probabilities.

        Raises:
            SelfTestError: they differ by more than rounding explains.
            BundleError: the golden file is missing, changed or incomplete.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        files = {GOLDEN_NAME: self._manifest.files[GOLDEN_NAME]}
        try:
            golden: dict[str, Array] = load(read_verified(self._folder, files)[GOLDEN_NAME])
        except SafetensorError as error:
            raise BundleFormatError(f"{GOLDEN_NAME} is not a safetensors file: get the release again") from error
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

    def describe(self) -> str:
        """A page of plain text on the release: what it classifies, its accuracy, cost and measured leakage."""
        return _describe(self._manifest)

    def _check_golden(self, golden: Mapping[str, Array]) -> None:
        n_images = len(golden.get(IMAGES, ()))
        encoder, fusion = encoder_signature(self._manifest), fusion_signature(self._manifest)
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


def _describe(manifest: ClientManifest) -> str:
    image, accuracy, macs = manifest.image, manifest.accuracy, manifest.macs
    lengths = bytes_up(manifest)
    ratio = (macs.head + macs.fusion) / macs.baseline if macs.baseline else float("nan")
    names = ", ".join(manifest.classes[:10]) + (", …" if len(manifest.classes) > 10 else "")
    branches = ", ".join(f"{value:.2%}" for value in accuracy.branches)
    measured_on = f"{accuracy.data}, {accuracy.images} images"
    device_macs = macs.head + macs.fusion
    lines = [
        f"release      {manifest.release} (format {manifest.format_version})",
        f"made by      {manifest.made_by.command} at {manifest.made_by.commit}, {manifest.made_by.date}",
        f"image        {image.height} x {image.width} x {image.channels}, up to {manifest.max_batch} at a time",
        f"classes      {len(manifest.classes)}: {names}",
        f"servers      {len(lengths)}, bytes up per image: {' + '.join(map(str, lengths))} = {sum(lengths)}",
        f"accuracy     fused {accuracy.fused:.2%}, baseline {accuracy.baseline:.2%} ({measured_on})",
        f"branches     {branches}",
        f"on device    {device_macs:,} multiply-accumulates per image, {ratio:.1%} of the baseline's",
    ]
    keys = key_spec(manifest)
    if keys is not None:
        lines.append(f"keys         {keys.partitions} partitions, a user's key picks one (family {keys.family})")
    if accuracy.calibration is not msgspec.UNSET:
        error = accuracy.calibration
        lines.append(
            f"calibration  probabilities are off by {error.after:.2%}, before calibration {error.before:.2%} (expected "
            f"calibration error; fitted on {error.fitted_on})"
        )
    for row in accuracy.malicious:
        cheap = min(row.random, row.constant, row.flipped, row.runner_up)
        lines.append(
            f"liars        {row.liars} of {len(lengths)}: {cheap:.2%} under simple lies, {row.adversarial:.2%} under "
            "liars who know everything"
        )
    if not manifest.leakage:
        lines.append("leakage      not measured")
    for row in manifest.leakage:
        members = ", ".join(map(str, row.coalition))
        lines.append(
            f"leakage      servers {members} by {row.attack}: PSNR {row.psnr:.1f} dB (floor {row.floor:.1f} dB), "
            f"SSIM {row.ssim:.2f}, {row.images} images" + (f", effort {row.effort}" if row.effort else "")
        )
    return "\n".join(lines)
