"""Values by owner: found by identity, gone with the owner, also where an id is given again."""

from __future__ import annotations

import gc
import weakref

import torch

from deltapass.sessions.owners import ByOwner


class Owner:
    """Stands for a model."""


def test_an_owner_has_one_value() -> None:
    owners: ByOwner[list[int]] = ByOwner(list)
    one, other = Owner(), Owner()
    assert owners.get(one) is None
    assert owners.of(one) is owners.of(one) is owners.get(one)
    assert owners.of(other) is not owners.of(one)
    assert len(list(owners.values())) == 2


def test_owners_are_compared_by_identity() -> None:
    owners: ByOwner[list[int]] = ByOwner(list)
    one, equal = torch.zeros(3), torch.zeros(3)
    assert owners.of(one) is not owners.of(equal)


def test_a_value_goes_with_its_owner_at_once() -> None:
    owners: ByOwner[Owner] = ByOwner(Owner)
    owner = Owner()
    value = weakref.ref(owners.of(owner))
    gc.disable()
    try:
        del owner
        assert value() is None
        assert not list(owners.values())
    finally:
        gc.enable()


def test_the_values_go_with_what_holds_them_at_once() -> None:
    owners: ByOwner[Owner] = ByOwner(Owner)
    owner = Owner()
    value = weakref.ref(owners.of(owner))
    gc.disable()
    try:
        del owners
        assert value() is None
    finally:
        gc.enable()


def test_an_id_that_is_given_again_is_another_owner() -> None:
    owners: ByOwner[list[int]] = ByOwner(list)
    for _ in range(100):
        owner = Owner()
        assert owners.of(owner) == []
        owners.of(owner).append(1)
        del owner
