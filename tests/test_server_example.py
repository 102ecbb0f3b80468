"""The server of examples/server.py with a real client, over a socket of this machine."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("uvicorn")

import httpx
import uvicorn
from PIL import Image

# diffusers' schedulers make arrays of tensors in a way that newer numpy warns of.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FILE = Path(__file__).parent.parent / "examples" / "server.py"
PATIENCE = 120.0  # seconds, for a machine that others keep busy
ORDERS: tuple[dict[str, Any], ...] = (
    {"class": "sneaker", "steps": 8, "seed": 1},
    {"class": 3, "steps": 9, "seed": 2, "guidance": 4.0},
    {"class": "bag", "steps": 10, "seed": 3, "guidance": 1.0},
    {"class": 0, "steps": 12, "seed": 4, "interval": 3, "cached_blocks": 20},
)


@pytest.fixture(autouse=True, scope="module")
def fresh_torch() -> Iterator[None]:
    """Instead of the one that resets for every test: the server compiles once."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    """The example as a module."""
    spec = importlib.util.spec_from_file_location("server_example", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        patch.setenv("DELTAPASS_LOWERING", "eager")
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def url(example: ModuleType) -> Iterator[str]:
    """Where it listens: a free port of the loopback interface."""
    config = uvicorn.Config(example.app, host="127.0.0.1", port=0, log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until = time.monotonic() + PATIENCE
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until
        time.sleep(0.01)
    yield "http://{}:{}".format(*server.servers[0].sockets[0].getsockname())
    server.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False) as made:
        yield made


def asynchronous(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE, trust_env=False)


async def watch(client: httpx.AsyncClient, enough: Callable[[Any], bool]) -> dict[str, Any]:
    """The first health for which `enough` holds."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        health: dict[str, Any] = (await client.get("/health")).json()
        if enough(health):
            return health
    raise AssertionError(f"not within {PATIENCE} s; last {health}")


def image(client: httpx.Client, order: dict[str, Any]) -> bytes:
    answer = client.post("/images", json=order)
    assert answer.status_code == 200, answer.text
    return answer.content


def test_an_image_comes_with_a_report_of_what_was_planned_and_run(client: httpx.Client) -> None:
    answer = client.post("/images", json=ORDERS[0])
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as picture:
        assert picture.format == "PNG"
        assert picture.getextrema() != (0, 0)
    report = client.get(answer.headers["X-Report"]).json()
    assert report["summary"] == answer.headers["X-Report-Summary"]
    assert report["summary"].startswith("8 steps x 2 branches: ")
    assert report["totals"]["as_planned"]
    assert report["totals"]["calls"] == 16
    assert report["totals"]["cached"] > 0
    assert {entry["branch"] for entry in report["entries"]} == {"cond", "uncond"}


def test_requests_that_take_turns_give_the_images_they_give_alone(
    client: httpx.Client, url: str
) -> None:
    alone = [image(client, order) for order in ORDERS]
    assert len(set(alone)) == len(ORDERS)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]

    def in_turn(health: dict[str, Any]) -> bool:
        begun = [job for job in health["running"].values() if 0 < job["step"] < job["steps"]]
        return len(begun) == len(ORDERS)

    async def together() -> list[httpx.Response]:
        async with asynchronous(url) as several:
            tasks = [asyncio.create_task(several.post("/images", json=order)) for order in ORDERS]
            health = await watch(several, in_turn)
            assert health["bytes_held"] > 0
            return await asyncio.gather(*tasks)

    answers = asyncio.run(together())
    assert [answer.content for answer in answers] == alone
    reports = [client.get(answer.headers["X-Report"]).json() for answer in answers]
    assert [report["totals"]["as_planned"] for report in reports] == [True] * 4
    assert client.get("/health").json() == {"running": {}, "bytes_held": 0}
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


def test_a_client_that_goes_frees_its_deltas_and_disturbs_nobody(
    client: httpx.Client, url: str, example: ModuleType
) -> None:
    alone = image(client, ORDERS[1])
    long = {"class": "coat", "steps": 100}
    jobs = example.app.state.studio.jobs

    async def leave_one_of_two() -> tuple[httpx.Response, Any]:
        async with asynchronous(url) as stays, asynchronous(url) as goes:
            leaving = asyncio.create_task(goes.post("/images", json=long))
            health = await watch(stays, lambda health: health["bytes_held"] > 0)
            (left,) = [jobs[name] for name in health["running"]]
            staying = asyncio.create_task(stays.post("/images", json=ORDERS[1]))
            await watch(stays, lambda health: len(health["running"]) == 2)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
            answer = await staying
            await watch(stays, lambda health: not health["running"])
            return answer, left

    answer, left = asyncio.run(leave_one_of_two())
    assert answer.content == alone
    assert 0 < left.step < 100
    assert left.session.nbytes == 0
    assert client.get("/health").json() == {"running": {}, "bytes_held": 0}
    report = client.get(f"/reports/{left.id}").json()
    assert report["totals"]["calls"] == 2 * left.step


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ({}, "Field required"),
        ({"class": "hat"}, "class 'hat' is unknown. Use 0 or 't-shirt', "),
        ({"class": 10}, "class 10 is unknown"),
        ({"class": 0, "steps": 0}, "greater than or equal to 1"),
        ({"class": 0, "steps": "many"}, "valid integer"),
        ({"class": 0, "guidance": -1}, "greater than or equal to 0"),
        ({"class": 0, "seed": -1}, "greater than or equal to 0"),
        ({"class": 0, "step": 3}, "Extra inputs are not permitted"),
        ({"class": 0, "interval": 0}, "interval is 0. It must be a whole number from 1 on."),
        ({"class": 0, "cached_blocks": 30}, "cached_blocks is 30 but the model has 28 blocks."),
    ],
)
def test_bad_input_is_answered_with_what_would_be_right(
    client: httpx.Client, order: dict[str, Any], text: str
) -> None:
    answer = client.post("/images", json=order)
    assert answer.status_code == 422
    assert text in str(answer.json()["detail"])
    assert client.get("/health").json() == {"running": {}, "bytes_held": 0}


def test_unknown_report_is_not_found(client: httpx.Client) -> None:
    answer = client.get("/reports/none")
    assert answer.status_code == 404
    assert "none" in answer.json()["detail"]


def test_too_many_requests_are_turned_away(
    client: httpx.Client, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "MOST_RUNNING", 0)
    answer = client.post("/images", json=ORDERS[0])
    assert answer.status_code == 503


def test_old_reports_are_let_go(
    client: httpx.Client, example: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "MOST_REPORTS", 1)
    monkeypatch.setattr(example.app.state.studio, "reports", {})
    first, second = (client.post("/images", json=ORDERS[2]) for _ in range(2))
    assert client.get(first.headers["X-Report"]).status_code == 404
    assert client.get(second.headers["X-Report"]).status_code == 200
