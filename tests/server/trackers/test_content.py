"""What a tracker is told: numbers that are there, under the names that metrics have everywhere."""

from __future__ import annotations

from tunesmith_server.db.tables import FineTuneRow, StepMetricRow
from tunesmith_server.trackers import content

JOB = FineTuneRow(
    id="ftjob-1",
    base_model_id="toy",
    method="supervised",
    seed=7,
    training_file_id="file-1",
    resolved={"weights": "lora", "n_epochs": 3, "learning_rate": 1e-4},
    integrations=[{"type": "mlflow", "mlflow": {"experiment": "e", "run_name": None}}],
    state="succeeded",
    fine_tuned_model="ft:toy",
    trained_tokens=600,
    created_at=10,
    finished_at=90,
    evaluation={
        "base": {"loss": 2.0, "exact_match": None},
        "tuned": {"loss": 1.0, "exact_match": 0.5},
        "flipped_to_right": 2,
        "flipped_to_wrong": 0,
        "forgetting": {"base": {"loss": 3.0}, "tuned": {"loss": 3.5}},
    },
)


def test_an_opening_names_the_target_and_every_setting() -> None:
    opening = content.opening(JOB, "mlflow")
    assert opening["target"] == {"experiment": "e", "run_name": None}
    assert opening["settings"] == {
        "base_model": "toy",
        "method": "supervised",
        "seed": 7,
        "training_file_id": "file-1",
        "weights": "lora",
        "n_epochs": 3,
        "learning_rate": 1e-4,
    }


def test_a_step_has_its_own_time_and_the_speed() -> None:
    data = {"step": 4, "train_loss": 0.5, "valid_loss": None, "tokens": 300, "seconds": 2.0, "reported_at": 50}
    told = content.point(JOB, StepMetricRow(job_id="ftjob-1", step=4, data=data))
    assert told == {
        "step": 4,
        "time": 50,
        "measures": {"train_loss": 0.5, "tokens": 300, "tokens_per_second": 150.0},
    }


def test_a_step_of_an_earlier_release_has_the_time_of_the_job() -> None:
    told = content.point(JOB, StepMetricRow(job_id="ftjob-1", step=1, data={"step": 1, "seconds": 0.0, "tokens": 3}))
    assert told == {"step": 1, "time": 10, "measures": {"tokens": 3}}


def test_an_ending_has_the_scores_of_both_models() -> None:
    told = content.ending(JOB, 6)
    assert (told["status"], told["step"], told["time"], told["model"]) == ("succeeded", 6, 90, "ft:toy")
    assert told["measures"] == {
        "trained_tokens": 600,
        "flipped_to_right": 2,
        "flipped_to_wrong": 0,
        "evaluation/base/loss": 2.0,
        "evaluation/tuned/loss": 1.0,
        "evaluation/tuned/exact_match": 0.5,
        "forgetting/base/loss": 3.0,
        "forgetting/tuned/loss": 3.5,
    }
