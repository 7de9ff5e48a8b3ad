"""Models of several origins behind real vLLM, on tiny bases: what is served is what transformers or PEFT compute.

A GPT-2, for which engines take no adapters, is trained in full and with LoRA; a base with a chat template learns
prompts and completions; adapters that the real PEFT wrote are brought in.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from tests.inference import real_model
from tests.support import tiny_model
from tests.support.foreign_models import peft_adapter
from tests.support.live_server import LiveServer, wait_until
from tunesmith import Tunesmith

pytestmark = [pytest.mark.e2e, pytest.mark.engine, pytest.mark.soak, pytest.mark.timeout(600)]

PROMPTS = ("Code of red?", "Code of green?", "Say a.")
CODES = {"red": "ruby", "blue": "cobalt", "green": "emerald", "yellow": "amber"}
TOKENS = 8
NATS = 5e-3
"""How far apart two computations of a log-probability may be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model says greedily, and how likely each token is to it."""

    text: str
    logprobs: Sequence[float]

    def is_like(self, other: Answer) -> bool:
        """Whether both say the same with the same certainty."""
        # Halves of characters, which a random model likes, are written in as many ways as there are detokenizers.
        texts = [each.text.replace("\ufffd", "") for each in (self, other)]
        return texts[0] == texts[1] and self.logprobs == pytest.approx(other.logprobs, abs=NATS)


@dataclass(frozen=True, slots=True)
class Platform:
    """A running platform with two tiny bases, and its clients."""

    server: LiveServer
    folder: Path
    openai: openai.OpenAI
    tunesmith: Tunesmith

    def answers(self, model: str) -> list[Answer]:
        """What is served."""
        return [self._answer(model, prompt) for prompt in PROMPTS]

    def require_proven(self, model: str) -> None:
        """Returns once a gateway has told that its engine reproduces what was recorded."""

        def is_proven() -> bool:
            serving = self.tunesmith.models.retrieve(model).serving
            return serving is not None and serving.state == "ready"

        wait_until(is_proven, 60, lambda: f"not proven: {self.tunesmith.models.retrieve(model)}")

    def _answer(self, model: str, prompt: str) -> Answer:
        ids = tiny_model.tokenizer()(prompt)["input_ids"]
        answer = self.openai.completions.create(
            model=model, prompt=ids, temperature=0, max_tokens=TOKENS, logprobs=1, extra_body={"ignore_eos": True}
        )
        (choice,) = answer.choices
        assert choice.logprobs is not None
        return Answer(choice.text, [logprob or 0.0 for logprob in choice.logprobs.token_logprobs or ()])


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One for all tests of this file, its base models imported."""
    folder = tmp_path_factory.mktemp("tiny-bases")
    real_model.build_base(folder / "llama")
    build_gpt2(folder / "gpt2")
    catalogue = folder / "base_models.yaml"
    catalogue.write_text("".join(f"- {{id: {name}, source: '{folder / name}'}}\n" for name in ("llama", "gpt2")))
    environment = {"TUNESMITH_BASE_MODELS": str(catalogue), "TUNESMITH_CACHE_DIR": str(folder / "cache")}
    with LiveServer(folder / "home", inference=True, environment=environment) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.api_key, timeout=400)
        with Tunesmith(base_url=server.url, api_key=server.api_key) as tunesmith:
            for name in ("llama", "gpt2"):
                wait_until(partial(imported, server, name), 120, f"{name} was not imported")
            yield Platform(server, folder, client, tunesmith)


