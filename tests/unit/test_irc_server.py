"""The server's side of a link: the manners that stock clients lean on."""

import pytest

from serverchange.irc.client_events import LineRejected
from serverchange.irc.line import DialogueError, format_line, parse_line
from serverchange.irc.server import MAX_HELD_EVENTS, ServerDialogue, ServerState
from serverchange.irc.server_events import (
    InquireRequested,
    JoinRequested,
    LoginRequested,
    MessageSent,
    PartRequested,
    PongReceived,
    QuitRequested,
)


def greeted(data=b"CAP REQ :twitch.tv/tags twitch.tv/commands\r\nPASS oauth:secret\r\nNICK Bot\r\n"):
    dialogue = ServerDialogue()
    dialogue.receive_data(data)
    return dialogue


def welcomed(data=b"CAP REQ :twitch.tv/tags twitch.tv/commands\r\nPASS oauth:secret\r\nNICK Bot\r\n"):
    dialogue = greeted(data)
    dialogue.accept_login()
    dialogue.data_to_send()
    return dialogue


def sent(dialogue):
    return dialogue.data_to_send().decode().splitlines()


def test_pass_and_nick_ask_for_a_login():
    heard = ServerDialogue().receive_data(b"PASS oauth:secret\r\nNICK Bot\r\n")
    assert heard == [LoginRequested("bot", "secret", anonymous=False)]


@pytest.mark.parametrize("password", [b"PASS SCHMOOPIIE\r\n", b"PASS oauth:59301\r\n", b""])
def test_a_nameless_reader_is_known_by_its_nick(password):
    (heard,) = ServerDialogue().receive_data(password + b"NICK justinfan73\r\n")
    assert heard.anonymous


def test_a_login_request_does_not_show_its_token():
    (heard,) = ServerDialogue().receive_data(b"PASS oauth:canary\r\nNICK bot\r\n")
    assert "canary" not in repr(heard)


@pytest.mark.parametrize("order", ["cap-first", "cap-last", "three-caps"])
def test_capabilities_are_granted_wherever_they_are_asked(order):
    login = b"PASS oauth:x\r\nNICK bot\r\n"
    both = b"CAP REQ :twitch.tv/tags twitch.tv/commands\r\n"
    three = b"CAP REQ :twitch.tv/membership\r\nCAP REQ :twitch.tv/tags\r\nCAP REQ :twitch.tv/commands\r\n"
    data = {"cap-first": both + login, "cap-last": login + both, "three-caps": login + three}[order]
    dialogue = greeted(data)
    assert {"twitch.tv/tags", "twitch.tv/commands"} <= dialogue.capabilities
    assert b":tmi.twitch.tv CAP * ACK :twitch.tv/" in dialogue.data_to_send()


def test_an_unknown_capability_is_refused_as_a_whole():
    dialogue = greeted(b"CAP REQ :twitch.tv/tags sasl\r\n")
    assert sent(dialogue) == [":tmi.twitch.tv CAP * NAK :twitch.tv/tags sasl"]
    assert dialogue.capabilities == set()


def test_capabilities_are_listed():
    assert sent(greeted(b"CAP LS 302\r\n")) == [
        ":tmi.twitch.tv CAP * LS :twitch.tv/commands twitch.tv/membership twitch.tv/tags"
    ]


def test_the_welcome_has_the_texts_that_clients_look_for():
    dialogue = greeted()
    dialogue.data_to_send()
    dialogue.accept_login("77", "Bot")
    lines = sent(dialogue)
    assert lines[0] == ":tmi.twitch.tv 001 bot :Welcome, GLHF!"
    assert [line.split()[1] for line in lines[:-1]] == ["001", "002", "003", "004", "375", "372", "376"]
    state = parse_line(lines[-1].encode())
    assert (state.command, state.tags["user-id"], state.tags["display-name"]) == ("GLOBALUSERSTATE", "77", "Bot")
    assert "badges=;" in lines[-1]


def test_a_nameless_reader_has_no_global_state():
    dialogue = greeted(b"CAP REQ :twitch.tv/tags twitch.tv/commands\r\nNICK justinfan1\r\n")
    dialogue.accept_login()
    assert sent(dialogue)[-1] == ":tmi.twitch.tv 376 justinfan1 :>"


def test_a_refused_login_is_told_and_closed():
    dialogue = greeted()
    dialogue.data_to_send()
    dialogue.refuse_login()
    assert sent(dialogue) == [":tmi.twitch.tv NOTICE * :Login authentication failed"]
    assert dialogue.must_close
    assert dialogue.receive_data(b"JOIN #a\r\n") == []


