"""Owns what a key may do: the scopes, and the one table that says which of them each public operation needs.

It must not know keys or transports. An operation is `METHOD /route` on REST and `/package.Service/Method` on gRPC.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

EVERYTHING = "*"
"""Every operation, those of the whole installation too."""
PROJECT = "project"
"""Every operation within the key's own project."""
ADMIN = "admin"
"""Projects, keys, quotas, the audit log and usage of the whole installation."""
INFERENCE = "inference"

_WITHIN_PROJECT = (
    "files.read",
    "files.write",
    "fine_tunes.read",
    "fine_tunes.write",
    "models.read",
    "models.write",
    INFERENCE,
    "captures.read",
    "captures.write",
    "webhooks",
    "graders",
    "usage.read",
)
SCOPES = (EVERYTHING, PROJECT, *_WITHIN_PROJECT, ADMIN)
"""All that a key can be given."""


@dataclass(frozen=True, slots=True)
class Access:
    """What an operation needs, and what the audit log calls it when it changes something.

    `scope` is one scope, or several with " or " between them of which one is enough.
    """

    scope: str
    action: str | None = None


def access_to(operation: str) -> Access:
    """The row of an operation; one without a row needs the whole project, so that no narrow key reaches it."""
    return _TABLE.get(operation, _NO_ROW)


def has_row(operation: str) -> bool:
    """Whether somebody decided what the operation needs."""
    return operation in _TABLE


def creates(operation: str) -> bool:
    """Whether the operation answers with a new thing, whose id its caller could not name."""
    return (access_to(operation).action or "").endswith(".created")


def granted(scopes: Collection[str], needed: str) -> bool:
    """Whether a key with these scopes may do what needs `needed`, a scope or one of several with " or " between."""
    if EVERYTHING in scopes or any(scope in scopes for scope in needed.split(_OR)):
        return True
    return needed != ADMIN and PROJECT in scopes


def unknown(scopes: Iterable[str]) -> list[str]:
    """Those that are no scopes."""
    return [scope for scope in scopes if scope not in SCOPES]


_OR = " or "
_TO_KNOW_MODELS = f"models.read{_OR}{INFERENCE}"
"""Clients that infer ask what there is first, to offer it or to see that they reach it."""
_NO_ROW = Access(PROJECT)

_FILES = "/tunesmith.files.v1.FilesService"
_UPLOADS = "/tunesmith.files.v1.UploadsService"
_FINE_TUNES = "/tunesmith.fine_tunes.v1.FineTunesService"
_ESTIMATES = "/tunesmith.fine_tunes.v1.EstimatesService"
_PERMISSIONS = "/tunesmith.fine_tunes.v1.CheckpointPermissionsService"
_MODELS = "/tunesmith.registry.v1.ModelsService"
_ADMIN = "/tunesmith.projects.v1.AdminService"
_USAGE = "/tunesmith.projects.v1.UsageService"

_WEBHOOKS = "/tunesmith.webhooks.v1.WebhooksService"
_DEPLOYMENTS = "/tunesmith.deployments.v1.DeploymentsService"
_CAPTURES = "/tunesmith.captures.v1.CapturesService"
_GRADERS = "/tunesmith.graders.v1.GradersService"

_UPLOAD = "/v1/uploads/{upload_id}"
_JOBS = "/v1/fine_tuning/jobs"
_JOB = f"{_JOBS}/{{job_id}}"
_HOOKS = "/v1/webhook_endpoints"
_HOOK = f"{_HOOKS}/{{endpoint_id}}"
_DEPLOYED = "/v1/deployments"
_DEPLOYMENT = f"{_DEPLOYED}/{{name}}"
_CAPTURED = "/v1/chat/completions"
_CAPTURE = f"{_CAPTURED}/{{completion_id}}"
_GRADER = "/v1/fine_tuning/alpha/graders"
_SHARED = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"
_PROJECTS = "/v1/organization/projects"
_ONE_PROJECT = f"{_PROJECTS}/{{project_id}}"
_KEYS = f"{_ONE_PROJECT}/api_keys"

