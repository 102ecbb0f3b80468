"""schedule/rules.py: properties of every schedule, files, messages."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltapass.errors import (
    BoundaryOutsideError,
    ScheduleError,
    ScheduleFileError,
    SpanOutsideError,
    StepCountError,
    TooManyCachedBlocksError,
)
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import load_schedule, save_schedule, table_rows, table_text
from deltapass.schedule.presets import (
    SCHEDULES,
    delta_cache,
    delta_dit,
    faster_diffusion,
    named_schedule,
    never,
    reversed_phases,
)
from deltapass.schedule.rules import REGIONS, Schedule, Span, Table, region_span


@st.composite
def cases(draw: st.DrawFn) -> tuple[Schedule, int, int]:
    steps, blocks = draw(st.integers(1, 40)), draw(st.integers(1, 30))
    schedule = Schedule(
        interval=draw(st.integers(1, 7)),
        cached_blocks=draw(st.none() | st.integers(0, blocks)),
        boundary=draw(st.none() | st.integers(0, steps) | st.floats(0.0, 1.0)),
        outline=draw(st.sampled_from(REGIONS)),
        detail=draw(st.sampled_from(REGIONS)),
        warm_up=draw(st.integers(0, 10)),
        cool_down=draw(st.integers(0, 10)),
        max_consecutive=draw(st.none() | st.integers(1, 7)),
    )
    return schedule, steps, blocks


tables = st.lists(
    st.none() | st.builds(lambda a, n: Span(a, a + n), st.integers(0, 20), st.integers(1, 9)),
    max_size=20,
).map(lambda rows: (None, *rows))


def longest_run(table: Table) -> int:
    return max((len(list(g)) for hit, g in itertools.groupby(table, bool) if hit), default=0)


# ---- tables -----------------------------------------------------------------------------------


@given(cases())
def test_first_step_refreshes_and_every_step_has_a_row(case: tuple[Schedule, int, int]) -> None:
    schedule, steps, blocks = case
    table = schedule.table(steps, blocks)
    assert len(table) == steps
    assert table[0] is None


@given(cases())
def test_cached_steps_in_a_row_stay_below_interval_and_cap(case: tuple[Schedule, int, int]) -> None:
    schedule, steps, blocks = case
    run = longest_run(schedule.table(steps, blocks))
    assert run <= schedule.interval - 1
    assert schedule.max_consecutive is None or run <= schedule.max_consecutive


@given(cases())
def test_region_switches_exactly_at_the_boundary(case: tuple[Schedule, int, int]) -> None:
    schedule, steps, blocks = case
    default = 0.5 if steps <= 8 else 0.6
    boundary = default if schedule.boundary is None else schedule.boundary
    step = boundary if isinstance(boundary, int) else math.floor(boundary * steps + 0.5)
    for index, row in enumerate(schedule.table(steps, blocks)):
        region = schedule.outline if index < step else schedule.detail
        assert row is None or row == region_span(region, len(row), blocks)


@given(cases())
def test_warm_up_and_cool_down_are_full(case: tuple[Schedule, int, int]) -> None:
    schedule, steps, blocks = case
    table = schedule.table(steps, blocks)
    assert not any(table[: schedule.warm_up])
    assert not any(table[max(0, steps - schedule.cool_down) :])


@given(cases())
def test_uncapped_cached_steps_fill_every_whole_interval(case: tuple[Schedule, int, int]) -> None:
    schedule, steps, blocks = case
    n = schedule.interval
    if schedule.max_consecutive is not None:
        n = min(n, schedule.max_consecutive + 1)
    inner = max(0, steps - schedule.warm_up - schedule.cool_down)
    table = schedule.table(steps, blocks)
    expected = inner // n * (n - 1) if any(schedule.spans(blocks, steps)) else 0
    assert sum(row is not None for row in table) == expected


@given(cases())
def test_spans_are_those_of_the_table_or_of_both_phases(case: tuple[Schedule, int, int]) -> None:
    schedule, steps, blocks = case
    used = schedule.spans(blocks, steps)
    assert set(used) == set(schedule.table(steps, blocks)) - {None}
    assert len(set(used)) == len(used)
    assert schedule.cached_blocks is None or set(used) <= set(schedule.spans(blocks))


def test_leftover_steps_are_full_and_come_first() -> None:
    assert table_text(Schedule(interval=3, boundary=0).table(8, 4), 4) == "R R R s1 s1 R s1 s1"


def test_cap_shortens_the_interval() -> None:
    schedule = Schedule(interval=5, max_consecutive=1, boundary=0)
    assert schedule.table(8, 4) == Schedule(interval=2, boundary=0).table(8, 4)


def test_a_trajectory_that_is_all_warm_up_never_caches() -> None:
    assert Schedule(warm_up=5, cool_down=5).table(7, 4) == (None,) * 7


@pytest.mark.parametrize(
    ("steps", "blocks", "deep", "shallow", "boundary"),
    [
        (20, 28, (7, 28), (0, 21), 12),
        (28, 24, (6, 24), (0, 18), 17),
        (4, 28, (24, 28), (0, 4), 2),
        (8, 3, (2, 3), (0, 1), 4),
    ],
)
def test_defaults_scale_with_model_and_trajectory(
    steps: int, blocks: int, deep: tuple[int, int], shallow: tuple[int, int], boundary: int
) -> None:
    table = Schedule().table(steps, blocks)
    expected = tuple(Span(*(deep if i < boundary else shallow)) for i in range(1, steps, 2))
    assert table[1::2] == expected
    assert not any(table[::2])
    assert Schedule().spans(blocks, steps) == (Span(*deep), Span(*shallow))
    features = tuple(row and Span(*shallow, "feature") for row in table)
    assert faster_diffusion().table(steps, blocks) == features


@pytest.mark.parametrize("schedule", [never(), Schedule(cached_blocks=0), Schedule(interval=1)])
def test_schedules_that_never_cache_have_no_spans(schedule: Schedule) -> None:
    assert schedule.table(9, 8) == (None,) * 9
    assert schedule.spans(8) == ()
    assert schedule.at(3, 0.5, 8) is None
    assert not schedule.few_step_defaults
    assert not schedule.needs_steps


# ---- several intervals, and parts of the stack ------------------------------------------------


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
    st.integers(0, 4),
    st.integers(1, 40),
    st.integers(1, 7),
)
def test_several_intervals_hold_in_turn(
    intervals: list[int], warm_up: int, steps: int, cap: int
) -> None:
    schedule = Schedule(
        interval=tuple(intervals),
        warm_up=warm_up,
        max_consecutive=cap,
        cached_blocks=4,
        boundary=1.0,
    )
    strides = [min(interval, cap + 1) for interval in intervals]
    refreshes, at = set(range(warm_up)), warm_up
    for turn in range(steps + 1):
        refreshes.add(at)
        at += strides[min(turn, len(strides) - 1)]
    table = schedule.table(steps, 8)
    assert [row is None for row in table] == [step in refreshes | {0} for step in range(steps)]
    assert table == tuple(schedule.at(i, 1.0, 8) for i in range(steps))
    assert schedule.longest == max(strides)
    assert schedule.caches is (max(intervals) > 1)


@pytest.mark.parametrize(
    ("part", "blocks", "count"),
    [(0.5, 8, 4), (0.5, 7, 4), (1.0, 28, 28), (1 / 7, 28, 4), (0.01, 8, 1), (1, 8, 1)],
)
def test_a_fraction_is_one_of_the_stack(part: float, blocks: int, count: int) -> None:
    schedule = Schedule(cached_blocks=part)
    assert (
        schedule.spans(blocks, 20)
        == (Span(blocks - count, blocks), Span(0, count))[: 1 if count == blocks else 2]
    )
    assert schedule.spans(blocks, 4) == schedule.spans(blocks, 20), "what is given holds for all"


def test_few_steps_may_have_blocks_of_their_own() -> None:
    schedule = Schedule(cached_blocks=6, few_step_blocks=0.25, boundary=1.0)
    assert schedule.table(9, 8)[2] == schedule.at(1, 0.5, 8) == Span(2, 8)
    assert schedule.table(8, 8)[1] == Span(6, 8)
    assert schedule.few_step_defaults
    assert not Schedule(cached_blocks=6, few_step_blocks=0).table(8, 8)[1]
    assert Schedule(cached_blocks=0.0).spans(8) == ()


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"interval": ()}, r"interval is \(\)"),
        ({"interval": (2, 0)}, "interval is 0"),
        ({"interval": (2, True)}, "interval is True"),
        ({"interval": 2.0}, r"interval is 2\.0"),
        ({"cached_blocks": 1.5}, r"cached_blocks is 1\.5\. A fraction is 0\.0 to 1\.0"),
        ({"few_step_blocks": -1}, "few_step_blocks is -1"),
        ({"few_step_blocks": float("nan")}, "few_step_blocks is nan"),
    ],
)
def test_parts_and_intervals_are_checked(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ScheduleError, match=text):
        Schedule(**fields)


def test_lists_of_files_and_of_the_command_line_are_taken() -> None:
    assert named_schedule("reversed", interval=[1, 2]) == reversed_phases(interval=(1, 2))
    with pytest.raises(ScheduleError, match="interval is 'two'"):
        named_schedule("reversed", interval=[1, "two"])


# ---- unknown length ---------------------------------------------------------------------------


@given(st.integers(9, 60), st.integers(2, 5), st.integers(0, 4))
def test_uniform_levels_give_the_table_when_nothing_is_left_over(
    intervals: int, interval: int, warm_up: int
) -> None:
    steps = intervals * interval + warm_up
    schedule = Schedule(interval=interval, warm_up=warm_up, boundary=0.6)
    rows = tuple(schedule.at(i, 1.0 - i / steps, 28) for i in range(steps))
    table = schedule.table(steps, 28)
    # Rounding the boundary to a step may move the one step that lies beside it.
    differing = [i for i in range(steps) if rows[i] != table[i]]
    assert all(abs(i - 0.6 * steps) < 1 for i in differing)


def test_step_b_of_twenty_is_detail_even_as_a_float32_level() -> None:
    schedule = Schedule(interval=20)
    assert schedule.at(11, 0.45, 28) == Span(7, 28)
    assert schedule.at(12, 0.4, 28) == Span(0, 21)
    assert schedule.at(12, 0.4000000059604645, 28) == Span(0, 21)


@given(st.integers(0, 30), st.integers(0, 5))
def test_warm_up_and_cap_hold_without_a_length(index: int, warm_up: int) -> None:
    schedule = Schedule(interval=4, max_consecutive=2, warm_up=warm_up)
    refresh = index < max(1, warm_up) or (index - warm_up) % 3 == 0
    assert (schedule.at(index, 0.5, 8) is None) == refresh


@pytest.mark.parametrize(
    ("schedule", "needed"),
    [
        (Schedule(), False),
        (Schedule(boundary=0.3), False),
        (Schedule(boundary=3), True),
        (delta_cache("deep", boundary=3), False),
        (Schedule(cool_down=1), True),
        (ExplicitSchedule((None,)), True),
    ],
)
def test_needs_steps_and_at_agree(schedule: Schedule | ExplicitSchedule, needed: bool) -> None:
    assert schedule.needs_steps is needed
    if needed:
        with pytest.raises(ScheduleError, match=r"needs the number of steps.*session with steps=n"):
            schedule.at(1, 0.5, 8)
    else:
        assert schedule.at(0, 1.0, 8) is None


def test_defaults_alone_depend_on_few_steps() -> None:
    assert Schedule().few_step_defaults
    assert Schedule(cached_blocks=3).few_step_defaults
    assert Schedule(boundary=0.5).few_step_defaults
    assert not Schedule(cached_blocks=3, boundary=0.5).few_step_defaults
    assert not Schedule(cached_blocks=3, detail="deep").few_step_defaults
    assert not Schedule(cached_blocks=0).few_step_defaults
    assert not ExplicitSchedule((None,)).few_step_defaults


# ---- values and messages ----------------------------------------------------------------------


def test_spans_print_their_last_block_and_are_ordered() -> None:
    assert str(Span(7, 28)) == "blocks 7..27"
    assert len(Span(7, 28)) == 21
    assert Span(0, 9) < Span(1, 2)
    for start, stop in [(3, 3), (-1, 2), (True, 4), (0, 2.0)]:
        with pytest.raises(ScheduleError, match="of a span is"):
            Span(start, stop)  # type: ignore[arg-type]


def test_regions_are_the_papers() -> None:
    spans = [region_span(region, 21, 28) for region in ("shallow", "middle", "deep")]
    assert spans == [Span(0, 21), Span(3, 24), Span(7, 28)]
    with pytest.raises(ScheduleError, match=r"region is 'low'\. It must be one of deep, shallow"):
        region_span("low", 1, 2)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("interval", 0),
        ("interval", True),
        ("interval", 2.0),
        ("cached_blocks", -1),
        ("boundary", -1),
        ("boundary", 1.5),
        ("boundary", math.nan),
        ("boundary", True),
        ("boundary", "12"),
        ("outline", "low"),
        ("detail", None),
        ("warm_up", -1),
        ("cool_down", None),
        ("max_consecutive", 0),
    ],
)
def test_a_bad_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(ScheduleError, match=f"^{field} is {value!r}\\. "):
        Schedule(**{field: value})


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(TooManyCachedBlocksError, match="cached_blocks is 9 but the model has 8"):
        Schedule(cached_blocks=9).table(4, 8)
    with pytest.raises(TooManyCachedBlocksError, match="cached_blocks is 9 but the model has 8"):
        Schedule(cached_blocks=9).at(1, 0.5, 8)
    with pytest.raises(BoundaryOutsideError, match="boundary 21 lies outside a trajectory of 20"):
        Schedule(boundary=21).table(20, 28)
    with pytest.raises(ScheduleError, match="steps is 0"):
        Schedule().table(0, 28)
    with pytest.raises(ScheduleError, match="blocks is 0"):
        Schedule().table(4, 0)


def test_an_explicit_table_must_fit_and_refresh_first() -> None:
    schedule = ExplicitSchedule((None, Span(2, 8), Span(0, 3), Span(2, 8)))
    assert schedule.table(4, 8) == schedule.rows
    assert schedule.spans(8) == (Span(2, 8), Span(0, 3))
    with pytest.raises(StepCountError, match="4 rows but the trajectory has 5 steps"):
        schedule.table(5, 8)
    with pytest.raises(StepCountError, match="4 rows but the trajectory has 3 steps"):
        schedule.table(3, 8)
    with pytest.raises(SpanOutsideError, match="skips blocks 2 to 7 but the model has 7 blocks"):
        schedule.table(4, 7)
    with pytest.raises(ScheduleError, match=r"row 0 skips blocks 0\.\.1\. The first step must"):
        ExplicitSchedule((Span(0, 2),))
    with pytest.raises(ScheduleError, match="row 1 is 'x'"):
        ExplicitSchedule((None, "x"))  # type: ignore[arg-type]
    with pytest.raises(ScheduleError, match=r"rows is \(\)"):
        ExplicitSchedule(())


def test_named_schedules_are_the_constructors() -> None:
    assert list(SCHEDULES) == [
        "delta-dit",
        "delta-cache-deep",
        "delta-cache-middle",
        "delta-cache-shallow",
        "reversed",
        "faster-diffusion",
        "deepcache",
        "tgate",
        "none",
        "quality",
        "balanced",
        "fast",
        "paper",
    ]
    assert named_schedule("delta-dit", interval=3) == delta_dit(interval=3)
    assert named_schedule("delta-cache-middle") == delta_cache("middle")
    assert named_schedule("reversed") == reversed_phases()
    assert named_schedule("reversed") == Schedule(outline="shallow", detail="deep")
    assert named_schedule("none") == never()


def test_unknown_names_and_fields_get_the_near_match() -> None:
    with pytest.raises(ScheduleError, match=r"unknown schedule 'delta-dot'\. Did you mean 'delta-"):
        named_schedule("delta-dot")
    with pytest.raises(ScheduleError, match=r"unknown field 'warmup'\. Did you mean 'warm_up'"):
        named_schedule("delta-dit", warmup=1)
    with pytest.raises(ScheduleError, match="schedule 'none' does not take all of: interval"):
        named_schedule("none", interval=2)


def test_schedules_pickle_and_hash() -> None:
    for schedule in (Schedule(boundary=3), ExplicitSchedule((None, Span(0, 2)))):
        assert pickle.loads(pickle.dumps(schedule)) == schedule
        assert hash(schedule) == hash(pickle.loads(pickle.dumps(schedule)))


# ---- text and files ---------------------------------------------------------------------------


def test_a_table_prints_in_one_line_and_in_rows() -> None:
    table = (None, Span(7, 28), Span(0, 21), Span(3, 24), Span(0, 28))
    assert table_text(table, 28) == "R d21 s21 3:24 d28"
    assert table_rows(table) == ["refresh", "7:28", "0:21", "3:24", "0:28"]


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (Schedule().table(1000, 28), "(R d21)x300 (R s21)x200"),
        (Schedule(interval=100).table(1000, 28), "(R d21x99)x6 (R s21x99)x4"),
        (Schedule(interval=1).table(250, 28), "Rx250"),
        (Schedule(cached_blocks=4, boundary=3).table(7, 28), "R R d4 R s4 R s4"),
        ((None, Span(0, 3), Span(0, 3), Span(5, 8), None), "R s3 s3 d3 R"),
        ((None,), "R"),
    ],
)
def test_what_repeats_in_a_table_is_counted(table: Table, text: str) -> None:
    assert table_text(table, 8 if Span(5, 8) in table else 28) == text


@settings(max_examples=50)
@given(case=cases(), rows=tables)
def test_saved_schedules_load_back_equal(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Schedule, int, int], rows: Table
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.json"
    for schedule in (case[0], ExplicitSchedule(rows)):
        save_schedule(schedule, path)
        assert load_schedule(path) == schedule
    save_schedule(rows, str(path))
    assert load_schedule(str(path)) == ExplicitSchedule(rows)


def test_names_regions_and_toml_load(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('schedule = "reversed"\ninterval = 3\nboundary = 0.5\n')
    assert load_schedule(path) == reversed_phases(interval=3, boundary=0.5)
    path.write_text('blocks = 28\ntable = ["refresh", "deep:21", "shallow:4", "middle:21"]\n')
    expected = (None, Span(7, 28), Span(0, 4), Span(3, 24))
    assert load_schedule(path) == ExplicitSchedule(expected)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "cannot be read"),
        ("[]", "it holds a list"),
        ({"intervall": 2}, "unknown field 'intervall'. Did you mean 'interval'"),
        ({"interval": True}, "interval is True"),
        ({"schedule": "revers"}, "unknown schedule 'revers'. Did you mean 'reversed'"),
        ({"schedule": ["x"]}, "unknown schedule"),
        ({"name": "x"}, "unknown field 'name'"),
        ({"schedule": "delta-cache-deep", "outline": "deep"}, ".*does not take all of: outline"),
        ({"table": ["refresh"], "block": 3}, "unknown key 'block'. Did you mean 'blocks'"),
        ({"table": "refresh"}, "table is 'refresh'"),
        ({"table": ["refresh"], "blocks": 0}, "blocks is 0"),
        ({"table": []}, r"rows is \(\)"),
        ({"table": ["0:2"]}, "row 0 skips"),
        ({"table": ["refresh", "deep"]}, "row 1 is 'deep'. Write 'refresh'"),
        ({"table": ["refresh", 7]}, "row 1 is 7. Write 'refresh'"),
        ({"table": ["refresh", "deep:2"]}, "row 1 is 'deep:2' but there is no 'blocks'"),
        ({"table": ["refresh", "deep:9"], "blocks": 8}, "row 1 is 'deep:9' and blocks is 8"),
        ({"table": ["refresh", "3:2"]}, "row 1 is '3:2': stop of a span is 2"),
        (
            {"table": ["refresh", "3:9"], "blocks": 8},
            "row 1 is '3:9': the schedule's table skips blocks 3 to 8",
        ),
    ],
)
def test_a_bad_file_is_named_with_its_key_or_row(
    tmp_path: Path, content: object, problem: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ScheduleFileError, match=f"schedule file .*bad.json: {problem}"):
        load_schedule(path)


def test_files_that_cannot_be_reached_are_named(tmp_path: Path) -> None:
    with pytest.raises(ScheduleFileError, match=r"none\.json: cannot be read"):
        load_schedule(tmp_path / "none.json")
    with pytest.raises(ScheduleFileError, match=r"a\.yaml: its name ends in '\.yaml'"):
        load_schedule(tmp_path / "a.yaml")
    with pytest.raises(ScheduleFileError, match=r"a\.toml: schedules are written as \.json only"):
        save_schedule(Schedule(), tmp_path / "a.toml")
    with pytest.raises(ScheduleFileError, match="cannot be written"):
        save_schedule(Schedule(), tmp_path / "no" / "a.json")


# ---- runs that begin half-way -----------------------------------------------------------------


@given(cases(), st.data())
def test_row_where_a_run_begins_refreshes_and_those_before_it_are_full(
    case: tuple[Schedule, int, int], data: st.DataObject
) -> None:
    schedule, steps, blocks = case
    start = data.draw(st.integers(0, steps - 1))
    table = schedule.table(steps, blocks, start)
    assert len(table) == steps
    assert not any(table[: start + 1])
    assert not any(table[start : start + schedule.warm_up])
    assert not any(table[max(0, steps - schedule.cool_down) :])


@given(cases(), st.data())
def test_a_run_that_begins_half_way_is_spread_like_one_of_its_own_length(
    case: tuple[Schedule, int, int], data: st.DataObject
) -> None:
    schedule, steps, blocks = case
    start = data.draw(st.integers(0, steps - 1))
    late = schedule.table(steps, blocks, start)[start:]
    whole = dataclasses.replace(schedule, boundary=None).table(steps - start, blocks)
    assert [row is None for row in late] == [row is None for row in whole]


@given(cases(), st.data())
def test_the_boundary_stays_where_the_noise_level_is(
    case: tuple[Schedule, int, int], data: st.DataObject
) -> None:
    schedule, steps, blocks = case
    start = data.draw(st.integers(0, steps - 1))
    regions = {False: schedule.detail, True: schedule.outline}
    default = 0.5 if steps <= 8 else 0.6
    boundary = default if schedule.boundary is None else schedule.boundary
    step = boundary if isinstance(boundary, int) else math.floor(boundary * steps + 0.5)
    for index, row in enumerate(schedule.table(steps, blocks, start)):
        assert row is None or row == region_span(regions[index < step], len(row), blocks)


@given(cases())
def test_a_run_from_step_0_is_the_whole_table(case: tuple[Schedule, int, int]) -> None:
    schedule, steps, blocks = case
    assert schedule.table(steps, blocks, 0) == schedule.table(steps, blocks)


@given(tables, st.data())
def test_rows_of_a_table_stay_but_for_the_one_where_a_run_begins(
    rows: Table, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(rows) - 1))
    table = ExplicitSchedule(rows).table(len(rows), 30, start)
    assert table[start] is None
    assert [row for at, row in enumerate(table) if at != start] == [
        row for at, row in enumerate(rows) if at != start
    ]
