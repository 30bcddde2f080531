"""The figures of docs/RESULTS.md about agreement with an unprotected model from outside the project."""

from collections.abc import Mapping
from typing import Any

from privdfs_bench.pages.marks import named, source

NO_AGREEMENT = "Not measured yet: [OWN_MODEL.md](OWN_MODEL.md#with-real-weights-efficientnet-lite0) has the commands."
SYSTEMS = {
    "release": "the release, over tritonservers",
    "linear_readout": "a linear readout on the device",
    "nearest_in_pixels": "floor: the model's answer to the nearest training photograph",
    "mean_answer": "floor: the model's mean answer",
    "most_frequent": "floor: the model's most frequent class",
    "all_alike": "floor: every class alike",
}


def agreement_table(results: Mapping[str, Any]) -> str:
    """Markdown of agreement.json: for each release one table, and what it was measured on."""
    if not results:
        return NO_AGREEMENT
    return "\n\n".join(_of_release(name, entry) for name, entry in results["releases"].items())


def _of_release(name: str, entry: Mapping[str, Any]) -> str:
    photographs, right = entry["photographs"], entry["model_right"]
    animal = any("animal_or_not" in row for row in entry["systems"].values())
    head = [
        "what answers",
        "same class as the model",
        "its class in the model's top five",
        "the model's class in its top five",
    ]
    head += ["animal or not, as the model"] * animal + ["divergence from the model's answer"]
    rows = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for system, told in SYSTEMS.items():
        row = entry["systems"][system]
        keys = ["same", "in_models_top5", "models_in_top5", *["animal_or_not"] * animal]
        cells = [told, *(_share(row[key]) if key in row else "" for key in keys), _divergence(row.get("divergence"))]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + (
        f"\n\n{named(name, entry['graphs'])}: {photographs['held_out']:,} held-out photographs, after training on "
        f"{photographs['trained_on']:,}; {entry['classes']:,} classes; {entry['rounds']} rounds, {entry['servers']} "
        f"servers, {entry['bytes_up']:,} bytes up and {entry['bytes_down']:,} down at each; client / baseline MACs "
        f"1/{entry['baseline_macs'] / entry['client_macs']:.1f}. Of the held-out photographs the unprotected model has "
        f"{_share(right)} right. In brackets 95 % confidence (Wilson), after ± one standard error. The servers gave "
        f"the class of the exported files for {entry['answers_as_exported']:,} of {photographs['held_out']:,}. "
        f"{source(entry['made_by'])}."
    )


def _share(counted: Mapping[str, Any]) -> str:
    low, high = counted["interval"]
    return f"{counted['share']:.1%} ({low:.1%} to {high:.1%})"


def _divergence(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['nats']:.2f} ± {found['standard_error']:.2f} nats"
