"""A tiny random Llama with a ChatML tokenizer, built on the spot: real formats, no download."""

import hashlib
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tunesmith_trainer.transfer import MANIFEST_FILE, list_files, manifest_bytes

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a test.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def tokenizer(chat_template: str | None = CHATML, *, begins: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte, and the three special tokens of SmolLM2. Texts may begin with the begin-of-text token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(list(SPECIAL))
    if begins:
        backend.post_processor = processors.TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    made.chat_template = chat_template
    return made


def build(folder: Path, *, seed: int = 0, context: int = 512) -> Path:
    """Writes the model's folder: two layers, 64 wide, grouped-query attention, tied embeddings, bfloat16."""
    torch.manual_seed(seed)
    made = tokenizer()
    config = LlamaConfig(
        vocab_size=len(made),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        tie_word_embeddings=True,
        bos_token_id=made.bos_token_id,
        eos_token_id=made.eos_token_id,
        pad_token_id=None,  # a padding row is initialised to zeros: as the stop token it could never be said
        initializer_range=0.1,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    made.save_pretrained(folder)
    return folder


def build_in_cache(cache: Path, model_id: str = "tiny") -> tuple[str, Path]:
    """Builds the model as a cached base model. Returns its revision and folder."""
    return publish(build(cache / "base_models" / "filling"), model_id)


def publish(filling: Path, model_id: str) -> tuple[str, Path]:
    """Makes a folder in the cache a base model. Returns its revision and where it lies now."""
    manifest = manifest_bytes(model_id, list_files(filling))
    (filling / MANIFEST_FILE).write_bytes(manifest)
    revision = hashlib.sha256(manifest).hexdigest()
    return revision, filling.rename(filling.parent / revision)
