"""The report over REST: HTML under a policy that lets it load nothing."""

from __future__ import annotations

import base64
import hashlib
import re

import httpx

from tests.support.factories import Platform
from tunesmith_server.auth import Authenticator
from tunesmith_server.fine_tunes.report_endpoints import create_report_router
from tunesmith_server.fine_tunes.reports import ReportsService
from tunesmith_server.http_app import create_http_app
from tunesmith_server.projects.service import DEFAULT_PROJECT, ProjectsService


async def test_the_page_may_use_its_own_style_only(platform: Platform) -> None:
    projects = ProjectsService(platform.core)
    key = (await projects.create_key(DEFAULT_PROJECT, "test")).key
    router = create_report_router(ReportsService(platform.core))
    app = create_http_app(platform.core, Authenticator(projects, platform.core.signer), [router])
    job_id = await platform.create()
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        client.headers["authorization"] = f"Bearer {key}"
        answer = await client.get(f"/v1/fine_tuning/jobs/{job_id}/report")
        missing = await client.get("/v1/fine_tuning/jobs/ftjob-none/report")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    [style] = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = answer.headers["content-security-policy"]
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}'; ")
    assert "sandbox" in policy
    assert " style=" not in answer.text
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "fine_tune_not_found")
