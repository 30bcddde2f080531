"""The page on a release: of coded shares; test_bundle.py and test_keys.py read that of masked ones."""

from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from privdfs import Bundle, ConfigError
from privdfs._cli import main
from privdfs._describe import describe
from tests.sdk.coded_folders import TWO_ROUNDS, a_leakage, a_round, coded_manifest


def rows_after(text: str, header: str) -> list[list[str]]:
    """The cells of the table under a header."""
    lines = text.splitlines()
    start = next(index for index, line in enumerate(lines) if line.split()[:2] == header.split()[:2])
    indented = (line.split() for line in lines[start + 1 :])
    return [cells for cells in indented if cells[0].isdigit()]


def test_a_page_states_rounds_bytes_and_what_the_device_computes() -> None:
    text = describe(coded_manifest())
    assert "2 rounds; to and from each server, per image: 52 bytes up, 32 down" in text  # 12 x 3 + 8 x 2, 8 x 3 + 4 x 2
    assert rows_after(text, "round degree")[:2] == [
        ["1", "2", "12", "8", "3", "36", "24"],
        ["2", "1", "8", "4", "2", "16", "8"],
    ]
    assert "110 multiply-accumulates per image, 11.0% of the baseline's" in text
    assert "fused 85.00%, baseline 90.00% (noise, 8 images)" in text
    assert "1 round;" in describe(coded_manifest(rounds=(a_round(outputs=4),)))


def test_the_table_has_the_rows_of_the_usual_numbers() -> None:
    assert rows_after(describe(coded_manifest()), "N T") == [
        ["3", "1", "3", "0", "0", "0"],
        ["4", "1", "3", "1", "0", "1"],
        ["5", "1", "3", "2", "1", "2"],
        ["5", "2", "5", "0", "0", "0"],
        ["7", "1", "3", "4", "2", "4"],
        ["7", "2", "5", "2", "1", "2"],
        ["7", "3", "7", "0", "0", "0"],
    ]


def test_the_table_knows_the_largest_degree() -> None:
    linear = coded_manifest(rounds=(TWO_ROUNDS[1],))
    assert rows_after(describe(linear), "N T")[0] == ["3", "1", "2", "1", "0", "1"]


@pytest.mark.parametrize(
    ("chosen", "rows"),
    [
        ({"servers": 9, "colluding": 2}, [["9", "2", "5", "4", "2", "4"]]),
        ({"servers": 5}, [["5", "1", "3", "2", "1", "2"], ["5", "2", "5", "0", "0", "0"]]),
        ({"colluding": 3}, [["7", "3", "7", "0", "0", "0"]]),
        ({"servers": 2}, []),
    ],
)
def test_the_numbers_that_were_chosen_and_no_others(chosen: dict[str, int], rows: list[list[str]]) -> None:
    found = rows_after(describe(coded_manifest(), **chosen), "N T")
    assert [row for row in found if len(row) == 6] == rows


def test_numbers_that_cannot_work_say_what_would() -> None:
    text = describe(coded_manifest(), servers=3, colluding=2)
    assert "3  2               5  too few servers: 5 or more, or a smaller T" in text


def test_what_is_proven_stands_above_what_was_measured() -> None:
    text = describe(coded_manifest(leakage=(a_leakage((0, 1)), a_leakage((0, 1, 2)))))  # alike, so one line
    first, second = (line for line in text.splitlines() if line.startswith("leakage"))
    assert "proven: nothing, up to T servers together" in first
    assert "more than T together by dense: PSNR 20.5 dB (floor 9.0 dB)" in second
    assert "more than T together: not measured" in describe(coded_manifest())


def test_long_lines_go_on_in_the_same_column_and_commits_are_short() -> None:
    made_by = structs.replace(
        coded_manifest().made_by, command="privdfs-export " + "word " * 30, commit="0123456789" * 4
    )
    measured = structs.replace(a_leakage((0, 1)), effort="quick, changed")
    text = describe(coded_manifest(made_by=made_by, leakage=(measured,)))
    assert max(map(len, text.splitlines())) <= 110
    words = " ".join(text.split())
    assert "word at 0123456789, 2026-01-01" in words
    assert "effort quick, with other settings" in words
    start = next(index for index, line in enumerate(text.splitlines()) if line.startswith("made by"))
    assert text.splitlines()[start + 1].startswith(" " * 13 + "word")


@pytest.mark.parametrize(
    "chosen",
    [{"servers": 1}, {"servers": 17}, {"servers": True}, {"servers": "3"}, {"servers": 3, "colluding": 3}]
    + [{"colluding": value} for value in (0, 16, True, 1.0)],
)
def test_numbers_out_of_range(chosen: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="is not a whole number from"):
        describe(coded_manifest(), **chosen)


@pytest.mark.parametrize("chosen", [{"servers": 3}, {"colluding": 1}])
def test_a_masked_release_has_fixed_numbers(release: Path, chosen: dict[str, int]) -> None:
    manifest = Bundle.open(release / "client", allow_unsigned=True).manifest
    with pytest.raises(ConfigError, match="has masked shares, for 3 servers"):
        describe(manifest, **chosen)


@pytest.mark.parametrize("option", [("--n-servers", "3"), ("--colluding", "1")])
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_the_command_refuses_numbers_for_masked_shares(
    release: Path, capsys: pytest.CaptureFixture[str], option: tuple[str, str], form: tuple[str, ...]
) -> None:
    assert main(["describe", str(release / "client"), *option, *form]) == 2
    assert "has masked shares, for 3 servers" in capsys.readouterr().err


def test_predict_refuses_colluding_for_masked_shares(release: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--local", str(release), "--colluding", "1", "any.png"]) == 2
    assert "colluding" in capsys.readouterr().err
