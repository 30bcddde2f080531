"""Files about what is refused before anything is sent: signatures, and bundles that were changed."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from privdfs import Bundle, Error
from privdfs._signature import CONTEXT, signature_line
from tests.conformance.form import RELEASES, raw, text
from tests.conformance.releases import SIGNER

SIGNATURES = (
    "The client folder of a small release with `signature` (base64; null: none) as its manifest.sig, opened by who "
    "trusts `trusted`, public keys of 32 bytes in hex, or `trusted_pem`. Without `error` it opens."
)
BUNDLES = (
    "The client folder of a small release, changed by `edits` in their order and opened without a signature check; "
    "`error` is what opening it raises, or with `selftest` what the self-test raises. Without `error` all is well. An "
    "edit changes `file`: `write` (base64) all of it, `copy` another file over it, `flip` the byte at a position by "
    "xor 1, `cut` it to a length, `delete` it; or in the manifest `replace` one text, which is there once, by another. "
    "With `relist` the manifest then names the file's new digest."
)

_OTHER = Ed25519PrivateKey.from_private_bytes(bytes([8] * 32))
#: The order of Ed25519's group.
_ORDER = 2**252 + 27742317777372353535851937790883648493


def signatures() -> Iterable[dict[str, Any]]:
    signer, other = (key.public_key().public_bytes_raw().hex() for key in (SIGNER, _OTHER))
    pem = SIGNER.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    data = (RELEASES / "masked" / "client" / "manifest.json").read_bytes()
    line = signature_line(data, SIGNER)
    _, named, signature = line.decode().split()
    forged = _OTHER.sign(CONTEXT + data).hex()
    large = (int.from_bytes(bytes.fromhex(signature)[32:], "little") + _ORDER).to_bytes(32, "little").hex()
    refused = "BundleSignatureError"
    cases: list[tuple[str, bytes | None, list[str], str | None]] = [
        ("signed by the trusted key", line, [signer], None),
        ("signed by one of two trusted keys", line, [other, signer], None),
        ("signed by another key", signature_line(data, _OTHER), [signer], refused),
        (
            "signed by another key under the trusted one's name",
            f"ed25519 {named} {forged}\n".encode(),
            [signer],
            refused,
        ),
        ("of another manifest", signature_line(data + b" ", SIGNER), [signer], refused),
        ("without the context", f"ed25519 {named} {SIGNER.sign(data).hex()}\n".encode(), [signer], refused),
        ("with an S that is not reduced", f"ed25519 {named} {signature[:64]}{large}\n".encode(), [signer], refused),
        ("of zeros", f"ed25519 {named} {'0' * 128}\n".encode(), [signer], refused),
        ("one bit changed", line[:30] + bytes([line[30] ^ 1]) + line[31:], [signer], refused),
        ("missing", None, [signer], refused),
        ("empty", b"", [signer], refused),
        ("without the line break", line[:-1], [signer], refused),
        ("with a carriage return", line[:-1] + b"\r\n", [signer], refused),
        ("with a second line", line + line, [signer], refused),
        ("with two blanks", line.replace(b" ", b"  ", 1), [signer], refused),
        ("with a blank at the end", line[:-1] + b" \n", [signer], refused),
        ("in upper case", line[:8] + line[8:].upper(), [signer], refused),
        ("of another algorithm", line.replace(b"ed25519", b"ed25518"), [signer], refused),
        ("too short", line[:-3] + b"\n", [signer], refused),
        ("far too long", line + b"x" * 5000, [signer], refused),
    ]
    for name, written, trusted, error in cases:
        told: dict[str, Any] = {"name": name, "section": "2.5", "release": "masked"}
        told |= {"signature": None if written is None else text(written), "trusted": trusted}
        yield _checked_signature(told | ({} if error is None else {"error": error}))
    good = {"name": "a key in PEM form", "section": "2.5", "release": "masked", "signature": text(line)}
    yield _checked_signature({**good, "trusted_pem": pem})


def _checked_signature(told: dict[str, Any]) -> dict[str, Any]:
    assert signature_outcome(told) == told.get("error"), told["name"]
    return told


def signature_outcome(told: Mapping[str, Any]) -> str | None:
    """What opening the folder raises."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(RELEASES / told["release"] / "client", Path(temporary) / "client"))
        written = folder / "manifest.sig"
        if told["signature"] is None:
            written.unlink()
        else:
            written.write_bytes(raw(told["signature"]))
        pem = told.get("trusted_pem")
        trust = [bytes.fromhex(key) for key in told.get("trusted", ())] if pem is None else [pem.encode()]
        try:
            Bundle.open(folder, trust=trust)
        except Error as error:
            return type(error).__name__
        return None


