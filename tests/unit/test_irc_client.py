"""The client's side of a link: what it hears, and what it refuses to believe."""

import pytest

from serverchange.irc.client import ClientDialogue
from serverchange.irc.client_events import (
    ChatLine,
    IgnoredReason,
    InquireAnswered,
    JoinConfirmed,
    JoinRefused,
    LineRejected,
    LinkClosed,
    LoggedIn,
    LoginRefused,
    Parted,
    PingReceived,
    PongReceived,
    Reconnecting,
    RejectedReason,
    ServerChangeHeard,
    StateLine,
    Unroutable,
)
from serverchange.irc.client_states import (
    CHANNEL_TRANSITIONS,
    LINK_TRANSITIONS,
    ChannelInput,
    ChannelState,
    LinkInput,
    LinkState,
)
from serverchange.irc.line import DialogueError, LineError

WELCOME = (
    b":tmi.twitch.tv CAP * ACK :twitch.tv/tags twitch.tv/commands\r\n"
    b":tmi.twitch.tv 001 bot :Welcome, GLHF!\r\n:tmi.twitch.tv 375 bot :-\r\n:tmi.twitch.tv 376 bot :>\r\n"
)


def logged_in(generation=7):
    dialogue = ClientDialogue(generation)
    dialogue.login("bot", "secret")
    dialogue.receive_data(WELCOME)
    dialogue.data_to_send()
    return dialogue


def asking(*channels):
    dialogue = logged_in()
    dialogue.join(channels)
    dialogue.data_to_send()
    return dialogue


def joined(*channels):
    dialogue = asking(*channels)
    for channel in channels:
        dialogue.receive_data(echo(channel) + names(channel))
    assert dialogue.confirmed == set(channels)
    return dialogue


def echo(channel, nick="bot"):
    return f":{nick}!{nick}@{nick}.tmi.twitch.tv JOIN #{channel}\r\n".encode()


def part_echo(channel, nick="bot"):
    return f":{nick}!{nick}@{nick}.tmi.twitch.tv PART #{channel}\r\n".encode()


def names(channel):
    return f":bot.tmi.twitch.tv 366 bot #{channel} :End of /NAMES list\r\n".encode()


def roomstate(channel, room_id="42"):
    return f"@room-id={room_id};slow=0 :tmi.twitch.tv ROOMSTATE #{channel}\r\n".encode()


def test_capabilities_come_before_the_password():
    dialogue = ClientDialogue(1)
    dialogue.login("Bot", "secret")
    assert dialogue.data_to_send() == (
        b"CAP REQ :twitch.tv/tags twitch.tv/commands\r\nPASS oauth:secret\r\nNICK Bot\r\n"
    )
    assert dialogue.data_to_send() == b""


def test_a_nameless_reader_needs_no_token():
    dialogue = ClientDialogue(1)
    dialogue.login("justinfan123", None, capabilities=())
    assert dialogue.data_to_send() == b"PASS SCHMOOPIIE\r\nNICK justinfan123\r\n"


def test_the_end_of_the_message_of_the_day_completes_the_login():
    dialogue = ClientDialogue(3)
    dialogue.login("bot", "oauth:secret")
    assert dialogue.receive_data(WELCOME) == [LoggedIn(3, "bot", frozenset({"twitch.tv/tags", "twitch.tv/commands"}))]
    assert dialogue.state is LinkState.READY


def test_a_refused_login_is_told_with_the_servers_words():
    dialogue = ClientDialogue(1)
    dialogue.login("bot", "secret")
    heard = dialogue.receive_data(b":tmi.twitch.tv NOTICE * :Login authentication failed\r\n")
    assert heard == [LoginRefused(1, "Login authentication failed")]
    assert dialogue.state is LinkState.REFUSED


@pytest.mark.parametrize("token", ["a b\r\nQUIT", "\0canary-token", "canary-token x\ny"])
def test_an_error_never_shows_the_token(token):
    with pytest.raises(LineError) as caught:
        ClientDialogue(1).login("bot", token)
    assert "canary" not in str(caught.value)
    assert "QUIT" not in str(caught.value)


def test_nothing_of_the_dialogue_shows_the_token():
    dialogue = ClientDialogue(1)
    dialogue.login("bot", "canary-token")
    assert "canary" not in repr(dialogue)


