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
from typing import Any, NoReturn

LOST = 1
"""Exit code after the death of another process; launchers restart on it."""
SILENCE = 30
"""Number of seconds after which a host that does not answer has failed."""
GRACE = 10.0
"""Number of seconds that the others have to end by themselves, when one ends with an error."""
_KEY, _TIMEOUT = "sdft_jax/liveness", 60
_SIGNALLED = 128


@dataclasses.dataclass(frozen=True)
class _Group:
    """The connections of this process: of process 0 one to each other process, of the others one to it."""

    process: int
    connections: dict[int, socket.socket]
    readers: list[threading.Thread]
    failed: threading.Event
    """Set when this process has its own error, which it reports itself."""


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
    group = _Group(process, {}, [], threading.Event())
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
        _follow(group, 0, coordinator, connection)
    _groups.append(group)


def has_joined() -> bool:
    """Return True if this process has joined others."""
    return bool(_groups)


def leave(code: int) -> None:
    """Send this process's exit code to the others; after an error, end this process with it.

    It does nothing in a process that has not joined others. After a success or a signal it returns, and JAX
    waits for the other processes as the interpreter ends. After an error the others do not come: process 0,
    which JAX's coordination depends on, waits until they have ended.
    """
    for group in _groups:
        _forward(group, process=group.process, host=socket.gethostname(), code=code)
        if _is_error(code):
            group.failed.set()
            if group.process == 0:
                _await_ends(group)
            _end(code)


def _await_ends(group: _Group) -> None:
    until = time.monotonic() + 2 * GRACE
    for reader in group.readers:
        reader.join(max(0.0, until - time.monotonic()))


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _accept(group: _Group, server: socket.socket, secret: str, count: int) -> None:
    """Accept the connections of the others; a stranger does not have the secret."""
    with server:
        while len(group.connections) < count:
            connection, _ = server.accept()
            connection.settimeout(_TIMEOUT)
            hello = _receive(connection)
            if hello.get("secret") == secret:
                connection.settimeout(None)
                _follow(group, hello["process"], hello["host"], connection)
            else:
                connection.close()


def _follow(group: _Group, process: int, host: str, connection: socket.socket) -> None:
    _probe(connection)
    group.connections[process] = connection
    reader = threading.Thread(target=_read, args=(group, process, host, connection), daemon=True)
    group.readers.append(reader)
    reader.start()


def _probe(connection: socket.socket) -> None:
    """Let the kernel probe the other host, and end the connection if it does not answer."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", (SILENCE - 10) // 5)):
        if hasattr(socket, name):  # not on every system
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _read(group: _Group, process: int, host: str, connection: socket.socket) -> None:
    """Read the ends of processes until the connection ends; without one, the other process was killed."""
    ended = False
    while end := _receive(connection):
        ended = ended or end["process"] == process
        _react(group, **end)
    if not ended:
        _react(group, process, host, None)


def _react(group: _Group, process: int, host: str, code: int | None) -> None:
    """End this process if another one has ended with an error, or was killed (`code` is None)."""
    if code is not None and not _is_error(code):
        return
    if group.process == 0:
        _forward(group, process=process, host=host, code=code)
    if code is None:
        if group.failed.is_set():
            return
        _print(
            f"process {process} on {host} has ended without a message, since it was killed or its host has "
            "failed: start all processes again to resume."
        )
        _end(LOST)
    if group.failed.wait(GRACE):  # with the same error, most often
        return
    _print(f"process {process} on {host} has ended with exit code {code}: see its message.")
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
