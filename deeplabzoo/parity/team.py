"""Who takes part in a parity run: a worker for each backend, started side by side, and the referee beside them."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

from deeplabzoo.backends import Backend, resolve
from deeplabzoo.backends.worker import Worker
from deeplabzoo.errors import BackendError, DeepLabZooError
from deeplabzoo.parity.cases import Progress
from deeplabzoo.parity.judge import NO_GRADIENTS, Answers, Exam, answers_of_referee, answers_of_worker
from deeplabzoo.parity.report import Check, Side

_CHECK_OF_CALL = {"train": "training"}
"""Where a check is not called as the worker's call that makes it."""


def taking_part(names: Sequence[str], pythons: Mapping[str, str]) -> list[Backend]:
    """The backends of a run, each once.

    Args:
        names: of backends.
        pythons: interpreters of other environments, by the backend's full name.

    Raises:
        BackendError: an unknown name or none at all, or an interpreter for a backend that takes no part.
    """
    if isinstance(names, str):
        raise BackendError(f"backends = {names!r}: expected a list of names, such as [{names!r}]")
    chosen = list(dict.fromkeys(resolve(name) for name in names))
    if not chosen:
        raise BackendError("no backend was named: expected at least one")
    if strange := pythons.keys() - {backend.name for backend in chosen}:
        raise BackendError(
            f"an interpreter was given for {', '.join(sorted(strange))}, which takes no part: expected one of "
            + ", ".join(backend.name for backend in chosen)
        )
    return chosen


class Player:
    """A worker with what it has answered so far."""

    def __init__(self, backend: Backend, dtype: str, device: str, python: str | None, time_limit: float) -> None:
        self.backend, self.asked, self.device = backend, (dtype, device), device
        self.python, self.time_limit = python, time_limit
        self.dtype = dtype if dtype in backend.flags.DTYPES else "float64"
        self.answers = Answers()
        self.failure: str | None = None
        self.no_device: BackendError | None = None
        self.worker = self._start(device if dtype == self.dtype else "cpu")

    @property
    def name(self) -> str:
        """In tables: with dtype and device where they are not those asked for."""
        own = (self.dtype, self.device)
        return self.backend.name if own == self.asked else f"{self.backend.name} ({self.dtype}, {self.device})"

    def _start(self, device: str) -> Worker:
        self.device = device
        return Worker(self.backend.name, device=device, python=self.python, time_limit=self.time_limit, wait=False)

    def answer(self, exam: Exam, tell: Progress) -> None:
        """Answer what it can; a failure ends it."""
        if self.failure is not None:
            return
        with self.failing():
            self.ready()
            answers_of_worker(exam, self.worker, self.dtype, self.answers, tell)

    def ready(self) -> None:
        """Wait for the worker; without a GPU it starts again on the CPU, in float64."""
        try:
            self.worker.ready()
        except BackendError as error:
            if self.device == "cpu":
                raise
            self.no_device = error
            self.worker.close()
            self.dtype, self.worker = "float64", self._start("cpu")
            self.worker.ready()

    @contextlib.contextmanager
    def failing(self) -> Any:
        """What is wrong with this one is noted, and the others go on."""
        try:
            yield
        except DeepLabZooError as error:
            self.failure = str(error)
            self.worker.close()

    def side(self, checks: Sequence[Check]) -> Side:
        """What the report says of it."""
        alive = self.worker.answered
        lacks = () if self.backend.flags.GRADIENTS else ("gradients", "training")
        return Side(
            self.name,
            self.dtype,
            self.device,
            self.worker.device_name if alive else "",
            self.worker.versions if alive else {},
            {_CHECK_OF_CALL.get(call, call): spent for call, spent in self.worker.seconds.items()},
            self.failure,
            {check: NO_GRADIENTS for check in checks if check in lacks},
        )


class Team:
    """All players, started side by side; a context that ends their workers."""

    def __init__(
        self, chosen: Sequence[Backend], dtype: str, device: str, pythons: Mapping[str, str], time_limit: float
    ) -> None:
        self.players: list[Player] = []
        try:
            for backend in chosen:
                self.players.append(Player(backend, dtype, device, pythons.get(backend.name), time_limit))
        except BaseException:
            self.close()
            raise

    def answer(self, exam: Exam, tell: Progress) -> Answers:
        """Let all players answer, one after another so that one network is in memory at a time; the referee's answers.

        The referee works meanwhile, while frameworks are still being imported.
        """
        truth: Future[Answers] = Future()
        stopped = threading.Event()

        def tell_referee(line: str) -> None:
            if stopped.is_set():
                raise CancelledError
            tell(line)

        def work() -> None:
            try:
                truth.set_result(answers_of_referee(exam, tell_referee))
            except BaseException as error:  # raised where the result is asked for
                truth.set_exception(error)

        # A pool would wait for the referee's step before Ctrl-C ends the program.
        threading.Thread(target=work, daemon=True).start()
        try:
            for player in self.players:
                player.answer(exam, tell)
            return truth.result()
        finally:
            stopped.set()

    def check_device(self) -> None:
        """`BackendError` where a GPU was asked for and nobody has one; waits until all are there."""
        for player in self.players:
            with player.failing():
                player.ready()
        lacking = [player.no_device for player in self.players if player.no_device is not None]
        if lacking and len(lacking) == len(self.players):
            names = ", ".join(player.backend.name for player in self.players)
            raise BackendError(f"device gpu: none of {names} has a GPU here; use --device cpu")

    @property
    def dtypes(self) -> dict[str, str]:
        """What each player computes in, by its name."""
        return {player.name: player.dtype for player in self.players}

    def close(self) -> None:
        """End all workers."""
        for player in self.players:
            player.worker.close()

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()
