"""Any sequence of session operations, against a simple model of what must happen.

The model knows nothing of the implementation: it is told the same operations, says of every call
whether it is cached, and computes the output by hand from activations it recorded itself.
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from driving import compiled
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from models import noise
from torch import Tensor, nn

import deltapass
from deltapass.errors import NoStepError
from deltapass.graph.executable import Executable
from deltapass.schedule.explicit import AnySchedule, ExplicitSchedule
from deltapass.schedule.rules import Schedule, Span
from deltapass.sessions.trajectory import MAX_CALLS

pytestmark = pytest.mark.filterwarnings("ignore::deltapass.RefusalWarning")

BLOCKS, TOKENS, WIDTH, STEPS = 4, 3, 8, 9
DELTA = TOKENS * WIDTH * 4  # bytes of the delta of one sample
COMPILED = Schedule(cached_blocks=2, boundary=0.5)
NOTHING, A, B, C = Span(BLOCKS, BLOCKS + 1), Span(1, 3), Span(0, 2), Span(1, 4)
TABLE = ExplicitSchedule((None, A, A, None, B, None, A, C, A))
SCHEDULES = (None, Schedule(interval=3, cached_blocks=3, boundary=4), TABLE)
Inputs = tuple[Tensor, ...]


class Block(nn.Linear):
    def forward(self, x: Tensor, c: Tensor) -> Tensor:  # type: ignore[override]
        return x + torch.tanh(super().forward(x) + c[:, None])


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.text, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.blocks = nn.ModuleList(Block(WIDTH, WIDTH) for _ in range(BLOCKS))

    def begin(self, x: Tensor, timestep: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.embed(x), self.text(text) + timestep[:, None] / 1000

    def forward(self, hidden_states: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        x, c = self.begin(hidden_states, timestep, text)
        return self.out(functools.reduce(lambda x, block: block(x, c), self.blocks, x))

    def by_hand(self, inputs: Inputs, span: Span, record: list[Tensor]) -> list[Tensor]:
        """What enters each block, and the output; the blocks of a span give live-in + delta."""
        x, c = self.begin(*inputs)
        entered = [x]
        for at, block in enumerate(self.blocks):
            if not span.start <= at < span.stop:
                x = block(x, c)
            elif at == span.start:
                x = x + (record[span.stop] - record[span.start])
            entered.append(x)
        return [*entered, self.out(x)]


@functools.cache
def toy_and_compiled() -> tuple[Toy, Any]:
    model = Toy().eval().requires_grad_(False)
    return model, compiled(model, schedule=COMPILED)


# ---- the model ---------------------------------------------------------------------------------


@dataclass
class Lane:
    """One branch: its last call, and what its last full run computed, if it may be read."""

    last: int = -9
    stamp: object = None
    record: list[Tensor] = field(default_factory=list)
    spans: frozenset[Span] = frozenset()  # whose deltas are held
    nbytes: int = 0

    def forget(self) -> None:
        self.record, self.spans, self.nbytes = [], frozenset(), 0


@dataclass(eq=False)
class Spot:
    told: Told
    step: int
    branch: str | None
    calls: int = 0


@dataclass(eq=False)
class Told:
    """One trajectory of one session."""

    steps: int
    schedule: AnySchedule
    start: int | None = None
    step: int = -1
    used: dict[str | None, Spot] = field(default_factory=dict)  # at this step
    twice: set[str | None] = field(default_factory=set)  # names told twice, or called late
    lanes: dict[tuple[str | None, int], Lane] = field(default_factory=dict)
    aside: bool = False

    def tell(self, step: int, branch: str | None) -> Spot:
        self.start = step if self.start is None else self.start
        if step != self.step:
            self.forget(self.twice)
            self.twice, self.used, self.step = set(), {}, step
            for lane in self.lanes.values():
                if lane.last < step - 1:  # it was left out: its next call refreshes
                    lane.forget()
        return Spot(self, step, branch)

    def forget(self, names: set[str | None] | None = None) -> None:
        for (name, _), lane in self.lanes.items():
            if names is None or name in names:
                lane.forget()

    def call(self, spot: Spot, stamp: object, batch: int) -> tuple[Span | None, Span | None, Lane]:
        """What is planned for a call, what must be done, and whose call it is."""
        if self.used.setdefault(spot.branch, spot) is not spot or spot.step != self.step:
            self.twice.add(spot.branch)  # now and at the next step nobody knows whose it is
            self.forget({spot.branch})
            self.used[spot.branch] = spot
        lane = self.lanes.setdefault((spot.branch, spot.calls), Lane())
        spot.calls, self.aside = spot.calls + 1, False
        table = self.schedule.table(self.steps, BLOCKS, self.start or 0)
        planned, later = table[spot.step], table[spot.step + 1 :]
        if (lane.last, lane.stamp) != (spot.step - 1, stamp):
            lane.forget()
        lane.last, lane.stamp = spot.step, stamp
        span = planned if lane.record else None
        read = frozenset(itertools.takewhile(bool, later))  # before the next refresh
        lane.spans = read if span is None else lane.spans & read
        lane.nbytes = len(lane.spans) * DELTA * batch
        return planned, span, lane

    @property
    def nbytes(self) -> int:
        return 0 if self.aside else sum(lane.nbytes for lane in self.lanes.values())


# ---- both, side by side ------------------------------------------------------------------------


class Pair:
    def __init__(self, folder: Path, counts: Counter[str]) -> None:
        self.model, self.compiled = toy_and_compiled()
        for at, parameter in enumerate(self.model.parameters()):
            parameter.copy_(0.3 * noise(at, *parameter.shape))
        self.folder, self.counts, self.seeds = folder, counts, itertools.count()
        self.sessions = [deltapass.session(steps=STEPS) for _ in range(2)]
        self.told = [Told(STEPS, COMPILED) for _ in range(2)]
        self.frames: list[tuple[int, Spot | None]] = []  # innermost last
        self.kept: list[Tensor] = []
        self.weights, self.batch, self.prompt, self.text = 0, 2, 0, noise(1000, 2, WIDTH)

    def run(self, script: list[tuple[Any, ...]]) -> None:
        end = [("leave", at) for at in (0, 1) for _ in script]
        for name, *arguments in [*script, *end, ("put", 0, "free"), ("put", 1, "free")]:
            getattr(self, name)(*arguments)
            assert [one.nbytes for one in self.sessions] == [one.nbytes for one in self.told]
        assert not list(self.folder.iterdir())

    def frame_of(self, at: int) -> int | None:
        return max((n for n, frame in enumerate(self.frames) if frame[0] == at), default=None)

    def renew(self, at: int, steps: int | None = None) -> None:
        self.told[at] = Told(steps or self.told[at].steps, self.told[at].schedule)

    def enter(self, at: int) -> None:
        self.sessions[at].__enter__()
        self.frames.append((at, None))

    def leave(self, at: int) -> None:
        if (innermost := self.frame_of(at)) is not None:
            self.sessions[at].__exit__(None, None, None)
            del self.frames[innermost]
            if self.frame_of(at) is None:
                self.renew(at)

    def sample(self, at: int, nested: bool, names: Any, script: list[Any]) -> None:
        """Some steps, each entered for itself or told where the session is entered."""
        names = names or ((None,), ("cond", "uncond"))[at]
        for (jump, calls), name in itertools.product(script, names):
            if not nested and self.frame_of(at) is None:
                self.enter(at)
            last = self.told[at].step
            step = last + jump if name is names[0] else last
            step = max(0, step) if step < self.told[at].steps else 0
            if step < last:
                self.renew(at)
            spot = self.told[at].tell(step, name)
            if nested:
                self.frames.append((at, spot))
                with self.sessions[at].at(step, branch=name):
                    self.call(calls)
                self.frames.pop()
                continue
            self.sessions[at].step(step, branch=name)
            del self.frames[self.frame_of(at) or 0]
            self.frames.append((at, spot))  # who is told its step is the active one
            self.call(calls)

    def call(self, calls: str) -> None:
        for what in calls if self.frames else "":
            at, spot = self.frames[-1]
            step = spot.step if spot else 0
            sample = noise(next(self.seeds), self.batch, TOKENS, WIDTH)
            inputs = sample, torch.full((self.batch,), 999.0 - step), self.text[: self.batch]
            if spot is None or spot.told is not self.told[at]:
                with pytest.raises(NoStepError):
                    self.compiled(*inputs)
            elif what == "c" and spot.calls < MAX_CALLS:
                self.succeed(at, spot, inputs)
            elif spot.calls < MAX_CALLS:
                self.fail(at, spot, inputs, KeyboardInterrupt if what == "k" else OSError)

    def succeed(self, at: int, spot: Spot, inputs: Inputs) -> None:
        planned, span, lane = self.told[at].call(
            spot, (self.batch, self.prompt, self.weights), self.batch
        )
        out, entry = self.compiled(*inputs), self.sessions[at].entries[-1]
        assert (entry.step, entry.planned, entry.realised) == (spot.step, planned, span)
        assert entry.cause is None if span else entry.cause or entry.as_planned
        expected = self.model.by_hand(inputs, span or NOTHING, lane.record)
        assert torch.equal(out, expected[-1])
        lane.record = lane.record if span else expected
        self.counts["cached" if span else "forced" if planned else "full"] += 1

    def fail(self, at: int, spot: Spot, inputs: Inputs, error: type[BaseException]) -> None:
        """Its deltas are gone, and a second try is no other branch."""
        with patch.object(Executable, "__call__", side_effect=error), pytest.raises(error):
            self.compiled(*inputs)
        self.told[at].call(spot, (self.batch, self.prompt, self.weights), self.batch)[2].forget()
        spot.calls -= 1
        if not spot.calls:
            del self.told[at].used[spot.branch]

    def change(self, what: str, block: int) -> None:
        self.batch = 3 - self.batch if what == "batch" else self.batch
        self.prompt += what in ("text", "text in place")
        self.weights += what in ("weights", "weights in place")
        text, weight = noise(1000 + self.prompt, 2, WIDTH), self.model.blocks[block].weight
        self.text = self.text.copy_(text) if what == "text in place" else text
        other = noise(5000 + self.weights, WIDTH, WIDTH)
        if what == "weights":
            self.kept.append(weight.data)  # what is made in its old place would not be seen
            weight.data = other
        if what == "weights in place":
            weight.copy_(other)

    def reschedule(self, at: int, schedule: AnySchedule | None) -> None:
        schedule = schedule if self.told[at].steps == STEPS else None  # the table fits no other
        self.sessions[at].schedule = schedule
        self.told[at].schedule = schedule or COMPILED
        self.told[at].forget()

    def restart(self, at: int, steps: int | None) -> None:
        if self.told[at].schedule is not TABLE:
            self.sessions[at].restart(steps)
            self.renew(at, steps)

    def put(self, at: int, where: str) -> None:
        file = self.folder / str(next(self.seeds)) if where == "file" else None
        session, told = self.sessions[at], self.told[at]
        if where in ("free", "back"):
            (session.free if where == "free" else session.resume)()
        elif not told.aside:
            session.suspend(file)
        told.aside = where not in ("free", "back")
        if where == "free":
            told.forget()


def op(name: str, *arguments: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.tuples(st.just(name), *arguments)


which, any_of = st.sampled_from([0, 0, 0, 1]), st.sampled_from
calls = any_of([*["c"] * 20, "cc", "f", "fc", "k", ""])  # call, fail, Ctrl-C
steps = st.lists(st.tuples(any_of([*[1] * 12, 0, 2, -1]), calls), min_size=3, max_size=6)
names = any_of([*[()] * 8, (None,), ("cond",)])  # () for the session's own
changes = any_of(["batch", "copied text", "text", "text in place", "weights", "weights in place"])
operations = st.one_of(
    op("call", calls),
    *(op("sample", which, st.booleans(), names, steps) for _ in range(12)),
    *(op("change", changes, st.integers(0, BLOCKS - 1)) for _ in range(5)),
    *(op("put", which, any_of(["free", "back", "memory", "file"])) for _ in range(2)),
    *(op("enter", which), op("leave", which)),
    op("reschedule", which, any_of(SCHEDULES)),
    op("restart", which, any_of([None, 7, STEPS])),
)


@torch.no_grad()
def test_sessions_never_read_a_wrong_delta_and_never_miss_a_right_one(tmp_path: Path) -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=60, deadline=None, phases=[Phase.generate, Phase.shrink])
    @given(st.lists(operations, min_size=25, max_size=40))
    def check(script: list[tuple[Any, ...]]) -> None:
        Pair(Path(tempfile.mkdtemp(dir=tmp_path)), counts).run(script)

    check()
    assert min(counts[kind] for kind in ("cached", "forced", "full")) > 200, "it ran dry"
