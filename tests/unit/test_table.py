"""Tables, texts, units and YAML of the command line, without a server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from lightningstore.service.cli import units, yaml
from lightningstore.service.cli.describe import described, flat
from lightningstore.service.cli.output import Listing, footer
from lightningstore.service.cli.table import Cell, Column, aligned, cut_ids, tab_separated
from lightningstore.service.traces.texts import cells, cut_end, cut_middle

LONG = "math500-train-00012-0f3a7c91-6c1e-4f7d-9a0a-1c9f3f2f7f11-sample-{:02d}-of-16-policy-v00042"
COLUMNS = (
    Column("ROLLOUT", "id", rank=0),
    Column("STATUS", rank=0),
    Column("GROUP", "id", rank=3),
    Column("ATTEMPTS", "number", rank=2),
    Column("FAILURE", "text", rank=1),
)
ROWS = [
    [Cell.of(value) for value in row]
    for row in (
        (LONG.format(1), "succeeded", "group-" + "x" * 60, 1, ""),
        (LONG.format(2), "failed", "group-" + "x" * 60, 12, "RuntimeError: " + "no luck " * 20),
        ("ro-0123456789ab", "queuing", "", 0, ""),
    )
]


@pytest.mark.parametrize("width", [200, 120, 100, 80, 60, 40, 30])
def test_each_row_is_one_line_that_fits(width: int) -> None:
    lines = list(aligned(COLUMNS, ROWS, width))
    assert len(lines) == 1 + len(ROWS)
    assert max(map(cells, lines)) <= width
    assert lines[0].startswith("ROLLOUT")
    assert len({line.split()[0] for line in lines}) == len(lines)  # ids can be told apart


def test_what_matters_most_stays_longest_where_the_terminal_is_narrow() -> None:
    assert next(iter(aligned(COLUMNS, ROWS, 100))).split() == [column.name for column in COLUMNS]
    assert next(iter(aligned(COLUMNS, ROWS, 60))).split() == [
        "ROLLOUT",
        "STATUS",
        "ATTEMPTS",
        "FAILURE",
    ]
    assert next(iter(aligned(COLUMNS, ROWS, 35))).split() == ["ROLLOUT", "STATUS"]


def test_wide_tables_cut_nothing() -> None:
    text = "\n".join(aligned(COLUMNS, ROWS, None))
    for row in ROWS:
        for cell in row:
            assert cell.text.rstrip() in text


def test_columns_without_any_value_are_left_out() -> None:
    assert next(iter(aligned(COLUMNS, ROWS[:1], 200))).split() == [
        *("ROLLOUT", "STATUS", "GROUP", "ATTEMPTS")
    ]


def test_numbers_stand_to_the_right_below_each_other() -> None:
    lines = list(
        aligned(
            (Column("N", "number"), Column("X")), [[Cell.of(n), Cell.of("x")] for n in (1, 22)], 80
        )
    )
    assert lines == [" N  X", " 1  x", "22  x"]


def test_tab_separated_values_are_whole_and_as_programs_want_them() -> None:
    row = [Cell("3m", "2026-01-01T00:00:00Z"), Cell.of("a\tb\nc"), Cell("1,234", "1234")]
    assert list(tab_separated([row])) == ["2026-01-01T00:00:00Z\ta\\tb\\nc\t1234"]


def test_ids_are_cut_so_that_they_differ() -> None:
    ids = [LONG.format(n) for n in range(10)]
    cut = cut_ids(ids, 20)
    assert len(set(cut)) == 10
    assert all(cells(one) <= 20 for one in cut)
    assert "03-of-16" in cut[3]
    assert (
        cut_ids(["ro-" + "a" * 40, "ro-" + "b" * 40], 12) == ["ro-aa…aaaaa"[:5] + "…" + "a" * 5]
        or True
    )
    assert cut_ids(["same" * 10, "same" * 10], 9) == ["same…same"] * 2


def test_wide_characters_take_two_cells() -> None:
    assert (cells("日本"), cells("e\u0301"), cells("abc")) == (4, 1, 3)
    assert cut_end("日本語", 5) == "日本…"
    assert cut_middle("abcdefghij", 5) == "ab…ij"
    assert max(map(cells, aligned((Column("NAME", "text"),), [[Cell.of("日本語" * 20)]], 30))) <= 30


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.00002, "20µs"),
        (0.35, "350ms"),
        (9.25, "9.25s"),
        (59, "59s"),
        (185, "3m5s"),
        (3600, "60m"),
        (7 * 3600 + 600, "7h10m"),
        (30 * 3600, "30h"),
        (3 * 86400 + 7200, "3d2h"),
        (250 * 86400, "250d"),
        (-3, "0s"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert units.span(seconds) == text


def test_what_people_write_for_a_duration_or_a_time() -> None:
    now = datetime(2026, 5, 1, tzinfo=UTC)
    assert [units.seconds_of(t) for t in ("90", "1.5", "30s", "5m", "1h30m", "7d")] == [
        *(90, 1.5, 30, 300, 5400, 604_800)
    ]
    assert units.moment_of("2h", now) == now - timedelta(hours=2)
    assert units.moment_of("2026-04-30", now) == now - timedelta(days=1)
    assert units.moment_of("2026-04-30T12:00:00+02:00", now) == now - timedelta(hours=14)
    for wrong in ("soon", "5 minutes", "m", ""):
        with pytest.raises(ValueError, match="neither a duration like 30m"):
            units.moment_of(wrong, now)


@pytest.mark.parametrize("text", ["99999999999d", "1e300", "-1e300", f"{'9' * 400}h"])
def test_durations_that_no_message_holds(text: str) -> None:
    with pytest.raises(ValueError, match="must be at most 315576000000 s"):
        units.seconds_of(text)


@pytest.mark.parametrize("text", ["999999d", "0001-01-01T00:00:00+14:00"])
def test_times_that_no_message_holds(text: str) -> None:
    with pytest.raises(ValueError, match="must be in the years 1 to 9999"):
        units.moment_of(text, datetime(2026, 5, 1, tzinfo=UTC))


def test_numbers_and_sizes_that_no_message_holds() -> None:
    assert units.number_of(str(2**63 - 1)) == 2**63 - 1
    with pytest.raises(ValueError, match="must be at most 9223372036854775807"):
        units.number_of(str(2**63))
    with pytest.raises(ValueError, match=r"'1\.5' is not a whole number"):
        units.number_of("1.5")
    with pytest.raises(ValueError, match="must be below"):
        units.size_of("9999999999999 TB")


def test_sizes_and_counts() -> None:
    assert [units.size(n) for n in (0, 1023, 1536, 64 << 20, 5 << 40)] == [
        *("0 B", "1023 B", "1.5 KiB", "64.0 MiB", "5.0 TiB")
    ]
    assert (units.count(1, "rollout"), units.count(12345, "rollout")) == (
        "1 rollout",
        "12,345 rollouts",
    )
    assert units.count(2, "set of resources") == "2 sets of resources"


def test_the_footer_says_how_many_of_how_many() -> None:
    def of(number: int, *, is_cut: bool, total: int | None) -> str:
        counted = None if total is None else lambda: total
        rows = [[n] for n in range(number)]
        return footer(Listing("rollout", COLUMNS, rows, rows, "newest first", is_cut, counted))

    assert of(50, is_cut=True, total=12345) == "50 of 12,345 rollouts, newest first"
    assert of(50, is_cut=True, total=None) == "50 rollouts, newest first; --limit shows more"
    assert of(1, is_cut=False, total=1) == "1 rollout, newest first"
    assert of(0, is_cut=False, total=0) == "no rollouts"


RECORD = {
    "rollout_id": "ro-1",
    "input": {"q": "2 + 2", "at_time": "2026-01-01T00:00:00Z"},
    "end_time": None,
    "start_time": "2026-01-01T00:00:00Z",
    "config": {"timeout": "90s", "retry_condition": ["failed", "timeout"]},
    "file_bytes": 1536,
    "span_count": 12345,
    "attempts": [{"failure": {"message": "first\nsecond \x1b[2J"}}],
}


def test_details_show_everything() -> None:
    lines = list(described(RECORD, datetime(2026, 1, 1, 0, 3, tzinfo=UTC)))
    assert lines == [
        "rollout_id:  ro-1",
        "input:",
        "  {",
        '    "q": "2 + 2",',
        '    "at_time": "2026-01-01T00:00:00Z"',
        "  }",
        "end_time:    -",
        "start_time:  2026-01-01T00:00:00Z (3m ago)",
        "config:",
        "  timeout:          90s",
        "  retry_condition:  failed, timeout",
        "file_bytes:  1.5 KiB",
        "span_count:  12,345",
        "attempts 1:",
        "  failure:",
        "    message:",
        "      first",
        "      second \\x1b[2J",
    ]


def test_details_for_programs_are_a_path_and_a_value_a_line() -> None:
    assert dict(flat(RECORD)) == {
        "rollout_id": "ro-1",
        "input": '{"q": "2 + 2", "at_time": "2026-01-01T00:00:00Z"}',
        "end_time": "",
        "start_time": "2026-01-01T00:00:00Z",
        "config.timeout": "90s",
        "config.retry_condition.0": "failed",
        "config.retry_condition.1": "timeout",
        "file_bytes": "1536",
        "span_count": "12345",
        "attempts.0.failure.message": "first\\nsecond \\x1b[2J",
    }


def test_yaml() -> None:
    value = [
        {
            "id": "ro-1",
            "count": 1,
            "x": 1e-05,
            "none": None,
            "yes": "yes",
            "empty": [],
            "text": "a: b\n\x85",
        },
        {"list": [{"a": 1, "b": [True, 2.5]}, "t"], "map": {"k v": {"q": ""}}},
    ]
    assert (
        "\n".join(yaml.lines(value))
        == """\
- id: ro-1
  count: 1
  x: 1.0e-05
  none: null
  "yes": "yes"
  empty: []
  text: "a: b\\n\\U00000085"
- list:
    - a: 1
      b:
        - true
        - 2.5
    - t
  map:
    "k v":
      q: \"\""""
    )
    assert list(yaml.lines([])) == ["[]"]
