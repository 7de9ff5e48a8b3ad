"""What the gateway relies on in an engine, held against the simulator and against real vLLM alike.

The second half needs the real one: that it computes what a run recorded, also with all adapter slots in use, and that
the simulator answers, refuses and dies as it does. The last test kills both, so nothing that needs them may come later.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from tests.inference import real_model
from tests.inference.conftest import MODEL, Engine
from tests.inference.engine_contract import (
    BAD,
    CALL,
    DAMAGES,
    GOOD,
    LONG,
    MESSAGES,
    ONE_OF_TWO,
    Ask,
    dies,
    differences,
    kill_core,
    life,
    lose_core,
    said,
)
from tests.inference.folder_served_set import servable, served_from_folders
from tests.inference.gateway import requests_running, until
from tests.support.processes import listens_to_others
from tunesmith_inference import proof
from tunesmith_inference.errors import GatewayError
from tunesmith_inference.request_body import Route
from tunesmith_inference.served_set import Unservable
from tunesmith_inference.vllm import AdapterRefused, EngineUnavailable, VllmClient

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_it_says_that_it_lives_and_which_version_it_is(engine: Engine) -> None:
    assert await engine.client.healthy()
    assert (await engine.client.version()).startswith("0.")


async def test_adapters_come_and_go_and_doing_it_twice_is_no_error(engine: Engine) -> None:
    adapter = engine.make_adapter(engine.folder / "comes-and-goes", 100)
    for _ in range(2):
        await engine.client.load_adapter("r-100", adapter)
    answer = await engine.client.complete_greedily("r-100", [5, 6, 7], 4)
    assert answer.token_ids != (await engine.client.complete_greedily(MODEL, [5, 6, 7], 4)).token_ids
    for _ in range(2):
        await engine.client.unload_adapter("r-100")
    with pytest.raises(EngineUnavailable):
        await engine.client.answer(Route.CHAT, {"model": "r-100", "messages": MESSAGES})


async def test_it_lists_what_it_holds(engine: Engine) -> None:
    adapter = engine.make_adapter(engine.folder / "listed", 102)
    await engine.client.load_adapter("r-102", adapter)
    assert {MODEL, "r-102"} <= await engine.client.models()
    await engine.client.unload_adapter("r-102")
    assert "r-102" not in await engine.client.models()


@pytest.mark.parametrize("fault", ["no files", "rank"])
async def test_what_is_no_adapter_for_it_is_refused(engine: Engine, fault: str) -> None:
    folder = engine.folder / fault
    if fault == "rank":
        engine.make_adapter(folder, 101)
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"r": 512}))
    with pytest.raises(AdapterRefused):
        await engine.client.load_adapter(f"r-{fault}", folder)
    assert await engine.client.healthy()


async def test_token_ids_go_in_and_come_out_with_their_log_probabilities(engine: Engine) -> None:
    first, second = [await engine.client.complete_greedily(MODEL, [5, 6, 7], 5) for _ in range(2)]
    assert first == second
    assert len(first.token_ids) == len(first.logprobs) == 5
    assert all(logprob <= 0 for logprob in first.logprobs)


async def test_a_chat_answer_has_what_clients_need(engine: Engine) -> None:
    answer = await engine.client.answer(Route.CHAT, {"model": MODEL, "messages": MESSAGES, "max_tokens": 3, "n": 2})
    assert {"id", "object", "created", "model", "choices", "usage"} <= set(answer)
    assert answer["object"] == "chat.completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert isinstance(answer["choices"][0]["message"]["content"], str)


async def test_several_greedy_answers_are_one_that_is_made_once(engine: Engine) -> None:
    body = {"model": MODEL, "prompt": ["one", "two"], "max_tokens": 3, "temperature": 0, "ignore_eos": True}
    alone = await engine.client.answer(Route.COMPLETIONS, body)
    answer = await engine.client.answer(Route.COMPLETIONS, body | {"n": 3})
    one, two = [choice["text"] for choice in alone["choices"]]
    told = [(choice["index"], choice["text"]) for choice in answer["choices"]]
    assert told == list(enumerate([one] * 3 + [two] * 3))
    assert answer["usage"] == alone["usage"]


async def test_several_greedy_answers_are_streamed_side_by_side(engine: Engine) -> None:
    options = {"n": 2, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 3, "ignore_eos": True, **options}
    body["logit_bias"] = real_model.ONLY_A
    said, used = {0: "", 1: ""}, 0
    async with engine.client.stream(Route.CHAT, body) as chunks:
        async for chunk in chunks:
            assert len(chunk["choices"]) == (0 if chunk.get("usage") else 1)
            used = (chunk.get("usage") or {}).get("completion_tokens", used)
            for choice in chunk["choices"]:
                said[choice["index"]] += choice["delta"].get("content") or ""
    assert said[0] == said[1] != ""
    assert used == 3


async def test_a_stream_ends_with_usage(engine: Engine) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}, "max_tokens": 3, "ignore_eos": True}
    async with engine.client.stream(Route.CHAT, {"model": MODEL, "messages": MESSAGES, **options}) as chunks:
        seen = [chunk async for chunk in chunks]
    assert {chunk["object"] for chunk in seen} == {"chat.completion.chunk"}
    assert seen[-1]["choices"] == []
    assert seen[-1]["usage"]["completion_tokens"] == 3
    assert [chunk["choices"][0]["finish_reason"] for chunk in seen[:-1]][-1] == "length"


async def test_a_stream_tells_usage_all_the_way(engine: Engine) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 3, "ignore_eos": True, **options}
    async with engine.client.stream(Route.CHAT, body) as chunks:
        seen = [chunk async for chunk in chunks]
    made = [chunk["usage"]["completion_tokens"] for chunk in seen]
    assert made == sorted(made)
    assert (made[-2], made[-1], seen[-1]["choices"]) == (3, 3, [])
    assert {chunk["usage"]["prompt_tokens"] for chunk in seen} == {seen[-1]["usage"]["prompt_tokens"]}


async def test_a_stream_can_be_left(engine: Engine) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "stream": True, "max_tokens": 400, "ignore_eos": True}
    async with engine.client.stream(Route.CHAT, body) as chunks:
        await anext(chunks)
    assert await engine.client.healthy()


async def test_a_tool_that_must_be_called_is_called_with_arguments(engine: Engine) -> None:
    answer = await engine.client.answer(Route.CHAT, CALL)
    (choice,) = answer["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["type"], call["function"]["name"], choice["finish_reason"]) == ("function", "say", "tool_calls")
    assert set(json.loads(call["function"]["arguments"])) == {"said"}


async def test_a_call_is_streamed_in_parts(engine: Engine) -> None:
    async with engine.client.stream(Route.CHAT, {**CALL, "stream": True}) as chunks:
        choices = [choice async for chunk in chunks for choice in chunk["choices"]]
    calls = [call for choice in choices for call in choice["delta"].get("tool_calls") or ()]
    assert (calls[0]["type"], calls[0]["function"]["name"], {call["index"] for call in calls}) == (
        "function",
        "say",
        {0},
    )
    assert all(call["id"] for call in calls[:1])
    arguments = "".join(call["function"].get("arguments") or "" for call in calls)
    assert set(json.loads(arguments)) == {"said"}
    assert choices[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("changes", "code", "param"),
    [
        ({"temperature": 9}, "invalid_value", "temperature"),
        ({"max_tokens": 100_000}, "context_length_exceeded", "max_tokens"),
        ({"messages": [{"role": "user", "content": "word " * 5000}]}, "context_length_exceeded", "messages"),
        ({"logit_bias": 5}, "invalid_value", "logit_bias"),
        ({"presence_penalty": 3}, "invalid_value", "presence_penalty"),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_refusals_can_be_told_to_clients(
    engine: Engine, changes: dict[str, Any], code: str, param: str, stream: bool
) -> None:
    body = {"model": MODEL, "messages": MESSAGES, **changes}
    with pytest.raises(GatewayError) as caught:
        await (_streamed(engine.client, body) if stream else engine.client.answer(Route.CHAT, body))
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, code, param)
    assert "\n" not in caught.value.message
    assert "parameter=" not in caught.value.message


async def test_an_unknown_model_is_an_engine_to_wait_for(engine: Engine) -> None:
    with pytest.raises(EngineUnavailable):
        await engine.client.answer(Route.CHAT, {"model": "nothing", "messages": MESSAGES})


async def test_a_stream_that_was_read_leaves_its_connection_to_the_next(tmp_path: Path) -> None:
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError):
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r")[0]))
                writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
                for event in (b'data: {"choices": []}\n\n', b"data: [DONE]\n\n"):
                    writer.write(b"%x\r\n%b\r\n" % (len(event), event))
                    await writer.drain()
                writer.write(b"0\r\n\r\n")
        writer.close()

    socket = tmp_path / "engine.sock"
    async with await asyncio.start_unix_server(serve, socket), VllmClient(socket, "key") as client:
        for _ in range(3):
            async with client.stream(Route.CHAT, {}) as chunks:
                assert [chunk async for chunk in chunks] == [{"choices": []}]
    assert connections == 1


@pytest.mark.engine
async def test_answers_and_arguments_fit_their_schema(vllm: Engine) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": ONE_OF_TWO, "strict": True}}
    # Without NO_BLANKS: the model would go on with blanks between two parts, and may not.
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 200, "temperature": 0}
    answer = await vllm.client.answer(Route.CHAT, body | {"response_format": wanted})
    assert json.loads(answer["choices"][0]["message"]["content"])["said"] in ("yes", "no")
    answer = await vllm.client.answer(Route.CHAT, CALL | body)
    called = answer["choices"][0]["message"]["tool_calls"][0]["function"]
    assert json.loads(called["arguments"])["said"] in ("yes", "no")


@pytest.mark.engine
async def test_real_adapters_are_proven_and_others_refused(vllm: Engine) -> None:
    served = await served_from_folders(vllm)
    adapters = {seed: vllm.make_adapter(vllm.folder / f"proof-{seed}", seed) for seed in (1, 2)}
    forged = vllm.make_adapter(vllm.folder / "proof-3", 3)
    (forged / "golden.json").write_bytes((adapters[1] / "golden.json").read_bytes())
    for seed in adapters:
        async with served.lease(servable(f"proof-{seed}")) as name:
            assert name == f"r-{servable(f'proof-{seed}').revision[:16]}"
    with pytest.raises(Unservable, match="log-probability"):
        async with served.lease(servable("proof-3")):
            pass


@pytest.mark.engine
async def test_an_engine_whose_proven_adapter_became_another_is_replaced(vllm: Engine) -> None:
    reasons: list[str] = []
    served = await served_from_folders(vllm, reasons.append)
    folders = {seed: vllm.make_adapter(vllm.folder / f"near-{seed}", seed) for seed in (21, 22, 23)}
    async with served.lease(servable("near-21")) as name:
        pass
    async with served.lease(servable("near-22")):
        assert reasons == []
    await vllm.client.unload_adapter(name)
    await vllm.client.load_adapter(name, folders[22])
    with pytest.raises(EngineUnavailable):
        async with served.lease(servable("near-23")):
            pass
    assert [f"adapter {name} gives token" in reason for reason in reasons] == [True]


@pytest.mark.engine
async def test_base_answers_stay_the_bases_with_all_slots_in_use(vllm: Engine) -> None:
    """On vLLM for CPU up to 0.32 base rows beside adapter rows get the last slot's delta (see engine_host.py)."""
    served = await served_from_folders(vllm)
    names, records = [], []
    for seed in (11, 12, 13):
        folder = vllm.make_adapter(vllm.folder / f"mixed-{seed}", seed)
        async with served.lease(servable(f"mixed-{seed}")) as name:
            names.append(name)
        records.append(proof.read_golden(folder))
    wrong = 0
    for _ in range(3):
        asked: list[Awaitable[bool]] = []
        for place in range(len(real_model.PROMPTS)):
            for name, record in zip(names, records, strict=True):
                prompt = record.prompts[place]
                asked.append(_is_right(vllm.client, name, prompt.prompt_token_ids, prompt.token_ids))
                asked.append(_is_right(vllm.client, "zero", prompt.prompt_token_ids, prompt.base_token_ids))
        wrong += (await asyncio.gather(*asked)).count(False)
    assert wrong == 0


