"""Loaded by every Python process whose path begins here: connections leave this machine for nowhere."""

import socket

_connect = socket.socket.connect


def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise OSError(f"blocked: a test tried to reach {address[0]}")
    return _connect(self, address)


socket.socket.connect = connect
