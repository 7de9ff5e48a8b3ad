"""Owns the wiring: settings in, one object with every part of the control plane out.

It must not know transports: http_app.py and grpc_app.py put this core on the wire.
"""

from __future__ import annotations

from tunesmith_server.core import Core

__all__ = ["Core"]
