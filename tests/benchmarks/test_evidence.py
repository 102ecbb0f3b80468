"""The whole harness on toys: kept images, times, verdicts, the table and the record's numbers."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import equal_time
import numpy as np
import pytest
import torch
from evidence import samples, tables
from evidence.judging import Judged
from evidence.meanings import MEASURES
from evidence.methods import Method, cached, methods, plain
from evidence.page import filled, newest
from evidence.samples import PART, kept
from evidence.times import AGAIN, Times, rounds, share, times_of

from deltapass.bench.metrics.intervals import interval, paired
from deltapass.errors import OptionError, ScheduleError
from deltapass.schedule.explicit import ExplicitSchedule
from deltapass.schedule.files import save_schedule
from deltapass.schedule.rules import Schedule, Span


class Draws:
    """Stands for a sampler: images hold their seed; counts how often it is asked."""

    def __init__(self, folder: Path) -> None:
        self.subject = type("Subject", (), {"name": "toy", "folder": folder})
        self.asked: list[tuple[str, int]] = []

    def draw(self, method: Method, seeds: Any) -> torch.Tensor:
        self.asked.append((method.name, seeds[0]))
        return torch.tensor(list(seeds)).view(-1, 1, 1, 1)


# ---- methods ----------------------------------------------------------------------------------


def test_methods_begin_with_the_full_plain_run_and_name_no_step_count_twice(tmp_path: Path) -> None:
    found = methods(["paper"], [8, 13, 20, 13], 20, tmp_path)
    assert [each.name for each in found] == [
        "plain, 20 steps", "plain, 13 steps", "plain, 8 steps", "paper",
    ]  # fmt: skip
    assert found[-1].schedule == Schedule()


def test_tuned_are_all_schedules_beside_the_weights(tmp_path: Path) -> None:
    (tmp_path / "schedules").mkdir()
    table = ExplicitSchedule((None, Span(0, 3), None))
    for name in ("b", "a"):
        save_schedule(table, tmp_path / "schedules" / f"{name}.json")
    assert [each.name for each in cached("tuned", 3, tmp_path)] == ["a", "b"]
    assert cached("tuned", 3, tmp_path)[0].schedule == table
    with pytest.raises(ScheduleError):
        cached("tuned", 4, tmp_path)  # it has three rows


def test_unknown_names_are_the_option_s_error(tmp_path: Path) -> None:
    with pytest.raises((OptionError, ScheduleError)):
        cached("nonsense", 20, tmp_path)


def test_key_follows_the_schedule_and_plain_ones_do_not_follow_the_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one, other = (Method("x", 20, Schedule(interval=each)) for each in (2, 3))
    before = one.key(), plain(20).key()
    assert one.key() != other.key()
    monkeypatch.setattr("evidence.methods.code_digest", lambda: "another")
    assert one.key() != before[0]
    assert plain(20).key() == before[1]


# ---- images that are kept ------------------------------------------------------------------------


def test_what_is_kept_is_not_drawn_again_and_more_goes_on_from_there(tmp_path: Path) -> None:
    draws: Any = Draws(tmp_path / "model")
    first = kept(draws, plain(5), PART, tmp_path)
    assert first.flatten().tolist() == list(range(samples.FIRST_SEED, samples.FIRST_SEED + PART))
    again = kept(draws, plain(5), 2 * PART, tmp_path)
    assert torch.equal(again[:PART], first)
    assert len(again) == 2 * PART
    assert [seed - samples.FIRST_SEED for _, seed in draws.asked] == [0, PART]
    with pytest.raises(ValueError, match=f"parts of {PART}"):
        kept(draws, plain(5), PART + 1, tmp_path)


def test_another_model_has_other_images(tmp_path: Path) -> None:
    draws: Any = Draws(tmp_path / "model")
    (tmp_path / "model").mkdir()
    kept(draws, plain(5), PART, tmp_path)
    (tmp_path / "model" / "weights.safetensors").write_bytes(b"changed")
    kept(draws, plain(5), PART, tmp_path)
    assert len(draws.asked) == 2


# ---- times ---------------------------------------------------------------------------------------


def test_every_round_times_every_method_and_the_full_run_twice(tmp_path: Path) -> None:
    draws: Any = Draws(tmp_path)
    kept = [*rounds(draws, (plain(4), plain(2)), count=3, turns=range(3))]
    found = times_of(kept)
    assert set(found) == {"plain, 4 steps", "plain, 2 steps", AGAIN}
    assert all(len(times.wall) == len(times.processor) == 3 for times in found.values())
    timed = [name for name, _ in draws.asked[2:]]  # the first two warm up
    assert all(timed[turn * 3 : turn * 3 + 3].count(AGAIN) == 1 for turn in range(3))
    assert len({tuple(timed[turn * 3 : turn * 3 + 3]) for turn in range(3)}) > 1


def test_share_is_taken_round_by_round() -> None:
    ours, full = Times((1.0, 4.0, 3.0), (1.0, 1.0, 1.0)), Times((2.0, 4.0, 4.0), (4.0, 2.0, 4.0))
    found = share(ours, full)
    assert (found.median, found.low, found.high) == (0.75, 0.5, 1.0)
    assert share(ours, full, "processor").median == 0.25


def test_rounds_go_on_where_they_were_and_begin_anew_for_other_methods(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[int, ...]] = []

    def timed(sampler: Any, chosen: Any, *, count: int, turns: Any) -> Any:
        asked.append(tuple(turns))
        yield from ({method.name: (1.0, 1.0) for method in chosen} for _ in turns)

    monkeypatch.setattr(equal_time, "rounds", timed)
    monkeypatch.setattr(equal_time, "Sampler", lambda *_, **__: None)
    args = SimpleNamespace(work=tmp_path, model="toy", timed=4, rounds=2, device="cpu")
    equal_time.time_all(None, (plain(4),), args)  # type: ignore[arg-type]
    args.rounds = 5
    equal_time.time_all(None, (plain(4),), args)  # type: ignore[arg-type]
    equal_time.time_all(None, (plain(4), plain(2)), args)  # type: ignore[arg-type]
    assert asked == [(0, 1), (2, 3, 4), (0, 1, 2, 3, 4)]
    assert len(json.loads((tmp_path / "toy" / "times.json").read_text())["rounds"]) == 5


# ---- the tables ----------------------------------------------------------------------------------

OPTIONS = {"steps": 20, "fine": 60, "clock": "wall", "timed": 10}


def judged(method: Method, offset: float, *others: tuple[int, float]) -> Judged:
    """A method whose every value is `offset`, against plain runs of other offsets."""

    def values(level: float) -> np.ndarray:
        return level + np.linspace(-0.01, 0.01, 50)

    def pair(name: str, level: float) -> Any:
        return paired(values(offset), values(level), higher=MEASURES[name].higher, margin=0.1)

    return Judged(
        method=method,
        means={name: interval(values(offset)) for name in MEASURES},
        time=share(Times((1.0,), (1.0,)), Times((2.0,), (2.0,))),
        pairs={steps: {name: pair(name, level) for name in MEASURES} for steps, level in others},
        rival=10,
    )


def record(*methods: Judged) -> dict[str, Any]:
    return {"options": OPTIONS, **tables.numbers(methods, {"kid": interval(np.zeros(4))})}


def test_tables_say_how_a_method_stands() -> None:
    ours = judged(Method("ours", 20, Schedule()), 0.5, (7, 0.1), (10, 0.5), (13, 0.9))
    full = dataclasses.replace(judged(plain(20), 0.9), rival=None)
    text = tables.markdown(json.loads(json.dumps(record(full, ours))))
    assert "| to 20 plain steps, dB | to 60 plain steps, dB |" in text
    assert "| ours | 0.500 | 2.00x | 0.5 (0.5 to 0.5) |" in text
    assert "| ours | 10 | same (+0.0 to +0.0) |" in text
    # of the distance and the error less is better: worse than the 7 steps that have less of it
    assert "| ours | 10 | 10 | 10 | none | none | none |" in text
    worse = judged(Method("ours", 20, Schedule()), 0.1, (10, 0.5))
    assert "| ours | 10 | **worse** (-0.4 to -0.4) |" in tables.markdown(record(full, worse))


def test_record_has_every_pair_and_is_json() -> None:
    ours = judged(Method("ours", 20, Schedule()), 0.5, (7, 0.1), (13, 0.9))
    (row,) = json.loads(json.dumps(record(ours)))["methods"]
    assert row["less_plain"]["7"]["right"]["verdict"] == "better"
    assert row["less_plain"]["7"]["kid"]["verdict"] == "worse"
    assert row["less_plain"]["13"]["right"]["mean"] == pytest.approx(-0.4)
    assert row["as_good_as_plain_steps"]["right"] == 7
    assert row["equal_time_plain_steps"] == 10


def test_the_newest_record_of_a_model_is_the_page_s(tmp_path: Path) -> None:
    for name in ("toy_b_2026-01-02", "toy_a_2026-01-03", "toys_a_2026-01-04"):
        (tmp_path / f"equal-time-{name}.json").write_text("{}")
    assert newest("toy", tmp_path).stem == "equal-time-toy_a_2026-01-03"
    with pytest.raises(FileNotFoundError, match="no record equal-time-other"):
        newest("other", tmp_path)


def test_a_page_is_filled_where_it_says_and_filled_again_alike(tmp_path: Path) -> None:
    ours = judged(Method("ours", 20, Schedule()), 0.5, (7, 0.1), (10, 0.5))
    entry = {
        **record(judged(plain(20), 0.9), ours),
        **dict.fromkeys(("hardware", "torch", "commit", "date", "judge"), "x"),
        "images": 50, "first_seed": 1, "timed": {"load_average": [0.5, 2.0]},
        "plain_over_itself": {"median": 1.0, "low": 0.9, "high": 1.1},
    }  # fmt: skip
    (tmp_path / "equal-time-toy_a_2026-01-03.json").write_text(json.dumps(entry))
    page = "before\n<!-- record: toy -->\nold\n<!-- end -->\nafter\n"
    found = filled(page, tmp_path)
    assert found.startswith("before\n<!-- record: toy -->\n") and found.endswith(
        "<!-- end -->\nafter\n"
    )
    assert "old" not in found
    assert "load average was 0.5 to 2.0" in found
    assert tables.markdown(entry) in found
    assert filled(found, tmp_path) == found