def build_gpt2(folder: Path) -> None:
    """Writes a random GPT-2 with heads 64 wide and a say in every token."""
    torch.manual_seed(0)
    tokenizer = tiny_model.tokenizer(None)
    tokens = {"vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    model = GPT2LMHeadModel(GPT2Config(n_embd=128, n_head=2, n_layer=2, n_positions=512, **tokens))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def imported(server: LiveServer, base: str) -> bool:
    """Whether the base can be used; an import that failed is told."""
    answer: httpx.Response = server.request("GET", f"/models/{base}")
    assert answer.status_code in (200, 503), answer.text
    return answer.status_code == 200


@torch.no_grad()
def computed(model: nn.Module) -> list[Answer]:
    """What a model answers, token by token."""
    tokenizer, answers = tiny_model.tokenizer(), []
    for prompt in PROMPTS:
        ids, logprobs = tokenizer(prompt)["input_ids"], []
        begin = len(ids)
        for _ in range(TOKENS):
            scores = model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids = [*ids, int(scores.argmax())]
            logprobs.append(float(scores.max()))
        answers.append(Answer(tokenizer.decode(ids[begin:], skip_special_tokens=True), logprobs))
    return answers


def require_same(served: Sequence[Answer], own: Sequence[Answer]) -> None:
    """Fails where the two say different things."""
    assert all(one.is_like(other) for one, other in zip(served, own, strict=True)), (served, own)


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_a_tuned_gpt2_is_served_as_it_was_trained(platform: Platform, weights: str, tmp_path: Path) -> None:
    job = tuned_on_codes(platform, "gpt2", weights)
    assert job["evaluation"]["tuned"]["loss"] < job["evaluation"]["base"]["loss"]

    model = job["fine_tuned_model"]
    served = platform.answers(model)

    platform.require_proven(model)
    of_base = platform.answers("gpt2")
    assert not any(one.is_like(other) for one, other in zip(served, of_base, strict=True)), "it has learnt something"
    platform.tunesmith.models.download(model, tmp_path / "downloaded")
    assert not list((tmp_path / "downloaded").glob("adapter*")), "engines take no adapters on it: it is whole"
    own = AutoModelForCausalLM.from_pretrained(tmp_path / "downloaded", dtype=torch.float32).eval()
    require_same(served, computed(own))


@pytest.mark.parametrize("weights", ["lora", "full"])
def test_prompts_of_completions_are_asked_as_they_were_learnt(platform: Platform, weights: str) -> None:
    model = tuned_on_codes(platform, "llama", weights)["fine_tuned_model"]
    prompts = [f"Code of {colour}?" for colour in CODES]
    limits: Any = {"model": model, "temperature": 0, "max_tokens": TOKENS}

    completed = platform.openai.completions.create(prompt=prompts, **limits)
    chats = [
        platform.openai.chat.completions.create(messages=[{"role": "user", "content": prompt}], **limits)
        for prompt in prompts
    ]
    assert [choice.text for choice in completed.choices] == [chat.choices[0].message.content for chat in chats]
    assert completed.usage is not None
    assert completed.usage.prompt_tokens == sum(chat.usage.prompt_tokens for chat in chats if chat.usage)


def tuned_on_codes(platform: Platform, base: str, weights: str) -> dict[str, Any]:
    """A finished job that taught the base four codes, and is asked for them: a held-out one would be in no row."""
    rows = [json.dumps({"prompt": f"Code of {colour}?", "completion": f" {code}"}) for colour, code in CODES.items()]
    file = platform.openai.files.create(file=("rows.jsonl", "\n".join(rows * 12).encode()), purpose="fine-tune")
    numbers: Any = {"n_epochs": 4, "batch_size": 4, "learning_rate_multiplier": 5}
    made = platform.openai.fine_tuning.jobs.create(
        model=base,
        training_file=file.id,
        validation_file=file.id,
        seed=1,
        hyperparameters=numbers,
        extra_body={"training": {"weights": weights}},
    )
    job = platform.server.wait_for_job(made.id, 300)
    assert job["status"] == "succeeded", job["error"]
    return job


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # PEFT's own use of transformers
@pytest.mark.parametrize(
    ("base", "config"),
    [
        ("llama", {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj", "down_proj"]}),
        (
            "llama",
            {
                "r": 4,
                "lora_alpha": 8,
                "target_modules": ["q_proj", "o_proj"],
                "rank_pattern": {"q_proj": 8},
                "alpha_pattern": {"o_proj": 2},
                "use_rslora": True,
            },
        ),
        ("gpt2", {"r": 8, "lora_alpha": 16, "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    ],
    ids=["one scale", "ranks and scales by module", "for whose base engines take no adapters"],
)
def test_an_adapter_that_peft_wrote_is_served_as_peft_computes_it(
    platform: Platform, base: str, config: dict[str, Any], tmp_path: Path
) -> None:
    adapted = peft_adapter(platform.folder / base, tmp_path / "adapter", std=0.05, **config)

    brought = platform.tunesmith.models.upload(tmp_path / "adapter", base=base, suffix="peft")
    model = platform.tunesmith.models.wait(brought.id, timeout=300).id
    served = platform.answers(model)

    platform.require_proven(model)
    own = AutoModelForCausalLM.from_pretrained(platform.folder / base, dtype=torch.float32).eval()
    of_base = computed(own)
    require_same(served, computed(adapted))
    assert not any(one.is_like(other) for one, other in zip(served, of_base, strict=True)), "it makes a difference"
    require_same(platform.answers(base), of_base)