@pytest.mark.engine
@pytest.mark.parametrize("ask", GOOD, ids=lambda ask: ask.name)
async def test_both_answer_alike(simulator: Engine, vllm: Engine, ask: Ask) -> None:
    answer = await said(vllm.http, ask)
    assert answer["status"] == 200
    assert not differences(await said(simulator.http, ask), answer)


@pytest.mark.engine
@pytest.mark.parametrize("ask", BAD, ids=lambda ask: ask.name)
async def test_both_refuse_alike(simulator: Engine, vllm: Engine, ask: Ask) -> None:
    refusal = await said(vllm.http, ask)
    assert 400 <= refusal["status"] < 500
    assert not differences(await said(simulator.http, ask), refusal)


@pytest.mark.engine
async def test_an_adapter_lives_the_same_life(simulator: Engine, vllm: Engine) -> None:
    assert not differences(await life(simulator), await life(vllm))


@pytest.mark.engine
@pytest.mark.parametrize("damage", DAMAGES)
async def test_damaged_adapters_are_refused_alike(simulator: Engine, vllm: Engine, damage: str) -> None:
    refusals = []
    for engine in (simulator, vllm):
        folder = engine.make_adapter(engine.folder / "damaged" / damage, 301)
        DAMAGES[damage](folder)
        body = {"lora_name": damage, "lora_path": str(folder)}
        refusals.append(await said(engine.http, Ask("load", "/v1/load_lora_adapter", body)))
    assert not differences(refusals[0], refusals[1])
    assert refusals[0]["status"] >= 400


