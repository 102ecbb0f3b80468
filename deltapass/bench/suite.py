"""What is measured: a suite file, as plain data.

A suite says nothing of the machine; that is the environment's (`environment.py`). Both are hashed
into the record, so that two records can be told apart, or trusted to be of the same thing.
"""

from __future__ import annotations

from typing import Any, final

import msgspec


@final
class MethodSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One `[[method]]` of a suite file.

    Attributes:
        name: A key of the table of methods, or the path of a schedule's file.
        label: As the tables show it; else the method says it.
        steps: Of its trajectories; else the suite's.
        settings: Of the method: `{"speedup": 1.6}`, `{"boundary": 12, "cached_blocks": 21}`.
        remark: Why it is there, where its name does not say it.
    """

    name: str
    label: str | None = None
    steps: int | None = None
    settings: dict[str, Any] = {}
    remark: str = ""


@final
class Suite(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A suite file.

    Attributes:
        name: "table1", as the command line knows it.
        title: What the page is headed with.
        question: What it answers, in a sentence.
        paper: Key of the paper's own table ("table1_pixart_alpha"), shown beside; None without one.
        models: Names of embedded models, folders of pipelines, or `module:factory`.
        methods: The first is the reference that all others are compared with: plain.
        steps: Of the reference.
        guidance: Scale of classifier-free guidance.
        solver: Scheduler class of diffusers in place of the pipeline's own; None keeps that.
        images: Of each method, judged.
        first_seed: Seeds are this one and those after it.
        measures: Names of measures of quality; () for suites of speed alone.
        fine_steps: Plain steps of the trajectory that stands for the limit; 0 for none.
        figures: Names of figures that are drawn besides ("cosine", "spectrum").
        timed: Images of a batch that is timed; 0 for a suite without times.
        rounds: How often every method is timed.
    """

    name: str
    title: str
    question: str
    paper: str | None = None
    models: tuple[str, ...] = ("garments", "nouns")
    methods: tuple[MethodSpec, ...] = msgspec.field(name="method")
    steps: int = 20
    guidance: float = 2.0
    solver: str | None = None
    images: int = 200
    first_seed: int = 100_000
    measures: tuple[str, ...] = ("psnr", "ssim", "psnr_fine", "right", "kid")
    fine_steps: int = 60
    figures: tuple[str, ...] = ()
    timed: int = 20
    rounds: int = 10
