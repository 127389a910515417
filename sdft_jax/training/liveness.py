"""Ends of processes: if one process of a run ends with an error, or is killed, the others end with a message.

Without this, JAX 0.10 aborts the others with a C++ stack trace and exit code 134: within 1 s of the death of
process 0, and 80 to 100 s after that of any other. Each process has a connection to process 0, over which it
sends its exit code. The kernel closes the connection of a process that is killed, and ends that to a host
that does not answer within `SILENCE` seconds. Process 0 forwards what it receives.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

LOST = 1
"""Exit code after the death of another process; launchers restart on it."""
SILENCE = 30
"""Number of seconds after which a host that does not answer has failed."""
GRACE = 10.0
"""Number of seconds that the others have to end by themselves, when one ends with an error."""
_KEY, _TIMEOUT = "sdft_jax/liveness", 60
_MOMENT = 1.0
"""Number of seconds in which the death of another process is known to all."""
_SIGNALLED = 128


@dataclasses.dataclass(frozen=True)
class _Group:
    """The connections of this process: of process 0 one to each other process, of the others one to it."""

    process: int
    connections: dict[int, socket.socket] = dataclasses.field(default_factory=dict)
    reported: dict[int, threading.Event] = dataclasses.field(default_factory=dict)
    """Set when another process has reported an error, or has ended."""
    ended: dict[int, threading.Event] = dataclasses.field(default_factory=dict)
    """Set when another process has ended or, by process 0, when the others may end."""
    failed: threading.Event = dataclasses.field(default_factory=threading.Event)
    """Set when this process has its own error, which it reports itself."""
    reacting: threading.Lock = dataclasses.field(default_factory=threading.Lock)
    """Held from the first end of another process by an error on."""


_groups: list[_Group] = []
"""The group that this process has joined, if any: `leave` is called where nothing else is known of it."""


def join(client: Any, process: int, processes: int, coordinator: str) -> None:
    """Connect this process with process 0, and follow the ends of the others in background threads.

    Args:
        client: JAX's client of the coordination service, through which process 0 publishes its port.
        process: the index of this process.
        processes: the number of processes.
        coordinator: the host of process 0, by name or address.
    """
    group = _Group(process)
    if process == 0:
        server = _listen()
        secret = secrets.token_hex(16)
        client.key_value_set(_KEY, json.dumps([server.getsockname()[1], secret]))
        threading.Thread(target=_accept, args=(group, server, secret, processes - 1), daemon=True).start()
    else:
        port, secret = json.loads(client.blocking_key_value_get(_KEY, 1000 * _TIMEOUT))
        try:
            connection = socket.create_connection((coordinator, port), _TIMEOUT)
        except OSError as error:
            _print(
                f"process {process} cannot connect to port {port} of {coordinator} ({error}): it will notice "
                "the death of another process late, and end without a message."
            )
            return
        connection.settimeout(None)
        _send(connection, secret=secret, process=process, host=socket.gethostname())
        threading.Thread(target=_follow, args=(group, 0, coordinator, connection), daemon=True).start()
    _groups.append(group)


def has_joined() -> bool:
    """Return True if this process has joined others."""
    return bool(_groups)


def leave(code: int) -> None:
    """Send this process's exit code to the others; after an error, end this process with it.

    It does nothing in a process that has not joined others. After a success or a signal it returns, and JAX
    waits for the other processes as the interpreter ends. After an error the others do not come, and this
    process waits until they have reported theirs: a collective operation whose partner has gone raises an
    exception.
    """
    for group in _groups:
        if _is_error(code):
            group.failed.set()
        _forward(group, process=group.process, host=socket.gethostname(), code=code)
        if _is_error(code):
            if group.process == 0:
                _await(group.reported, GRACE)
            _finish(group, code)


def leave_after_exception() -> None:
    """Print the traceback of the exception that is being handled, and leave.

    If it is a consequence of the death of another process, this process ends without it: the sentence about
    that process arrives within moments.
    """
    time.sleep(_MOMENT)
    traceback.print_exc()
    leave(LOST)


def _finish(group: _Group, code: int) -> NoReturn:
    """End this process, and process 0 as the last one: without it, JAX aborts the others."""
    if group.process == 0:
        _forward(group, over=True)
    _await(group.ended, 2 * GRACE)
    _end(code)


def _await(events: dict[int, threading.Event], seconds: float) -> None:
    until = time.monotonic() + seconds
    for event in list(events.values()):
        event.wait(max(0.0, until - time.monotonic()))


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accept(group: _Group, server: socket.socket, secret: str, count: int) -> None:
    """Accept the connections of the others, each in a thread: a stranger may send nothing."""
    with server:
        server.settimeout(1.0)  # the last connection is counted by its own thread
        while len(group.connections) < count:
            try:
                connection, _ = server.accept()
            except OSError:  # none has come, or it has gone again, or there are too many open files
                time.sleep(0.1)
                continue
            threading.Thread(target=_welcome, args=(group, connection, secret), daemon=True).start()


def _welcome(group: _Group, connection: socket.socket, secret: str) -> None:
    """Follow the process that has connected; a stranger does not have the secret."""
    connection.settimeout(_TIMEOUT)
    hello = _receive(connection)
    if hello.get("secret") == secret:
        connection.settimeout(None)
        _follow(group, hello["process"], hello["host"], connection)
    else:
        connection.close()


def _follow(group: _Group, process: int, host: str, connection: socket.socket) -> None:
    """Read the ends of processes until the connection ends; without one, the other process was killed."""
    _probe(connection)
    reported, ended = threading.Event(), threading.Event()
    group.reported[process], group.ended[process] = reported, ended
    group.connections[process], left = connection, False
    while message := _receive(connection):
        if "over" in message:
            ended.set()
            continue
        if message["process"] == process:
            left = True
            if _is_error(message["code"]):
                reported.set()
        threading.Thread(target=_react, args=(group,), kwargs=message, daemon=True).start()
    reported.set()
    ended.set()
    if not left:
        _react(group, process, host, None)


def _probe(connection: socket.socket) -> None:
    """Let the kernel probe the other host, and end the connection if it does not answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", (SILENCE - 10) // 5)):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _react(group: _Group, process: int, host: str, code: int | None) -> None:
    """End this process if another one has ended with an error, or was killed (`code` is None)."""
    if code is not None and not _is_error(code):
        return
    if not group.reacting.acquire(blocking=False):
        return  # to an earlier end, which ends this process and the others
    if group.process == 0:
        _forward(group, process=process, host=host, code=code)
    if group.failed.wait(0 if code is None else GRACE):  # with the same error, most often
        return
    if code is None:
        _print(
            f"process {process} on {host} has ended without a message, since it was killed or its host has "
            "failed: start all processes again to resume."
        )
    else:
        _print(f"process {process} on {host} has ended with exit code {code}: see its message.")
    code = LOST if code is None else code
    if group.process == 0:
        _finish(group, code)
    _end(code)


def _is_error(code: int) -> bool:
    return 0 < code < _SIGNALLED


def _forward(group: _Group, **end: Any) -> None:
    for connection in list(group.connections.values()):
        _send(connection, **end)


def _send(connection: socket.socket, **message: Any) -> None:
    with contextlib.suppress(OSError):  # the other process has ended
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket) -> dict[str, Any]:
    """Return the next message; {} at the end of the connection, or for what is not a message."""
    line = b""
    with contextlib.suppress(OSError, ValueError):
        while (byte := connection.recv(1)) and byte != b"\n" and len(line) < 1000:
            line += byte
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return {}


def _print(message: str) -> None:
    print(f"sdft: {message}", file=sys.stderr, flush=True)


def _end(code: int) -> NoReturn:
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
