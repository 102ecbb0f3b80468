"""The whole harness on toys: kept images, times, verdicts, the table and the record's numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evidence import samples, tables
from evidence.intervals import interval, paired
from evidence.judging import MEASURES, Judged
from evidence.methods import Method, cached, methods, plain
from evidence.samples import PART, kept
from evidence.times import AGAIN, Times, measure, share

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
    chosen = (plain(4), plain(2))
    found = measure(draws, chosen, count=3, rounds=3, say=lambda _: None)
    assert list(found) == ["plain, 4 steps", "plain, 2 steps", AGAIN]
    assert all(len(times.wall) == len(times.processor) == 3 for times in found.values())
    timed = [name for name, _ in draws.asked[2:]]  # the first two warm up
    assert all(timed[turn * 3 : turn * 3 + 3].count(AGAIN) == 1 for turn in range(3))
    assert len({tuple(timed[turn * 3 : turn * 3 + 3]) for turn in range(3)}) > 1


def test_share_is_taken_round_by_round() -> None:
    ours, full = Times((1.0, 4.0, 3.0), (1.0, 1.0, 1.0)), Times((2.0, 4.0, 4.0), (4.0, 2.0, 4.0))
    found = share(ours, full)
    assert (found.median, found.low, found.high) == (0.75, 0.5, 1.0)
    assert share(ours, full, "processor").median == 0.25


# ---- the table -----------------------------------------------------------------------------------


def judged(method: Method, offset: float, *others: tuple[int, float]) -> Judged:
    """A method whose every value is `offset`, against plain runs of other offsets."""

    def values(level: float) -> np.ndarray:
        return level + np.linspace(-0.01, 0.01, 50)

    return Judged(
        method=method,
        means={name: interval(values(offset)) for name in MEASURES},
        time=share(Times((1.0,), (1.0,)), Times((2.0,), (2.0,))),
        processor=None,
        pairs={
            steps: {
                name: paired(values(offset), values(level), higher=measure.higher)
                for name, measure in MEASURES.items()
            }
            for steps, level in others
        },
        rival=10,
    )


def test_table_says_how_a_method_stands(tmp_path: Path) -> None:
    ours = judged(Method("ours", 20, Schedule()), 0.5, (7, 0.1), (10, 0.5), (13, 0.9))
    full = dataclasses.replace(judged(plain(20), 0.9), rival=None)
    text = tables.markdown((full, ours), {"kid": interval(np.zeros(4))}, fine=60)
    assert "to 60 steps, dB" in text
    assert "| ours | 0.500 (0.500-0.500) | 2.00x |" in text
    # of the distance less is better: worse than the 7 steps that have less of it
    assert "10, 10, 10, none; in all: none" in text
    assert "10 steps: same, same, same, same" in text


def test_record_has_every_pair_and_is_json(tmp_path: Path) -> None:
    ours = judged(Method("ours", 20, Schedule()), 0.5, (7, 0.1), (13, 0.9))
    (row,) = tables.numbers((ours,), {})["methods"]
    assert row["less_plain"]["7"]["right"]["verdict"] == "better"
    assert row["less_plain"]["7"]["kid"]["verdict"] == "worse"
    assert row["less_plain"]["13"]["right"]["mean"] == pytest.approx(-0.4)
    assert row["as_good_as_plain_steps"]["right"] == 7
    assert row["equal_time_plain_steps"] == 10