@pytest.mark.parametrize(
    "command",
    [
        lambda dialogue: dialogue.join(["a"]),
        lambda dialogue: dialogue.part(["a"]),
        lambda dialogue: dialogue.ping("x"),
        lambda dialogue: dialogue.inquire("a"),
    ],
)
def test_no_command_goes_out_before_the_login(command):
    with pytest.raises(DialogueError):
        command(ClientDialogue(1))


def test_a_second_login_is_our_own_bug():
    with pytest.raises(DialogueError):
        logged_in().login("bot", "secret")


@pytest.mark.parametrize("listing", [names("a"), roomstate("a")], ids=["366", "ROOMSTATE"])
@pytest.mark.parametrize("echo_first", [True, False])
def test_a_join_is_confirmed_by_its_echo_and_a_listing(listing, echo_first):
    dialogue = asking("a")
    first, second = (echo("a"), listing) if echo_first else (listing, echo("a"))
    heard = dialogue.receive_data(first)
    assert not any(isinstance(event, JoinConfirmed) for event in heard)
    assert dialogue.asked == {"a"}
    heard = dialogue.receive_data(second)
    assert [type(event) for event in heard if not isinstance(event, StateLine)] == [JoinConfirmed]
    assert dialogue.confirmed == {"a"}
    assert dialogue.asked == set()


def test_a_confirmation_carries_the_links_generation_and_the_room():
    assert asking("a").receive_data(echo("a") + roomstate("a"))[0] == JoinConfirmed(7, "a", "42")


def test_a_room_state_that_confirms_is_forwarded_as_well():
    heard = asking("a").receive_data(echo("a") + roomstate("a"))
    assert [type(event) for event in heard] == [JoinConfirmed, StateLine]


def test_joined_because_sent_is_not_joined():
    dialogue = asking("a", "b")
    assert dialogue.confirmed == set()
    assert dialogue.asked == {"a", "b"}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (echo("a", nick="viewer"), IgnoredReason.FOREIGN_ECHO),
        (part_echo("a", nick="viewer"), IgnoredReason.FOREIGN_ECHO),
        (names("never"), IgnoredReason.NEVER_ASKED),
        (echo("never"), IgnoredReason.NEVER_ASKED),
        (b":evil!e@e 366 bot #a :x\r\n", IgnoredReason.NOT_THE_SERVER),
        (b":evil!e@e SERVERCHANGE #a\r\n", IgnoredReason.NOT_THE_SERVER),
        (b"SERVERCHANGE #a\r\n", IgnoredReason.NOT_THE_SERVER),
        (b":evil!e@e CLUSTERCHANGE #a aws\r\n", IgnoredReason.NOT_THE_SERVER),
        (b":evil!e@e RECONNECT\r\n", IgnoredReason.NOT_THE_SERVER),
        (b":evil!e@e INQUIRE #a aws\r\n", IgnoredReason.NOT_THE_SERVER),
        (b":tmi.twitch.tv SERVERCHANGE #never\r\n", IgnoredReason.NEVER_ASKED),
        (b":tmi.twitch.tv SERVERCHANGE\r\n", IgnoredReason.NEVER_ASKED),
        (b":tmi.twitch.tv SERVERCHANGE #a\xc4\xb0\r\n", IgnoredReason.NEVER_ASKED),
        (b":tmi.twitch.tv 376 bot :>\r\n", IgnoredReason.OUT_OF_PLACE),
        (part_echo("a"), IgnoredReason.OUT_OF_PLACE),
        (b":tmi.twitch.tv NOTICE * :hello\r\n", IgnoredReason.NO_INTEREST),
        (b":a!a@a WHISPER bot :hi\r\n", IgnoredReason.NO_INTEREST),
    ],
)
def test_what_is_not_to_be_believed_is_counted_and_changes_nothing(data, reason):
    dialogue = asking("a")
    dialogue.ignored.clear()
    assert dialogue.receive_data(data) == []
    assert dialogue.ignored == {reason: 1}
    assert dialogue.channel_state("a") is ChannelState.ASKED
    assert dialogue.state is LinkState.READY


