"""How much a release leaks by its manifest, and the check against what the application allows.

Of masked shares it is measured. Of coded ones it is proven: as many servers as may collude learn nothing.
"""

import math

from privdfs._coded_format import CodedManifest
from privdfs._errors import ConfigError, LeakageError
from privdfs._format import Leakage, largest_coalition
from privdfs._given import shown
from privdfs._manifest import AnyClientManifest


def worst_leakage(manifest: AnyClientManifest) -> dict[int, Leakage | None]:
    """The strongest measured attack above its class-mean floor, for every size of a coalition that learns something.

    These are the minority coalitions; with one or two servers no minority has a member, and one server alone is taken.
    In a coded release there are none: whatever number of servers its user lets collude, they learn nothing. What more
    of them learn is in the manifest too, and nothing is promised of it.

    Returns:
        Size -> the strongest attack in the manifest; None where none was measured. Empty for a coded release.
    """
    if isinstance(manifest, CodedManifest):
        return {}
    return {
        size: max(
            (row for row in manifest.leakage if len(row.coalition) == size),
            key=lambda row: row.above_floor,
            default=None,
        )
        for size in range(1, largest_coalition(len(manifest.servers)) + 1)
    }


def refuse_leakage(manifest: AnyClientManifest, max_leakage_db: float | None) -> None:
    """Check a release against what its user allows.

    Args:
        manifest: of the release; a coded one fits every limit, since up to `colluding` servers learn nothing.
        max_leakage_db: PSNR above the class mean's that a minority coalition may reach, in dB; None allows anything.

    Raises:
        ConfigError: the limit is not a finite number of at least 0.
        LeakageError: the manifest states more, or nothing, for a minority coalition.
    """
    if max_leakage_db is None:
        return
    limit = _number(max_leakage_db)
    if not 0 <= limit < math.inf:  # NaN compares false
        raise ConfigError(
            f"max_leakage_db is {shown(max_leakage_db)}: give the dB above the class mean that a minority of the "
            "servers may reach, a finite number of at least 0"
        )
    for size, row in worst_leakage(manifest).items():
        who = "one server" if size == 1 else f"{size} servers together"
        if row is None:
            raise LeakageError(
                f"the leakage of {manifest.release} was not measured for {who}, and max_leakage_db needs that: use a "
                "release whose manifest has it (bench/privacy.py measures, `privdfs-export leakage` records)",
                None,
                limit,
            )
        if row.above_floor > limit:
            raise LeakageError(
                f"{who} can reconstruct images of {manifest.release} {row.above_floor:.2f} dB better than the class "
                f"mean ({row.attack}: {row.psnr:.2f} dB, floor {row.floor:.2f} dB), and max_leakage_db allows "
                f"{limit:g}: use a release that leaks less, or allow more",
                row.above_floor,
                limit,
            )


def _number(value: object) -> float:
    """A number as it is; NaN for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
