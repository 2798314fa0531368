"""Reports and comparisons as JSON, Markdown and HTML, and the pages about reasons."""

from __future__ import annotations

import re
from pathlib import Path

import httpx2
import pytest

from fewbit.contract.report import Report
from fewbit.rendering.comparison import Comparison
from service.pages import reason_pages
from tests.fewbit.example import full_report, report
from tests.service.gateway import Gateway
from tests.service.uploads import job
from tests.service.worker import Worker

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
TYPES = {
    "json": "application/json",
    "markdown": "text/markdown; charset=utf-8",
    "html": "text/html; charset=utf-8",
}


@pytest.fixture
def done(http: httpx2.Client, worker: Worker, tmp_path: Path) -> str:
    """A job that succeeded, with a whole report."""
    posted = job(http, worker)
    worker.succeed(posted, tmp_path, full_report(job=posted))
    return posted


@pytest.mark.parametrize(("face", "media_type"), TYPES.items())
def test_a_report_comes_in_three_faces(http: httpx2.Client, done: str, face: str, media_type: str) -> None:
    asked = http.get(f"/jobs/{done}/report", params={"format": face}, headers={"Accept": "text/csv"})
    accepted = http.get(f"/jobs/{done}/report", headers={"Accept": media_type.partition(";")[0]})
    assert asked.status_code == accepted.status_code == 200
    assert asked.headers["Content-Type"] == accepted.headers["Content-Type"] == media_type
    assert asked.headers["Vary"] == "Accept"
    assert asked.text == accepted.text
    assert done in asked.text


def test_a_program_gets_json_and_a_browser_the_page(http: httpx2.Client, done: str) -> None:
    assert Report.model_validate(http.get(f"/jobs/{done}/report").json()).job == done
    page = http.get(f"/jobs/{done}/report", headers={"Accept": BROWSER})
    assert page.text.startswith("<!doctype html>")


