"""Configs as older versions wrote them, in the form of this version: of files, checkpoints and manifests.

Nothing is written back; a config is migrated whenever it is read.
"""

from typing import Any, get_args

import msgspec

from privdfs_training.config import BackboneConfig, BranchConfig, HeadConfig

#: Sections whose keys depend on their kind, and the kinds.
KINDS: dict[str, tuple[type[msgspec.Struct], ...]] = {
    "backbone": get_args(BackboneConfig),
    "head": get_args(HeadConfig),
    "branch": get_args(BranchConfig),
}
#: The kind of a section that does not say it. Older versions left it out of checkpoints and manifests.
UNSAID = {"head": "compact", "branch": "residual"}
#: Older versions could compute all branches as one grouped network. The weights are the same either way.
RETIRED = {"branch": "together"}


def migrated(raw: dict[str, Any]) -> dict[str, Any]:
    """Give a config the form that this version writes.

    Args:
        raw: Nested dictionaries: a whole config, or the sections of it that a stage's checkpoint holds.

    Returns:
        A copy in which every section names its kind, without keys that are gone, and without values that are the
        default now: some defaults were other values once. What is wrong in it stays wrong.
    """
    return raw | {name: _section(name, raw[name]) for name in KINDS if isinstance(raw.get(name), dict)}


def _section(name: str, values: dict[str, Any]) -> dict[str, Any]:
    values = {key: value for key, value in values.items() if key != RETIRED.get(name)}
    tag_field = str(KINDS[name][0].__struct_config__.tag_field)
    if name in UNSAID:
        values = {tag_field: UNSAID[name]} | values
    kinds = [kind for kind in KINDS[name] if kind.__struct_config__.tag == values.get(tag_field)]
    defaults = {field.name: field.default for kind in kinds for field in msgspec.structs.fields(kind)}
    return {key: value for key, value in values.items() if key not in defaults or value != defaults[key]}
