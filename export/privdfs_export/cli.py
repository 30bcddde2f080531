"""`privdfs-export`: build a release, and what is done with one afterwards.

    privdfs-export SYSTEM --out DIR      build the release of a finished training run
    privdfs-export COMMAND ...           one of `COMMANDS`

A command is a module of this package with `DESCRIPTION`, `add_arguments(parser)` and `run(options)`. It is imported
only when it is asked for, so that a serving host needs no more than that command does: building a release needs torch,
the others do not.
"""

import argparse
import difflib
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from privdfs import Error
from privdfs._command_line import explain, signals_interrupt

#: Command -> module. Without one of these words in front, the command line builds a release.
COMMANDS: Mapping[str, str] = {
    "calibrate": "privdfs_export.calibrate",
    "capacity": "privdfs_export.capacity",
    "gateway": "privdfs_export.gateway",
    "keygen": "privdfs_export.keygen",
    "leakage": "privdfs_export.leakage",
    "oci": "privdfs_export.oci",
    "plan": "privdfs_export.plan",
    "sbom": "privdfs_export.sbom",
    "servers": "privdfs_export.servers",
    "sign": "privdfs_export.sign",
    "verify": "privdfs_export.verify",
}
_BUILD = "privdfs_export.build"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.

    Args:
        arguments: Of the command line; None means those of the process.

    Returns:
        Exit code: 0 done, 2 an error that the message explains, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words.pop(0) if words and words[0] in COMMANDS else None
    if name is None and words:
        meant = difflib.get_close_matches(words[0], COMMANDS, 1)
        if meant and not Path(words[0]).exists():
            print(f"privdfs-export: there is no command {words[0]!r}. Did you mean {meant[0]!r}?", file=sys.stderr)
            return 2
    command = importlib.import_module(_BUILD if name is None else COMMANDS[name])
    program = "privdfs-export" if name is None else f"privdfs-export {name}"
    parser = argparse.ArgumentParser(prog=program, description=command.DESCRIPTION)
    if name is None:
        parser.epilog = f"Other commands: {', '.join(COMMANDS)}; each explains itself with --help."
    command.add_arguments(parser)
    options = parser.parse_args(words)
    try:
        with signals_interrupt():
            command.run(options)
    except KeyboardInterrupt:
        print(f"{program}: stopped before it was done", file=sys.stderr)
        return 130
    except Error as error:
        print(f"{program}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        return explain(program, error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
