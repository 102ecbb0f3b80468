"""What the paper claims, held against records: agrees, does not, or cannot be told, and by what.

The rules (`looking.py`) are fixed; the words and the numbers come from the record. Why a claim does
not hold is what we think, not what was measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from deltapass.bench.record import Record
from deltapass.bench.reporting.looking import (
    LATENCY,
    Look,
    Outcome,
    alike,
    best_setting,
    clock,
    detail,
    each_solver,
    eight_bits,
    equal_time,
    one_against_other,
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One claim on one record.

    Attributes:
        source: Where the paper says it.
        claim: What it says.
        record: Of which suite and model ours is.
        ours: What was found, with numbers.
        outcome: Whether that agrees.
        why: What we think it comes from, where it does not.
    """

    source: str
    claim: str
    record: Record
    ours: str
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim, and how it is looked for in a record; `look` gives (ours, outcome) or None."""

    source: str
    claim: str
    suites: tuple[str, ...]
    look: Look
    why: str


def findings(records: Sequence[Record]) -> tuple[Finding, ...]:
    """All claims that the records can say anything about, in the order of the claims."""
    return tuple(found for claim in CLAIMS for found in _held_against(claim, records))


def unseen(records: Sequence[Record]) -> tuple[Claim, ...]:
    """Claims that no record says anything about."""
    return tuple(claim for claim in CLAIMS if not [*_held_against(claim, records)])


def _held_against(claim: Claim, records: Sequence[Record]) -> Iterator[Finding]:
    for record in records:
        if record.suite.get("name") not in claim.suites or record.model.random_weights:
            continue
        found = claim.look(record)
        if found is not None:
            ours, outcome = found
            yield Finding(
                source=claim.source,
                claim=claim.claim,
                record=record,
                ours=ours,
                outcome=outcome,
                why=claim.why if outcome in ("does not", "partly") else "",
            )


OTHER_MODEL: Final = (
    "Our models are small, sample in pixel space and were trained here; fewer steps cost them "
    "little, and what moves an image towards the plain one can move it away from the real ones."
)
CLAIMS: Final[tuple[Claim, ...]] = (
    Claim(
        source="Tables 1, 2, 6, 7",
        claim="Delta-DiT at 1.6x keeps more quality than fewer steps of about the same cost",
        suites=("table1", "table2", "table6", "table7"),
        look=equal_time,
        why=f"{OTHER_MODEL} The paper compares at equal MACs, we at equal measured time.",
    ),
    Claim(
        source="Tables 3 and 8",
        claim="With four steps some caching is left: 1.08x to 1.40x at little loss",
        suites=("table3", "table8"),
        look=equal_time,
        why="The paper's model is distilled for four steps; ours are not, and two steps that "
        "follow each other are far apart.",
    ),
    Claim(
        source="Table 12",
        claim="With 250 steps Delta-DiT is nearer to plain than 157 steps",
        suites=("table12",),
        look=equal_time,
        why=OTHER_MODEL,
    ),
    Claim(
        source="Table 5",
        claim="Deep blocks first, shallow ones later is better than the reverse",
        suites=("table1", "table2", "table5"),
        look=one_against_other("delta-dit", "reversed"),
        why="Outline and detail may be made by other blocks in a small model: see the spectrum.",
    ),
    Claim(
        source="Tables 1, 2 and Fig. 10",
        claim="Caching deep blocks is better than caching shallow ones (FID, IS)",
        suites=("table1", "table2", "table12", "fig10"),
        look=one_against_other("delta-cache-deep", "delta-cache-shallow"),
        why="Which blocks change least from step to step differs from model to model.",
    ),
    Claim(
        source="Table 4",
        claim="With every solver Delta-DiT is nearer to real images than plain sampling",
        suites=("table4",),
        look=each_solver,
        why=OTHER_MODEL,
    ),
    Claim(
        source="Table 9",
        claim="Caching and 8-bit weights add up: 1.60x and 1.42x are 2.06x together",
        suites=("table9",),
        look=eight_bits,
        why="The paper's 8 bits are an A100's; on a processor without such kernels they cost time.",
    ),
    Claim(
        source="Table 1",
        claim=f"By the clock a speed-up of 1.60x by MACs is {LATENCY:.2f}x",
        suites=("table1", "table2"),
        look=clock,
        why="What is outside the blocks, and what every call costs, weighs more in a small model.",
    ),
    Claim(
        source="Fig. 6",
        claim="FID is best where the phases change late, at about 0.8 of the steps",
        suites=("fig6",),
        look=best_setting("boundary", 0.6, 1.0),
        why="Where detail begins differs from model to model.",
    ),
    Claim(
        source="Fig. 7",
        claim="FID is best where about half of the blocks are cached",
        suites=("fig7",),
        look=best_setting("cached_blocks", 0.3, 0.7),
        why=OTHER_MODEL,
    ),
    Claim(
        source="Fig. 4c",
        claim="A block's deltas of steps that follow each other have cosine similarity above 0.9",
        suites=("fig4c",),
        look=alike,
        why="The first steps move much, and some blocks more than others.",
    ),
    Claim(
        source="Fig. 5",
        claim="Caching deep blocks costs detail, caching shallow ones costs the outline",
        suites=("fig5",),
        look=detail,
        why="Images of 28 or 32 pixels hold few frequencies, and a small model need not divide its "
        "work as a large one does.",
    ),
)
