"""Owns the REST route of a job's report.

It must not know what the report shows.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import HTMLResponse

from tunesmith_server.fine_tunes.report_page import POLICY
from tunesmith_server.fine_tunes.reports import ReportsService
from tunesmith_server.http_auth import CurrentPrincipal

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


def create_report_router(reports: ReportsService) -> APIRouter:
    """/v1/fine_tuning/jobs/{id}/report."""
    router = APIRouter(tags=["fine-tuning"])

    @router.get("/v1/fine_tuning/jobs/{job_id}/report", response_class=HTMLResponse)
    async def get_report(job_id: str, principal: CurrentPrincipal) -> HTMLResponse:
        """The job as one page that loads nothing: losses, scores, what was forgotten, settings with their reasons."""
        return HTMLResponse(await reports.html(principal, job_id), headers=_HEADERS)

    return router
