"""Trains on a workload with trl and prints a measurement as JSON; runs in trl's environment and knows nothing of ours.

PYTHON_OF_TRL opponent.py WORKLOAD SETTINGS    (settings: a JSON object over trl's SFTConfig, {} for its defaults)
"""

import json
import os
import resource
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

STARTED = time.perf_counter()

import torch  # noqa: E402  what is imported here is part of the cold start
from datasets import Dataset, disable_progress_bars  # noqa: E402
from peft import LoraConfig  # noqa: E402
from transformers import AutoTokenizer, PrinterCallback, TrainerCallback  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402
from trl.data_utils import pack_dataset  # noqa: E402


class Watch(TrainerCallback):
    """Sets the workload's learning rate and notes when steps end and what their loss was."""

    def __init__(self, learning_rates):
        self.learning_rates = learning_rates
        self.stamps = []
        self.losses = []

    def on_step_begin(self, args, state, control, optimizer=None, **_):
        if not self.stamps:
            self.stamps.append(time.perf_counter())
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rates[state.global_step]

    def on_step_end(self, args, state, control, **_):
        self.stamps.append(time.perf_counter())

    def on_log(self, args, state, control, logs=None, **_):
        if "loss" in logs:
            self.losses.append(logs["loss"])


def main():
    work = json.loads(Path(sys.argv[1]).read_text())
    settings = json.loads(sys.argv[2])
    disable_progress_bars()
    packed = settings.pop("packing", False)
    steps = work["steps"]
    dataset = Dataset.from_list([row for step in steps for row in _prepared(step, packed, work)])
    per_step = len(dataset) // len(steps)

    batch = settings.setdefault("per_device_train_batch_size", 8)
    arguments = SFTConfig(
        output_dir=tempfile.mkdtemp(),
        max_steps=len(steps),
        gradient_accumulation_steps=per_step // batch,
        learning_rate=work["learning_rates"][0],
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=work["seed"],
        train_sampling_strategy="sequential",
        use_cpu=not torch.cuda.is_available(),
        dataset_kwargs={"skip_prepare_dataset": True},
        **({"padding_free": True, "max_length": None} if packed else {}),
        **settings,
    )
    lora = {"r": work["lora_rank"], "lora_alpha": work["lora_alpha"], "target_modules": "all-linear"}
    watch = Watch(work["learning_rates"])
    trainer = SFTTrainer(
        model=work["base"],
        args=arguments,
        train_dataset=dataset,
        processing_class=AutoTokenizer.from_pretrained(work["base"]),
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora) if work["weights"] == "lora" else None,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    print(
        json.dumps(
            {
                "seconds": [after - before for before, after in pairwise(watch.stamps)],
                "losses": watch.losses,
                "cold_start": watch.stamps[1] - STARTED,
                "peak_bytes": _peak_bytes(),
            }
        )
    )
    sys.stdout.flush()
    os._exit(0)  # a compiled run leaves processes that it would wait for


def _peak_bytes():
    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _prepared(step, packed, work):
    """The step's rows as trl prepares them, packed by its own packer."""
    rows = [
        {
            "input_ids": row["input_ids"],
            "labels": [token if kept else -100 for token, kept in zip(row["input_ids"], row["labelled"], strict=True)],
        }
        for row in step
    ]
    if not packed:
        return rows
    return list(pack_dataset(Dataset.from_list(rows), work["pack_tokens"], "bfd"))


if __name__ == "__main__":
    main()
