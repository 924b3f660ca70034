"""What can go wrong for a user of the SDK, by what to do about it."""

from __future__ import annotations


class ClientError(Exception):
    """All errors of the SDK."""


class UnavailableError(ClientError):
    """Kafka or the API did not answer in time; try again later."""


class PositionLostError(ClientError):
    """A reader cannot go on from its position without loss: start again from the snapshot (`since=None`)."""


class RefusedError(ClientError):
    """The API refuses the request; change it.

    Attributes:
        status: the HTTP status.
        detail: what is wrong and what to do, in the API's words.
    """

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(f"{status}: {detail}")
        self.status = status
        self.detail = detail
