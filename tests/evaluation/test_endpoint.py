"""Requests to a real server on this machine: concurrency, repetitions, storage, outages and bad replies."""

import json
import sys
import threading

import pytest

from endpoints import Response, serve
from sdft_jax.errors import SdftError
from sdft_jax.evaluation.endpoint import ATTEMPTS, Failure, Form, ask_all, check_endpoint

KEY = "sk-very-secret-0123456789"

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture
def environment(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def number(reply):
    if not reply.strip().isdigit():
        raise ValueError("it is not a number")
    return int(reply)


NUMBER = Form("number-v1", number)


def double(messages):
    return str(2 * int(messages[0]["content"]))


def test_replies_are_in_order_and_stored(tmp_path):
    cache = tmp_path / "replies.jsonl"
    with serve(double) as endpoint:
        assert ask_all(["4", "1", "4"], NUMBER, endpoint.config(cache)) == [8, 2, 8]
        assert len(endpoint.bodies) == 2, "equal requests are made once"
        assert endpoint.bodies[0] == {
            "model": "grader",
            "messages": [{"role": "user", "content": endpoint.bodies[0]["messages"][0]["content"]}],
            "temperature": 0.0,
        }
        assert endpoint.keys == {KEY}
        assert ask_all(["1", "3"], NUMBER, endpoint.config(cache)) == [2, 6]
        assert len(endpoint.bodies) == 3
        ask_all(["1"], NUMBER, endpoint.config(cache, model="other", temperature=None))
        assert len(endpoint.bodies) == 4
        assert "temperature" not in endpoint.bodies[-1]
    assert ask_all(["1", "3", "4"], NUMBER, endpoint.config(cache)) == [2, 6, 8], "without the endpoint"
    assert KEY not in cache.read_text()


def test_requests_run_at_the_same_time_within_the_limit(tmp_path):
    """Each request waits until three are there: fewer would fail the barrier, and a fourth would break it."""
    barrier = threading.Barrier(3)
    active, most, lock = 0, 0, threading.Lock()

    def respond(messages):
        nonlocal active, most
        with lock:
            active += 1
            most = max(most, active)
        barrier.wait(timeout=60)
        with lock:
            active -= 1
        barrier.wait(timeout=60)
        return double(messages)

    with serve(respond) as endpoint:
        prompts = [str(i) for i in range(9)]
        assert ask_all(prompts, NUMBER, endpoint.config(tmp_path / "r", concurrency=3)) == [*range(0, 18, 2)]
    assert most == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_failed_requests_are_repeated(status, tmp_path):
    soon = Response(status, headers=(("retry-after-ms", "1"),))
    responses = [soon, soon, "7"]
    with serve(lambda messages: responses.pop(0)) as endpoint:
        assert ask_all(["1"], NUMBER, endpoint.config(tmp_path / "r", retries=2)) == [7]
        assert len(endpoint.bodies) == 3


def test_reply_in_another_form_is_asked_for_again_with_the_problem(tmp_path):
    replies = ["It is seven.", "<think>7? 8?</think> 7"]
    with serve(lambda messages: replies.pop(0)) as endpoint:
        assert ask_all(["1"], NUMBER, endpoint.config(tmp_path / "r")) == [7]
        roles = [turn["role"] for turn in endpoint.bodies[1]["messages"]]
        assert roles == ["user", "assistant", "user"]
        assert "it is not a number" in endpoint.bodies[1]["messages"][-1]["content"]
        assert ask_all(["1"], NUMBER, endpoint.config(tmp_path / "r")) == [7]
        assert len(endpoint.bodies) == 2, "the reply is stored for the request without the problem"


NOT_JSON = Response(200, b"<html>Welcome</html>", (("Content-Type", "text/html"),))


@pytest.mark.parametrize(
    ("response", "problem"),
    [
        ("perhaps", "it is not a number; the reply is 'perhaps'"),
        ("", "it is not a number; the reply is empty"),
        ("x" * 500, f"it is not a number; the reply is '{'x' * 80}...'"),
        (NOT_JSON, "it is not a chat completion, but '<html>Welcome</html>'"),
        (Response(200, b'{"choices": []}'), "it is not a chat completion, but "),
        (Response(200, b'{"choices": {"first": {}}}'), "it is not a chat completion, but "),
        (Response(200, b'{"choices": [{"message": {"content": [1]}}]}'), "is not a text"),
        (Response(200, b"{"), "Expecting"),
    ],
    ids=["other", "empty", "long", "html", "no choice", "object", "list", "broken"],
)
def test_endpoint_that_answers_nonsense_fails_row_by_row(response, problem, tmp_path):
    """The request of 2 is answered, and stays stored."""
    cache = tmp_path / "r"

    def respond(messages):
        return "4" if messages[0]["content"] == "2" else response

    with serve(respond) as endpoint:
        bad, good, other = ask_all(["1", "2", "3"], NUMBER, endpoint.config(cache, concurrency=1))
        assert problem in bad.reason
        assert isinstance(other, Failure)
        assert good == 4
        assert len(endpoint.bodies) == 2 * ATTEMPTS + 1
        assert ask_all(["2"], NUMBER, endpoint.config(cache)) == [4]
        assert len(endpoint.bodies) == 2 * ATTEMPTS + 1


def test_endpoint_that_goes_down_keeps_the_replies_and_is_not_asked_further(tmp_path):
    cache, up = tmp_path / "r", [True]

    def respond(messages):
        return double(messages) if up[0] or messages[0]["content"] == "0" else None

    with serve(respond) as endpoint:
        config = endpoint.config(cache, concurrency=2)
        up[0] = False
        zero, *rest = ask_all([str(i) for i in range(30)], NUMBER, config)
        assert zero == 0
        assert len(endpoint.bodies) <= 6
        assert "no connection to http://127.0.0.1:" in rest[0].reason
        assert rest[-1].reason.startswith("not asked, since the endpoint is down: no connection to http://")
        up[0] = True
        asked = len(endpoint.bodies)
        assert ask_all([str(i) for i in range(30)], NUMBER, config) == [2 * i for i in range(30)]
        assert len(endpoint.bodies) == asked + 29, "0 is stored"
    (nobody,) = ask_all(["99"], NUMBER, config)
    assert "no connection to http://127.0.0.1:" in nobody.reason


def test_endpoint_that_does_not_reply_in_time(tmp_path):
    release = threading.Event()
    with serve(lambda messages: str(release.wait())) as endpoint:
        (failure,) = ask_all(["1"], NUMBER, endpoint.config(tmp_path / "r", timeout=0.05))
        release.set()
    assert failure == Failure("no reply within 0.05 s", is_outage=True)


def test_one_request_that_is_too_long_fails_alone(tmp_path):
    message = json.dumps({"error": {"message": f"maximum context length (key {KEY})"}}).encode()

    def respond(messages):
        return Response(400, message) if messages[0]["content"] == "1" else double(messages)

    with serve(respond) as endpoint:
        config = endpoint.config(tmp_path / "r", concurrency=1)
        failure, *rest = ask_all(["1", "2", "3"], NUMBER, config)
    assert "maximum context length (key ***)" in failure.reason
    assert rest == [4, 6]


@pytest.mark.parametrize(
    ("status", "text", "problem"),
    [
        (401, f"Incorrect API key provided: {KEY}", r"refuses the key \(401\): put a key .* OPENAI_API_KEY"),
        (404, "The model `grader` does not exist", r"has no model 'grader' .*does not exist.* judge\.model"),
        (400, "'temperature' does not support 0", r"refuses judge\.temperature=0\.0 .*temperature=null"),
    ],
)
def test_endpoint_that_refuses_all_requests_is_an_error(status, text, problem, tmp_path):
    response = Response(status, json.dumps({"error": {"message": text}}).encode())
    with serve(lambda messages: response) as endpoint:
        with pytest.raises(SdftError, match=problem) as raised:
            ask_all([str(i) for i in range(50)], NUMBER, endpoint.config(tmp_path / "r", concurrency=2))
        assert len(endpoint.bodies) <= 4
    assert KEY not in str(raised.value)


def test_key_with_a_line_break_is_refused_without_being_printed(tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", f"{KEY}\nx")
    with serve(double) as endpoint:
        with pytest.raises(SdftError, match="the environment variable JUDGE_KEY has characters") as raised:
            ask_all(["1"], NUMBER, endpoint.config(tmp_path / "r", key="JUDGE_KEY"))
        monkeypatch.delenv("JUDGE_KEY")
        assert ask_all(["1"], NUMBER, endpoint.config(tmp_path / "r", key="JUDGE_KEY")) == [2]
        assert endpoint.keys == {"none"}
    assert KEY not in str(raised.value)


def test_key_in_a_reply_is_not_stored(tmp_path):
    with serve(lambda messages: f"<think>{KEY}</think>5") as endpoint:
        assert ask_all(["1"], NUMBER, endpoint.config(tmp_path / "r")) == [5]
    assert "***" in (tmp_path / "r").read_text()
    assert KEY not in (tmp_path / "r").read_text()


def test_package_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with serve(double) as endpoint, pytest.raises(SdftError, match=r"pip install 'sdft_jax\[judge\]'"):
        ask_all(["1"], NUMBER, endpoint.config(tmp_path / "r"))


def test_check_makes_no_request_and_reports_damaged_lines(tmp_path, capsys):
    with serve(double) as endpoint:
        check_endpoint(endpoint.config(tmp_path / "r"))
        assert capsys.readouterr().err == ""
        (tmp_path / "r").write_text("noise\n")
        check_endpoint(endpoint.config(tmp_path / "r"))
        assert endpoint.bodies == []
    assert "r: 1 damaged lines are ignored; their requests are made again." in capsys.readouterr().err
