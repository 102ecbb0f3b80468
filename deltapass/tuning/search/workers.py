"""Where tasks are run: in this process, or spread over machines by Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, final

from deltapass.errors import TuneError
from deltapass.libraries import optional_module
from deltapass.tuning.loops import open_loop
from deltapass.tuning.search.metrics import Metric
from deltapass.tuning.search.scoring import Score, Scorer, Task

LOCAL: Final = "local"  # an address: Ray on this machine alone


class Workers(Protocol):
    """Runs tasks; several at once where it can."""

    @property
    def slots(self) -> int:
        """How many tasks it runs at once."""

    def submit(self, key: Hashable, task: Task) -> None:
        """Begin a task, now or when a slot is free."""

    def take(self) -> tuple[Hashable, Score]:
        """The key and the score of a task that is done; waits for one."""

    def close(self) -> None:
        """Drop what is running."""


@final
class InProcess:
    """One task after the other, in the order they were submitted."""

    slots = 1

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._waiting: deque[tuple[Hashable, Task]] = deque()

    def submit(self, key: Hashable, task: Task) -> None:
        """As `Workers.submit`."""
        self._waiting.append((key, task))

    def take(self) -> tuple[Hashable, Score]:
        """As `Workers.take`: here the work is done."""
        key, task = self._waiting.popleft()
        return key, self._scorer.score(task)

    def close(self) -> None:
        """As `Workers.close`."""
        self._waiting.clear()


class _Remote:
    """What an actor of Ray holds: a loop of its own, opened for as long as the actor lives."""

    def __init__(self, given: tuple[Any, Mapping[str, Any], Metric]) -> None:
        source, how, metric = given  # one argument, so that Ray sends it to a machine once
        self._opened = open_loop(source, **how)
        self._scorer = Scorer(self._opened.__enter__(), metric)

    def work(self, task: Task) -> Score:
        """As `Scorer.score`."""
        return self._scorer.score(task)


class RayActors:
    """Actors of Ray that are all alike, and what waits for one of them.

    Args:
        address: Of a cluster, or LOCAL.
        kind: Class of the actors: made of `given`, it has a method `work(task)`.
        given: Sent to every actor, so it must pickle.
        count: Actors; by default one a GPU of the cluster, or else one a processor core.

    Raises:
        MissingLibraryError: If Ray is not installed.
        TuneError: If the cluster is not there, or what is given cannot be sent.
    """

    def __init__(self, address: str, kind: type, given: Any, count: int | None = None) -> None:
        self._ray = ray = optional_module("ray", "ray")
        self._mine = not ray.is_initialized()
        if self._mine:
            _connect(ray, address)
        resources = ray.cluster_resources()
        devices, cores = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self.slots = count or devices or max(1, cores)
        wanted = {"num_gpus": 1} if devices >= self.slots else {"num_cpus": min(1, cores)}
        try:
            sent = ray.put(given)
        except Exception as error:
            self._end()
            raise TuneError(
                f"the pipeline or loop cannot be sent to Ray's workers: {error}",
                "Give a pipeline whose model is not compiled yet, or a loop that makes its model "
                "when it is first called, as a function at the top of a module",
            ) from error
        actor = ray.remote(**wanted)(kind)
        self._idle = [actor.remote(sent) for _ in range(self.slots)]
        self._waiting: deque[tuple[Hashable, Any]] = deque()
        self._running: dict[Any, tuple[Hashable, Any]] = {}

    def submit(self, key: Hashable, task: Any) -> None:
        """Begin a task, now or when an actor is free."""
        self._waiting.append((key, task))
        self._fill()

    def take(self) -> tuple[Hashable, Any]:
        """The key of a task that is done, and what the work gave; waits for one.

        Raises:
            Whatever the work raised.
        """
        (done, *_), _ = self._ray.wait(list(self._running), num_returns=1)
        key, actor = self._running.pop(done)
        self._idle.append(actor)
        self._fill()
        return key, self._ray.get(done)

    def close(self) -> None:
        """Drop what is running: the actors end, and Ray too if it was started here."""
        actors = [*self._idle, *(actor for _, actor in self._running.values())]
        for actor in actors:
            self._ray.kill(actor)
        self._idle.clear()
        self._waiting.clear()
        self._running.clear()
        self._end()

    def _end(self) -> None:
        if self._mine:
            self._ray.shutdown()

    def _fill(self) -> None:
        while self._idle and self._waiting:
            actor, (key, task) = self._idle.pop(), self._waiting.popleft()
            self._running[actor.work.remote(task)] = key, actor


@final
class RayWorkers(RayActors):
    """Actors that score, each with its own copy of the pipeline.

    Args:
        address: Of a cluster, or LOCAL.
        source: What `open_loop` takes. A compiled model does not pickle; a pipeline that is not
            compiled yet does, and so does a function at the top of a module.
        how: The other arguments of `open_loop`.
        metric: How samples are compared.
        count: As of `RayActors`.

    Raises:
        As `RayActors`.
    """

    def __init__(
        self,
        address: str,
        source: Any,
        how: Mapping[str, Any],
        metric: Metric,
        count: int | None = None,
    ) -> None:
        super().__init__(address, _Remote, (source, dict(how), metric), count)


def _connect(ray: Any, address: str) -> None:
    try:
        ray.init(
            address=None if address == LOCAL else address,
            include_dashboard=False if address == LOCAL else None,
            log_to_driver=False,
            configure_logging=False,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise TuneError(
            f"there is no Ray at {address!r}: {error}",
            f"Start one with `ray start --head` and give its address, or say {LOCAL!r}. If one is "
            "there, it may ask for its token (RAY_AUTH_TOKEN_PATH) or for RAY_AUTH_MODE as its own",
        ) from error


def spread(workers: Workers, tasks: Sequence[Task]) -> Iterable[tuple[int, Score]]:
    """Run tasks that do not depend on each other; place and score of each as it is done."""
    for place, task in enumerate(tasks):
        workers.submit(place, task)
    for _ in tasks:
        key, score = workers.take()
        assert isinstance(key, int)  # noqa: S101 - no others are running
        yield key, score