_ROWS: tuple[tuple[str, str | None, tuple[str, ...]], ...] = (
    ("files.write", "file.created", ("POST /v1/files", f"{_FILES}/CreateFile")),
    ("files.write", "file.deleted", ("DELETE /v1/files/{file_id}", f"{_FILES}/DeleteFile")),
    ("files.read", None, ("GET /v1/files", f"{_FILES}/ListFiles")),
    ("files.read", None, ("GET /v1/files/{file_id}", f"{_FILES}/GetFile")),
    ("files.read", None, ("GET /v1/files/{file_id}/content", f"{_FILES}/DownloadFile")),
    ("files.write", "upload.created", ("POST /v1/uploads", f"{_UPLOADS}/CreateUpload")),
    ("files.write", None, (f"POST {_UPLOAD}/parts", f"{_UPLOADS}/AddUploadPart")),
    ("files.write", "upload.completed", (f"POST {_UPLOAD}/complete", f"{_UPLOADS}/CompleteUpload")),
    ("files.write", "upload.cancelled", (f"POST {_UPLOAD}/cancel", f"{_UPLOADS}/CancelUpload")),
    ("files.read", None, (f"GET {_UPLOAD}", f"{_UPLOADS}/GetUpload")),
    ("fine_tunes.write", "fine_tune.created", ("POST /v1/fine-tunes",)),
    ("fine_tunes.write", "fine_tune.cancelled", ("POST /v1/fine-tunes/{fine_tune_id}/cancel",)),
    ("fine_tunes.read", None, ("GET /v1/fine-tunes", "GET /v1/fine-tunes/{fine_tune_id}")),
    ("fine_tunes.read", None, ("GET /v1/fine-tunes/{fine_tune_id}/events",)),
    ("fine_tunes.write", "fine_tune.created", (f"POST {_JOBS}", f"{_FINE_TUNES}/CreateFineTune")),
    ("fine_tunes.write", "fine_tune.cancelled", (f"POST {_JOB}/cancel", f"{_FINE_TUNES}/CancelFineTune")),
    ("fine_tunes.write", "fine_tune.paused", (f"POST {_JOB}/pause", f"{_FINE_TUNES}/PauseFineTune")),
    ("fine_tunes.write", "fine_tune.resumed", (f"POST {_JOB}/resume", f"{_FINE_TUNES}/ResumeFineTune")),
    ("fine_tunes.write", "estimate.created", ("POST /v1/fine_tuning/estimates", f"{_ESTIMATES}/CreateEstimate")),
    (
        "fine_tunes.read",
        None,
        ("GET /v1/fine_tuning/estimates/{estimate_id}", f"{_ESTIMATES}/GetEstimate"),
    ),
    ("fine_tunes.read", None, (f"GET {_JOBS}", f"{_FINE_TUNES}/ListFineTunes")),
    ("fine_tunes.read", None, (f"GET {_JOB}", f"{_FINE_TUNES}/GetFineTune")),
    ("fine_tunes.read", None, (f"GET {_JOB}/events", f"{_FINE_TUNES}/ListEvents")),
    ("fine_tunes.read", None, (f"{_FINE_TUNES}/WatchEvents",)),
    ("fine_tunes.read", None, (f"GET {_JOB}/metrics", f"{_FINE_TUNES}/ListMetrics")),
    ("fine_tunes.read", None, (f"GET {_JOB}/report",)),
    ("fine_tunes.read", None, (f"GET {_JOB}/logs", f"{_FINE_TUNES}/ReadLog")),
    ("fine_tunes.read", None, ("GET /v1/fine_tuning/model_limits", f"{_FINE_TUNES}/ListModelLimits")),
    ("fine_tunes.read", None, (f"GET {_JOB}/checkpoints", f"{_FINE_TUNES}/ListCheckpoints")),
    (ADMIN, "checkpoint.permission.created", (f"POST {_SHARED}", f"{_PERMISSIONS}/CreateCheckpointPermissions")),
    (ADMIN, None, (f"GET {_SHARED}", f"{_PERMISSIONS}/ListCheckpointPermissions")),
    (
        ADMIN,
        "checkpoint.permission.deleted",
        (f"DELETE {_SHARED}/{{permission_id}}", f"{_PERMISSIONS}/DeleteCheckpointPermission"),
    ),
    ("models.write", "model.created", ("POST /v1/models", f"{_MODELS}/CreateModel")),
    (_TO_KNOW_MODELS, None, ("GET /v1/models", f"{_MODELS}/ListModels")),
    (_TO_KNOW_MODELS, None, ("GET /v1/models/{model}", f"{_MODELS}/GetModel")),
    ("models.read", None, ("GET /v1/model_archives/{model}", "HEAD /v1/model_archives/{model}")),
    ("models.write", "model.deleted", ("DELETE /v1/models/{model}", f"{_MODELS}/DeleteModel")),
    ("models.write", "deployment.created", (f"POST {_DEPLOYED}", f"{_DEPLOYMENTS}/CreateDeployment")),
    ("models.write", "deployment.updated", (f"POST {_DEPLOYMENT}", f"{_DEPLOYMENTS}/UpdateDeployment")),
    ("models.write", "deployment.deleted", (f"DELETE {_DEPLOYMENT}", f"{_DEPLOYMENTS}/DeleteDeployment")),
    ("models.write", "deployment.rolled_back", (f"POST {_DEPLOYMENT}/rollback", f"{_DEPLOYMENTS}/RollBackDeployment")),
    ("models.read", None, (f"GET {_DEPLOYED}", f"{_DEPLOYMENTS}/ListDeployments")),
    ("models.read", None, (f"GET {_DEPLOYMENT}", f"{_DEPLOYMENTS}/GetDeployment")),
    ("models.read", None, (f"GET {_DEPLOYMENT}/versions", f"{_DEPLOYMENTS}/ListDeploymentVersions")),
    ("captures.read", None, (f"GET {_CAPTURED}", f"{_CAPTURES}/ListCaptures")),
    ("captures.read", None, (f"GET {_CAPTURE}", f"{_CAPTURES}/GetCapture")),
    ("captures.read", None, (f"GET {_CAPTURE}/messages",)),
    ("captures.write", "capture.updated", (f"POST {_CAPTURE}", f"{_CAPTURES}/UpdateCapture")),
    ("captures.write", "capture.deleted", (f"DELETE {_CAPTURE}", f"{_CAPTURES}/DeleteCapture")),
    ("captures.write", "file.created", ("POST /v1/capture_datasets", f"{_CAPTURES}/CreateDataset")),
    (
        INFERENCE,
        None,
        ("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses", "POST /v1/embeddings"),
    ),
    ("webhooks", "webhook_endpoint.created", (f"POST {_HOOKS}", f"{_WEBHOOKS}/CreateWebhookEndpoint")),
    ("webhooks", "webhook_endpoint.updated", (f"POST {_HOOK}", f"{_WEBHOOKS}/UpdateWebhookEndpoint")),
    ("webhooks", "webhook_endpoint.deleted", (f"DELETE {_HOOK}", f"{_WEBHOOKS}/DeleteWebhookEndpoint")),
    ("webhooks", "webhook_secret.rotated", (f"POST {_HOOK}/rotate_secret", f"{_WEBHOOKS}/RotateWebhookSecret")),
    ("webhooks", None, (f"POST {_HOOK}/test", f"{_WEBHOOKS}/TestWebhookEndpoint")),
    ("webhooks", None, ("GET /v1/webhook_event_types", f"{_WEBHOOKS}/ListWebhookEventTypes")),
    ("webhooks", None, (f"GET {_HOOKS}", f"{_WEBHOOKS}/ListWebhookEndpoints")),
    ("webhooks", None, (f"GET {_HOOK}", f"{_WEBHOOKS}/GetWebhookEndpoint")),
    ("webhooks", None, (f"GET {_HOOK}/deliveries", f"{_WEBHOOKS}/ListWebhookDeliveries")),
    (
        "webhooks",
        "webhook_delivery.retried",
        (f"POST {_HOOK}/deliveries/{{delivery_id}}/retry", f"{_WEBHOOKS}/RetryWebhookDelivery"),
    ),
    ("graders", None, (f"POST {_GRADER}/validate", f"{_GRADERS}/ValidateGrader")),
    ("graders", None, (f"POST {_GRADER}/run", f"{_GRADERS}/RunGrader")),
    ("usage.read", None, ("GET /v1/usage", f"{_USAGE}/GetUsage")),
    (ADMIN, "project.created", (f"POST {_PROJECTS}", f"{_ADMIN}/CreateProject")),
    (ADMIN, None, (f"GET {_PROJECTS}", f"{_ADMIN}/ListProjects")),
    (ADMIN, None, (f"GET {_ONE_PROJECT}", f"{_ADMIN}/GetProject")),
    (ADMIN, "project.updated", (f"POST {_ONE_PROJECT}", f"{_ADMIN}/UpdateProject")),
    (ADMIN, "project.archived", (f"POST {_ONE_PROJECT}/archive", f"{_ADMIN}/ArchiveProject")),
    (ADMIN, "api_key.created", (f"POST {_KEYS}", f"{_ADMIN}/CreateApiKey")),
    (ADMIN, None, (f"GET {_KEYS}", f"{_ADMIN}/ListApiKeys")),
    (ADMIN, None, (f"GET {_KEYS}/{{api_key_id}}", f"{_ADMIN}/GetApiKey")),
    (ADMIN, "api_key.updated", (f"POST {_KEYS}/{{api_key_id}}", f"{_ADMIN}/UpdateApiKey")),
    (ADMIN, "api_key.deleted", (f"DELETE {_KEYS}/{{api_key_id}}", f"{_ADMIN}/DeleteApiKey")),
    (ADMIN, "api_key.rotated", (f"POST {_KEYS}/{{api_key_id}}/rotate", f"{_ADMIN}/RotateApiKey")),
    (ADMIN, None, (f"GET {_ONE_PROJECT}/rate_limits",)),
    (ADMIN, "rate_limit.updated", (f"POST {_ONE_PROJECT}/rate_limits/{{rate_limit_id}}",)),
    (ADMIN, None, ("GET /v1/organization/audit_logs", f"{_ADMIN}/ListAuditLogs")),
    (ADMIN, None, ("GET /v1/organization/usage/completions", f"{_ADMIN}/GetOrganizationUsage")),
)

_TABLE = {operation: Access(scope, action) for scope, action, operations in _ROWS for operation in operations}
