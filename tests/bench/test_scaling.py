"""Random releases, and bench/scaling.py on them: small, since time is not what is tested."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from privdfs import Bundle, Client, Error
from privdfs_bench.coded import open_coded
from privdfs_bench.speed import random_release, scaling
from privdfs_bench.speed.scaling_picture import draw
from privdfs_export.repository import read_repository
from privdfs_export.verify import check_repository
from privdfs_training.config import Config, ResNet8Config
from privdfs_training.reading import load_config
from tests.coded_release import noise
from tests.e2e.processes import proxies
from tests.training.coded_systems import CLASSES, IMAGE, coded_of

CONFIG = Path(__file__).parents[2] / "configs" / "fashion-resnet20.toml"


def config(servers: int) -> Config:
    whole = load_config(CONFIG)
    replace = msgspec.structs.replace
    head = replace(whole.head, stem=4, stages=((4, 1), (4, 1), (4, 1)))
    return replace(
        whole,
        backbone=ResNet8Config(width=4),
        head=head,
        masks=replace(whole.masks, servers=servers, values=8),
        branch=replace(whole.branch, width=4, blocks=1),
    )


@pytest.mark.parametrize(("servers", "shape"), [(1, (1, 28, 28)), (2, (3, 40, 40))])
def test_a_random_release_is_whole_and_answers(tmp_path: Path, servers: int, shape: tuple[int, int, int]) -> None:
    out = tmp_path / "random"
    random_release.write_random_release(config(servers), shape, 5, out)
    for folder in [*(out / f"server-{server}" for server in range(servers)), out / "baseline"]:
        check_repository(read_repository(folder))
    image = np.random.default_rng(0).integers(0, 256, (*shape[1:], shape[0]), dtype=np.uint8)
    with Client.local(out) as client:
        result = client.predict(image)
        assert len(client.encode(image)) == servers
    assert sorted(result.classes) == list("01234")
    assert float(result.probabilities.sum()) == pytest.approx(1, abs=1e-5)
    with pytest.raises(Error, match="exists already"):
        random_release.write_random_release(config(servers), shape, 5, out)


@pytest.mark.parametrize("kind", ["rounds", "mixer"])
def test_a_random_coded_release_is_whole_and_answers(tmp_path: Path, kind: str) -> None:
    out, images = tmp_path / "random", noise(4)
    random_release.write_random_coded_release(coded_of(kind), IMAGE, CLASSES, out)
    for folder in [*(out / f"server-{server}" for server in range(3)), out / "baseline"]:
        check_repository(read_repository(folder))
    Bundle.open(out / "client", allow_unsigned=True).selftest()
    with Client.local(out) as client:
        results = client.predict_batch(images)
    plain = open_coded(out).plain(images)
    found = np.stack([result.probabilities for result in results])
    np.testing.assert_array_equal(found, plain.probabilities)
    assert len(np.unique(plain.shared[0])) > 4  # a head that uses its levels
    with pytest.raises(Error, match="exists already"):
        random_release.write_random_coded_release(coded_of(kind), IMAGE, CLASSES, out)


def test_random_weights_that_need_too_many_primes_are_refused(tmp_path: Path) -> None:
    config = coded_of()
    config = msgspec.structs.replace(config, sharing=msgspec.structs.replace(config.sharing, primes=1))
    with pytest.raises(Error, match=r"sharing.primes allows 1"):
        random_release.write_random_coded_release(config, IMAGE, CLASSES, tmp_path / "random")
    assert not (tmp_path / "random").exists()


def test_a_line_is_fitted_through_the_medians() -> None:
    assert scaling.fit([1, 2, 4], [3.5, 4.0, 5.0]) == {"base_ms": 3.0, "slope_ms": 0.5, "explained": 1.0}
    assert scaling.fit([1, 2, 3], [1.0, 5.0, 0.0])["explained"] < 0.2
    assert scaling.fit([1, 2], [2.0, 2.0])["slope_ms"] == pytest.approx(0, abs=1e-9)


def test_what_the_curves_come_to() -> None:
    def point(size: int, p50: float, p99: float, **more: float) -> dict[str, object]:
        return {"size": size, "privdfs": {"p50_ms": p50, "p99_ms": p99}, **more}

    found = scaling.summarise(
        {
            "batch": [point(1, 3.0, 4.0, compute_ms=1.5), point(5, 5.0, 6.0, compute_ms=3.5)],
            "concurrency": [
                point(1, 10.0, 20.0, per_second=90.0),
                point(2, 12.0, 50.0, per_second=150.0),  # just within the bound
                point(4, 20.0, 50.1, per_second=200.0),
            ],
        }
    )
    assert found["growth"]["batch"] == {"base_ms": 2.5, "slope_ms": 0.5, "explained": 1.0}
    assert found["throughput"] == {"bound_ms": 50.0, "per_second": 150.0}
    assert found["service"] == {"one_ms": 1.5, "base_ms": 1.0, "image_ms": 0.5}


@pytest.mark.e2e
def test_points_are_measured_on_real_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in proxies().items():  # loopback is never asked for through one
        monkeypatch.setenv(name, value)
    console = Console(quiet=True)
    with scaling.running(config(2), (1, 28, 28), console) as release:
        one = scaling.measure_point(release, 1, 5, console)
        many = scaling.measure_point(release, 4, 5, console)
        at_once = scaling.measure_concurrency(release, 3, 9)
    assert (one["bytes_up"], many["bytes_up"]) == (16, 64)
    assert one["floor"]["p50_ms"] > 0
    assert "floor" not in many
    assert 0 < one["compute_ms"] < one["privdfs"]["p99_ms"]
    assert at_once["per_second"] > 0
    curves = {name: [{"size": 1} | one, {"size": 4} | many] for name in ("servers", "batch", "image", "share")}
    curves["concurrency"] = [{"size": 1} | at_once, {"size": 3} | at_once]
    results = {"curves": curves, **scaling.summarise(curves)}
    assert set(results["growth"]) == set(scaling.CURVES)
    assert results["service"]["one_ms"] == one["compute_ms"]
    draw(tmp_path / "scaling.png", results, scaling.CURVES)
    with Image.open(tmp_path / "scaling.png") as picture:
        assert picture.width > 1000
    for table in scaling.tables(results):
        console.print(table)
