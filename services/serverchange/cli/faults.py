"""The faults that a user of the command line may meet, by what it exits with; none of them shows a traceback.

A message says what is wrong, where, and what to do. Whatever is not one of these is a bug and keeps its stack.
"""

from __future__ import annotations


class Fault(Exception):  # noqa: N818  (the user reads it as a fault, not as an error of ours)
    """The command cannot do what was asked; exits with `ExitCode.USAGE` unless a subclass says otherwise."""


class UnavailableFault(Fault):
    """Something that the command needs (Kafka, PostgreSQL, the API, a process) is not there; try again later."""


class CheckFault(Fault):
    """The command did its work and found something wrong: a check failed, a channel is unknown."""