@pytest.mark.parametrize(
    ("line", "target"),
    [
        ("SERVERCHANGE #a", None),
        ("SERVERCHANGE #a aws", None),
        ("CLUSTERCHANGE #a aws", "aws"),
        ("CLUSTERCHANGE #A :aws", "aws"),
        ("CLUSTERCHANGE #a group", "group"),
        ("CLUSTERCHANGE #a unknown-cluster", "unknown-cluster"),
        ("CLUSTERCHANGE #a", None),
        ("CLUSTERCHANGE #a ../../etc", None),
        ("CLUSTERCHANGE #a :main ", None),
        ("CLUSTERCHANGE #a " + "x" * 33, None),
    ],
)
def test_a_change_names_its_target_or_none(line, target):
    heard = joined("a").receive_data(f":tmi.twitch.tv {line}\r\n".encode())
    assert heard == [ServerChangeHeard(7, "a", target, joining=False)]


def test_a_change_that_answers_a_join_says_so():
    assert asking("a").receive_data(b":tmi.twitch.tv SERVERCHANGE #a\r\n") == [
        ServerChangeHeard(7, "a", None, joining=True)
    ]


def test_a_refused_join_is_over_and_the_others_stay():
    dialogue = joined("b")
    dialogue.join(["a"])
    heard = dialogue.receive_data(b"@msg-id=msg_channel_suspended :tmi.twitch.tv NOTICE #a :suspended\r\n")
    assert heard == [JoinRefused(7, "a", "msg_channel_suspended")]
    assert dialogue.channel_state("a") is ChannelState.ABSENT
    assert dialogue.confirmed == {"b"}


def test_a_notice_to_a_joined_channel_is_for_its_readers():
    heard = joined("a").receive_data(b"@msg-id=slow_on :tmi.twitch.tv NOTICE #a :slow mode\r\n")
    assert [type(event) for event in heard] == [ChatLine]


def test_chat_is_forwarded_byte_by_byte():
    raw = b"@id=1;x=\xff :v!v@v PRIVMSG #a ::) \xf0\x9f\x98\x80"
    (heard,) = joined("a").receive_data(raw + b"\r\n")
    assert isinstance(heard, ChatLine)
    assert (heard.channel, heard.raw) == ("a", raw)


@pytest.mark.parametrize(
    "data",
    [
        # twitchdev/issues 604: a real line of the server, without # and with an empty nick.
        b"@room-id=53888434;tmi-sent-ts=1652206429374 :!@.tmi.twitch.tv CLEARCHAT ogprodigy\r\n",
        b":v!v@v PRIVMSG #other :hi\r\n",
        b":v!v@v PRIVMSG\r\n",
        b":evil!e@e ROOMSTATE #a\r\n",
        b":evil!e@e USERSTATE #a\r\n",
        b":tmi.twitch.tv ROOMSTATE #other\r\n",
        b":tmi.twitch.tv INQUIRE #a\r\n",
    ],
)
def test_a_line_without_a_place_is_unroutable_and_the_link_lives(data):
    dialogue = joined("a")
    assert [type(event) for event in dialogue.receive_data(data)] == [Unroutable]
    assert dialogue.confirmed == {"a"}


def test_states_are_told_apart_from_chat():
    heard = joined("a").receive_data(roomstate("a") + b":tmi.twitch.tv USERSTATE #a\r\n:v!v@v PRIVMSG #a :x\r\n")
    assert [type(event) for event in heard] == [StateLine, StateLine, ChatLine]


def test_pong_goes_out_before_joins_that_waited_longer():
    """twitch-js 227, TwitchIO PR 196: one queue for JOIN, PRIVMSG and PONG."""
    dialogue = logged_in()
    dialogue.join([f"channel{number}" for number in range(150)])
    assert dialogue.receive_data(b"PING :tmi.twitch.tv\r\n") == [PingReceived("tmi.twitch.tv")]
    assert dialogue.data_to_send().startswith(b"PONG :tmi.twitch.tv\r\nJOIN #channel0,")


def test_pings_without_end_use_bounded_memory():
    dialogue = logged_in()
    dialogue.receive_data(b"PING :x\r\n" * 10_000)
    assert len(dialogue.data_to_send()) < 1000


def test_a_ping_too_long_to_answer_does_not_end_the_link():
    dialogue = joined("a")
    (heard,) = dialogue.receive_data(b"PING " + b"\xff" * 2000 + b"\r\n")
    assert isinstance(heard, LineRejected)
    assert dialogue.receive_data(b"PING :x\r\n") == [PingReceived("x")]