def test_joins_sent_before_the_welcome_are_kept_until_it():
    dialogue = ServerDialogue()
    heard = dialogue.receive_data(b"PASS oauth:x\r\nNICK bot\r\nJOIN #a\r\nJOIN #b\r\n")
    assert [type(event) for event in heard] == [LoginRequested]
    assert dialogue.accept_login() == [JoinRequested(("a",)), JoinRequested(("b",))]


def test_what_is_kept_before_the_welcome_is_bounded():
    dialogue = greeted()
    dialogue.receive_data(b"JOIN #a\r\n" * (MAX_HELD_EVENTS + 5))
    assert len(dialogue.accept_login()) == MAX_HELD_EVENTS


def test_a_join_before_nick_means_nothing():
    assert ServerDialogue().receive_data(b"JOIN #a\r\nPRIVMSG #a :x\r\n") == []


def test_a_confirmed_join_is_echoed_listed_and_described():
    dialogue = welcomed()
    assert dialogue.receive_data(b"JOIN #Forsen\r\n") == [JoinRequested(("forsen",))]
    dialogue.confirm_join("forsen", "22484632", {"slow": "30"})
    lines = sent(dialogue)
    assert lines[:3] == [
        ":bot!bot@bot.tmi.twitch.tv JOIN #forsen",
        ":bot.tmi.twitch.tv 353 bot = #forsen :bot",
        ":bot.tmi.twitch.tv 366 bot #forsen :End of /NAMES list",
    ]
    user, room = (parse_line(line.encode()) for line in lines[3:])
    assert (user.command, room.command) == ("USERSTATE", "ROOMSTATE")
    assert (user.tags["mod"], user.tags["subscriber"]) == ("0", "0")
    assert (room.tags["room-id"], room.tags["slow"]) == ("22484632", "30")
    assert dialogue.joined == {"forsen"}


def test_a_plain_client_gets_neither_states_nor_tags():
    dialogue = welcomed(b"NICK bot\r\nUSER bot 0 * :bot\r\n")
    dialogue.confirm_join("a", "1")
    assert [line.split()[1] for line in sent(dialogue)] == ["JOIN", "353", "366"]
    dialogue.notice("a", "slow_on", "slow")
    assert sent(dialogue) == [":tmi.twitch.tv NOTICE #a :slow"]


def test_a_client_with_commands_alone_gets_states_without_tags():
    dialogue = welcomed(b"CAP REQ :twitch.tv/commands\r\nNICK bot\r\n")
    dialogue.confirm_join("a", "1")
    assert sent(dialogue)[3:] == [":tmi.twitch.tv USERSTATE #a", ":tmi.twitch.tv ROOMSTATE #a"]


def test_a_part_is_asked_and_echoed():
    dialogue = welcomed()
    dialogue.confirm_join("a", "1")
    dialogue.data_to_send()
    assert dialogue.receive_data(b"PART #a,#b\r\n") == [PartRequested(("a", "b"))]
    dialogue.confirm_part("a")
    assert sent(dialogue) == [":bot!bot@bot.tmi.twitch.tv PART #a"]
    assert dialogue.joined == set()


@pytest.mark.parametrize("names", [b"", b"forsen", b"#", b"##a", b"0", b"#a%2e", b"#" + b"a" * 26, b"#\xe2\x84\xaa"])
def test_a_join_of_no_channel_is_passed_over(names):
    assert welcomed().receive_data(b"JOIN " + names + b"\r\n") == []
    assert welcomed().receive_data(b"JOIN " + names + b",#ok\r\n") in ([JoinRequested(("ok",))], [])


@pytest.mark.parametrize(
    ("ping", "pong"),
    [
        (b"PING", "PONG :tmi.twitch.tv"),
        (b"PING asd", ":tmi.twitch.tv PONG tmi.twitch.tv :asd"),
        (b"PING :go-twitch-irc", ":tmi.twitch.tv PONG tmi.twitch.tv :go-twitch-irc"),
        (b"PING asd def", ":tmi.twitch.tv PONG tmi.twitch.tv :asd"),
        (b"PING :chatterino/2.5.3", ":tmi.twitch.tv PONG tmi.twitch.tv :chatterino/2.5.3"),
    ],
)
def test_ping_is_answered_as_the_platform_answers(ping, pong):
    dialogue = welcomed()
    assert dialogue.receive_data(ping + b"\r\n") == []
    assert sent(dialogue) == [pong]


