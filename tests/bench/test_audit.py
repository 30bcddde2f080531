"""Attacks of the audit that `test_runs.py` does not run, on a tiny trained release."""

import hashlib
import multiprocessing
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from privdfs_bench.audit.effort import EFFORTS, Effort
from privdfs_bench.audit.jobs import Job, jobs
from privdfs_bench.audit.keyed import user_partitions
from privdfs_bench.audit.measure import measure
from privdfs_bench.audit.run import kept_at, run
from privdfs_bench.audit.side_by_side import run_side_by_side
from privdfs_bench.audit.victim import Victim
from privdfs_bench.audit.views import view_of
from privdfs_bench.releases import shares_of
from privdfs_bench.results import ROOT
from privdfs_training.attacks import decoder
from privdfs_training.attacks.decoder import DecoderBudget
from privdfs_training.attacks.diffusion import DiffuseBudget
from privdfs_training.attacks.linear import linear_reconstruct, linear_sums
from privdfs_training.attacks.perceptual import load_lpips
from privdfs_training.attacks.selfchecks import check_each
from privdfs_training.errors import AttackError
from tests.elsewhere import ELSEWHERE, SecondDevice
from tests.trained import QUIET
from tests.training.lpips_weights import weights

SMALL = replace(
    EFFORTS["quick"], pairs=200, targets=40, undefended=200, dense=DecoderBudget(epochs=4, batch=50, width=4)
)
DIFFUSE = replace(SMALL, diffuse=DiffuseBudget(steps=4, recurrence=1), diffused=12)


def quiet(_done: float, _loss: float) -> None:
    """No progress."""


def test_the_diffusion_attack_runs_on_a_release_and_is_kept(
    trained_release: Path, data_folder: Path, tmp_path: Path
) -> None:
    victim = Victim(trained_release, data_folder, DIFFUSE)
    wanted = jobs(victim)
    guided = {one.attack: one for one in wanted["coalitions"] if one.attack.startswith("diffusion")}
    assert set(guided) == {"diffusion", "diffusion-mean", "diffusion+dense"}
    broken = [one for one in wanted["undefended"] if one.attack == "diffusion"]
    assert [one.members for one in broken] == [()]
    digest = hashlib.sha256((ROOT / "checkpoints" / "fashion-mnist-prior.safetensors").read_bytes()).hexdigest()
    for one in (guided["diffusion"], guided["diffusion+dense"], *broken):
        row = run(victim, one, tmp_path, quiet).row
        assert row["images"] == 12
        assert row["gradient"] > 0
        assert row["prior_sha256"] == digest
        assert row["finished"]
    assert len(list(tmp_path.iterdir())) == 3


