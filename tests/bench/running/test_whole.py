"""A whole job on a tiny model: drawn, timed, judged, gone on with, compared; and its page."""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

pytest.importorskip("diffusers")

from commands import call
from rich.console import Console
from tiny_bench import BLOCKS, EAGER, METHODS, STEPS, made, tiny_job, tiny_subject, tiny_suite

from deltapass.bench.measuring.exact import LOOKED_AT
from deltapass.bench.reading import read_record
from deltapass.bench.record import Record, Row
from deltapass.bench.reporting.comparing import compared, shown
from deltapass.bench.running import stages
from deltapass.bench.running.checking import checked, problems, remarks
from deltapass.bench.running.concluding import conclude, judging_context
from deltapass.bench.running.job import prepared
from deltapass.bench.running.whole import How, RemoteSampler, run_jobs
from deltapass.bench.sampling import Sampler
from deltapass.bench.subjects import Dealt, pipeline_subject
from deltapass.bench.suite import MethodSpec
from deltapass.errors import BenchError

CEILING = 100.0  # dB, of equal images
pytestmark = [
    pytest.mark.keeps_compiled,
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # in diffusers
]


def silent(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total or not total, what


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a whole run but for the page."""
    folder = tmp_path_factory.mktemp("bench")
    job = tiny_job(folder)
    for stage in ("draw", "time", "judge"):
        run_jobs([job], How(only=stage), silent)
    return folder


@pytest.fixture(scope="module")
def record(output: Path) -> Record:
    return read_record(tiny_job(output).folder / "record.json")


def row(record: Record, name: str) -> Row:
    return next(each for each in record.rows if each.name == name)


def test_rows_are_those_of_the_suite_with_all_that_was_measured(record: Record) -> None:
    names = ["plain-6", "plain-4", "interval-1", "delta-dit-1.3x"]
    assert [each.name for each in record.rows] == names
    assert record.reference == "plain-6"
    for each in record.rows:
        assert each.failure is None
        assert each.times is not None and each.times.end_to_end is not None
        assert each.times.denoiser is not None and each.times.step is not None
        assert 0 < each.times.step.median <= each.times.denoiser.median
        assert each.times.denoiser.median <= each.times.end_to_end.median
        assert each.times.end_to_end.stability == "inconclusive"  # one round proves nothing
        assert each.step_errors is not None and len(each.step_errors) == each.steps
        assert len(each.images) == 2
        assert each.replay.endswith(f"--row {each.name}")


def test_drift_by_compiling_is_told_from_drift_by_caching(record: Record) -> None:
    exact, cached = row(record, "interval-1"), row(record, "delta-dit-1.3x")
    assert exact.means["psnr"].mean == CEILING
    assert set(exact.step_errors or ()) == {0.0}
    assert cached.means["psnr"].mean < CEILING
    table = cached.schedule or ()
    errors = cached.step_errors or ()
    assert any(table)
    assert all((error > 0) == (span is not None) for error, span in zip(errors, table, strict=True))


def test_a_batch_larger_than_what_is_looked_at_counts_no_macs_twice(tmp_path: Path) -> None:
    environment = msgspec.structs.replace(EAGER, batch=LOOKED_AT + 2)
    subject = pipeline_subject("tiny_bench:made", made(), environment, Dealt())
    methods = (MethodSpec(name="plain"), MethodSpec(name="interval-1"))
    suite = tiny_suite(methods=methods, images=LOOKED_AT + 2, timed=0)
    job = prepared(suite, environment, subject, tmp_path)
    stages.draw_all(job, silent)
    plain, same = conclude(job, silent).rows
    assert plain.macs is not None and same.macs is not None
    assert (plain.macs.share, same.macs.share) == pytest.approx((1.0, 1.0))
    assert plain.macs.full == pytest.approx(same.macs.full)


def test_counts_and_macs_are_those_of_the_schedule(record: Record) -> None:
    cached = row(record, "delta-dit-1.3x")
    skipped = sum(last - first for first, last in filter(None, cached.schedule or ()))
    assert cached.counts.blocks_run == STEPS * BLOCKS - skipped
    assert row(record, "plain-4").counts.blocks_run == 4 * BLOCKS
    assert (cached.counts.graphs, cached.counts.breaks, cached.counts.recompiles) == (1, 0, 0)
    assert cached.counts.buffer_bytes
    assert row(record, "plain-4").macs is not None
    assert row(record, "plain-4").macs.share == pytest.approx(4 / 6)  # type: ignore[union-attr]
    assert cached.macs is not None and cached.macs.share <= 1 / 1.3


def test_what_was_done_is_not_done_again(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> torch.Tensor:
        raise AssertionError("drawn again")

    monkeypatch.setattr(Sampler, "draw", refuse)
    monkeypatch.setattr(stages, "look_at", refuse)
    job = tiny_job(output)
    stages.draw_all(job, silent)
    stages.time_all(job, silent)
    assert conclude(job, silent).rows


def test_images_and_times_can_be_made_side_by_side(tmp_path: Path) -> None:
    timed: list[str] = []

    def watch(what: str, done: int, total: int) -> None:
        if what.startswith("steps") and not timed:
            timed.append(what)
            stages.time_all(tiny_job(tmp_path, rows=("interval-1",)), silent)  # as another process

    job = tiny_job(tmp_path, rows=("interval-1",))
    stages.draw_all(job, watch)
    found = stages.exact_of(job)
    assert timed and found
    missing = {n for n, e in found.items() if e.steps is None or e.peak_bytes is None}
    assert not missing


def test_a_part_that_is_missing_is_drawn_alone(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, tuple[int, ...]]] = []
    draw = Sampler.draw

    def note(self: Sampler, method: Any, seeds: Sequence[int], *more: Any) -> torch.Tensor:
        asked.append((method.name, tuple(seeds)))
        return draw(self, method, seeds, *more)

    job = tiny_job(output)
    (part,) = (output / "kept" / job.subject.name).glob("plain-4-*/*.pt")
    before = torch.load(part)
    part.unlink()
    monkeypatch.setattr(Sampler, "draw", note)
    stages.draw_all(job, silent)
    assert asked == [("plain-4", tuple(job.seeds))]
    assert torch.equal(torch.load(part), before)


def test_more_images_are_other_parts_and_a_row_can_stand_alone(output: Path) -> None:
    job = tiny_job(output, rows=("interval-1",), images=3, timed=0)
    assert [method.name for method in job.methods] == ["plain-6", "interval-1"]
    with pytest.raises(BenchError, match="there is no row 'nothing'"):
        tiny_job(output, rows=("nothing",))


def test_what_cannot_be_done_is_a_row_that_says_why(tmp_path: Path) -> None:
    methods = (
        MethodSpec(name="plain"),
        MethodSpec(name="delta-dit", settings={"speedup": 50}),
        MethodSpec(name="tuned-2.0x"),
        MethodSpec(name="quality", steps=3),
        MethodSpec(name="span", settings={"span": [0, 9]}),
    )
    job = tiny_job(tmp_path, methods=methods, timed=0)
    assert {*job.impossible} == {
        "delta-dit-50x", "tuned-2.0x", "quality-3", "span-span=0-9",
    }  # fmt: skip
    assert len(remarks(job)) >= 4
    stages.draw_all(job, silent)
    found = conclude(job, silent)
    assert "least possible share" in (row(found, "delta-dit-50x").failure or "")
    assert "caches none of 3 steps" in (row(found, "quality-3").failure or "")
    assert "skips blocks 0 to 8" in (row(found, "span-span=0-9").failure or "")


def test_a_check_finds_all_problems_before_anything_is_drawn(tmp_path: Path) -> None:
    methods = (
        MethodSpec(name="plain"),
        MethodSpec(name="plain", settings={"solver": "EulerDiscretScheduler"}),
    )
    job = tiny_job(tmp_path, methods=methods, measures=("pnsr",))
    found = " ".join(problems(job))
    assert "Did you mean 'EulerDiscreteScheduler'" in found and "no measure pnsr" in found
    with pytest.raises(BenchError, match=r"tiny on tiny_bench-made: .*Nothing was begun"):
        checked([job])
    assert not [*tmp_path.iterdir()]


def test_a_check_counts_on_images_that_are_still_to_come(tmp_path: Path) -> None:
    def missing(**fields: Any) -> list[str]:
        job = tiny_job(tmp_path, measures=("psnr", "psnr_fine"), timed=0, **fields)
        return [each for each in remarks(job) if "psnr_fine" in each]

    assert missing() and not missing(fine_steps=8)


def test_real_images_of_a_folder_are_a_floor_without_images_of_many_steps(tmp_path: Path) -> None:
    from PIL import Image

    for name in "ab":
        Image.new("L", (9, 9)).save(tmp_path / f"{name}.png")
    environment = msgspec.structs.replace(EAGER, real=str(tmp_path))
    job = prepared(tiny_suite(), environment, tiny_subject(), tmp_path)
    context = judging_context(job, None, torch.zeros(2, 1, 8, 8))
    assert context.judged.real(0, 2).shape[-2:] == (8, 8)


def test_the_first_method_must_be_plain(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="begins with 'interval-1'"):
        tiny_job(tmp_path, methods=(MethodSpec(name="interval-1"),))


# ---- two runs ------------------------------------------------------------------------------------


def test_a_run_is_the_same_as_itself_and_a_worse_one_is_found(
    output: Path, record: Record, tmp_path: Path
) -> None:
    def of(times: int, less: float = 0.0) -> Path:
        """The record as if each image had been drawn so many times, with a worse last row."""
        rows = [
            msgspec.structs.replace(each, values={n: v * times for n, v in each.values.items()})
            for each in record.rows
        ]
        worse = {n: tuple(value - less for value in v) for n, v in rows[-1].values.items()}
        rows[-1] = msgspec.structs.replace(rows[-1], values=worse)
        path = tmp_path / f"{times}-{less}.json"
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, rows=tuple(rows))))
        return path

    (pair,) = compared(of(20), of(20))
    assert not any(each.worse for each in pair.rows)
    assert {v.verdict for each in pair.rows for v in each.measures.values()} == {"same"}
    (pair,) = compared(of(20), of(20, less=3))
    assert [each.name for each in pair.rows if each.worse] == ["delta-dit-1.3x"]
    (pair,) = compared(output, of(1, less=3))  # of two images
    assert not any(each.worse for each in pair.rows)
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(shown(pair))
    assert "inconclusive: 2 images; a verdict takes 30" in console.export_text()


def test_two_images_give_no_verdict_anywhere(output: Path, record: Record) -> None:
    against = [
        pair for each in record.rows for rows in each.against.values() for pair in rows.values()
    ]
    assert against and {pair.verdict for pair in against} == {"inconclusive"}
    assert any("no difference is given a verdict" in each for each in remarks(tiny_job(output)))
    assert any("no difference is given a verdict" in each for each in record.warnings)


def test_runs_of_other_images_are_not_compared(
    output: Path, record: Record, tmp_path: Path
) -> None:
    manifest = msgspec.structs.replace(record.manifest, sha256="other")
    path = tmp_path / "record.json"
    path.write_bytes(msgspec.json.encode(msgspec.structs.replace(record, manifest=manifest)))
    with pytest.raises(BenchError, match="other prompts or seeds"):
        compared(output, path)


# ---- elsewhere -----------------------------------------------------------------------------------


class Elsewhere:
    """Workers as Ray gives them: what they hold was pickled, and the last task is done first."""

    def __init__(self, given: Any) -> None:
        self._held = RemoteSampler(pickle.loads(pickle.dumps(given)))
        self._waiting: list[tuple[int, Any]] = []

    def submit(self, key: int, task: Any) -> None:
        self._waiting.append((key, pickle.loads(pickle.dumps(task))))

    def take(self) -> tuple[int, Any]:
        key, task = self._waiting.pop()
        return key, self._held.work(task)


def test_images_that_are_drawn_elsewhere_are_the_same(output: Path, tmp_path: Path) -> None:
    methods = (*METHODS, MethodSpec(name="first-block-cache", settings={"nonsense": 1}))
    job = tiny_job(tmp_path, methods=methods, timed=0)
    stages.draw_all(job, silent, Elsewhere((job.subject, "eager", None)))
    parts = {path.relative_to(tmp_path): path for path in tmp_path.glob("kept/*/*/*.pt")}
    assert len(parts) == len(METHODS)
    for place, path in parts.items():
        assert torch.equal(torch.load(path), torch.load(output / place))
    assert "nonsense" in stages.failures_of(job)["first-block-cache-nonsense=1"]


def test_who_stops_it_is_told_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("deltapass.bench.running.whole.draw_all", stopped)
    code, said = call(
        "bench", "table5", "--model", "tiny_bench:made", "--lowering", "eager", "--images", "2",
        "-o", str(tmp_path / "out"),
    )  # fmt: skip
    assert code == 130 and "The same command goes on" in said
