"""Things by key: what is in use stays, whatever the order, and what never comes back goes."""

from __future__ import annotations

import itertools
import threading

from deltapass.selector.recent import LEAST, MOST, Recent


class Maker:
    """Counts what it makes."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def ask(self, recent: Recent[object], key: int) -> object:
        def make() -> object:
            self.made.append(key)
            return object()

        return recent.get(key, make)


def test_each_key_is_made_once() -> None:
    recent, maker = Recent[object](), Maker()
    assert maker.ask(recent, 1) is maker.ask(recent, 1)
    assert maker.made == [1]


def test_what_was_used_last_stays_and_what_was_not_goes() -> None:
    recent, maker = Recent[object](), Maker()
    first = maker.ask(recent, -1)
    for key in range(3 * LEAST):  # one in use among many that never come back
        maker.ask(recent, key)
        assert maker.ask(recent, -1) is first
    assert len(recent) == LEAST


def test_more_keys_in_rotation_than_are_kept_are_soon_all_kept() -> None:
    recent, maker = Recent[object](), Maker()
    rounds = 5
    for key in itertools.chain.from_iterable([range(LEAST + 1)] * rounds):
        maker.ask(recent, key)
    again = len(maker.made) - (LEAST + 1)
    assert 0 < again <= LEAST + 1, "the second round makes what the first let go, no later one"


def test_room_is_bounded() -> None:
    recent, maker = Recent[object](), Maker()
    for key in itertools.chain.from_iterable([range(3 * MOST)] * 4):
        maker.ask(recent, key)
    assert len(recent) <= MOST


def test_threads_with_the_same_new_key_get_the_same_thing() -> None:
    recent, maker = Recent[object](), Maker()
    found: list[object] = []
    barrier = threading.Barrier(4)

    def work() -> None:
        barrier.wait()
        found.extend(maker.ask(recent, key) for key in range(200))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 800
    assert len(maker.made) >= 200