async def test_an_answer_stops_where_it_should(engine: Engine) -> None:
    body = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    whole = (await engine.http.post(Route.COMPLETIONS, json=body)).json()["choices"][0]["text"]
    stop = next(character for character in whole[1:] if character.isascii() and character not in whole[:1])
    (choice,) = (await engine.http.post(Route.COMPLETIONS, json=body | {"stop": stop})).json()["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (
        whole[: whole.index(stop)],
        "stop",
        stop,
    )


async def test_a_seed_makes_an_answer_repeatable(engine: Engine) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 12, "temperature": 1, "seed": 7, "ignore_eos": True}
    first, second = [(await engine.http.post(Route.CHAT, json=body)).json()["choices"] for _ in range(2)]
    assert first == second


async def test_tokens_are_counted_over_all_answers(engine: Engine) -> None:
    body = {"model": MODEL, "prompt": ["one", "two"], "n": 2, "max_tokens": 3, "ignore_eos": True}
    answer = (await engine.http.post(Route.COMPLETIONS, json=body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["completion_tokens"] == 12
    assert answer["usage"]["total_tokens"] == 12 + answer["usage"]["prompt_tokens"]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_leaves_ends_its_request(engine: Engine, stream: bool) -> None:
    asking = asyncio.create_task(engine.http.post(Route.CHAT, json=LONG | {"stream": stream}))
    await until(lambda: requests_running(engine.http))
    asking.cancel()
    await asyncio.wait({asking})
    await until(lambda: _idle(engine))
    assert await engine.client.healthy()


async def test_no_engine_takes_connections_from_beyond_its_machine(engine: Engine) -> None:
    with socket.create_server(("0.0.0.0", 0)):
        assert listens_to_others(os.getpid()), "what listens is not seen"
    assert not listens_to_others(engine.pid)


@pytest.mark.engine
async def test_an_engine_whose_core_is_killed_says_so_and_ends(simulator: Engine, vllm: Engine) -> None:
    """As the kernel kills it for memory: the weights are in a process of their own, below the one that is asked."""
    real = await dies(vllm, lambda: kill_core(vllm))
    assert not differences(await dies(simulator, lambda: lose_core(simulator)), real)


async def _streamed(client: VllmClient, body: dict[str, Any]) -> None:
    async with client.stream(Route.CHAT, body | {"stream": True}) as chunks:
        async for _ in chunks:
            pass


async def _idle(engine: Engine) -> bool:
    return not await requests_running(engine.http)


async def _is_right(client: VllmClient, model: str, prompt: list[int], expected: list[int]) -> bool:
    return list((await client.complete_greedily(model, prompt, len(expected))).token_ids) == expected
