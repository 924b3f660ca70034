"""Judges a run of `bench fleet` by what the platform knows it did and what the SDK's reader was given. Pure.

Nothing here comes from our own counters: lines and entries are the simulator's ledger, the rest is what a reader of
`chat-lines` got.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fleet_world import Entry

SentLine = tuple[str, int, float, str, tuple[int, ...]]
"""Channel, number, when, cluster, and the links that it was sent to."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of the run, in seconds of the machine's monotonic clock.

    Attributes:
        whole: every line counts, not only those of channels that the platform has us in.
    """

    name: str
    began: float
    ended: float
    whole: bool = False


@dataclass(slots=True)
class Losses:
    """What did not reach the reader, by phase.

    Attributes:
        confirmed: sent to a link of ours and not read.
        unjoined: sent while no link of ours was in the channel where it lives.
    """

    sent: Counter[str] = field(default_factory=Counter)
    confirmed: Counter[str] = field(default_factory=Counter)
    unjoined: Counter[str] = field(default_factory=Counter)
    examples: list[SentLine] = field(default_factory=list)


def find_losses(lines: Iterable[SentLine], phases: Sequence[Phase], read: Mapping[str, Collection[int]]) -> Losses:
    """Compare what was sent with what was read. `lines` come in the order of time; a line between phases is `rest`."""
    losses = Losses()
    for line in lines:
        channel, number, at, _, links = line
        name = next((phase.name for phase in phases if phase.began <= at < phase.ended), "rest")
        losses.sent[name] += 1
        if number in read.get(channel, ()):
            continue
        if links:
            losses.confirmed[name] += 1
            if len(losses.examples) < 20:
                losses.examples.append(line)
        else:
            losses.unjoined[name] += 1
    return losses


def missed_minimum(
    lines: Iterable[SentLine], leaves: Mapping[str, float], began: float, *, count: int, window_s: float
) -> int:
    """Return how many lines nobody could have read, whatever the fleet does.

    The budget lets `count` channels be joined at once, as many again a window later, and so on. In the best order that
    can be known the busiest channels come first; which old link is closed when, nobody can.

    Args:
        lines: those of the phase.
        leaves: channel → when its old side no longer hears anything.
        began: when the fleet was told.
        count: JOINs in a window, of all accounts together.
        window_s: the platform's window.
    """
    times: defaultdict[str, list[float]] = defaultdict(list)
    for channel, _, at, _, _ in lines:
        times[channel].append(at)
    busiest = sorted(leaves, key=lambda channel: -len(times[channel]))
    missed = 0
    for rank, channel in enumerate(busiest):
        joined = began + rank // count * window_s
        missed += sum(1 for at in times[channel] if leaves[channel] <= at < joined)
    return missed


def handover_times(entries: Iterable[Entry], phase: Phase) -> list[float]:
    """Return the seconds from each RECONNECT of a phase to the JOIN of each of its channels on another link."""
    told: dict[str, float] = {}
    taken: list[float] = []
    for entry, channels in _with_channels(entries):
        if not phase.began <= entry.at < phase.ended:
            continue
        if entry.kind == "reconnect-sent":
            for channel in channels:
                told.setdefault(channel, entry.at)
        elif entry.kind == "joined" and entry.channel in told:
            taken.append(entry.at - told.pop(entry.channel))
    return taken


def last_hearing(entries: Iterable[Entry], phase: Phase) -> dict[str, float]:
    """Return until when the links that RECONNECT was sent to within a phase would have gone on for each channel."""
    leaves: dict[str, float] = {}
    for entry, channels in _with_channels(entries):
        if entry.kind == "reconnect-sent" and phase.began <= entry.at < phase.ended:
            for channel in channels:
                leaves.setdefault(channel, entry.at + float(entry.detail or 0))
    return leaves


def _with_channels(entries: Iterable[Entry]) -> Iterator[tuple[Entry, Collection[str]]]:
    """Yield each entry with the channels that its link was in until it happened; look at them before the next one."""
    joined: defaultdict[int, set[str]] = defaultdict(set)
    for entry in entries:
        link, channel = entry.link or 0, entry.channel or ""
        yield entry, joined.get(link, ())
        match entry.kind:
            case "joined":
                joined[link].add(channel)
            case "parted":
                joined[link].discard(channel)
            case "link-closed":
                joined.pop(link, None)


def move_times(entries: Iterable[Entry], phase: Phase) -> dict[str, float]:
    """Return when each channel moved within a phase."""
    return {
        entry.channel or "": entry.at
        for entry in entries
        if entry.kind == "moved" and phase.began <= entry.at < phase.ended
    }


def joins_in(entries: Iterable[Entry], phase: Phase) -> list[float]:
    """Return the times at which the platform confirmed JOINs within a phase."""
    return [entry.at for entry in entries if entry.kind == "joined" and phase.began <= entry.at < phase.ended]


@dataclass(frozen=True, slots=True)
class Spell:
    """For how long something was so with a channel, in seconds of the machine's monotonic clock."""

    channel: str
    began: float
    ended: float

    @property
    def lasted_s(self) -> float:
        """Seconds."""
        return self.ended - self.began


