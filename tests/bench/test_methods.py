"""bench/methods: what names and settings of a suite stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deltapass.bench.methods.method import Context
from deltapass.bench.methods.named import METHODS, check_distinct, method_of
from deltapass.bench.suite import MethodSpec
from deltapass.errors import BenchError, ScheduleError, ScheduleFileError
from deltapass.schedule.budget import table_macs
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import save_schedule
from deltapass.schedule.presets import balanced, delta_cache
from deltapass.schedule.rules import Schedule, Span

BLOCKS = 28


def step_macs(span: Span | None) -> float:
    return 1.0 + BLOCKS - (0 if span is None else len(span))


CONTEXT = Context(model="toy", steps=20, blocks=BLOCKS, step_macs=step_macs)


def made(name: str, context: Context = CONTEXT, steps: int | None = None, **settings: Any) -> Any:
    return method_of(MethodSpec(name=name, settings=settings, steps=steps), context)


def test_plain_steps_are_the_model_itself_or_fewer_of_them() -> None:
    full, fewer = made("plain"), made("plain", steps=13)
    assert (full.name, full.kind, full.steps, full.schedule) == ("plain-20", "plain", 20, None)
    assert (fewer.name, fewer.kind, fewer.steps) == ("plain-13", "steps", 13)
    eager = made("plain", lowering="eager")
    assert (eager.name, eager.lowering) == ("plain-eager-20", "eager")


def test_interval_one_runs_through_our_backend_and_caches_nothing() -> None:
    method = made("interval-1")
    assert method.schedule is not None
    assert set(method.schedule.table(20, BLOCKS)) == {None}
    assert not method.caches


def test_settings_are_fields_of_the_schedule() -> None:
    method = made("delta-dit", boundary=8, cached_blocks=12)
    assert method.schedule == Schedule(boundary=8, cached_blocks=12)
    assert method.name == "delta-dit-b8-c12"
    assert method.label == "Δ-DiT (b = 8, N_c = 12)"
    assert made("delta-cache-middle").schedule == delta_cache("middle")
    assert made("balanced").schedule == balanced()


@pytest.mark.parametrize(
    "name", [n for n in METHODS if n.startswith(("delta", "rev", "lin", "faster-d", "deepc"))]
)
@pytest.mark.parametrize("speedup", [1.6, 2.0])
def test_a_speedup_is_kept_as_closely_as_whole_blocks_allow(name: str, speedup: float) -> None:
    schedule = made(name, speedup=speedup).schedule
    cost = table_macs(schedule.table(20, BLOCKS), BLOCKS, step_macs)
    plain = 20 * step_macs(None)
    assert cost <= plain / speedup
    fewer = Schedule(
        **{
            **{f: getattr(schedule, f) for f in ("interval", "outline", "detail", "keeps")},
            "cached_blocks": schedule.cached_blocks - 1,
        }
    )
    assert table_macs(fewer.table(20, BLOCKS), BLOCKS, step_macs) > plain / speedup
    rule = made(name).schedule
    assert (schedule.outline, schedule.detail) == (rule.outline, rule.detail)
    assert (schedule.predictor, schedule.keeps) == (rule.predictor, rule.keeps)


def test_a_span_is_skipped_after_the_leftover_steps() -> None:
    schedule = made("span", steps=5, span=[7, 14]).schedule
    assert schedule.rows == (None, None, Span(7, 14), None, Span(7, 14))
    assert made("span", span=[7, 14], interval=4).schedule.rows[:5] == (
        *(None, *[Span(7, 14)] * 3),
        None,
    )


def test_tuned_schedules_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    (tmp_path / "schedules").mkdir()
    table = ExplicitSchedule((None, Span(0, 3), None))
    path = tmp_path / "schedules" / "tuned-2.0x.json"
    save_schedule(table, path)
    context = Context(model="toy", steps=20, folder=tmp_path)
    by_name, by_path = made("tuned-2.0x", context), made(str(path), context)
    assert by_name.schedule == by_path.schedule == table
    assert by_name.name == by_path.name == "tuned-2.0x"
    assert by_name.steps == 3
    with pytest.raises(ScheduleFileError, match="toy has no schedule of that name"):
        made("tuned-3.0x", context)
    with pytest.raises(ScheduleFileError, match="toy has no folder"):
        made("tuned-3.0x")


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("delta-dti", {}, "there is no method 'delta-dti'. Did you mean 'delta-dit'"),
        ("delta-dit", {"bounary": 3}, "no setting 'bounary'. Did you mean 'boundary'"),
        ("delta-dit", {"speedup": 2, "interval": 3}, "no setting 'interval'"),
        ("delta-dit", {"speedup": 0.5}, "speedup is 0.5"),
        ("balanced", {"interval": 3}, "no setting 'interval'. It takes none"),
        ("span", {}, "span is None"),
        ("span", {"span": [1, 2], "interval": 0}, "interval is 0"),
    ],
)
def test_what_means_nothing_is_refused(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(BenchError, match=said):
        made(name, **settings)


def test_what_does_not_fit_the_model_is_the_schedule_s_error() -> None:
    with pytest.raises(ScheduleError, match="least possible share"):
        made("delta-dit", steps=2, speedup=4)
    with pytest.raises(BenchError, match="no stack of blocks"):
        made("delta-dit", Context(model="toy", steps=20), speedup=2)


def test_no_two_methods_go_by_one_name() -> None:
    with pytest.raises(BenchError, match="plain-20 is there twice"):
        check_distinct([made("plain"), made("plain", steps=20)])
    check_distinct([made("delta-dit", speedup=1.6), made("delta-dit", speedup=2)])
