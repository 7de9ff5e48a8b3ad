"""Owns how a REST route asks for its caller: one dependency.

It must not know how keys are stored; auth.py decides.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request

from tunesmith_server.auth import Authenticator, Principal


async def current_principal(request: Request) -> Principal:
    """The caller of a public route; raises UnauthenticatedError."""
    authenticator: Authenticator = request.app.state.authenticator
    return await authenticator.principal(request.headers.get("authorization"))


CurrentPrincipal = Annotated[Principal, Depends(current_principal)]
"""Type of a route parameter that receives the caller."""
