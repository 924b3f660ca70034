"""Both machines back to back: what one writes the other reads, in any pieces."""

from hypothesis import given
from hypothesis import strategies as st

from serverchange.irc.client import ClientDialogue
from serverchange.irc.client_events import (
    ChatLine,
    JoinConfirmed,
    JoinRefused,
    LoggedIn,
    LoginRefused,
    Parted,
    PongReceived,
    Reconnecting,
    ServerChangeHeard,
    StateLine,
)
from serverchange.irc.client_states import LinkState
from serverchange.irc.line import format_line
from serverchange.irc.server import ServerDialogue
from serverchange.irc.server_events import JoinRequested, LoginRequested, PartRequested

BOTH = frozenset({"twitch.tv/tags", "twitch.tv/commands"})


class Pair:
    """A client and a server on one wire that hands over at most `piece` bytes at a time."""

    def __init__(self, piece=1 << 20):
        self.client, self.server, self.piece = ClientDialogue(1), ServerDialogue(), piece

    def up(self):
        return self._carry(self.client.data_to_send(), self.server.receive_data)

    def down(self):
        return self._carry(self.server.data_to_send(), self.client.receive_data)

    def _carry(self, data, receive):
        pieces = (data[start : start + self.piece] for start in range(0, len(data), self.piece))
        return [event for piece in pieces for event in receive(piece)]

    def logged_in(self, nick="bot", token="secret"):
        self.client.login(nick, token)
        self.up()
        self.server.accept_login()
        self.down()
        assert self.client.state is LinkState.READY
        return self

    def joined(self, *channels):
        self.client.join(channels)
        for event in self.up():
            for channel in event.channels:
                self.server.confirm_join(channel, "42")
        self.down()
        assert self.client.confirmed == set(channels)
        return self


def test_a_login_is_asked_and_welcomed():
    pair = Pair()
    pair.client.login("Bot", "secret")
    assert pair.up() == [LoginRequested("bot", "secret", anonymous=False)]
    pair.server.accept_login()
    assert pair.down() == [LoggedIn(1, "bot", BOTH)]


def test_a_login_is_asked_and_refused():
    pair = Pair()
    pair.client.login("bot", "expired")
    pair.up()
    pair.server.refuse_login()
    assert pair.down() == [LoginRefused(1, "Login authentication failed")]


def test_a_nameless_login_is_recognised():
    pair = Pair()
    pair.client.login("justinfan12345", None)
    assert [event.anonymous for event in pair.up()] == [True]


@given(st.integers(1, 40))
def test_any_pieces_of_the_wire_give_the_same_dialogue(piece):
    pair = Pair(piece).logged_in().joined("a", "b")
    pair.server.send_raw(format_line("PRIVMSG", "#a", "hi there", tags={"id": "1"}, source="v!v@v.tmi.twitch.tv"))
    (heard,) = pair.down()
    assert isinstance(heard, ChatLine)
    assert (heard.channel, heard.line.params[1], heard.line.tags["id"]) == ("a", "hi there", "1")


def test_hundreds_of_joins_arrive_once_each_and_in_order():
    pair = Pair().logged_in()
    channels = tuple(f"channel_{number:04}" for number in range(300))
    pair.client.join(channels)
    asked = [channel for event in pair.up() for channel in event.channels]
    assert tuple(asked) == channels


def test_a_join_is_confirmed_with_its_room():
    pair = Pair().logged_in()
    pair.client.join(["forsen"])
    assert pair.up() == [JoinRequested(("forsen",))]
    pair.server.confirm_join("forsen", "22484632")
    heard = pair.down()
    assert heard[0] == JoinConfirmed(1, "forsen", None)
    assert [event.line.command for event in heard[1:] if isinstance(event, StateLine)] == ["USERSTATE", "ROOMSTATE"]


def test_a_swallowed_join_leaves_the_other_channels_alone():
    pair = Pair().logged_in().joined("a", "b")
    pair.client.join(["ghost"])
    pair.up()
    assert pair.down() == []
    assert pair.client.asked == {"ghost"}
    assert pair.client.confirmed == {"a", "b"}


def test_a_join_is_refused_by_a_notice():
    pair = Pair().logged_in()
    pair.client.join(["banned"])
    pair.up()
    pair.server.notice("banned", "msg_channel_suspended", "This channel has been suspended.")
    assert pair.down() == [JoinRefused(1, "banned", "msg_channel_suspended")]


def test_a_wrong_cluster_answers_with_a_change():
    pair = Pair().logged_in()
    pair.client.join(["a", "b"])
    pair.up()
    pair.server.server_change("a")
    pair.server.server_change("b", "aws")
    assert pair.down() == [
        ServerChangeHeard(1, "a", None, joining=True),
        ServerChangeHeard(1, "b", "aws", joining=True),
    ]


def test_a_part_is_asked_and_echoed():
    pair = Pair().logged_in().joined("a")
    pair.client.part(["a"])
    assert pair.up() == [PartRequested(("a",))]
    pair.server.confirm_part("a")
    assert pair.down() == [Parted(1, "a", asked=True)]


def test_both_sides_ping():
    pair = Pair().logged_in()
    pair.client.ping("token-1")
    pair.up()
    pair.server.ping("server-1")
    assert PongReceived("token-1") in pair.down()
    assert [event.token for event in pair.up()] == ["server-1"]


def test_a_reconnect_is_heard_and_lines_go_on():
    pair = Pair().logged_in().joined("a")
    pair.server.reconnect()
    pair.server.send_raw(b":v!v@v PRIVMSG #a :still here\r\n")
    assert [type(event) for event in pair.down()] == [Reconnecting, ChatLine]
