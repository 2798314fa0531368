"""``/docs`` in a real browser that reaches this service and nothing else."""

from __future__ import annotations

import json
import re

from playwright.sync_api import expect

from local.browser import browser
from service.openapi import FILE
from tests.service.gateway import KEY, Gateway
from tests.service.worker import Worker


def test_the_page_shows_every_operation_and_asks_nobody_else(gateway: Gateway) -> None:
    described = json.loads(FILE.read_text())["paths"]
    wanted = sorted(f"{method.upper()} {path}" for path, methods in described.items() for method in methods)
    asked: list[str] = []
    complaints: list[str] = []
    with browser() as chrome, chrome.new_context() as context:
        context.route(lambda url: not url.startswith(gateway.url), lambda route: route.abort())
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{gateway.url}/docs")
        expect(page.locator(".opblock")).to_have_count(len(wanted), timeout=60_000)
        shown = page.locator(".opblock-summary-control").all_inner_texts()
    assert sorted(" ".join(text.replace("\u200b", "").split()[:2]) for text in shown) == wanted
    assert complaints == []
    assert {url.split("/")[2] for url in asked if not url.startswith("data:")} == {f"127.0.0.1:{gateway.port}"}


def test_an_operation_can_be_tried_with_a_key(gateway: Gateway, worker: Worker) -> None:
    worker.announce("jobs@here", "small")
    with browser() as chrome, chrome.new_context() as context:
        page = context.new_page()
        page.goto(f"{gateway.url}/docs#/service/get_capabilities")
        page.locator("button.authorize").first.click(timeout=60_000)
        page.locator(".modal-ux input").fill(KEY)
        page.locator(".modal-ux button.authorize").click()
        page.locator(".modal-ux button.btn-done").click()
        operation = page.locator("#operations-service-get_capabilities")
        operation.get_by_role("button", name="Try it out").click()
        operation.get_by_role("button", name="Execute").click()
        expect(operation.locator(".live-responses-table .response-col_status").nth(1)).to_contain_text("200")
        expect(operation.locator(".live-responses-table")).to_contain_text("weight_only")


def test_nothing_of_the_page_comes_from_elsewhere(gateway: Gateway) -> None:
    with gateway.client() as anyone:
        page = anyone.get("/docs")
        assert re.findall(r"(?:src|href)=\"([^\"]*)\"", page.text) == [
            "docs/favicon.png",
            "docs/swagger-ui.css",
            "docs/swagger-ui-bundle.js",
            "docs/start.js",
        ]
        assert "://" not in page.headers["Content-Security-Policy"]
        assert "script-src 'self';" in page.headers["Content-Security-Policy"]
        assert "<script>" not in page.text
        assert (anyone.get("/docs/nothing.js").status_code, anyone.get("/docs/..%2fapp.py").status_code) == (404, 404)


def test_a_browser_keeps_the_files_and_asks_whether_they_changed(gateway: Gateway) -> None:
    with gateway.client() as anyone:
        whole = anyone.get("/docs/swagger-ui-bundle.js")
        assert (whole.status_code, whole.headers["Cache-Control"]) == (200, "private, no-cache")
        again = anyone.get("/docs/swagger-ui-bundle.js", headers={"If-None-Match": whole.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
