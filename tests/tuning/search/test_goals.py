from __future__ import annotations

from deltapass.schedule.rules import Span
from deltapass.tuning.search.candidates import Candidate
from deltapass.tuning.search.goals import Goal, Scored


def scored(cost: float, loss: float, number: int) -> Scored:
    return Scored(Candidate((None, Span(0, number + 1)), "reuse"), cost, loss, number)


SOME = [scored(0.4, 3.0, 0), scored(0.5, 1.0, 1), scored(0.6, 0.5, 2), scored(0.45, 1.5, 3)]


def test_a_cost_is_spent_on_the_nearest() -> None:
    goal = Goal(most=0.5)
    assert goal.spends
    assert [each.number for each in goal.ranked(SOME)] == [1, 3, 0, 2]
    assert [goal.met(each) for each in SOME] == [True, True, False, True]


def test_a_quality_is_kept_at_the_least_cost() -> None:
    goal = Goal(worst=1.5)
    assert not goal.spends
    assert [each.number for each in goal.ranked(SOME)] == [3, 1, 2, 0]
    assert [goal.met(each) for each in SOME] == [False, True, True, True]


def test_the_same_candidate_counts_once() -> None:
    assert len(Goal().ranked([SOME[0], SOME[0], SOME[1]])) == 2
