import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from privdfs import BundleError, BundleFormatError, BundleIntegrityError, Client, NotEnoughAnswersError
from tests.sdk.drivers import Driver


def test_local_mode_predicts_and_says_what_it_is_for(
    connect_local: Callable[..., Driver], release: Path, images: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "privdfs"):
        client = connect_local(release)
    assert "development and tests only" in caplog.text
    assert client.predict(images[0]).answered == (True, True, True)
    assert [share.shape for share in client.encode(images[0])] == [(5,), (6,), (7,)]


def test_a_changed_branch_is_refused(release_copy: Path) -> None:
    path = release_copy / "server-1" / "branch" / "1" / "model.onnx"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleIntegrityError, match=r"branch/1/model\.onnx"):
        Client.local(release_copy)


def test_a_missing_server_folder(release_copy: Path) -> None:
    shutil.rmtree(release_copy / "server-2")
    with pytest.raises(BundleIntegrityError, match="server-2"):
        Client.local(release_copy)


def test_a_folder_of_a_release_is_not_the_release(release: Path) -> None:
    for part in ("client", "server-0"):
        with pytest.raises(BundleIntegrityError, match=f"{part}' is one folder of a release: give the release"):
            Client.local(release / part)


def test_a_server_of_another_release(release_copy: Path, other_release: Path) -> None:
    shutil.rmtree(release_copy / "server-2")
    shutil.copytree(other_release / "server-2", release_copy / "server-2")
    with pytest.raises(BundleFormatError, match="server-2 is of release tiny-2"):
        Client.local(release_copy)


def test_folders_in_another_order(release_copy: Path) -> None:
    (release_copy / "server-0").rename(release_copy / "keep")
    (release_copy / "server-1").rename(release_copy / "server-0")
    (release_copy / "keep").rename(release_copy / "server-1")
    with pytest.raises(BundleFormatError, match="server-0 holds server 1"):
        Client.local(release_copy)


@pytest.mark.parametrize(
    ("field", "value"),
    [("share_length", 9), ("scale", 0.5), ("classes", 9), ("keys", {"partitions": 2, "family": "0" * 32})],
)
def test_a_server_that_disagrees_with_the_client(release_copy: Path, field: str, value: object) -> None:
    path = release_copy / "server-0" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {field: value}))
    with pytest.raises(BundleFormatError, match="disagree"):
        Client.local(release_copy)


def test_a_branch_that_is_no_onnx_graph(release_copy: Path) -> None:
    folder = release_copy / "server-0"
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    del manifest["files"]["branch/1/model.onnx"]
    path.write_text(json.dumps(manifest | {"engine": "tensorrt"}))
    with pytest.raises(BundleFormatError, match="local mode runs"):
        Client.local(release_copy)


def test_not_a_release(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        Client.local(tmp_path)


def test_the_deadline_holds_in_local_mode_too(
    connect_local: Callable[..., Driver], release: Path, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("privdfs._core.Deadline.remaining", property(lambda self: self.timeout - self.elapsed_ms))
    client = connect_local(release)
    client.predict(images[0], timeout=3000)
    clock = iter([1.0] + [0.0] * 99)  # time enough until the shares are made, none for the branches
    monkeypatch.setattr("privdfs._core.Deadline.remaining", property(lambda self: next(clock)))
    with pytest.raises(NotEnoughAnswersError, match="too slow"):
        client.predict(images[0])
