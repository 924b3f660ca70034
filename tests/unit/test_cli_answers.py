"""Commands that ask the state API: pages, streams, errors, and what they tell."""

import io
import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from rich.text import Text

from serverchange.adapters.process import ExitCode
from serverchange.cli import main
from serverchange.cli.answers import describe
from serverchange.cli.api import Api, parse_stream
from serverchange.cli.faults import CheckFault, Fault, UnavailableFault
from serverchange.cli.where import NAMES_A_REQUEST, NamedLines
from serverchange.cli.why import explain, explain_lookup
from serverchange.views import LookupPlan

Answer = Callable[[str, dict[str, str]], tuple[int, str]]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["serverchange", *arguments])
    with pytest.raises(SystemExit) as ended:
        main.main()
    return int(ended.value.code or 0)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Serve answers over HTTP and return the base URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = answer(self.path, {name.lower(): value for name, value in self.headers.items()})
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            do_POST = do_DELETE = do_GET  # noqa: N815  (the names that http.server looks for)

            def log_message(self, *_: Any) -> None:
                return

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_pages_are_followed_to_the_last(serve: Callable[[Answer], str]) -> None:
    def answer(path: str, _: dict[str, str]) -> tuple[int, str]:
        last = "cursor=2" in path
        return 200, json.dumps({"channels": ["b"] if last else ["a"], "cursor": None if last else "2"})

    assert list(Api(serve(answer)).pages("/channels", "channels")) == ["a", "b"]


@pytest.mark.parametrize(
    ("status", "fault"),
    [(404, CheckFault), (422, Fault), (401, Fault), (500, UnavailableFault), (503, UnavailableFault)],
)
def test_a_problem_is_told_in_the_api_s_own_words(
    status: int, fault: type[Fault], serve: Callable[[Answer], str]
) -> None:
    url = serve(lambda *_: (status, json.dumps({"detail": "nobody tracks forsen; POST /channels"})))
    with pytest.raises(fault, match="nobody tracks forsen; POST /channels"):
        Api(url).get("/channels/forsen")


def test_something_else_on_the_port_is_told_apart(serve: Callable[[Answer], str]) -> None:
    with pytest.raises(Fault, match="is not a state API"):
        Api(serve(lambda *_: (200, "<html>"))).get("/clusters")


def test_no_api_at_all_says_how_to_start_one() -> None:
    with pytest.raises(UnavailableFault, match="serverchange up"):
        Api("http://127.0.0.1:1").get("/clusters")


