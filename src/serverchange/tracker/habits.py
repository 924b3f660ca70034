"""Learns when each channel goes live: a rate of its own, an hour of the day and a day of the week.

A channel's rate is Gamma-Poisson (the crowd's mean is the prior), its hours and weekdays are counts shrunk to the
crowd's, and everything is multiplied by how likely somebody is to come back so soon after a stream ended: short
breaks are the moments in which a streaming channel can be moved unseen. All of it comes from streams scans.

Rule of thumb for the sizes: 31 bytes a channel for hours and weekdays, 18 for counts and times.
"""

import math
from array import array
from bisect import bisect_right

__all__ = ["Habits"]

HOURS = 24
WEEKDAYS = 7
HOUR_PRIORS = (1.0, 3.0, 10.0, 300.0)
WEEKDAY_PRIORS = (3.0, 10.0, 40.0, 1_000.0)
"""So many imagined starts are spread over the crowd's hours (weekdays) before a channel's own count. Which of them
predicts best is learned: people may be regular, or not at all."""
SCORE_FADE = 0.999
"""What the priors predicted fades with each start: a thousand starts of memory."""
RATE_PRIOR_STARTS = 0.6
"""Shape of the Gamma prior of the rate: channels differ by factors, so the crowd weighs little."""
CROWD_PRIOR_STARTS = 24.0
HOUR_CROWD_PRIOR_STARTS, WEEKDAY_CROWD_PRIOR_STARTS = 1.0, 4.0
"""So many starts are imagined in each hour and each weekday of the crowd, at its usual rate."""
AHEAD_HOURS = 6
"""How far ahead a lookup looks: about the time until the channel's next one."""
HALVE_AT = 120
"""Counts are halved there: they stay bytes, and a habit of last season fades."""
PAUSE_EDGES = (1 / 480, 1 / 240, 1 / 96, 1 / 48, 1 / 24, 1 / 8, 1 / 3, 1.0)
"""Edges, in days, of the classes of time since a stream ended: 3, 6, 15 and 30 minutes, 1, 3, 8 and 24 hours."""


class _Rhythm:
    """How the crowd's starts are spread over the hours of a day or the days of a week, per time watched.

    Counts alone would tell, on the first day, that nobody ever streams on another.
    """

    def __init__(self, bins: int, *, prior_starts: float) -> None:
        self.starts = [0.0] * bins
        self._days = [0.0] * bins
        self._prior_starts = prior_starts

    def watched(self, place: int, channel_days: float) -> None:
        """So much time passed, summed over channels, in that hour or weekday."""
        self._days[place] += channel_days

    def parts(self, *, smooth: bool) -> list[float]:
        """The part of a channel's starts in each bin; a quarter of each neighbour's is its own if smoothed."""
        starts, days = self.starts, self._days
        if smooth:
            starts, days = _smoothed(starts), _smoothed(days)
        prior = self._prior_starts
        usual = (sum(starts) + prior) / (sum(days) + prior)
        rates = [(count + prior) / (time + prior / usual) for count, time in zip(starts, days, strict=True)]
        total = sum(rates)
        return [rate / total for rate in rates]


def _smoothed(bins: list[float]) -> list[float]:
    size = len(bins)
    return [0.25 * (bins[at - 1] + 2.0 * bins[at] + bins[(at + 1) % size]) for at in range(size)]


