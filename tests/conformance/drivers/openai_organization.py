"""Drives what the clients since 1.109 know of an organization: projects, keys, shared checkpoints and webhooks."""

from __future__ import annotations

from typing import Any

import openai
from checks import BASE, MESSAGES, Settings, call, raises
from openai import OpenAI
from webhook_receiver import receiver


def permissions(client: OpenAI, job_id: str) -> None:
    """A checkpoint is shared with another project and no longer."""
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(job_id))).fine_tuned_model_checkpoint
    admin = client.with_options(api_key=Settings["admin_key"])
    other = client.with_options(api_key=Settings["other_key"])
    resource = admin.fine_tuning.checkpoints.permissions
    with call("fine_tuning.checkpoints.permissions.create"):
        raises(openai.NotFoundError, lambda: other.models.retrieve(checkpoint), code="model_not_found")
        (granted,) = resource.create(checkpoint, project_ids=[Settings["other_project"]])
        assert (granted.object, granted.project_id) == ("checkpoint.permission", Settings["other_project"])
    with call("a shared checkpoint answers the other project"):
        assert other.models.retrieve(checkpoint).id == checkpoint
        assert other.chat.completions.create(model=checkpoint, messages=MESSAGES, max_tokens=2).choices
    with call("fine_tuning.checkpoints.permissions.retrieve"):
        assert granted.id in [each.id for each in resource.retrieve(checkpoint).data]
    if hasattr(resource, "list"):
        with call("fine_tuning.checkpoints.permissions.list"):
            assert granted.id in [each.id for each in resource.list(checkpoint, limit=1)]
    with call("fine_tuning.checkpoints.permissions.delete"):
        assert resource.delete(granted.id, fine_tuned_model_checkpoint=checkpoint).deleted
        raises(openai.NotFoundError, lambda: other.models.retrieve(checkpoint), code="model_not_found")
    with call("permissions need an admin key"):
        raises(openai.PermissionDeniedError, lambda: client.fine_tuning.checkpoints.permissions.retrieve(checkpoint))


def webhooks(client: OpenAI, file_id: str) -> None:
    """A real delivery, verified by the client; the newest clients also make the endpoint."""
    events: Any = ["fine_tuning.job.succeeded"]
    with receiver() as (url, deliveries):
        with call("webhooks.create" if hasattr(client.webhooks, "create") else "POST /webhook_endpoints"):
            if hasattr(client.webhooks, "create"):
                endpoint: Any = client.webhooks.create(event_types=events, name="driver", url=url)
            else:
                body = {"event_types": events, "name": "driver", "url": url}
                endpoint = client.post("/webhook_endpoints", body=body, cast_to=openai.BaseModel)
        with call("webhooks.unwrap"):
            job = client.fine_tuning.jobs.create(model=BASE, training_file=file_id)
            # The project's other jobs are announced as well, if they end after the endpoint was made.
            while job.id not in (delivery := deliveries.get(timeout=40)).body:
                pass
            event: Any = client.webhooks.unwrap(delivery.body, delivery.headers, secret=endpoint.signing_secret)
            assert (event.type, event.data.id) == ("fine_tuning.job.succeeded", job.id)
            tampered = delivery.body.replace(job.id, "ftjob-other")
            raises(
                openai.InvalidWebhookSignatureError,
                lambda: client.webhooks.unwrap(tampered, delivery.headers, secret=endpoint.signing_secret),
            )
        if not hasattr(client.webhooks, "create"):
            return
        with call("webhooks.list, retrieve, update"):
            assert endpoint.id in [each.id for each in client.webhooks.list()]
            assert client.webhooks.update(endpoint.id, name="renamed").name == "renamed"
            assert client.webhooks.retrieve(endpoint.id).name == "renamed"
        with call("webhooks.event_types.list"):
            assert set(events) <= set(client.webhooks.event_types.list().data)
        with call("webhooks.test"):
            assert client.webhooks.test(endpoint.id, event_type=events[0]).success
        with call("webhooks.rotate_secret"):
            assert client.webhooks.rotate_secret(endpoint.id).signing_secret != endpoint.signing_secret
        with call("webhooks.delete"):
            assert client.webhooks.delete(endpoint.id).deleted


def administration(client: OpenAI) -> None:
    """What the newest clients know of projects, keys, limits, the audit log and usage."""
    if not hasattr(client, "admin"):
        return
    organization = client.with_options(admin_api_key=Settings["admin_key"]).admin.organization
    projects = organization.projects
    with call("admin.organization.projects.create, retrieve, update"):
        project = projects.create(name="Driver")
        assert (project.object, project.status) == ("organization.project", "active")
        assert projects.update(project.id, name="Renamed").name == "Renamed"
        assert projects.retrieve(project.id).name == "Renamed"
    with call("admin.organization.projects.list, every page"):
        assert {project.id, "default"} <= {each.id for each in projects.list(limit=1)}
    with call("admin.organization.projects.api_keys"):
        path = f"/organization/projects/{project.id}/api_keys"
        made: Any = client.with_options(api_key=Settings["admin_key"]).post(path, body={}, cast_to=object)
        listed = list(projects.api_keys.list(project.id, limit=1))
        assert [key.id for key in listed] == [made["id"]]
        assert listed[0].redacted_value != made["value"]
        assert projects.api_keys.retrieve(made["id"], project_id=project.id).owner.type == "service_account"
        assert projects.api_keys.delete(made["id"], project_id=project.id).deleted
    with call("admin.organization.projects.rate_limits"):
        (limit,) = projects.rate_limits.list_rate_limits(project.id)
        changed = projects.rate_limits.update_rate_limit(limit.id, project_id=project.id, max_requests_per_1_minute=100)
        assert changed.max_requests_per_1_minute == 100
    with call("RateLimitError"):
        slow = client.with_options(api_key=limited_key(client, projects), max_retries=0)
        slow.models.list()
        error = raises(openai.RateLimitError, lambda: [slow.models.list() for _ in range(3)], status_code=429)
        assert int(error.response.headers["retry-after"]) > 0
        assert error.response.headers["x-ratelimit-limit-requests"] == "1"
    with call("admin.organization.audit_logs.list"):
        assert list(organization.audit_logs.list(limit=100))
    with call("admin.organization.usage.completions"):
        assert organization.usage.completions(start_time=0, group_by=["model"], limit=2).data
    with call("admin.organization.projects.archive"):
        assert projects.archive(project.id).status == "archived"


def limited_key(client: OpenAI, projects: Any) -> str:
    """A key of a project that may ask once a minute."""
    project = projects.create(name="Limited")
    projects.rate_limits.update_rate_limit("rate_limit_all", project_id=project.id, max_requests_per_1_minute=1)
    admin = client.with_options(api_key=Settings["admin_key"])
    made: Any = admin.post(f"/organization/projects/{project.id}/api_keys", body={}, cast_to=object)
    key: str = made["value"]
    return key
