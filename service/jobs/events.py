"""A job's events: as a stream that goes on while the job does, or a page of those so far."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from service.context import ServiceContext
from store.jobs.job_store import EventRecord, Jobs

SSE = "text/event-stream"
PING_MS = 15_000
PAGE = 500


async def event_stream(context: ServiceContext, job_id: str, last_id: str) -> AsyncIterator[bytes]:
    """Every event behind ``last_id``, to the last one. A comment goes out when nothing else has for a while, so that
    nobody between takes the line for dead. A gateway that stops ends the stream; the client goes on at another."""
    jobs = context.watched_jobs
    while True:
        events = await context.stopping.until_shutdown(jobs.events(job_id, last_id, count=PAGE, block_ms=PING_MS))
        if events is None:
            return
        for event in events:
            yield _sent(event)
            last_id = event.id
            if event.event == "done":
                return
        if not events:
            if await _is_over(jobs, job_id):
                return
            yield KEEPALIVE_COMMENT


async def event_page(jobs: Jobs, job_id: str, last_id: str) -> bytes:
    """``EventPage`` in JSON."""
    events = await jobs.events(job_id, last_id, count=PAGE)
    listed = b",".join(event.json() for event in events)
    return b'{"events":[%b],"next":"%b"}' % (listed, (events[-1].id if events else last_id).encode())


async def _is_over(jobs: Jobs, job_id: str) -> bool:
    """Deleted meanwhile, or ended before ``last_id``: no event will come any more."""
    job = await jobs.get(job_id)
    return job is None or job.final


def _sent(event: EventRecord) -> bytes:
    """The data carry the time too: a stream has no other place for it."""
    data = b'{"at":"%b",%b' % (event.at.encode(), event.data.lstrip()[1:])
    return format_sse_event(data_str=data.decode(), event=event.event, id=event.id)
