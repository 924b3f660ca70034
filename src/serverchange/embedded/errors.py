"""The one error that embedded servers raise: what failed, where, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

TAIL_LINES = 20
"""Lines of a server's log that an error repeats: enough for a Java stack trace's cause, still one screen."""


class EmbeddedError(RuntimeError):
    """An embedded server cannot do what was asked; the message is for the person at the terminal.

    Attributes:
        what: One line that says what failed, with the folder, port or file concerned.
        todo: One line that says what to do about it.
        log_tail: The last lines of the server's log, if a server had been started at all.
    """

    def __init__(self, what: str, *, todo: str, log_tail: Sequence[str] = ()) -> None:
        self.what = what
        self.todo = todo
        self.log_tail = tuple(log_tail)
        lines = [f"{what}.", f"What to do: {todo}."]
        if self.log_tail:
            lines += ["The end of its log:", *(f"  {line}" for line in self.log_tail)]
        super().__init__("\n".join(lines))
