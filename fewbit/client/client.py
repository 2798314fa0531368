"""The client: upload a model, get a report and artifacts.

    with Client("http://127.0.0.1:8000", key) as fewbit:
        model = fewbit.upload_model("model.pt2")
        test = fewbit.upload_dataset("test.npz")
        job = fewbit.create_job(JobSpec(model=model.id, evaluation=Evaluation(dataset=test.id)))
        fewbit.wait(job, on_event=print)
        fewbit.report(job).verdict

Every failure is a ``FewbitError``. A request without an answer is sent again, with back-off, for ``patience`` seconds;
requests that create something carry an ``Idempotency-Key``, so that nothing is created twice.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel

from fewbit.client.address import parse_key, parse_url
from fewbit.client.retry import retrying
from fewbit.contract.report import Report
from fewbit.contract.resources import FINAL, Artifact, Dataset, Delivery, Event, Job, Model, Webhook, WebhookWithSecret
from fewbit.contract.spec import JobSpec
from fewbit.errors import FewbitError, from_response, retry_after, unreachable

DEFAULT_URL = "http://127.0.0.1:8000"
CHUNK = 1 << 20

Progress = Callable[[int, int], None]
"""Called with the bytes transferred so far and the size in bytes."""

R = TypeVar("R", bound=BaseModel)
T = TypeVar("T")


class Client:
    """A connection to one Fewbit service. ``url`` and ``key`` default to FEWBIT_URL and FEWBIT_KEY. Raises
    ``FewbitError`` for an invalid address or key."""

    def __init__(self, url: str | None = None, key: str | None = None, *, patience: float = 30.0) -> None:
        base = parse_url(url or os.environ.get("FEWBIT_URL") or DEFAULT_URL)
        key = parse_key(key or os.environ.get("FEWBIT_KEY", ""))
        self._patience = patience
        self._http = httpx2.Client(
            base_url=base,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx2.Timeout(90.0, connect=5.0),  # POST /jobs may wait 30 s for an inspection
            trust_env=base.host
            not in ("127.0.0.1", "localhost", "::1"),  # a proxy cannot reach this machine's loopback
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """The address of the service."""
        return str(self._http.base_url).rstrip("/")

    def close(self) -> None:
        self._http.close()

    # Models and datasets

    def upload_model(self, path: str | Path, name: str | None = None, progress: Progress | None = None) -> Model:
        """Upload an exported program. The same bytes give the same model. Its inspection may still be running."""
        return Model.model_validate(self._upload("/models", Path(path), name, progress))

    def upload_dataset(self, path: str | Path, name: str | None = None, progress: Progress | None = None) -> Dataset:
        """Upload a ``.npz`` or ``.safetensors`` of named arrays whose first axis counts samples."""
        return Dataset.model_validate(self._upload("/datasets", Path(path), name, progress))

    def model(self, model: Model | str) -> Model:
        return Model.model_validate(self._json("GET", f"/models/{_id(model)}"))

    def inspected(self, model: Model | str) -> Model:
        """Wait for the model's inspection, however long that takes. Raises the model's problem if it was rejected."""
        current = self.model(model)
        while current.status == "inspecting":
            time.sleep(0.2)
            current = self.model(model)
        if current.error:
            raise FewbitError(current.error, where=f"model {current.id}")
        return current

    def models(self) -> Iterator[Model]:
        """Every model, newest first."""
        return self._pages("/models", "models", Model)

    # Jobs

    def create_job(self, spec: JobSpec | Mapping[str, Any]) -> Job:
        """Post a job. Fields missing from ``spec`` take the service's defaults."""
        body = spec.model_dump(mode="json", exclude_unset=True) if isinstance(spec, JobSpec) else dict(spec)
        return Job.model_validate(self._json("POST", "/jobs", json=body, headers=_idempotent()))

    def job(self, job: Job | str) -> Job:
        return Job.model_validate(self._json("GET", f"/jobs/{_id(job)}"))

    def jobs(self, **filters: str | int | datetime) -> Iterator[Job]:
        """Every job, newest first. ``filters``: ``status``, ``model``, ``label``, ``created_after``."""
        return self._pages("/jobs", "jobs", Job, {name: str(value) for name, value in filters.items()})

    def cancel(self, job: Job | str) -> Job:
        return Job.model_validate(self._json("POST", f"/jobs/{_id(job)}/cancel"))

    def wait(self, job: Job | str, on_event: Callable[[Event], None] | None = None) -> Job:
        """Wait until the job has ended, in any way. ``on_event`` gets every event once, also across reconnections."""
        last, ended = "", None
        while ended is None:
            last, ended = self._attempt(partial(self._follow, _id(job), last, on_event))
        return ended

    def report(self, job: Job | str) -> Report:
        """The job's report; waits for it. Raises the job's problem if it failed or was canceled."""
        while (response := self._send("GET", f"/jobs/{_id(job)}/report")).status_code == 202:
            pause = retry_after(response)
            time.sleep(1.0 if pause is None else max(pause, 0.1))
        return Report.model_validate_json(response.content)

    # Artifacts

    def artifacts(self, job: Job | str) -> tuple[Artifact, ...]:
        return tuple(self._pages(f"/jobs/{_id(job)}/artifacts", "artifacts", Artifact))

    def download(self, job: Job | str, name: str, path: str | Path, progress: Progress | None = None) -> Path:
        """Save one artifact at ``path`` and check its SHA-256. An interrupted download resumes where it stopped, also
        in a later call: the bytes received so far are kept beside ``path`` as ``.part``."""
        artifact = next((artifact for artifact in self.artifacts(job) if artifact.name == name), None)
        if artifact is None:
            raise FewbitError.of("not-found", f"Job {_id(job)} has no artifact named {name!r}.")
        path = Path(path)
        part = path.with_name(path.name + ".part")
        while not part.exists() or part.stat().st_size < artifact.size:
            self._attempt(partial(self._fetch, _id(job), artifact, part, progress))
        if _sha256(part).hexdigest() != artifact.sha256:
            part.unlink()
            raise FewbitError.of("digest-mismatch", f"{name} does not have the bytes that the service announced.",
                                 remedy="Nothing was kept. Download it again.")  # fmt: skip
        return part.replace(path)

    # Webhooks

    def create_webhook(self, url: str) -> WebhookWithSecret:
        """Send a message to ``url`` when a job that names the webhook ends. ``secret`` signs the messages, and is shown
        only once. To rotate it, create another webhook for the same URL, use it in new jobs, and delete this one."""
        return WebhookWithSecret.model_validate(self._json("POST", "/webhooks", json={"url": url}))

    def webhook(self, webhook: Webhook | str) -> Webhook:
        return Webhook.model_validate(self._json("GET", f"/webhooks/{_id(webhook)}"))

    def webhooks(self) -> tuple[Webhook, ...]:
        """Every webhook, newest first."""
        return tuple(self._pages("/webhooks", "webhooks", Webhook))

    def delete_webhook(self, webhook: Webhook | str) -> None:
        """Delete the webhook and its pending messages."""
        self._send("DELETE", f"/webhooks/{_id(webhook)}")

    def test_webhook(self, webhook: Webhook | str) -> Delivery:
        """Send ``webhook.test`` now; ``deliveries`` shows whether it arrived."""
        return Delivery.model_validate(self._json("POST", f"/webhooks/{_id(webhook)}/test"))

    def deliveries(self, webhook: Webhook | str) -> tuple[Delivery, ...]:
        """The recent messages to the webhook and their attempts, newest first."""
        return tuple(self._pages(f"/webhooks/{_id(webhook)}/deliveries", "deliveries", Delivery))

    def capabilities(self) -> dict[str, Any]:
        """Formats, methods, artifact kinds, limits, and the running workers."""
        answer: dict[str, Any] = self._json("GET", "/capabilities")
        return answer

    # Requests

    def _upload(self, url: str, path: Path, name: str | None, progress: Progress | None) -> Any:
        digest = base64.b64encode(_sha256(path).digest()).decode()
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(path.stat().st_size),
            "Repr-Digest": f"sha-256=:{digest}:",
            **_idempotent(),
        }
        body = lambda: _chunks(path, progress)  # noqa: E731  # a fresh stream for each attempt
        return self._json("POST", url, params={"name": name or path.name}, headers=headers, body=body)

    def _fetch(self, job: str, artifact: Artifact, part: Path, progress: Progress | None) -> None:
        headers = {"Accept-Encoding": "identity"}
        if part.exists():
            headers |= {"Range": f"bytes={part.stat().st_size}-", "If-Range": f'"sha256-{artifact.sha256}"'}
        url = f"/jobs/{job}/artifacts/{quote(artifact.name)}"
        with self._http.stream("GET", url, headers=headers) as response:
            if response.status_code not in (200, 206):
                response.read()
                raise from_response(response)
            with part.open("ab" if response.status_code == 206 else "wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    if progress:
                        progress(file.tell(), artifact.size)

    def _follow(self, job: str, last: str, on_event: Callable[[Event], None] | None) -> tuple[str, Job | None]:
        """Pass the events behind ``last`` on: the last one seen, and the job if it has ended. Raises what broke the
        stream only if nothing was seen: after an event, patience starts again."""
        seen = last
        try:
            for event in self._events(job, last):
                seen = event.id
                if on_event:
                    on_event(event)
                if event.event == "done":
                    return seen, self.job(job)
        except (httpx2.TransportError, FewbitError):
            if seen == last:
                raise
            return seen, None
        current = self.job(job)  # the stream closed without its last event
        if current.status in FINAL:
            return seen, current
        time.sleep(0.5)
        return seen, None

    def _events(self, job: str, last: str) -> Iterator[Event]:
        headers = {"Last-Event-ID": last} if last else {}
        with self._http.sse(f"/jobs/{job}/events", headers=headers) as source:
            if source.response.status_code != 200:
                source.response.read()
                raise from_response(source.response)
            for message in source:
                if message.data:
                    data = json.loads(message.data)
                    yield Event.model_validate(
                        {"id": message.id, "event": message.event, "data": data, "at": data["at"]}
                    )

    def _pages(self, url: str, key: str, item: type[R], params: dict[str, str] | None = None) -> Iterator[R]:
        following: str | None = url
        while following:
            response = self._send("GET", following, params=params)
            yield from map(item.model_validate, response.json()[key])
            following, params = response.links.get("next", {}).get("url"), None

    def _json(self, method: str, url: str, **request: Any) -> Any:
        return self._send(method, url, **request).json()

    def _send(
        self, method: str, url: str, *, body: Callable[[], Iterator[bytes]] | None = None, **request: Any
    ) -> httpx2.Response:
        """Send until the answer is below 400. Only requests that are safe to repeat are sent again."""

        def request_once() -> httpx2.Response:
            response = self._http.request(method, url, content=body() if body else None, **request)
            if response.status_code >= 400:
                raise from_response(response)
            return response

        is_repeatable = method in ("GET", "HEAD") or "Idempotency-Key" in request.get("headers", {})
        return self._attempt(request_once, is_repeatable=is_repeatable)

    def _attempt(self, call: Callable[[], T], *, is_repeatable: bool = True) -> T:
        """``call``, repeated while its problem may pass. A service that does not answer is a ``FewbitError`` too."""

        def call_once() -> T:
            try:
                return call()
            except httpx2.TransportError as error:
                raise unreachable(self._http.base_url, error) from error

        return retrying(self._patience)(call_once) if is_repeatable else call_once()


def _id(resource: Model | Job | Webhook | str) -> str:
    return resource if isinstance(resource, str) else resource.id


def _idempotent() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid.uuid4())}


def _sha256(path: Path) -> hashlib._Hash:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def _chunks(path: Path, progress: Progress | None) -> Iterator[bytes]:
    size, sent = path.stat().st_size, 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            yield chunk
            sent += len(chunk)
            if progress:
                progress(sent, size)
