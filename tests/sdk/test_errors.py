import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from privdfs import _errors
from privdfs._errors import (
    AnswerError,
    BundleIntegrityError,
    BundleVersionError,
    ConfigError,
    ContradictingAnswersError,
    Error,
    NotEnoughAnswersError,
    ServerError,
    ServerTimeoutError,
)

TREE = [value for value in vars(_errors).values() if inspect.isclass(value) and issubclass(value, Error)]


def example(kind: type[Error]) -> Error:
    if issubclass(kind, ServerError):
        return kind("do this", 2)
    if kind is BundleVersionError:
        return BundleVersionError("do this", 7, 1)
    if kind is BundleIntegrityError:
        return BundleIntegrityError("do this", "encoder.onnx", "aa", "bb")
    if kind is NotEnoughAnswersError:
        causes = {0: AnswerError("wrong shape", 0), 2: ServerTimeoutError("too late", 2)}
        return NotEnoughAnswersError("do this", causes, (1,), 3)
    if kind is ContradictingAnswersError:
        return ContradictingAnswersError("do this", (0, 1, 3), 2)
    return kind("do this")


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("clone", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy])  # noqa: S301
def test_errors_survive_pickling_with_their_fields(kind: type[Any], clone: Callable[[Any], Any]) -> None:
    error = example(kind)
    again = clone(error)
    assert type(again) is kind
    assert str(again) == "do this"
    fields = {name: value for name, value in vars(error).items() if name != "causes"}
    assert {name: value for name, value in vars(again).items() if name != "causes"} == fields


def test_causes_survive_pickling() -> None:
    again = pickle.loads(pickle.dumps(example(NotEnoughAnswersError)))  # noqa: S301
    assert [type(again.causes[i]) for i in (0, 2)] == [AnswerError, ServerTimeoutError]
    assert again.causes[2].server == 2
    assert (again.answered, again.needed) == ((1,), 3)


def test_the_docstring_draws_every_error() -> None:
    drawn = [line.strip("│├└─ ").split()[0] for line in (_errors.__doc__ or "").splitlines() if "  " in line]
    assert drawn[: len(TREE)] == [kind.__name__ for kind in sorted(TREE, key=lambda kind: drawn.index(kind.__name__))]
    assert len(TREE) == len({name for name in drawn if name.endswith("Error")})


def test_all_derive_from_the_base() -> None:
    assert all(issubclass(kind, Error) for kind in TREE)
    assert issubclass(ConfigError, Error)


def test_the_documented_table_is_that_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "ERRORS.md").read_text()
    cells = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| `")]
    told = {row[0].strip(" `"): row[1].strip(" `") for row in cells}
    assert told == {kind.__name__: "" if kind is Error else kind.__bases__[0].__name__ for kind in TREE}
    assert all(cell.strip() for row in cells for cell in [row[2], row[4]])