def test_without_its_prior_the_diffusion_attack_says_how_to_train_one(
    trained_release: Path, data_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(AttackError, match=r"no diffusion prior.*privdfs-train.*'fashion-mnist'.*--prior none"):
        measure(Victim(trained_release, data_folder, DIFFUSE, tmp_path / "nowhere"), tmp_path, QUIET)
    victim = Victim(trained_release, data_folder, SMALL)
    assert not [one for group in jobs(victim).values() for one in group if one.attack.startswith("diffusion")]


def test_attacks_side_by_side_find_what_they_find_one_after_another(
    trained_release: Path, data_folder: Path, tmp_path: Path
) -> None:
    victim = Victim(trained_release, data_folder, SMALL)
    some = [job for job in jobs(victim)["coalitions"] if job.attack in {"linear", "dense"}]
    finished: list[Job] = []

    run_side_by_side(victim, some, tmp_path / "together", 2, finished.append)

    assert sorted(map(str, finished)) == sorted(map(str, some))
    for job in some:
        assert kept_at(victim, job, tmp_path / "together").exists()
        together = run(victim, job, tmp_path / "together", quiet)
        alone = run(victim, job, tmp_path / "alone", quiet)
        assert together.row["psnr"] == pytest.approx(alone.row["psnr"], abs=0.01)
    run_side_by_side(victim, some, tmp_path / "together", 2, finished.append)
    assert len(finished) == len(some)  # they are kept


def test_what_was_found_is_kept_while_the_graphs_that_an_attack_looks_at_stay(
    trained_release: Path, data_folder: Path, tmp_path: Path
) -> None:
    victim = Victim(trained_release, data_folder, SMALL)
    encoder = hashlib.sha256((trained_release / "client" / "encoder.onnx").read_bytes()).hexdigest()
    assert victim.digests["encoder"] == encoder
    assert victim.digests.keys() == {"encoder", "baseline", "branch 0", "branch 1", "branch 2"}  # no fusion
    groups = jobs(victim)
    shares = next(job for job in groups["coalitions"] if job.attack == "dense")
    answers = next(job for job in groups["coalitions"] if job.attack == "dense+answers")
    split = groups["undefended"][0]

    def moved(graph: str) -> set[Job]:
        before = {job: kept_at(victim, job, tmp_path) for job in (shares, answers, split)}
        other = Victim(trained_release, data_folder, SMALL)
        other.digests = victim.digests | {graph: "of another"}
        return {job for job, path in before.items() if kept_at(other, job, tmp_path) != path}

    member, stranger = answers.members[0], next(one for one in range(3) if one not in answers.members)
    assert moved("encoder") == {shares, answers}
    assert moved(f"branch {member}") == {answers}
    assert moved(f"branch {stranger}") == set()
    assert moved("baseline") == {shares, answers, split}


@pytest.mark.slow
@pytest.mark.parametrize(("release", "effort"), [("trained_release", DIFFUSE), ("keyed_trained_release", SMALL)])
def test_on_a_gpu_attacks_find_the_same_and_say_where(
    release: str,
    effort: Effort,
    data_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.setattr(decoder, "autocast", lambda _device: nullcontext())
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "a GPU")
    folder: Path = request.getfixturevalue(release)
    effort = replace(effort, strong=effort.dense, optimise=replace(effort.optimise, steps=2))
    here, there = Victim(folder, data_folder, effort), Victim(folder, data_folder, effort, device=ELSEWHERE)
    every = {job.attack: job for group in jobs(here).values() for job in group}  # diffusion: the undefended split's
    del every["diffusion-mean" if effort.diffuse else "dense, other keys, unaware"]  # nothing new, and slow
    assert ("diffusion+dense" in every) == (effort.diffuse is not None)
    assert {"optimisation", "optimisation-tv"} <= set(every)
    for job in every.values():
        expected = run(here, job, tmp_path / "here", quiet).row
        with SecondDevice():
            row = run(there, job, tmp_path / "there", quiet).row
        if job.attack == "linear":
            assert kept_at(here, job, tmp_path) == kept_at(there, job, tmp_path)
        else:
            assert kept_at(here, job, tmp_path) != kept_at(there, job, tmp_path)
            assert row.pop("device") == "a GPU"
        assert "device" not in row
        assert row.keys() == expected.keys()
        for name in ("psnr", "ssim", "gradient", "guidance", "finished"):
            assert row.get(name, 0) == pytest.approx(expected.get(name, 0), rel=1e-3)


def test_an_attack_that_fails_ends_those_beside_it(trained_release: Path, data_folder: Path, tmp_path: Path) -> None:
    hours = replace(SMALL, dense=DecoderBudget(epochs=1_000_000, batch=50, width=4))
    victim = Victim(trained_release, data_folder, hours)
    dense = next(job for job in jobs(victim)["coalitions"] if job.attack == "dense")
    finished: list[Job] = []
    with pytest.raises(IndexError):
        run_side_by_side(victim, [dense, replace(dense, members=(9,))], tmp_path / "runs", 2, finished.append)
    assert not multiprocessing.active_children()
    assert not finished


def test_lpips_is_scored_where_its_weights_are_given(trained_release: Path, data_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "lpips-alex.safetensors"
    save_file(weights(), file)
    plain = Victim(trained_release, data_folder, SMALL)
    job = jobs(plain)["coalitions"][0]
    without = run(plain, job, tmp_path / "runs", quiet).row
    scored = run(Victim(trained_release, data_folder, SMALL, lpips=load_lpips(file)), job, tmp_path / "runs", quiet).row
    assert without["lpips"] is None
    assert 0 < scored["lpips"] < 5
    assert {key: value for key, value in scored.items() if key not in {"lpips", "seconds"}} == {
        key: value for key, value in without.items() if key not in {"lpips", "seconds"}
    }


def test_a_keyed_release_is_attacked_under_its_users_keys_and_under_others(
    keyed_trained_release: Path, data_folder: Path, tmp_path: Path
) -> None:
    victim = Victim(keyed_trained_release, data_folder, SMALL)
    keyed = {(one.keys.requests, one.keys.knows): one for one in jobs(victim)["keys"] if one.keys is not None}
    assert set(keyed) == {
        *((count, "partition") for count in (1, 2, 4, 8)),
        (1, "family"),
        (1, "nothing"),
    }
    (member,) = keyed[1, "partition"].members
    images = victim.data.test_images[:40].permute(0, 2, 3, 1).contiguous().numpy()
    partitions = user_partitions(victim.bundle, victim.partition or 0, 8)
    assert len(set(partitions)) == 8
    assert partitions[0] == victim.partition
    sent = [torch.from_numpy(victim.bundle.encode(images, partition=one)[member]) for one in partitions]

    one, eight = (view_of(victim, keyed[count, "partition"]) for count in (1, 8))
    assert torch.equal(one.received, sent[0])
    assert torch.equal(eight.received, torch.cat(sent, dim=1))
    assert torch.equal(one.shares, victim.shares[0][member])  # of the user whom all attackers are after
    unaware = view_of(victim, keyed[1, "nothing"])
    assert torch.equal(unaware.received, sent[0])
    assert not torch.equal(unaware.shares, one.shares)

    # In its place a value is what it is under any other key that puts it there.
    family = view_of(victim, keyed[1, "family"])
    values, there = family.received.chunk(2, dim=1)
    assert there.sum(dim=1).tolist() == [12] * 40
    assert torch.equal(values[there > 0].sort().values, sent[0].float().flatten().sort().values)
    whole = victim.shares[1][member].float()
    assert torch.equal(values[there > 0].view(40, 12), whole)  # both ascend by place

    found = [run(victim, keyed[setting], tmp_path, quiet) for setting in keyed]
    assert [flag.check for done in found for flag in check_each([done.measured()])].count("unaware") == 1
    assert {done.row["requests"] for done in found} == {1, 2, 4, 8}
    assert len(list(tmp_path.iterdir())) == len(keyed)


def test_the_partition_under_attack_is_the_one_that_tells_a_linear_map_most(
    keyed_trained_release: Path, data_folder: Path
) -> None:
    victim = Victim(keyed_trained_release, data_folder, SMALL)
    train, test = victim.data.train_images[: victim.pairs], victim.data.test_images[: victim.targets]

    def error(partition: int) -> float:
        """Of the best server."""
        sums, _ = linear_sums(shares_of(victim.bundle, train, partition), train)
        received = shares_of(victim.bundle, test, partition)
        return min(
            float((linear_reconstruct(sums, [server], [received[server]]) - test.float() / 255).square().mean())
            for server in range(victim.servers)
        )

    assert victim.partition is not None
    others = [error(partition) for partition in range(0, 64, 4) if partition != victim.partition]
    assert error(victim.partition) < min(others) * 1.01 < max(others)


def test_a_release_without_keys_has_no_attackers_of_keys(trained_release: Path, data_folder: Path) -> None:
    victim = Victim(trained_release, data_folder, SMALL)
    assert victim.partition is None
    assert jobs(victim)["keys"] == []
