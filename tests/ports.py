"""A port for a server that starts later, in a process of its own."""

import secrets
import socket
from contextlib import suppress


def free_port():
    """One that nobody uses, below those that the system gives to whoever asks for any."""
    while True:
        port = 20_000 + secrets.randbelow(10_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
