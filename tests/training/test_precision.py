"""bfloat16 is used where the processor has it, and nowhere else."""

import pytest
import torch

from privdfs_training.precision import autocast, has_bfloat16


def of_a_product(precision: str = "bfloat16") -> torch.dtype:
    with autocast("cpu", precision):
        return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@pytest.mark.parametrize(("capability", "expected"), [("AVX512", torch.bfloat16), ("AVX2", torch.float32)])
def test_a_processor_that_would_emulate_bfloat16_computes_float32(
    capability: str, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert of_a_product() == expected
    assert of_a_product("float32") == torch.float32


def test_other_devices_are_taken_at_their_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert has_bfloat16("cuda")
