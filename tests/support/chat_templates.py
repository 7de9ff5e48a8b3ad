"""The shapes of chat templates that known families use, reduced to what matters for labels: markers and stop tokens."""

from dataclasses import dataclass

from transformers import PreTrainedTokenizerFast

from tests.support import tiny_model


@dataclass(frozen=True, slots=True)
class Shape:
    """A template with the special tokens that it needs; the first of `stops` is the tokenizer's end of text."""

    template: str
    special: tuple[str, ...]
    stops: tuple[str, ...]
    bos: str | None = None

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """One token per byte beside the special ones."""
        made = tiny_model.tokenizer(self.template)
        made.add_special_tokens({"additional_special_tokens": list(self.special)})
        made.bos_token, made.eos_token = self.bos, self.stops[0]
        return made

    def stop_ids(self) -> list[int]:
        """Tokens that end an answer."""
        return [self.tokenizer().convert_tokens_to_ids(token) for token in self.stops]


_EACH = "{% for m in messages %}"
_ASKS = "{% if add_generation_prompt %}"
_TURN = "{{ '<|im_start|>' + m['role'] + '\n' }}"
_CHATML_END = "<|im_end|>\n{% endfor %}" + _ASKS + "<|im_start|>assistant\n{% endif %}"

SHAPES = {
    "chatml": Shape(_EACH + _TURN + "{{ m['content'] }}" + _CHATML_END, (), ("<|im_end|>",)),
    "llama3": Shape(
        "{{ bos_token }}"
        + _EACH
        + "<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        + _ASKS
        + "<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        ("<|eot_id|>", "<|endoftext|>"),
        "<|begin_of_text|>",
    ),
    "qwen2": Shape(
        "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n{% endif %}"
        + _EACH
        + _TURN
        + "{{ m['content'] }}"
        + _CHATML_END,
        (),
        ("<|im_end|>", "<|endoftext|>"),
    ),
    # The answer at the end gets an empty thought, those before it none.
    "qwen3": Shape(
        _EACH
        + _TURN
        + "{% if loop.last and m['role'] == 'assistant' %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m['content'] }}"
        + _CHATML_END,
        (),
        ("<|im_end|>", "<|endoftext|>"),
    ),
    "mistral": Shape(
        "{{ bos_token }}"
        + _EACH
        + "{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]{% else %} {{ m['content'] }}{{ eos_token }}"
        + "{% endif %}{% endfor %}",
        ("<s>", "</s>", "[INST]", "[/INST]"),
        ("</s>",),
        "<s>",
    ),
    "gemma": Shape(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        + _EACH
        + "<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] }}<end_of_turn>\n"
        + "{% endfor %}"
        + _ASKS
        + "<start_of_turn>model\n{% endif %}",
        ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        ("<eos>", "<end_of_turn>"),
        "<bos>",
    ),
    "phi3": Shape(
        _EACH
        + "<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
        + _ASKS
        + "<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        ("<|endoftext|>", "<|end|>"),
    ),
}
