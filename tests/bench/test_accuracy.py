import json
import shutil
from pathlib import Path

from privdfs import Bundle
from privdfs_bench.accuracy import trained_of


def test_a_release_of_an_older_version_is_that_of_its_checkpoint(trained_release: Path, tmp_path: Path) -> None:
    """Manifests whose config does not name the kinds of head and branch."""
    client = shutil.copytree(trained_release / "client", tmp_path / "client")
    manifest = json.loads((client / "manifest.json").read_text())
    config = manifest["made_by"]["config"]
    assert (config["head"].pop("kind"), config["branch"].pop("kind")) == ("compact", "residual")
    (client / "manifest.json").write_text(json.dumps(manifest))
    checkpoint = trained_release.parent / "run" / "system.safetensors"
    assert trained_of(Bundle.open(client, allow_unsigned=True), checkpoint).config.name == config["name"]
