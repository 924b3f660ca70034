"""What the clusters decide: logins, JOINs, messages, who hears what, and how a move is told.

No socket is opened here: carriers bring bytes (`receive_data`) and take them away (`Link.flush`). The manners of the
dialogue are `serverchange.irc.server`'s; which of them applies is decided here, as the platform's documentation, its
forum (thread 4877) and pajbot/tmi-rate-limits tell.
"""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from serverchange.events import Channel, Cluster
from serverchange.irc.client_events import LineRejected
from serverchange.irc.server_events import (
    InquireRequested,
    JoinRequested,
    LoginRequested,
    MessageSent,
    PartRequested,
    PongReceived,
    QuitRequested,
    ServerEvent,
)
from serverchange.simulator.budgets import Budgets, Violation
from serverchange.simulator.chat_lines import ChatWriter, SharedLine
from serverchange.simulator.draw import draw, draw_between
from serverchange.simulator.faults import FaultPlan
from serverchange.simulator.ledger import EntryKind, Ledger
from serverchange.simulator.link import Carrier, Flusher, Link
from serverchange.simulator.rooms import Rooms
from serverchange.simulator.settings import ExcessJoin, SimulatorSettings, WrongCluster
from serverchange.simulator.world import Moved, Profile, World

TEXT_CHARS_MAX: Final = 500
"""Longest text of a chat message; the platform drops longer ones."""

SHOWN_MEMBERS_MAX: Final = 1000
"""In larger rooms the platform tells nobody who comes and goes (its documentation of the membership capability)."""