def test_a_face_that_is_not_there_is_refused(http: httpx2.Client, done: str) -> None:
    assert http.get(f"/jobs/{done}/report", headers={"Accept": "text/csv"}).status_code == 406
    answer = http.get(f"/jobs/{done}/report", params={"format": "pdf"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/format")


def test_an_unfinished_report_is_202_in_every_face(http: httpx2.Client, worker: Worker) -> None:
    posted = job(http, worker)
    answers = [http.get(f"/jobs/{posted}/report", params={"format": face}) for face in TYPES]
    assert [(answer.status_code, answer.json()["status"]) for answer in answers] == [(202, "queued")] * 3


def test_the_page_may_do_nothing_but_what_its_hashes_allow(http: httpx2.Client, done: str) -> None:
    policy = http.get(f"/jobs/{done}/report", params={"format": "html"}).headers["Content-Security-Policy"]
    hashed = r"'sha256-[A-Za-z0-9+/]{43}='"
    wanted = (
        rf"default-src 'none'; style-src {hashed}; script-src {hashed}; img-src data:; "
        r"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    assert re.fullmatch(wanted, policy)


def test_links_lead_to_this_service_wherever_the_file_goes(http: httpx2.Client, gateway: Gateway, done: str) -> None:
    for face in ("html", "markdown"):
        text = http.get(f"/jobs/{done}/report", params={"format": face}).text
        assert f"{gateway.url}/reasons/excluded-by-user" in text


# Comparisons


@pytest.fixture
def two(http: httpx2.Client, worker: Worker, tmp_path: Path) -> list[str]:
    """The second has a float classifier more than the first, and fewer layers."""
    jobs = [job(http, worker), job(http, worker)]
    worker.succeed(jobs[0], tmp_path, full_report(job=jobs[0]))
    worker.succeed(jobs[1], tmp_path, report(job=jobs[1]))
    return jobs


@pytest.mark.parametrize(("face", "media_type"), TYPES.items())
def test_jobs_are_compared_in_three_faces(http: httpx2.Client, two: list[str], face: str, media_type: str) -> None:
    answer = http.get("/compare", params={"job": two, "format": face})
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, media_type)
    assert all(job_id in answer.text for job_id in two)


def test_a_comparison_keeps_the_order_that_was_asked_for(http: httpx2.Client, two: list[str]) -> None:
    told = Comparison.model_validate(http.get("/compare", params={"job": two[::-1]}).json())
    assert [job.job for job in told.jobs] == two[::-1]


@pytest.mark.parametrize("jobs", [[], ["job_a"], [f"job_{index}" for index in range(9)], ["job_a", "job_b", "job_a"]])
def test_a_comparison_takes_two_to_eight_different_jobs(http: httpx2.Client, jobs: list[str]) -> None:
    answer = http.get("/compare", params={"job": jobs})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/query/job")


@pytest.mark.parametrize("unknown", ["job_none", "JOB:events", "../x", ""])
def test_an_unknown_job_cannot_be_compared(http: httpx2.Client, done: str, unknown: str) -> None:
    answer = http.get("/compare", params={"job": [done, unknown.replace("JOB", done)]})
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")
    if unknown == "job_none":
        assert answer.json()["detail"] == http.get(f"/jobs/{unknown}").json()["detail"]


def test_a_job_without_a_report_is_named(http: httpx2.Client, worker: Worker, done: str) -> None:
    running, failed = job(http, worker), job(http, worker)
    worker.fail(failed)
    for unfinished, slug in ((running, "job-not-final"), (failed, "job-failed")):
        answer = http.get("/compare", params={"job": [done, unfinished]})
        assert (answer.status_code, answer.json()["type"]) == (409, f"/problems/{slug}")
        assert unfinished in answer.json()["detail"]


# Reasons


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mha.md").write_text(
        "# mha: Projections of `nn.MultiheadAttention`\n\n## What happens\n\n<script>alert(1)</script> & more.\n\n"
        "[bad](javascript:alert(1)) [good](https://example.org)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    (tmp_path / "README.md").write_text("# Reasons\n")
    return tmp_path


def test_every_page_there_is_has_its_address(gateway: Gateway) -> None:
    codes = [path.stem for path in reason_pages.FOLDER.glob("*.md") if path.stem == path.stem.lower()]
    with gateway.client() as anyone:
        index = anyone.get("/reasons", headers={"Accept": BROWSER})
        assert index.headers["Content-Type"] == TYPES["html"]
        for code in codes:
            assert f'href="/reasons/{code}"' in index.text
            page = anyone.get(f"/reasons/{code}", headers={"Accept": BROWSER})
            assert (page.status_code, page.headers["Content-Type"]) == (200, TYPES["html"])
            source = anyone.get(f"/reasons/{code}", headers={"Accept": "text/markdown"})
            assert source.text == (reason_pages.FOLDER / f"{code}.md").read_text()


@pytest.mark.parametrize("code", ["no-such-code", "README", "..%2Fdeployment", "a" * 300])
def test_a_code_without_a_page_says_where_all_are(gateway: Gateway, code: str) -> None:
    with gateway.client() as anyone:
        answer = anyone.get(f"/reasons/{code}")
    assert (answer.status_code, answer.json()["type"]) == (404, "/problems/not-found")


def test_a_page_shows_html_and_does_not_run_it(folder: Path) -> None:
    page = reason_pages.reason_page("mha", reason_pages.pages_in(folder)["mha"])
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more." in page
    assert "javascript:" not in re.sub(r"\[bad\]\(.*?\)\)", "", page)
    assert '<a href="https://example.org">good</a>' in page
    assert "<td>2</td>" in page


def test_the_index_takes_the_titles_from_the_pages(folder: Path) -> None:
    assert reason_pages.titles_in(folder) == {"mha": "Projections of `nn.MultiheadAttention`"}


def test_without_its_pages_the_service_has_none(tmp_path: Path) -> None:
    assert reason_pages.pages_in(tmp_path / "nowhere") == {}
