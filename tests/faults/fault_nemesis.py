"""Does what breaks things: kills, pauses, restarts, cuts, named points; each fault drawn from the run's seed."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fault_arena import Arena, Worker

from serverchange.materializer.fault_points import FAULT_POINTS

WORKERS_MAX = 4


@dataclass
class Nemesis:
    """Torments an arena until it is stopped; `done` counts the faults by kind."""

    arena: Arena
    between_s: tuple[float, float] = (1.0, 6.0)
    pause_s: tuple[float, float] = (1.0, 20.0)
    only: tuple[str, ...] = ()
    done: dict[str, int] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stopping = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="nemesis", daemon=True)
        self._kinds: dict[str, tuple[int, Callable[[], None]]] = {
            "kill": (6, self._kill),
            "pause": (6, self._pause),
            "terminate": (2, self._terminate),
            "point": (5, self._point),
            "add": (2, self._add),
            "remove": (2, self._remove),
            "cut": (3, self._cut),
            "broker": (1, self._broker),
            "postgres": (1, self._postgres),
        }

    @property
    def faults(self) -> int:
        """How many faults there were."""
        return sum(self.done.values())

    def start(self) -> None:
        """Start tormenting."""
        self._thread.start()

    def stop(self) -> None:
        """Stop, and mend what is broken on purpose."""
        self._stopping.set()
        self._thread.join(120)
        self.arena.resume_all()

    def _run(self) -> None:
        chance = self.arena.chance
        kinds = [kind for kind in self._kinds if not self.only or kind in self.only]
        weights = [self._kinds[kind][0] for kind in kinds]
        while not self._stopping.wait(chance.uniform(*self.between_s)):
            kind = chance.choices(kinds, weights)[0]
            self.log.append(f"{time.monotonic() - self._started:7.1f} s  {kind}")
            self._kinds[kind][1]()
            self.done[kind] = self.done.get(kind, 0) + 1

    def _worker(self) -> Worker | None:
        awake = [worker for worker in self.arena.workers.values() if not worker.paused]
        return self.arena.chance.choice(awake) if awake else None

    def _kill(self) -> None:
        if (worker := self._worker()) is not None:
            self.arena.signal(worker, signal.SIGKILL)

    def _terminate(self) -> None:
        if (worker := self._worker()) is not None:
            self.arena.signal(worker, signal.SIGTERM)

    def _pause(self) -> None:
        if (worker := self._worker()) is not None:
            self.arena.signal(worker, signal.SIGSTOP)
            seconds = self.arena.chance.uniform(*self.pause_s)
            timer = threading.Timer(seconds, self.arena.signal, [worker, signal.SIGCONT])
            timer.daemon = True
            timer.start()

    def _point(self) -> None:
        """Replace a worker by one that ends or pauses at a named point."""
        worker = self._worker()
        if worker is None:
            return
        chance = self.arena.chance
        action = chance.choice(("kill", "kill", "pause"))
        point = f"{chance.choice(FAULT_POINTS)}:{chance.randint(1, 8)}:{action}"
        self.log.append(f"           {point}")
        self.arena.signal(worker, signal.SIGKILL)
        worker.wanted = False
        self.arena.workers.pop(worker.number, None)
        armed = self.arena.add_worker(fault_point=point)
        if action == "pause":
            # Whenever it stops there, it is woken some time later.
            timer = threading.Timer(chance.uniform(8, 25), self.arena.signal, [armed, signal.SIGCONT])
            timer.daemon = True
            timer.start()

    def _add(self) -> None:
        if len(self.arena.workers) < WORKERS_MAX:
            self.arena.add_worker()

    def _remove(self) -> None:
        if len(self.arena.workers) > 1 and (worker := self._worker()) is not None:
            self.arena.retire(worker)

    def _cut(self) -> None:
        self.arena.proxy.cut()

    def _broker(self) -> None:
        self.arena.stack.kafka.kill()
        self._stopping.wait(self.arena.chance.uniform(0, 4))
        self.arena.stack.kafka.start()

    def _postgres(self) -> None:
        self.arena.stack.postgres.kill()
        self._stopping.wait(self.arena.chance.uniform(0, 6))
        self.arena.stack.postgres.start()
