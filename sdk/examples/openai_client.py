"""The same way with OpenAI's own client, unmodified: upload, create, follow, ask.

It knows nothing of Tunesmith but the base URL and the key: start `tunesmithd up`, then set TUNESMITH_API_KEY.
"""

import os
import sys
import time
from pathlib import Path

from openai import OpenAI

EXAMPLES = Path(__file__).parent
POLL_S = 2.0


def main() -> int:
    """Fine-tunes on the example rows and asks the tuned model one question; returns the exit status."""
    if "TUNESMITH_API_KEY" not in os.environ:
        sys.exit("Set TUNESMITH_API_KEY; `tunesmithd up --home DIR` leaves it in DIR/api_key.")
    client = OpenAI(
        base_url=os.environ.get("TUNESMITH_BASE_URL", "http://127.0.0.1:8000").rstrip("/").removesuffix("/v1") + "/v1",
        api_key=os.environ["TUNESMITH_API_KEY"],
    )
    training_file = client.files.create(file=EXAMPLES / "support_tickets_train.jsonl", purpose="fine-tune")
    validation_file = client.files.create(file=EXAMPLES / "support_tickets_heldout.jsonl", purpose="fine-tune")
    job = client.fine_tuning.jobs.create(
        model="smollm2-135m-instruct",
        training_file=training_file.id,
        validation_file=validation_file.id,
        suffix="tickets",
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
    )
    seen = set[str]()
    while True:
        job = client.fine_tuning.jobs.retrieve(job.id)  # before its events, so that none of the last ones is missed
        for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
            if event.id not in seen:
                print(event.message, flush=True)
                seen.add(event.id)
        if job.status in ("succeeded", "failed", "cancelled"):
            break
        time.sleep(POLL_S)
    if job.fine_tuned_model is None:
        print(f"{job.status}: {job.error.message if job.error else ''}", file=sys.stderr)
        return 1
    completion = client.chat.completions.create(
        model=job.fine_tuned_model,
        messages=[
            {"role": "system", "content": "Extract the ticket as JSON."},
            {"role": "user", "content": "Hi! My kettle from order a-1042 came cracked, I want my money back today."},
        ],
        temperature=0,
        max_tokens=40,
    )
    print(completion.choices[0].message.content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
