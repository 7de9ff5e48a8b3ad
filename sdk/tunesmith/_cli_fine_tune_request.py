"""Owns the options of `tunesmith fine-tunes create` and `estimate`, and the request that they make.
Must not know what a command does with it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from tunesmith._cli_context import number_or_auto, whole_or_auto
from tunesmith._errors import ConfigurationError
from tunesmith.resources.fine_tune_request import FineTuneRequest

_WHOLE: Any = {"parser": whole_or_auto, "metavar": "<integer|auto>"}
_NUMBER: Any = {"parser": number_or_auto, "metavar": "<float|auto>"}

TrainingFile = Annotated[str, typer.Argument(help="A local path, or the id of an uploaded file.")]
BaseModelName = Annotated[str, typer.Option("--model", help="A base model, or a tuned one to go on from.")]
ValidationFile = Annotated[str | None, typer.Option(help="A local path or a file id.")]
# Numbers or "auto": typer takes no union, so the parsers say what comes of the text.
Epochs = Annotated[Any, typer.Option(**_WHOLE, help="Passes over the data, 1 to 50.")]
BatchSize = Annotated[Any, typer.Option(**_WHOLE, help="Rows per step, 1 to 256.")]
LearningRate = Annotated[Any, typer.Option(**_NUMBER, help="Factor on the learning rate.")]
Beta = Annotated[Any, typer.Option(**_NUMBER, help="Of dpo: weight of staying near the model.")]
MethodName = Annotated[str, typer.Option(help="supervised, dpo or continued_pretraining.")]
Weights = Annotated[Literal["lora", "full"] | None, typer.Option(help="Train an adapter or every weight.")]
LoraRank = Annotated[Any, typer.Option(**_WHOLE, help="Size of the adapter.")]
LoraAlpha = Annotated[Any, typer.Option(**_NUMBER, help="Strength of the adapter.")]
LoraTargets = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="attention, mlp or a module's name; may be repeated.")
]
Rslora = Annotated[
    bool | None, typer.Option("--rslora", help="Scale the adapter by alpha / √rank.", show_default=False)
]
LongRows = Annotated[
    Literal["fail", "cut", "drop"] | None, typer.Option(help="What becomes of rows over the context; fail by default.")
]
EarlyStopping = Annotated[
    Any, typer.Option(**_WHOLE, help="Stop after so many passes, 1 to 50, without a better validation loss.")
]
Suffix = Annotated[str | None, typer.Option(help="A word of yours for the model's name.")]
Seed = Annotated[int | None, typer.Option(help="Makes the run repeatable.")]
Metadata = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="May be repeated.")]
WandbProject = Annotated[str | None, typer.Option(help="Weights & Biases follows the job in this project.")]
MlflowExperiment = Annotated[str | None, typer.Option(help="MLflow follows the job in this experiment.")]


def takes_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command every option that makes a request; what they make is its argument `request`."""
    own = dict(inspect.signature(command, eval_str=True).parameters)
    options = inspect.signature(_request, eval_str=True).parameters

    @functools.wraps(command)
    def run(**given: Any) -> None:
        request = _request(**{name: given.pop(name) for name in options})
        command(request=request, **given)

    del own["request"]
    parameters = {"ctx": own.pop("ctx"), **options, **own}
    # typer reads off these what a command takes.
    run.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
    return run


def _request(
    training_file: TrainingFile,
    model: BaseModelName,
    validation_file: ValidationFile = None,
    suffix: Suffix = None,
    seed: Seed = None,
    n_epochs: Epochs = None,
    batch_size: BatchSize = None,
    learning_rate_multiplier: LearningRate = None,
    beta: Beta = None,
    method: MethodName = "supervised",
    weights: Weights = None,
    lora_rank: LoraRank = None,
    lora_alpha: LoraAlpha = None,
    lora_targets: LoraTargets = None,
    rslora: Rslora = None,
    long_rows: LongRows = None,
    early_stopping_patience: EarlyStopping = None,
    metadata: Metadata = None,
    wandb_project: WandbProject = None,
    mlflow_experiment: MlflowExperiment = None,
) -> FineTuneRequest:
    return FineTuneRequest(
        model=model,
        training_file=training_file,
        validation_file=validation_file,
        suffix=suffix,
        seed=seed,
        n_epochs=n_epochs,
        batch_size=batch_size,
        learning_rate_multiplier=learning_rate_multiplier,
        beta=beta,
        method=method,
        weights=weights,
        lora_rank=lora_rank,
        lora_alpha=lora_alpha,
        lora_targets=lora_targets,
        use_rslora=rslora,
        long_rows=long_rows,
        early_stopping_patience=early_stopping_patience,
        metadata=_pairs(metadata),
        integrations=_integrations(wandb_project, mlflow_experiment),
    )


def _pairs(given: list[str] | None) -> dict[str, str] | None:
    pairs = [pair.partition("=") for pair in given or []]
    for key, equals, _ in pairs:
        if not (key and equals):
            raise ConfigurationError(f"--metadata takes KEY=VALUE, not {key!r}.", code="invalid_metadata")
    return {key: value for key, _, value in pairs} or None


def _integrations(wandb_project: str | None, mlflow_experiment: str | None) -> list[dict[str, object]] | None:
    named: list[dict[str, object]] = []
    if wandb_project is not None:
        named.append({"type": "wandb", "wandb": {"project": wandb_project}})
    if mlflow_experiment is not None:
        named.append({"type": "mlflow", "mlflow": {"experiment": mlflow_experiment}})
    return named or None
