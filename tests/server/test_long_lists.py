"""Long lists are made beside the event loop, which goes on meanwhile."""

from __future__ import annotations

import asyncio
import threading

from tunesmith_server.files.schemas import FileList
from tunesmith_server.long_lists import encoded


async def test_the_loop_goes_on_while_a_list_is_made() -> None:
    went_on = threading.Event()

    def make() -> FileList:
        assert went_on.wait(10)
        return FileList(data=[], first_id=None, last_id="ü", has_more=False)

    answering = asyncio.create_task(encoded(make))
    await asyncio.sleep(0)
    went_on.set()
    response = await answering

    assert response.body == '{"object":"list","data":[],"first_id":null,"last_id":"ü","has_more":false}'.encode()
    assert response.headers["content-type"] == "application/json"
