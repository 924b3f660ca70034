"""What the lookup schedule is told once, and what it answers: requests, settings, explanations."""

from dataclasses import dataclass, field

__all__ = ["Explanation", "Lookup", "Request", "ScheduleSettings", "StreamsScan", "Wait"]


@dataclass(frozen=True, slots=True)
class Lookup:
    """Ask the servers list for one channel."""

    channel: str


@dataclass(frozen=True, slots=True)
class StreamsScan:
    """Ask the streams list which of these channels are live; at most ``names_per_scan`` of them."""

    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is worth a request before ``until_s``, unless the schedule is told something new."""

    until_s: float


Request = Lookup | StreamsScan


@dataclass(frozen=True, slots=True)
class ScheduleSettings:
    """What the rule may not learn by itself.

    Attributes:
        names_per_scan: names a streams request may carry (the platform: 100).
        day_s: length of the platform's day, for habits, in the schedule's seconds.
        repeat_after_s: spacing of repeated questions about an unverified channel; the last one repeats.
        forget_in_flight_after_s: a lookup neither answered nor failed for so long is taken for failed.
        retry_failed_after_s: when an important lookup that failed is repeated, unless the platform named a time.
        quiet_after_s: so long after the last move the migration is thought to be over, and the suggested rate falls.
        trickle: least part of the budget that is still suggested then, to notice when channels move again.
        seed: where the sweep over all channels begins; unlike seeds keep pollers out of step.
    """

    names_per_scan: int = 100
    day_s: float = 86_400.0
    repeat_after_s: tuple[float, ...] = (5.0, 30.0, 120.0)
    forget_in_flight_after_s: float = 120.0
    retry_failed_after_s: float = 5.0
    quiet_after_s: float = 21_600.0
    trickle: float = 0.02
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a channel is asked when it is.

    Attributes:
        channel: the channel explained.
        score: what one lookup now is worth, in seconds of exposure that it is expected to save: the most that one
            of the sources says.
        sources: what each source of evidence says by itself, in the same seconds.
        parts: what the sources are computed from, by name.
        reason: the strongest reason, in words.
        next_lookup_s: when it is expected to be asked next, in the schedule's clock.
    """

    channel: str
    score: float
    sources: dict[str, float] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    next_lookup_s: float = 0.0