def test_a_stream_goes_on_where_it_broke(serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serverchange.cli.api.STREAM_RETRY_S", 0.0)
    asked_for: list[str | None] = []

    def answer(_: str, headers: dict[str, str]) -> tuple[int, str]:
        asked_for.append(headers.get("last-event-id"))
        return 200, f": heartbeat\n\nid: {len(asked_for)}\nevent: change\ndata: {{}}\n\n"

    stream = Api(serve(answer)).stream("/changes")

    assert [next(stream), next(stream)] == [("change", "{}"), ("change", "{}")]
    assert asked_for == [None, "1"]


def test_a_stream_event_may_span_lines_and_an_unfinished_one_is_dropped() -> None:
    lines = iter(["data: a", "data:b", "", "id: 9", "data: never ended"])
    assert list(parse_stream(lines)) == [("message", "a\nb", None)]


def test_the_token_never_comes_from_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SERVERCHANGE_CLIENT_TOKEN", raising=False)
    assert run(monkeypatch, "channels", "add", "forsen", "--through-api") == ExitCode.USAGE
    assert "SERVERCHANGE_CLIENT_TOKEN" in capsys.readouterr().err


def test_a_channel_is_tracked_through_the_api_with_the_token(
    serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str | None] = []

    def answer(_: str, headers: dict[str, str]) -> tuple[int, str]:
        seen.append(headers.get("authorization"))
        return 202, json.dumps({"accepted": 1, "position": "3@7"})

    monkeypatch.setenv("SERVERCHANGE_CLIENT_TOKEN", "secret")
    assert run(monkeypatch, "channels", "add", "#Forsen", "--through-api", "--api", serve(answer), "--json") == 0
    assert seen == ["Bearer secret"]
    assert json.loads(capsys.readouterr().out) == {"accepted": 1, "position": "3@7"}


def test_where_prints_columns_and_fails_for_an_unknown_channel(
    serve: Callable[[Answer], str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forsen = {
        "channel": "forsen",
        "cluster": "aws",
        "status": "settled",
        "since": "2016-02-14T12:00:00Z",
        "verified_at": None,
        "version": 2,
        "labels": ["partner"],
    }
    body = {"channels": [forsen], "unknown": ["nobody"], "as_of": "2016-02-14T12:00:01Z", "behind_records": 0}
    url = serve(lambda *_: (200, json.dumps(body)))

    assert run(monkeypatch, "where", "forsen", "nobody", "--api", url) == ExitCode.CHECK_FAILED

    told = capsys.readouterr()
    assert "forsen\taws\tsettled\t2016-02-14T12:00:00Z\t-\t2\tpartner" in told.out
    assert "serverchange channels add nobody" in told.err


def look_up(known: set[str], asked: list[int] | None = None) -> Callable[[Sequence[str]], dict[str, Any]]:
    """A bulk look-up that knows these names, and notes how many it was asked for."""

    def ask(channels: Sequence[str]) -> dict[str, Any]:
        if asked is not None:
            asked.append(len(channels))
        found = [{"channel": name} for name in reversed(channels) if name in known]
        unknown = [name for name in channels if name not in known]
        return {"channels": found, "unknown": unknown, "as_of": None, "behind_records": None}

    return ask


def test_names_from_a_file_are_answered_in_their_order_and_bad_lines_are_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    names = NamedLines([b"#Forsen\r\n", b"\n", b"a b\n", b"nobody\n", b"\xff\xfe\n", b"caedrel\n", b"forsen"])

    found = [one["channel"] for one in names.answers(look_up({"forsen", "caedrel"}))]

    assert found == ["forsen", "caedrel", "forsen"]
    assert (names.lines, names.bad, names.unknown) == (6, 2, 1)
    told = capsys.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in told] == ["line 3", "line 5", "line 4"]
    assert "'a b' is not a channel" in told[0]
    assert told[2] == "line 4: nobody ever tracked nobody"


def test_many_names_are_asked_for_in_portions_and_answered_before_the_last_is_read() -> None:
    asked: list[int] = []
    read: list[int] = []

    def lines() -> Iterator[bytes]:
        for number in range(2 * NAMES_A_REQUEST + 1):
            read.append(number)
            yield b"c%d\n" % number

    known = {f"c{number}" for number in range(2 * NAMES_A_REQUEST + 1)}
    answers = NamedLines(lines()).answers(look_up(known, asked))

    assert next(answers)["channel"] == "c0"
    assert len(read) == NAMES_A_REQUEST
    assert len(list(answers)) == 2 * NAMES_A_REQUEST
    assert asked == [NAMES_A_REQUEST, NAMES_A_REQUEST, 1]


@pytest.mark.parametrize(
    ("lines", "code", "said"),
    [
        (b"forsen\n", 0, "as of never yet, Kafka is away"),
        (b"forsen\nnobody\n", ExitCode.CHECK_FAILED, "1 of 2 lines name a channel that nobody ever tracked"),
        (b"forsen\nnobody\na b\n", ExitCode.USAGE, "1 of 3 lines are no channel's name; 1 of 3 lines name"),
        (b"", 0, ""),
    ],
)
def test_where_reads_standard_input_and_its_code_says_what_it_met(
    lines: bytes,
    code: int,
    said: str,
    serve: Callable[[Answer], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    body = {"channels": [{"channel": "forsen"}], "unknown": [], "as_of": None, "behind_records": None}
    url = serve(lambda *_: (200, json.dumps(body)))

    assert run(monkeypatch, "where", "--stdin", "--output", "ndjson", "--api", url) == code

    told = capsys.readouterr()
    assert told.out == ('{"channel":"forsen"}\n' if lines else "")
    assert said in told.err


NOW = {
    "channel": "forsen",
    "cluster": "aws",
    "status": "settled",
    "since": "2016-02-14T12:00:00Z",
    "verified": False,
    "verified_at": None,
    "services": ["demo"],
    "pinned": None,
    "kind": "chat",
}
DECIDED = {
    "decided_by": {
        "partition": 3,
        "offset": 42,
        "event": {"type": "tv.serverchange.cluster.observed.v1", "source": "poller-1", "data": {"cluster": "aws"}},
    },
    "evidence": ["a", "b"],
}


def test_why_names_the_record_that_decided_and_what_it_said() -> None:
    told = explain(NOW, DECIDED)
    assert told["decided_by"] == "channel-events, partition 3, offset 42"
    assert told["it_said"] == 'tv.serverchange.cluster.observed.v1 from poller-1: {"cluster": "aws"}'
    assert told["verified"] == "no: a lookup is wanted"


def test_why_says_that_an_operator_s_word_wins() -> None:
    assert "operator" in str(explain({**NOW, "pinned": "aws"}, None)["pinned"])


def test_why_says_when_a_channel_is_asked_next_and_what_speaks_for_it() -> None:
    plan = LookupPlan(
        channel="forsen",
        poller="poller-1",
        reason="may go live elsewhere",
        score=12.5,
        sources={"moves in its cohort": 12.5, "neighbours that moved": 3.25},
        parts={"seconds since verified": 61.0},
        next_lookup_in_s=90.0,
        next_lookup_at="2016-02-14T12:00:00Z",
    )
    told = explain_lookup(plan)
    assert told["asked_next"] == "in about 90 s: may go live elsewhere"
    assert told["score"] == "12.5 s of exposure that a lookup now is expected to save"
    assert (told["  neighbours that moved"], told["  seconds since verified"]) == ("3.25 s", "61")


def test_why_gives_no_time_where_lookups_tell_nothing_and_where_nobody_knows() -> None:
    pinned = LookupPlan(channel="forsen", poller="poller-1", reason="it is pinned")
    assert explain_lookup(pinned) == {"asked_next": "it is pinned", "by": "poller-1"}
    assert explain_lookup(None) == {"asked_next": "not known"}


def test_a_change_is_described_in_one_line() -> None:
    data = {
        "what": "moved",
        "previous": "main",
        "cluster": "aws",
        "version": 2,
        "since": "2016-02-14T12:00:00Z",
        "labels": ["partner"],
    }
    line = Text.from_ansi(describe({"subject": "forsen", "data": data})).plain
    assert line.split() == ["2016-02-14T12:00:00Z", "forsen", "moved", "main", "->", "aws", "version", "2", "[partner]"]