class Habits:
    """Columns of what was learned, one row a channel, and the crowd's sums."""

    def __init__(self, *, day_s: float, now_s: float) -> None:
        self._day_s = day_s
        self._hours = bytearray()
        self._weekdays = bytearray()
        self._starts = bytearray()
        self._since_s = array("d")
        self._ended_s = array("d")
        self._crowd_hours = _Rhythm(HOURS, prior_starts=HOUR_CROWD_PRIOR_STARTS)
        self._crowd_weekdays = _Rhythm(WEEKDAYS, prior_starts=WEEKDAY_CROWD_PRIOR_STARTS)
        self._crowd_starts = CROWD_PRIOR_STARTS
        self._crowd_days = CROWD_PRIOR_STARTS
        self._pause_starts = [1.0] * (len(PAUSE_EDGES) + 1)
        self._pause_days = [1.0] * (len(PAUSE_EDGES) + 1)
        self._pause_factor = [1.0] * (len(PAUSE_EDGES) + 1)
        self._hour_scores = [0.0] * len(HOUR_PRIORS)
        self._weekday_scores = [0.0] * len(WEEKDAY_PRIORS)
        self._hour_starts, self._weekday_starts = HOUR_PRIORS[2], WEEKDAY_PRIORS[2]
        self._tick_s = now_s
        self.tick(now_s)

    def add(self, now_s: float) -> None:
        """A new row at the end, with nothing known but the crowd."""
        self._hours.extend(bytes(HOURS))
        self._weekdays.extend(bytes(WEEKDAYS))
        self._starts.append(0)
        self._since_s.append(now_s)
        self._ended_s.append(-math.inf)

    def reset(self, row: int, now_s: float) -> None:
        """Give a row to another channel."""
        self._hours[row * HOURS : (row + 1) * HOURS] = bytes(HOURS)
        self._weekdays[row * WEEKDAYS : (row + 1) * WEEKDAYS] = bytes(WEEKDAYS)
        self._starts[row] = 0
        self._since_s[row] = now_s
        self._ended_s[row] = -math.inf

    def tick(self, now_s: float) -> None:
        """Prepare the factors of the current hour; to be called once a minute or so, not for every channel."""
        day = now_s / self._day_s
        passed_days = len(self._starts) * (now_s - self._tick_s) / self._day_s
        self._crowd_days += passed_days
        place = self._tick_s / self._day_s
        self._crowd_hours.watched(int(place % 1.0 * HOURS) % HOURS, passed_days)
        self._crowd_weekdays.watched(int(place) % WEEKDAYS, passed_days)
        self._hour_parts = self._crowd_hours.parts(smooth=True)
        self._weekday_parts = self._crowd_weekdays.parts(smooth=False)
        place = day % 1.0 * HOURS
        self._bin = int(place) % HOURS
        part = place % 1.0
        self._before, self._after = 0.5 * (1.0 - part), 0.5 * part
        self._weekday = int(day) % WEEKDAYS
        self._hour_starts = HOUR_PRIORS[self._hour_scores.index(max(self._hour_scores))]
        self._weekday_starts = WEEKDAY_PRIORS[self._weekday_scores.index(max(self._weekday_scores))]
        self._soon_prior = self._hour_starts * sum(
            self._hour_parts[(self._bin + ahead) % HOURS] for ahead in range(AHEAD_HOURS)
        )
        self._hour_prior = self._hour_starts * self._hour_parts[self._bin]
        self._weekday_prior = self._weekday_starts * self._weekday_parts[self._weekday]
        self._crowd_hour_factor = HOURS * self._hour_prior / self._hour_starts
        self._crowd_soon_factor = HOURS / AHEAD_HOURS * self._soon_prior / self._hour_starts
        self._crowd_weekday_factor = WEEKDAYS * self._weekday_prior / self._weekday_starts
        self._prior_s = RATE_PRIOR_STARTS * self._crowd_days / self._crowd_starts * self._day_s
        self._tick_s = now_s
        pooled = sum(self._pause_starts) / sum(self._pause_days)
        self._pause_factor = [
            (starts + 3.0) / (days + 3.0 / pooled) / pooled
            for starts, days in zip(self._pause_starts, self._pause_days, strict=True)
        ]

    def went_live(self, row: int, now_s: float) -> None:
        """A start was seen."""
        day = now_s / self._day_s
        hour, weekday = int(day % 1.0 * HOURS) % HOURS, int(day) % WEEKDAYS
        pause_days = (now_s - self._ended_s[row]) / self._day_s
        if pause_days < PAUSE_EDGES[4]:
            self._note_pause(pause_days)
            return
        if self._starts[row]:
            self._score(row, hour, weekday)
        if self._starts[row] >= HALVE_AT:
            self._halve(row)
        self._starts[row] += 1
        self._hours[row * HOURS + hour] += 1
        self._weekdays[row * WEEKDAYS + weekday] += 1
        self._crowd_hours.starts[hour] += 1.0
        self._crowd_weekdays.starts[weekday] += 1.0
        self._crowd_starts += 1.0
        self._note_pause(pause_days)

    def went_offline(self, row: int, now_s: float) -> None:
        """An end was seen."""
        self._ended_s[row] = now_s

    def starts_per_s(self, row: int, now_s: float) -> tuple[float, float]:
        """How likely an offline channel is to go live, a second: about now, and on average in the hours ahead."""
        starts = self._starts[row]
        day_s = self._day_s
        rate = (RATE_PRIOR_STARTS + starts) / (self._prior_s + now_s - self._since_s[row])
        pause = bisect_right(PAUSE_EDGES, (now_s - self._ended_s[row]) / day_s)
        if not starts:
            crowd = rate * self._crowd_weekday_factor
            return crowd * self._crowd_hour_factor * self._pause_factor[pause], crowd * self._crowd_soon_factor
        hours, hour, base = self._hours, self._bin, row * HOURS
        own = (
            0.5 * hours[base + hour]
            + self._before * hours[base + (hour - 1 if hour else 23)]
            + self._after * hours[base + (hour + 1 if hour < 23 else 0)]
        )
        until = hour + AHEAD_HOURS
        soon = sum(hours[base + hour : base + (min(HOURS, until))])
        if until > HOURS:
            soon += sum(hours[base : base + until - HOURS])
        weekday = self._weekdays[row * WEEKDAYS + self._weekday] + self._weekday_prior
        rate *= weekday * HOURS * WEEKDAYS / ((starts + self._hour_starts) * (starts + self._weekday_starts))
        return (
            rate * (own + self._hour_prior) * self._pause_factor[pause],
            rate * (soon + self._soon_prior) / AHEAD_HOURS,
        )

    def ended_s(self, row: int) -> float:
        """When the last stream was seen to have ended."""
        return self._ended_s[row]

    def _score(self, row: int, hour: int, weekday: int) -> None:
        """Each prior is told how well it would have foretold this start; the better one is used from then on."""
        starts, base = self._starts[row], row * HOURS
        hours = self._hours
        own = 0.5 * hours[base + hour] + 0.25 * (hours[base + (hour - 1) % HOURS] + hours[base + (hour + 1) % HOURS])
        crowd = self._hour_parts[hour]
        for place, prior in enumerate(HOUR_PRIORS):
            score = math.log((own + prior * crowd) / (starts + prior))
            self._hour_scores[place] = self._hour_scores[place] * SCORE_FADE + score
        own, crowd = self._weekdays[row * WEEKDAYS + weekday], self._weekday_parts[weekday]
        for place, prior in enumerate(WEEKDAY_PRIORS):
            score = math.log((own + prior * crowd) / (starts + prior))
            self._weekday_scores[place] = self._weekday_scores[place] * SCORE_FADE + score

    def _halve(self, row: int) -> None:
        for at in range(row * HOURS, (row + 1) * HOURS):
            self._hours[at] >>= 1
        for at in range(row * WEEKDAYS, (row + 1) * WEEKDAYS):
            self._weekdays[at] >>= 1
        half = self._starts[row] / 2
        rate_days = (self._tick_s - self._since_s[row]) / 2
        self._starts[row] = int(half)
        self._since_s[row] = self._tick_s - rate_days

    def _note_pause(self, pause_days: float) -> None:
        """A pause of that length ended: one start in its class, time at risk in all classes up to it.

        Nothing is learned from one whose beginning nobody saw.
        """
        if pause_days == math.inf:
            return
        pause_days = min(pause_days, 2.0)
        before = 0.0
        for place, edge in enumerate((*PAUSE_EDGES, 2.0)):
            self._pause_days[place] += min(pause_days, edge) - before
            if pause_days <= edge:
                self._pause_starts[place] += 1.0
                return
            before = edge
