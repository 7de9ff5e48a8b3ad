"""Owns every table: columns, keys and constraints, a module for each domain; all are imported from here.

It must not know how rows are used; SQL lives in each domain's repository.py.
"""

from __future__ import annotations

from tunesmith_server.db.tables.base import Base, JsonObject
from tunesmith_server.db.tables.coordination import CounterRow, IdempotencyRow, LeaseRow
from tunesmith_server.db.tables.files import CaptureRow, FileRow, UploadPartRow, UploadRow
from tunesmith_server.db.tables.fine_tunes import (
    AttemptRow,
    CheckpointPermissionRow,
    CheckpointRow,
    EventRow,
    FineTuneRow,
    StepMetricRow,
    TrackedRunRow,
)
from tunesmith_server.db.tables.projects import ApiKeyRow, AuditRow, ProjectRow, UsageRow
from tunesmith_server.db.tables.registry import (
    BaseModelRow,
    DeploymentRow,
    DeploymentVersionRow,
    GatewayRow,
    ModelRow,
    RevisionRow,
)
from tunesmith_server.db.tables.webhooks import OutboxRow, WebhookDeliveryRow, WebhookEndpointRow

__all__ = [
    "ApiKeyRow",
    "AttemptRow",
    "AuditRow",
    "Base",
    "BaseModelRow",
    "CaptureRow",
    "CheckpointPermissionRow",
    "CheckpointRow",
    "CounterRow",
    "DeploymentRow",
    "DeploymentVersionRow",
    "EventRow",
    "FileRow",
    "FineTuneRow",
    "GatewayRow",
    "IdempotencyRow",
    "JsonObject",
    "LeaseRow",
    "ModelRow",
    "OutboxRow",
    "ProjectRow",
    "RevisionRow",
    "StepMetricRow",
    "TrackedRunRow",
    "UploadPartRow",
    "UploadRow",
    "UsageRow",
    "WebhookDeliveryRow",
    "WebhookEndpointRow",
]
