"""Build hook: the commands of the packages that only a checkout has.

The wheel is the edge SDK and nothing else, so its entry points name the `privdfs` command alone. An editable install
also exposes `privdfs_training`, `privdfs_export` and `privdfs_bench`; this hook gives it their commands.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CheckoutCommands(BuildHookInterface):
    """Adds the commands of scripts/commands to an editable install."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Hatchling calls this before it builds; `version` is "standard" or "editable"."""
        if version == "editable":
            commands = sorted((Path(self.root) / "scripts" / "commands").iterdir())
            build_data["shared_scripts"].update({str(command): command.name for command in commands})