def test_our_ping_is_answered_by_its_token():
    dialogue = logged_in()
    dialogue.ping("sc-1")
    assert dialogue.data_to_send() == b"PING :sc-1\r\n"
    assert dialogue.receive_data(b":tmi.twitch.tv PONG tmi.twitch.tv :sc-1\r\n") == [PongReceived("sc-1")]


@pytest.mark.parametrize("tail", ["", " 30", " :in a while"])
def test_after_reconnect_the_link_is_read_but_joins_nothing_more(tail):
    dialogue = joined("a")
    assert dialogue.receive_data(f":tmi.twitch.tv RECONNECT{tail}\r\n".encode()) == [Reconnecting(7)]
    with pytest.raises(DialogueError):
        dialogue.join(["b"])
    assert [type(event) for event in dialogue.receive_data(b":v!v@v PRIVMSG #a :x\r\n")] == [ChatLine]
    dialogue.part(["a"])
    assert dialogue.data_to_send() == b"PART #a\r\n"


def test_a_part_is_over_with_its_echo():
    dialogue = joined("a", "b")
    dialogue.part(["a", "never"])
    assert dialogue.data_to_send() == b"PART #a\r\n"
    assert dialogue.receive_data(part_echo("a")) == [Parted(7, "a", asked=True)]
    assert dialogue.confirmed == {"b"}


def test_lines_are_still_forwarded_while_parting():
    dialogue = joined("a")
    dialogue.part(["a"])
    assert [type(event) for event in dialogue.receive_data(b":v!v@v PRIVMSG #a :x\r\n")] == [ChatLine]


def test_being_put_out_of_a_channel_is_told():
    assert joined("a").receive_data(part_echo("a")) == [Parted(7, "a", asked=False)]


def test_answers_to_a_join_before_a_part_do_not_confirm_the_join_after_it():
    dialogue = asking("a")
    dialogue.part(["a"])
    dialogue.join(["a"])
    assert dialogue.receive_data(echo("a") + names("a")) == []
    assert dialogue.receive_data(part_echo("a")) == []
    assert dialogue.receive_data(echo("a") + names("a")) == [JoinConfirmed(7, "a", None)]


def test_a_confirmed_channel_is_not_asked_again():
    dialogue = joined("a")
    dialogue.join(["a"])
    assert dialogue.data_to_send() == b""


def test_inquire_is_asked_and_answered():
    dialogue = logged_in()
    dialogue.inquire("a")
    assert dialogue.data_to_send() == b"INQUIRE #a\r\n"
    heard = dialogue.receive_data(b":tmi.twitch.tv INQUIRE #a aws irc.chat.twitch.tv:6667\r\n")
    assert heard == [InquireAnswered(7, "a", "aws", "irc.chat.twitch.tv:6667")]


def test_the_end_names_the_channels_that_it_takes_along():
    dialogue = joined("a", "b")
    dialogue.join(["c"])
    assert dialogue.receive_eof() == LinkClosed(7, frozenset({"a", "b"}), frozenset({"c"}))
    assert dialogue.receive_eof() is None
    assert dialogue.data_to_send() == b""


def test_an_echo_read_after_the_end_confirms_nothing():
    """Lucky 1395, BCUK-Bot-4 569."""
    dialogue = asking("a")
    dialogue.receive_eof()
    assert dialogue.receive_data(echo("a") + names("a")) == []
    assert dialogue.confirmed == set()


def test_a_line_that_is_none_is_reported_and_the_rest_is_read():
    dialogue = joined("a")
    heard = dialogue.receive_data(b"\0\r\n" + b"x" * 20_000 + b"\r\nPING :x\r\n")
    assert [type(event) for event in heard] == [LineRejected, PingReceived, LineRejected]
    assert [event.reason for event in heard if isinstance(event, LineRejected)] == [
        RejectedReason.MALFORMED,
        RejectedReason.TOO_LONG,
    ]


def test_every_state_is_reached_and_left_by_the_tables():
    assert {state for state, _ in CHANNEL_TRANSITIONS} == set(ChannelState)
    assert set(CHANNEL_TRANSITIONS.values()) == set(ChannelState)
    assert {cause for _, cause in CHANNEL_TRANSITIONS} == set(ChannelInput)
    assert {state for state, _ in LINK_TRANSITIONS} == set(LinkState) - {LinkState.CLOSED}
    assert {cause for _, cause in LINK_TRANSITIONS} == set(LinkInput)
