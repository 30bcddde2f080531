"""Reading a run's config: one TOML file, in which a misspelt key is an error before any time is spent."""

import difflib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec

from privdfs._format import ReleaseId
from privdfs_training.checks import problems_of
from privdfs_training.config import Config
from privdfs_training.errors import TrainingConfigError
from privdfs_training.migration import RETIRED, UNSAID, migrated

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]
#: What an export adds to a run's name to make the id of a release.
ADDED = "-000000000000"


def load_config(path: Path) -> Config:
    """Read and check one TOML config.

    Args:
        path: The TOML file.

    Returns:
        The typed config.

    Raises:
        TrainingConfigError: The file is missing, is not TOML, has an unknown or missing key, a value of the wrong
            type, or values that cannot work together.
    """
    raw = read_toml(path)
    refuse_unknown_keys(raw, Config, path)
    return config_from_dict(raw, str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Args:
        path: The file.

    Returns:
        Its values, unchecked.

    Raises:
        TrainingConfigError: The file is missing or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = (
            f"cannot read the config {path}: {error.strerror}. Pass the path of a TOML file, such as "
            "configs/fashion-resnet20.toml."
        )
        raise TrainingConfigError(message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{path} is not a TOML file: {error}"
        raise TrainingConfigError(message) from error


def config_from_dict(raw: dict[str, Any], source: str) -> Config:
    """Build a config from plain values and check that they can work together.

    Args:
        raw: Nested dictionaries, as TOML or JSON give them.
        source: Where they come from; used in messages.

    Returns:
        The typed config.

    Raises:
        TrainingConfigError: As `load_config`.
    """
    try:
        config = msgspec.convert(migrated(raw), Config)
    except msgspec.ValidationError as error:
        message = f"{source}: {error}"
        raise TrainingConfigError(message) from error
    for problem in problems_of(config):
        message = f"{source}: {problem}"
        raise TrainingConfigError(message)
    return config


def refuse_unknown_keys(raw: dict[str, Any], section: type[msgspec.Struct], path: Path, prefix: str = "") -> None:
    """Compare the keys with a section's, and those of the sections in it.

    Args:
        raw: Nested dictionaries.
        section: Whose keys they should be.
        path: Where they come from; used in the message.
        prefix: Of the keys in the message, such as "train.".

    Raises:
        TrainingConfigError: A key is not known, and the message names the closest one; a section is of no known kind;
            or a number, the name or the seed is one that no run can have.
    """
    if not prefix:
        _refuse_values(raw, path)
    fields = {field.name: field.type for field in msgspec.structs.fields(section)}
    tag = section.__struct_config__.tag_field
    for key, value in raw.items():
        if key == tag or (key == RETIRED.get(prefix.removesuffix(".")) and value is False):
            continue
        if key not in fields:
            close = [] if tag else difflib.get_close_matches(key, fields, n=1)  # of a kind, all keys are shown
            kind = f" of {tag} = '{section.__struct_config__.tag}'" if tag else ""
            known = f"Known keys{kind}: {', '.join(sorted(fields)) or 'none'}."
            hint = f"Did you mean '{close[0]}'?" if close else known
            message = f"{path}: unknown key '{prefix}{key}'. {hint}"
            raise TrainingConfigError(message)
        # An optional section is a union with None; of several sections, the tag says which.
        kinds = get_args(fields[key]) or (fields[key],)
        sections = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, msgspec.Struct)]
        if isinstance(value, dict) and sections:
            refuse_unknown_keys(value, _kind(value, sections, path, f"{prefix}{key}"), path, f"{prefix}{key}.")


def _refuse_values(raw: dict[str, Any], path: Path) -> None:
    """Refuse what no run can have: numbers that are none, and names and seeds that fail once it has been trained."""
    name, seed = raw.get("name"), raw.get("seed")
    try:
        msgspec.convert(f"{name}{ADDED}", ReleaseId)
    except msgspec.ValidationError as error:
        message = (
            f"{path}: name is {name!r}; it names a folder and the release: begin with a letter from A to Z or a digit, "
            "go on with these, '.', '_' and '-', and keep it short."
        )
        raise TrainingConfigError(message) from error
    if isinstance(seed, int) and not 0 <= seed < 2**64:
        message = f"{path}: seed is {seed}; it is a whole number from 0 to 2**64 - 1."
        raise TrainingConfigError(message)
    for key, value in _numbers(raw, ""):
        if not math.isfinite(value):
            message = f"{path}: {key} is {value}; give a finite number."
            raise TrainingConfigError(message)


def _numbers(value: Any, key: str) -> Iterator[tuple[str, float]]:  # noqa: ANN401  of TOML
    """All floats below a value, with their keys."""
    if isinstance(value, float):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _numbers(each, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, each in enumerate(value):
            yield from _numbers(each, f"{key}[{index}]")


def _kind(values: dict[str, Any], sections: list[type[msgspec.Struct]], path: Path, name: str) -> type[msgspec.Struct]:
    """The one of several kinds of section that the values name."""
    if len(sections) == 1:
        return sections[0]
    tag_field = str(sections[0].__struct_config__.tag_field)
    given = values.get(tag_field, UNSAID.get(name))
    chosen = [section for section in sections if section.__struct_config__.tag == given]
    if not chosen:
        known = ", ".join(str(section.__struct_config__.tag) for section in sections)
        message = f"{path}: {name}.{tag_field} is {given!r}. There are: {known}."
        raise TrainingConfigError(message)
    return chosen[0]
