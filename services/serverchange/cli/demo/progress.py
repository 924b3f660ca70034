"""Live progress: a table that redraws itself on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from serverchange.cli.demo.watching import Sample

LINE_INTERVAL_S: Final = 5.0
BAR_WIDTH: Final = 40


class Progress:
    """Shows samples; `say` shows a sentence. Use it as a context manager.

    Args:
        console: where to; standard error, so that standard output is the answer's.
        seconds: how long the script takes.
    """

    def __init__(self, console: Console, seconds: float) -> None:
        self._console = console
        self._seconds = seconds
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None
        self._drawing = False
        self._said_at_s = 0.0
        self._started_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def say(self, sentence: str) -> None:
        """Show a sentence, with the seconds since the start."""
        self._console.print(
            f"{time.monotonic() - self._started_s:6.1f} s  {sentence}", highlight=False, markup=False, soft_wrap=True
        )

    def show(self, sample: Sample) -> None:
        """Show a sample."""
        if self._live is not None:
            if not self._drawing:
                self._live.start()
                self._drawing = True
            self._live.update(draw(sample, self._seconds))
        elif time.monotonic() - self._said_at_s >= LINE_INTERVAL_S or sample.done:
            self._said_at_s = time.monotonic()
            self.say(summarize(sample))

    def close(self) -> None:
        """Stop drawing."""
        if self._live is not None and self._drawing:
            self._live.stop()
            self._drawing = False


def summarize(sample: Sample) -> str:
    """Return a sample in one line."""
    clusters = ", ".join(f"{cluster} {count}" for cluster, count in sorted(sample.true_by_cluster.items()))
    return (
        f"{_step(sample)}: {clusters}; {sample.moves} moves, {_number(sample.handovers)} handovers,"
        f" {_number(sample.mismatches)} believed elsewhere, {_number(sample.behind_records)} records behind,"
        f" chat {sample.chat_read}/{sample.chat_sent}"
    )


def draw(sample: Sample, seconds: float) -> Group:
    """Return a sample as a picture."""
    table = Table(title=f"{_step(sample)}", title_justify="left")
    for column in ("cluster", "lives here", "believed here"):
        table.add_column(column, justify="left" if column == "cluster" else "right")
    believed = sample.believed_by_cluster
    for cluster in sorted({*sample.true_by_cluster, *(name for name in believed or () if name is not None)}):
        shown = "no answer" if believed is None else str(believed.get(cluster, 0))
        table.add_row(cluster, str(sample.true_by_cluster.get(cluster, 0)), shown)
    figures = Text(
        f"moves {sample.moves}   handovers {_number(sample.handovers)}   believed elsewhere"
        f" {_number(sample.mismatches)}   lag {_number(sample.behind_records)} records\n"
        f"streaming {sample.live}   chat {sample.chat_read:,} of {sample.chat_sent:,} lines"
        f"   budget violations {sample.violations}"
    )
    bar = Table.grid()  # a bar by itself does not end its line
    bar.add_row(ProgressBar(total=seconds, completed=min(seconds, sample.elapsed_s), width=BAR_WIDTH))
    return Group(bar, table, figures)


def _step(sample: Sample) -> str:
    return "the migration is over" if sample.done else sample.step or "before the first move"


def _number(value: int | None) -> str:
    return "?" if value is None else str(value)
