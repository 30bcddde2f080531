"""Configs of rivals that train in seconds."""

from typing import Any

from tests.trained import tiny_values

DEFENCES: dict[str, dict[str, Any]] = {
    "none": {},
    "nopeek": {"weight": 5.0},
    "disco": {"ratio": 0.5, "weight": 0.5, "width": 8, "adversary_width": 8},
    "shredder": {"tensors": 4, "scale": 0.1, "weight": 0.1, "limit": 1.0},
    "ressfl": {"weight": 0.3, "threshold": 0.1, "attacker_width": 8, "attacker_blocks": 1},
    "cem": {"weight": 0.5, "noise": 0.3, "components": 2, "momentum": 0.9},
}


def rival_values(kind: str) -> dict[str, Any]:
    values = tiny_values()
    stage = values["train"]["baseline"]
    rival = {key: values[key] for key in ("seed", "data")}
    rival["backbone"] = {"name": "resnet8", "width": 8}
    rival["branch"] = {"kind": "residual", "width": 8, "blocks": 1}
    rival["head"] = {"kind": "compact", "stem": 8, "stages": [[16, 1], [16, 1]], "channels": 4}
    rival |= {"name": kind, "defence": {"kind": kind, **DEFENCES[kind]}}
    rival["loss"] = {"distillation": 0.1, "distillation_temperature": 4.0, "label_smoothing": 0.0}
    rival["train"] = {"baseline": stage | {"epochs": 1}, "split": stage | {"epochs": 4, "batch": 32}}
    if kind == "shredder":
        rival["train"]["noise"] = stage | {"epochs": 1, "weight_decay": 0.0}
    return rival