def bundles() -> Iterable[dict[str, Any]]:
    for name, section, release, error, *edits in _CASES:
        told: dict[str, Any] = {"name": name, "section": section, "release": release}
        if error == "SelfTestError" or name.startswith("self-test"):
            told["selftest"] = True
        told["edits"] = edits
        told |= {} if error is None else {"error": error}
        assert bundle_outcome(told) == error, (name, bundle_outcome(told))
        yield told


def bundle_outcome(told: Mapping[str, Any]) -> str | None:
    """What opening the changed folder raises, and its self-test where that is asked for."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(shutil.copytree(RELEASES / told["release"] / "client", Path(temporary) / "client"))
        for edit in told["edits"]:
            _apply(folder, edit)
        try:
            bundle = Bundle.open(folder, allow_unsigned=True)
            if told.get("selftest"):
                bundle.selftest()
        except Error as error:
            return type(error).__name__
        return None


def _apply(folder: Path, edit: Mapping[str, Any]) -> None:
    path, manifest = folder / edit["file"], folder / "manifest.json"
    if edit.get("delete"):
        path.unlink()
        return
    data = path.read_bytes() if path.exists() else b""
    before = hashlib.sha256(data).hexdigest()
    if "write" in edit:
        data = raw(edit["write"])
    elif "copy" in edit:
        data = (folder / edit["copy"]).read_bytes()
    elif "flip" in edit:
        data = data[: edit["flip"]] + bytes([data[edit["flip"]] ^ 1]) + data[edit["flip"] + 1 :]
    elif "cut" in edit:
        data = data[: edit["cut"]]
    else:
        old, new = edit["replace"]
        assert data.decode().count(old) == 1, (old, data.decode().count(old))
        data = data.decode().replace(old, new).encode()
    path.write_bytes(data)
    if edit.get("relist"):
        lines = manifest.read_text("utf-8")
        assert lines.count(f'"{edit["file"]}": "{before}"') == 1
        after = hashlib.sha256(data).hexdigest()
        manifest.write_text(lines.replace(f'"{edit["file"]}": "{before}"', f'"{edit["file"]}": "{after}"'), "utf-8")


def _replace(old: str, new: str) -> dict[str, Any]:
    return {"file": "manifest.json", "replace": [old, new]}


def _manifest(data: bytes) -> dict[str, Any]:
    return {"file": "manifest.json", "write": text(data)}


_FORMAT, _VERSION, _INTEGRITY = "BundleFormatError", "BundleVersionError", "BundleIntegrityError"
_V1, _V2 = '"format_version": 1', '"format_version": 2'
_ENCODER = '"encoder.onnx": "'
_DEEP = b'{"format_version": 1, "x": ' + b"[" * 3000

#: Name, section, release, error, edits.
_CASES: tuple[tuple[Any, ...], ...] = (
    ("self-test of the masked release", "2.7", "masked", None),
    ("self-test of the keyed release", "2.7", "keyed", None),
    ("self-test of the coded release", "2.7", "coded", None),
    ("self-test of the release of two rounds", "2.7", "coded-rounds", None),
    ("a file that is not listed does no harm to a client", "2.4", "masked", None,
     {"file": "more.txt", "write": "eA=="}),
    ("format version 3", "2.2", "masked", _VERSION, _replace(_V1, '"format_version": 3')),
    ("format version 0", "2.2", "masked", _VERSION, _replace(_V1, '"format_version": 0')),
    ("format version as text", "2.2", "masked", _VERSION, _replace(_V1, '"format_version": "1"')),
    ("format version true", "2.2", "masked", _VERSION, _replace(_V1, '"format_version": true')),
    ("no format version", "2.2", "masked", _VERSION, _replace(f"  {_V1},\n", "")),
    ("a version to come, with fields to come", "2.2", "masked", _VERSION,
     _replace(_V1, '"format_version": 9, "new": {}')),
    ("a coded manifest that says it is masked", "2.2", "coded", _FORMAT, _replace(_V2, _V1)),
    ("a masked manifest that says it is coded", "2.3", "masked", _FORMAT, _replace(_V1, _V2)),
    ("an unknown field", "2.2", "masked", _FORMAT, _replace(_V1, f'{_V1}, "new": 1')),
    ("an unknown field inside", "2.2", "masked", _FORMAT, _replace('"height": 9', '"height": 9, "depth": 1')),
    ("a missing field", "2.2", "masked", _FORMAT, _replace('  "max_batch": 4,\n', "")),
    ("a number as text", "2.2", "masked", _FORMAT, _replace('"max_batch": 4', '"max_batch": "4"')),
    ("a batch of none", "2.2", "masked", _FORMAT, _replace('"max_batch": 4', '"max_batch": 0')),
    ("a batch that is no whole number", "2.2", "masked", _FORMAT, _replace('"max_batch": 4', '"max_batch": 4.5')),
    ("an id with a slash", "2.2", "masked", _FORMAT, _replace("vectors-masked-1", "vectors/masked")),
    ("an empty id", "2.2", "masked", _FORMAT, _replace("vectors-masked-1", "")),
    ("two channels", "2.2", "masked", _FORMAT, _replace('"channels": 3', '"channels": 2')),
    ("a class twice", "2.2", "masked", _FORMAT, _replace('"bag"', '"coat"')),
    ("one class", "2.2", "masked", _FORMAT,
     _replace('"ankle boot",\n    "bag",\n    "coat",\n    "dress"', '"bag"')),
    ("a digest in upper case", "2.4", "masked", _FORMAT, _replace(_ENCODER, f"{_ENCODER}A")),
    ("a file of the format is not listed", "2.2", "masked", _FORMAT, _replace(_ENCODER, '"other.onnx": "')),
    ("a relay is not listed", "2.3", "coded-rounds", _FORMAT, _replace('"relay-1.onnx"', '"relay-2.onnx"')),
    ("a path that leaves the folder", "2.4", "masked", _INTEGRITY,
     _replace('"files": {', f'"files": {{"../golden.safetensors": "{"0" * 64}",')),
    ("an absolute path", "2.4", "masked", _INTEGRITY,
     _replace('"files": {', f'"files": {{"/etc/hosts": "{"0" * 64}",')),
    ("a path with a backslash", "2.4", "masked", _INTEGRITY,
     _replace('"files": {', f'"files": {{"a\\\\b": "{"0" * 64}",')),
    ("a path with a colon", "2.4", "masked", _INTEGRITY, _replace('"files": {', f'"files": {{"c:x": "{"0" * 64}",')),
    ("a path that is not in its plain form", "2.4", "masked", _INTEGRITY,
     _replace('"files": {', f'"files": {{"a//b": "{"0" * 64}",')),
    ("a manifest that lists itself", "2.4", "masked", _INTEGRITY,
     _replace('"files": {', f'"files": {{"manifest.json": "{"0" * 64}",')),
    ("a listed file that is missing", "2.4", "masked", _INTEGRITY,
     _replace('"files": {', f'"files": {{"more.txt": "{"0" * 64}",')),
    ("even levels", "2.2", "masked", _FORMAT,
     _replace('"share_length": 5,\n      "levels": 15', '"share_length": 5,\n      "levels": 14')),
    ("a scale of zero", "2.2", "masked", _FORMAT,
     _replace('"share_length": 5,\n      "levels": 15,\n      "scale": 0.0625',
              '"share_length": 5,\n      "levels": 15,\n      "scale": 0')),
    ("a coalition with a server that is not there", "2.2", "masked", _FORMAT,
     _replace('"coalition": [\n        0\n      ]', '"coalition": [3]')),
    ("more liars than a minority", "2.2", "masked", _FORMAT, _replace('"liars": 1', '"liars": 2')),
    ("an accuracy above 1", "2.2", "masked", _FORMAT, _replace('"fused": 0.5', '"fused": 50')),
    ("no accuracy", "2.2", "masked", _FORMAT, _replace('"fused": 0.5', '"fused": NaN')),
    ("a family of partitions of the wrong length", "2.2", "keyed", _FORMAT,
     _replace("000102030405060708090a0b0c0d0e0f", "0001")),
    ("one partition", "2.2", "keyed", _FORMAT, _replace('"partitions": 5', '"partitions": 1')),
    ("a modulus that is no prime", "2.3", "coded", _FORMAT, _replace("241,\n        239", "240,\n        239")),
    ("a modulus twice", "2.3", "coded", _FORMAT, _replace("241,\n        239", "241,\n        241")),
    ("a modulus that is too large", "2.3", "coded", _FORMAT, _replace("241,\n        239", "251,\n        239")),
    ("a modulus that is too small", "2.3", "coded", _FORMAT, _replace("241,\n        239", "13,\n        239")),
    ("moduli that cannot hold the results", "2.3", "coded", _FORMAT,
     _replace("        241,\n        239,\n        233", "        241,\n        239")),
    ("a degree of nine", "2.3", "coded", _FORMAT, _replace('"degree": 2', '"degree": 9')),
    ("a round that adds one to come", "2.3", "coded-rounds", _FORMAT, _replace('"added": 1', '"added": 2')),
    ("a last round without an output for each class", "2.3", "coded", _FORMAT,
     _replace('"outputs": 4', '"outputs": 5')),
    ("rounds that do not fit", "2.3", "coded-rounds", _FORMAT,
     _replace('"values": 10,\n      "elements": 10', '"values": 11,\n      "elements": 11')),
    ("more values than elements", "2.3", "coded", _FORMAT, _replace('"values": 12', '"values": 21')),
    ("no rounds", "2.3", "coded", _FORMAT, _manifest(b'{"format_version": 2, "rounds": []}')),
    ("not JSON", "2.2", "masked", _FORMAT, _manifest(b"manifest")),
    ("empty", "2.2", "masked", _FORMAT, _manifest(b"")),
    ("not an object", "2.2", "masked", _FORMAT, _manifest(b"[1]")),
    ("not UTF-8", "2.2", "masked", _FORMAT, _manifest(b'{"format_version": 1, "release": "\xff"}')),
    ("bytes behind the object", "2.2", "masked", _FORMAT, _replace('"leakage": [', '}\n{"leakage": [')),
    ("nested too deeply", "2.2", "masked", _FORMAT, _manifest(_DEEP)),
    ("no manifest", "2.1", "masked", _INTEGRITY, {"file": "manifest.json", "delete": True}),
    ("no encoder", "2.4", "masked", _INTEGRITY, {"file": "encoder.onnx", "delete": True}),
    ("no golden examples", "2.4", "masked", _INTEGRITY, {"file": "golden.safetensors", "delete": True}),
    ("one bit of the encoder", "2.4", "masked", _INTEGRITY, {"file": "encoder.onnx", "flip": 100}),
    ("one bit of the fusion", "2.4", "keyed", _INTEGRITY, {"file": "fusion.onnx", "flip": 3}),
    ("one bit of the relay", "2.4", "coded-rounds", _INTEGRITY, {"file": "relay-1.onnx", "flip": 40}),
    ("one bit of the golden examples", "2.4", "coded", _INTEGRITY, {"file": "golden.safetensors", "flip": 1000}),
    ("an encoder that ends early", "2.4", "masked", _INTEGRITY, {"file": "encoder.onnx", "cut": 500}),
    ("a graph that is none", "2.6", "masked", _FORMAT,
     {"file": "encoder.onnx", "write": text(b"onnx"), "relist": True}),
    ("a graph with other inputs", "2.6", "masked", _FORMAT,
     {"file": "fusion.onnx", "copy": "encoder.onnx", "relist": True}),
    ("a relay with other inputs", "2.6", "coded-rounds", _FORMAT,
     {"file": "relay-1.onnx", "copy": "fusion.onnx", "relist": True}),
    ("an encoder of another image size", "2.6", "masked", _FORMAT, _replace('"height": 9', '"height": 10')),
    ("self-test with other golden probabilities", "2.7", "masked", "SelfTestError",
     {"file": "golden.safetensors", "flip": 699, "relist": True}),
    ("self-test with another golden answer", "2.7", "coded-rounds", "SelfTestError",
     {"file": "golden.safetensors", "flip": 520, "relist": True}),
    ("self-test with golden examples that are none", "2.7", "masked", _FORMAT,
     {"file": "golden.safetensors", "write": text(b"golden"), "relist": True}),
)  # fmt: skip