def test_our_ping_is_asked_and_its_answer_told():
    dialogue = welcomed()
    dialogue.ping()
    assert sent(dialogue) == ["PING :tmi.twitch.tv"]
    assert dialogue.receive_data(b"PONG :tmi.twitch.tv\r\n") == [PongReceived("tmi.twitch.tv")]


def test_a_message_is_passed_up_with_its_text_as_it_came():
    text = "é" * 501
    (heard,) = welcomed().receive_data(f"@client-nonce=n PRIVMSG #a :{text}\r\n".encode())
    assert isinstance(heard, MessageSent)
    assert (heard.channel, heard.text, heard.tags["client-nonce"]) == ("a", text, "n")


def test_inquire_is_asked_and_answered():
    dialogue = welcomed()
    assert dialogue.receive_data(b"INQUIRE #a\r\n") == [InquireRequested("a")]
    dialogue.answer_inquire("a", "aws", "irc.chat.twitch.tv:6667")
    assert sent(dialogue) == [":tmi.twitch.tv INQUIRE #a aws irc.chat.twitch.tv:6667"]


@pytest.mark.parametrize("command", [b"MODE #a +b", b"PASS oauth:y", b"USER a 0 * :a"])
def test_some_commands_are_silent(command):
    dialogue = welcomed()
    assert dialogue.receive_data(command + b"\r\n") == []
    assert sent(dialogue) == []


def test_an_unknown_command_is_named():
    dialogue = welcomed()
    dialogue.receive_data(b"who #a\r\n")
    assert sent(dialogue) == [":tmi.twitch.tv 421 bot WHO :Unknown command"]


@pytest.mark.parametrize(("data", "reason"), [(b"NICK other\r\n", "second NICK"), (b"QUIT :bye\r\n", "QUIT")])
def test_some_commands_end_the_link(data, reason):
    dialogue = welcomed()
    assert dialogue.receive_data(data + b"JOIN #a\r\n") == [QuitRequested(reason)]
    assert dialogue.must_close


@pytest.mark.parametrize("nick", [b"", b"a b", b"a-b", b"\xff", b"a" * 26])
def test_a_nick_of_bad_syntax_ends_the_link(nick):
    dialogue = ServerDialogue()
    heard = dialogue.receive_data(b"NICK :" + nick + b"\r\n")
    assert heard == [QuitRequested("invalid NICK")]
    assert sent(dialogue) == [":tmi.twitch.tv NOTICE * :Invalid NICK"]


def test_the_servers_own_lines_carry_its_bare_name():
    dialogue = welcomed()
    dialogue.server_change("a")
    dialogue.server_change("a", "aws")
    dialogue.reconnect()
    assert sent(dialogue) == [
        ":tmi.twitch.tv SERVERCHANGE #a",
        ":tmi.twitch.tv CLUSTERCHANGE #a aws",
        ":tmi.twitch.tv RECONNECT",
    ]


def test_members_are_shown_only_to_those_who_asked():
    dialogue = welcomed()
    dialogue.show_member("JOIN", "a", "viewer")
    assert sent(dialogue) == []
    dialogue.receive_data(b"CAP REQ twitch.tv/membership\r\n")
    dialogue.data_to_send()
    dialogue.show_member("JOIN", "a", "viewer")
    assert sent(dialogue) == [":viewer!viewer@viewer.tmi.twitch.tv JOIN #a"]


def test_raw_lines_are_appended_as_they_are():
    dialogue = welcomed()
    line = format_line("PRIVMSG", "#a", "x", tags={"id": "1"}, source="v!v@v")
    dialogue.send_raw(line)
    dialogue.send_raw(line)
    assert dialogue.unsent_bytes == 2 * len(line)
    assert dialogue.data_to_send() == line * 2
    assert dialogue.unsent_bytes == 0


def test_bytes_that_are_no_line_are_reported_and_the_link_lives():
    dialogue = welcomed()
    heard = dialogue.receive_data(b"\0\r\n" + b"x" * 9000 + b"\r\nJOIN #a\r\n")
    assert [type(event) for event in heard] == [LineRejected, JoinRequested, LineRejected]


def test_a_decision_that_nobody_waits_for_is_the_carriers_bug():
    with pytest.raises(DialogueError):
        ServerDialogue().accept_login()
    with pytest.raises(DialogueError):
        welcomed().refuse_login()
    with pytest.raises(DialogueError):
        greeted().confirm_join("a", "1")
    assert greeted().state is ServerState.DECIDING


def test_a_server_that_hangs_answers_no_ping():
    server = ServerDialogue()
    server.answers_pings = False
    server.receive_data(b"PING :are you there\r\n")
    assert server.data_to_send() == b""
