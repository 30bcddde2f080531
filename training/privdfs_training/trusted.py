"""Code that a file names: a checkpoint of a custom backbone holds the name of the function that makes it.

Such a file may come from somebody else, so opening it imports nothing that it names. Whoever opens it names the
function, and the module that they named is imported, whatever the file says.
"""

from pathlib import Path
from typing import TypeVar

import msgspec

from privdfs_training.checks import factory_problems
from privdfs_training.config import CustomConfig, RunConfig
from privdfs_training.errors import CheckpointError

Config = TypeVar("Config", bound=RunConfig)


def with_factory(config: Config, factory: str | None, path: Path) -> Config:
    """A config from a file, whose custom backbone is made by the function that the caller names.

    Args:
        config: As the file has it.
        factory: "package.module:function", what the caller trusts; None where they named none.
        path: The file; used in messages.

    Returns:
        The config, with the caller's function in place of the file's.

    Raises:
        CheckpointError: The backbone is the user's own and the caller named no function, or it is not and they did.
    """
    backbone = config.backbone
    if not isinstance(backbone, CustomConfig):
        if factory is None:
            return config
        message = f"{path} has the backbone {backbone.name}, which no code of your own makes: leave out the factory."
        raise CheckpointError(message)
    if factory is None:
        message = (
            f"{path} has a backbone that is not part of PrivDFS. Its config names {backbone.factory!r} as the "
            "code that makes it. Nothing was imported. If you know that code, name it yourself: pass "
            f"--factory {backbone.factory} to a command, or factory= in Python."
        )
        raise CheckpointError(message)
    own = msgspec.structs.replace(backbone, factory=factory)
    for problem in factory_problems(own):
        raise CheckpointError(f"{path}: {problem}")
    return msgspec.structs.replace(config, backbone=own)