def owner_spells(entries: Iterable[Entry], until: float) -> tuple[list[Spell], list[Spell]]:
    """Return when a channel had no link of ours in it, after its first, and when it had more than one."""
    links: defaultdict[str, set[int]] = defaultdict(set)
    since: dict[tuple[str, bool], float] = {}
    spells: dict[bool, list[Spell]] = {False: [], True: []}

    def look(channel: str, at: float) -> None:
        count = len(links[channel])
        for several, holds in ((False, count == 0), (True, count > 1)):
            began = since.get((channel, several))
            if holds and began is None:
                since[channel, several] = at
            elif not holds and began is not None:
                spells[several].append(Spell(channel, since.pop((channel, several)), at))

    for entry, channels in _with_channels(entries):
        link, channel = entry.link or 0, entry.channel or ""
        if entry.kind == "joined":
            links[channel].add(link)
            look(channel, entry.at)
        elif entry.kind in {"parted", "link-closed"}:
            for one in channels if entry.kind == "link-closed" else (channel,):
                links[one].discard(link)
                look(one, entry.at)
    for (channel, several), began in since.items():
        spells[several].append(Spell(channel, began, until))
    return spells[False], spells[True]


def silent_spells(entries: Iterable[Entry], homes: Mapping[str, str], until: float) -> list[Spell]:
    """Return when no link was in a channel on the cluster where it lived, from the first that was.

    A link that stays in a channel on the cluster which the channel has left hears nothing any more.

    Args:
        entries: the ledger, from its beginning.
        homes: where each channel lived then.
        until: when what has not ended is taken to end.
    """
    home = dict(homes)
    rooms: defaultdict[str, dict[int, str]] = defaultdict(dict)
    since: dict[str, float] = {}
    spells: list[Spell] = []

    def look(channel: str, at: float) -> None:
        if home[channel] not in rooms[channel].values():
            since.setdefault(channel, at)
        elif (began := since.pop(channel, None)) is not None:
            spells.append(Spell(channel, began, at))

    for entry, channels in _with_channels(entries):
        link, channel = entry.link or 0, entry.channel or ""
        match entry.kind:
            case "joined":
                rooms[channel][link] = entry.cluster or ""
                look(channel, entry.at)
            case "parted" | "link-closed":
                for one in (channel,) if entry.kind == "parted" else channels:
                    rooms[one].pop(link, None)
                    look(one, entry.at)
            case "moved":
                home[channel] = entry.cluster or ""
                if channel in rooms:
                    look(channel, entry.at)
    spells += [Spell(channel, began, until) for channel, began in since.items()]
    return spells


def silence_in(spells: Iterable[Spell], phase: Phase) -> Counter[str]:
    """Return for how many seconds of a phase each channel was silent; those that never were are left out."""
    silent: Counter[str] = Counter()
    for spell in spells:
        lasted_s = min(spell.ended, phase.ended) - max(spell.began, phase.began)
        if lasted_s > 0:
            silent[spell.channel] += lasted_s
    return silent


def violations(entries: Iterable[Entry]) -> int:
    """How often the platform saw a budget exceeded."""
    return sum(1 for entry in entries if entry.kind == "violation")


def bound_s(channels: int, *, count: int, window_s: float) -> float:
    """Seconds that the platform's rate allows at best for so many JOINs."""
    return channels / count * window_s


def quantiles_ms(taken: Sequence[float]) -> dict[str, Any]:
    """Return p50, p99 and the longest, in milliseconds."""
    if not taken:
        return {"p50": math.nan, "p99": math.nan, "max": math.nan}
    cuts = statistics.quantiles(taken, n=100, method="inclusive") if len(taken) > 1 else [taken[0]] * 99
    return {"p50": round(cuts[49] * 1000), "p99": round(cuts[98] * 1000), "max": round(max(taken) * 1000)}