class Network:
    """All clusters, all links to them, and what is said there.

    One event loop owns it. Every decision that lasts goes into the ledger.
    """

    def __init__(
        self,
        settings: SimulatorSettings,
        world: World,
        ledger: Ledger,
        faults: FaultPlan,
        *,
        monotonic: Callable[[], float],
        server_of: Callable[[Cluster], str | None],
    ) -> None:
        """Wire the network.

        Args:
            settings: the platform's rules.
            world: where channels live.
            ledger: gets what happens.
            faults: asked before JOINs and logins.
            monotonic: real seconds.
            server_of: a `host:port` of a cluster, for INQUIRE.
        """
        self._settings = settings
        self._world = world
        self._ledger = ledger
        self._faults = faults
        self._monotonic = monotonic
        self._server_of = server_of
        self._tokens = {account.login: account.token for account in settings.accounts}
        self._budgets = Budgets(settings)
        self._chance = random.Random(settings.seed)  # noqa: S311  (order of lines, not a secret)
        self._writer = ChatWriter(uuid.uuid4())
        self._flusher = Flusher(asyncio.get_running_loop())
        self.rooms = Rooms()
        self.links: dict[int, Link] = {}
        self._opened = 0
        self._notices: Counter[tuple[Channel, str | None]] = Counter()

    # Links.

    def open_link(self, cluster: Cluster, carrier: Carrier) -> Link:
        """Take a new connection in; pass what it receives to `receive_data` and its end to `close_link`."""
        self._opened += 1
        link = Link(
            self._opened,
            cluster,
            carrier,
            self._flusher,
            opened_s=self._monotonic(),
            unsent_bytes_max=self._settings.send_buffer_bytes_max,
            on_overflow=self._overflow,
        )
        link.dialogue.answers_pings = not self._faults.ignores_pings(cluster)
        self.links[link.number] = link
        self._record(EntryKind.LINK_OPENED, link, detail=carrier.transport_name)
        return link

    def close_link(self, link: Link, why: str, *, abort: bool = False) -> None:
        """End a link: what waits is written first, unless it is cut (`abort`)."""
        if self.links.pop(link.number, None) is None:
            return
        link.close(abort=abort)
        for channel in link.joined:
            self._leave(link, channel)
        link.joined.clear()
        self._record(EntryKind.LINK_CLOSED, link, detail=why)

    def receive_data(self, link: Link, data: bytes) -> None:
        """Handle bytes from a client."""
        if link.closed:
            return
        self._handle(link, link.dialogue.receive_data(data))
        if link.closed:
            return
        link.wake()
        if link.dialogue.must_close:
            self.close_link(link, "the dialogue ended")

    def heed_faults(self) -> None:
        """Let the open links follow the faults that are on now; call it when they have changed."""
        for link in self.links.values():
            link.dialogue.answers_pings = not self._faults.ignores_pings(link.cluster)

    def watch_links(self, now_s: float) -> None:
        """Send the PINGs that are due; close who did not answer the last one, or never logged in."""
        for link in list(self.links.values()):
            if link.account is None:
                if now_s - link.opened_s > self._settings.login_timeout_s:
                    self.close_link(link, "no login")
            elif link.ping_sent_s is not None:
                if now_s - link.ping_sent_s > self._settings.pong_timeout_s:
                    self.close_link(link, "no PONG")
            elif now_s - link.pinged_s >= self._settings.ping_interval_s:
                link.ping_sent_s = link.pinged_s = now_s
                link.dialogue.ping()
                link.wake()
                self._record(EntryKind.PING_SENT, link)

    def reconnect(self, link: Link, close_after_s: float | None = None) -> None:
        """Send RECONNECT; until the link closes, 5 to 60 s later by the settings, its lines come in disorder."""
        if link.doomed or link.closed:
            return
        delay_s = close_after_s
        if delay_s is None:
            low_s, high_s = self._settings.reconnect_min_s, self._settings.reconnect_max_s
            delay_s = draw_between(low_s, high_s, self._settings.seed, "reconnect", link.number)
        link.doomed = True
        link.dialogue.reconnect()
        link.wake()
        self._record(EntryKind.RECONNECT_SENT, link, detail=f"{delay_s:.3f}")
        loop = asyncio.get_running_loop()
        link.close_handle = loop.call_later(delay_s, self.close_link, link, "after RECONNECT")

    def release_held(self) -> None:
        """Let the links under RECONNECT have some of the lines that are held back for them."""
        for link in self.links.values():
            if link.doomed:
                link.release_held(self._chance)

    def _overflow(self, link: Link) -> None:
        self.close_link(link, "the client does not read", abort=True)

    # What clients ask.

    def _handle(self, link: Link, events: Iterable[ServerEvent]) -> None:
        for event in events:
            if link.closed:
                return
            if link.dialogue.must_close and not isinstance(event, QuitRequested):
                continue  # The client has quit in the same breath: nothing more may be said to it.
            match event:
                case LoginRequested():
                    self._login(link, event)
                case PongReceived():
                    link.ping_sent_s = None
                    self._record(EntryKind.PONG_RECEIVED, link)
                case QuitRequested(reason):
                    self.close_link(link, f"by the client: {reason}")
                case LineRejected(reason):
                    self._record(EntryKind.LINE_REJECTED, link, detail=reason.value)
                case _:
                    self._handle_request(link, event)

    def _handle_request(
        self, link: Link, request: JoinRequested | PartRequested | MessageSent | InquireRequested
    ) -> None:
        match request:
            case JoinRequested(channels):
                for channel in channels:
                    if not link.closed:
                        self._join(link, channel)
            case PartRequested(channels):
                for channel in channels:
                    self._part(link, channel)
            case MessageSent(channel, text):
                self._say(link, channel, text)
            case InquireRequested(channel):
                self._inquire(link, channel)

    def _login(self, link: Link, request: LoginRequested) -> None:
        anonymous = request.anonymous
        address = link.carrier.address
        budget = self._budgets.of_anonymous(address) if anonymous else self._budgets.of_account(request.nick)
        violation = budget.take_login(self._monotonic())
        if violation is not None:
            self._violate(link, violation, account=request.nick)
            self._refuse_login(link, request.nick, violation.value, "Login unsuccessful")
            return
        token = self._tokens.get(request.nick)
        if not anonymous and (request.token is None or token is None or token.get_secret_value() != request.token):
            self._refuse_login(link, request.nick, "wrong token", "Login authentication failed")
            return
        if self._faults.closes_before_welcome(link.cluster):
            self._record(EntryKind.LOGIN_REFUSED, link, account=request.nick, detail="fault: closed before welcome")
            self.close_link(link, "fault: closed before welcome", abort=True)
            return
        link.account = request.nick
        link.budget = budget
        self._record(EntryKind.LINK_LOGGED_IN, link)
        self._handle(link, link.dialogue.accept_login(user_id=str(_user_id(request.nick))))

    def _refuse_login(self, link: Link, account: str, why: str, text: str) -> None:
        link.dialogue.refuse_login(text)
        self._record(EntryKind.LOGIN_REFUSED, link, account=account, detail=why)
        self.close_link(link, f"login refused: {why}")

    def _join(self, link: Link, channel: Channel) -> None:
        budget = link.budget
        assert budget is not None, "a dialogue asks for JOINs after the login only"  # noqa: S101
        violation = budget.take_join(channel, self._monotonic())
        if violation is not None:
            self._violate(link, violation, channel=channel)
            self._refuse_join(link, channel, violation.value)
            if violation is Violation.CHANNEL_LIMIT:
                link.dialogue.notice(channel, "msg_concurrent_channel_limit_reached", "You are in too many channels.")
            elif self._settings.excess_join is ExcessJoin.DISCONNECT:
                self.close_link(link, violation.value)
            return
        if self._faults.swallows_join(channel, link.number, link.cluster, link.account):
            self._refuse_join(link, channel, "fault: swallowed")
            return
        profile = self._world.profiles.get(channel)
        if profile is None:
            self._refuse_join(link, channel, "no such channel")  # The platform says nothing at all.
            return
        if channel in self._world.suspended:
            self._refuse_join(link, channel, "suspended")
            link.dialogue.notice(channel, "msg_channel_suspended", "This channel has been suspended.")
            return
        here = self._world.cluster_of[channel] == link.cluster
        if not here and self._settings.wrong_cluster is not WrongCluster.SILENT:
            self._refuse_join(link, channel, "wrong cluster")
            self._tell_elsewhere(link, channel, "join-refused")
            return
        self._enter(link, profile)

    def _enter(self, link: Link, profile: Profile) -> None:
        if profile.name not in link.joined:
            self.rooms.enter(link, profile.name)
            assert link.budget is not None  # noqa: S101  (as in _join)
            link.budget.entered(profile.name)
            self._show_member("JOIN", link, profile.name)
        link.dialogue.confirm_join(profile.name, profile.room_id)
        self._record(EntryKind.JOINED, link, channel=profile.name)

    def _refuse_join(self, link: Link, channel: Channel, why: str) -> None:
        self._record(EntryKind.JOIN_REFUSED, link, channel=channel, detail=why)

    def _part(self, link: Link, channel: Channel) -> None:
        if channel in link.joined:
            link.dialogue.confirm_part(channel)
            self._leave(link, channel)
            self._show_member("PART", link, channel)
            self._record(EntryKind.PARTED, link, channel=channel)

    def _leave(self, link: Link, channel: Channel) -> None:
        self.rooms.leave(link, channel)
        if link.budget is not None:
            link.budget.left(channel)

    def _show_member(self, command: str, link: Link, channel: Channel) -> None:
        """Tell those who asked for membership that somebody came or left; a cut link leaves without a word."""
        others = self.rooms.audience(link.cluster, channel).links
        if len(others) <= SHOWN_MEMBERS_MAX and link.account is not None:
            for other in others:
                if other.account != link.account:
                    other.dialogue.show_member(command, channel, link.account)
                    other.wake()

    def _inquire(self, link: Link, channel: Channel) -> None:
        cluster = self._world.cluster_of.get(channel)
        if cluster is not None:
            link.dialogue.answer_inquire(channel, cluster, self._server_of(cluster))

    def _say(self, link: Link, channel: Channel, text: str) -> None:
        """Judge a client's message, and let the others hear it. What is dropped has cost its tokens, too."""
        budget = link.budget
        if budget is None or link.dialogue.anonymous:
            self._drop_message(link, channel, "anonymous")
            return
        now_s = self._monotonic()
        violation = budget.take_message(channel, now_s)
        repeated = budget.is_repetition(channel, text, now_s)
        profile = self._world.profiles.get(channel)
        if violation is not None:
            self._violate(link, violation, channel=channel)
            self._drop_message(link, channel, violation.value)
            link.dialogue.notice(channel, "msg_ratelimit", "You are sending messages too quickly.")
        elif budget.is_muted(now_s):
            self._drop_message(link, channel, "muted")
        elif profile is None or self._world.cluster_of[channel] != link.cluster:
            self._drop_message(link, channel, "not here")
        elif len(text) > TEXT_CHARS_MAX:
            self._drop_message(link, channel, "too long")
        elif repeated:
            self._drop_message(link, channel, "repeated")
            link.dialogue.notice(channel, "msg_duplicate", "Your message is identical to the previous one.")
        else:
            link.dialogue.user_state(channel)
            self._record(EntryKind.PRIVMSG, link, channel=channel, detail=text)
            at = self._monotonic()
            account = link.account or ""
            line = self._writer.spoken(profile, account, _user_id(account), text, self._ledger.wall_s(at))
            self._broadcast(channel, line, besides=link)

    def _drop_message(self, link: Link, channel: Channel, why: str) -> None:
        self._record(EntryKind.PRIVMSG_DROPPED, link, channel=channel, detail=why)

    # What the platform says.

    def send_numbered(self, channel: Channel, text: str | None = None) -> int:
        """Send the channel's next numbered line to those joined where it lives; return its number.

        Raises:
            LedgerFullError: the ledger holds no more lines.
        """
        lines = self._ledger.lines
        at = self._monotonic()
        number = lines.next_number(channel)
        cluster = self._world.cluster_of[channel]
        audience = self.rooms.audience(cluster, channel)
        if audience.links:
            line = self._writer.numbered(self._world.profiles[channel], number, self._ledger.wall_s(at), text)
            for link in audience.links:
                link.send_chat(line)
        lines.append(channel, number, at, cluster, audience.numbers)
        return number

    def send_clearchat(self, channel: Channel, user: str | None) -> None:
        """Send CLEARCHAT to those joined where the channel lives."""
        wall_s = self._ledger.wall_s(self._monotonic())
        self._broadcast(channel, self._writer.clearchat(self._world.profiles[channel], user, wall_s))

    def _broadcast(self, channel: Channel, line: SharedLine, besides: Link | None = None) -> None:
        for link in self.rooms.audience(self._world.cluster_of[channel], channel).links:
            if link is not besides:
                link.send_chat(line)

    def announce_move(self, move: Moved) -> None:
        """Tell those who stay behind on the old cluster, unless the platform is of the silent kind."""
        if self._settings.wrong_cluster is WrongCluster.SILENT:
            return
        for link in self.rooms.audience(move.previous, move.channel).links:
            self._tell_elsewhere(link, move.channel, "moved")

    def _tell_elsewhere(self, link: Link, channel: Channel, why: str) -> None:
        """Send SERVERCHANGE or CLUSTERCHANGE, or lose it."""
        loss = self._faults.faults.notice_loss
        loss = self._settings.notice_loss if loss is None else loss
        addressee = (channel, link.account)
        self._notices[addressee] += 1
        about = ("notice", channel, link.account or "", self._notices[addressee])
        if loss > 0 and draw(self._settings.seed, *about) < loss:
            self._record(EntryKind.NOTICE_LOST, link, channel=channel, detail=why)
            return
        named = self._settings.wrong_cluster is WrongCluster.CLUSTERCHANGE
        link.dialogue.server_change(channel, self._world.cluster_of[channel] if named else None)
        link.wake()
        self._record(EntryKind.NOTICE_SENT, link, channel=channel, detail=why)

    def _violate(
        self, link: Link, violation: Violation, *, channel: Channel | None = None, account: str | None = None
    ) -> None:
        self._record(EntryKind.VIOLATION, link, channel=channel, account=account, detail=violation.value)

    def _record(
        self,
        kind: EntryKind,
        link: Link,
        *,
        channel: Channel | None = None,
        account: str | None = None,
        detail: str | None = None,
    ) -> None:
        self._ledger.record(
            kind,
            channel=channel,
            cluster=link.cluster,
            link=link.number,
            account=account or link.account,
            detail=detail,
        )


def _user_id(login: str) -> int:
    """Return a user's number; any that is always the same."""
    return 80_000_000 + int(draw(0, "user", login) * 1_000_000)
