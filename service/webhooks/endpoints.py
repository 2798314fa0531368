"""``/webhooks``: URLs that are told when a job ends. ``courier`` delivers to them."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.responses import JSONResponse

from fewbit.contract.problems import FieldError
from fewbit.contract.resources import Delivery, NewWebhook, Webhook, WebhookWithSecret
from service.context import context_of
from service.http.answers import no_content
from service.http.json_bodies import json_route
from service.http.openapi_operations import DeliveryList, WebhookList, documents
from service.http.problems import InvalidRequest, NotFound, QuotaExceeded
from service.webhooks.addresses import Unreachable, check_url, resolve
from store.webhooks import DeliveryRecord, TooMany, WebhookRecord, Webhooks

LONGEST_BODY = 16 * 1024
router = APIRouter(tags=["webhooks"], route_class=json_route(LONGEST_BODY))
MOST_WEBHOOKS = 50
PROBLEMS = ("malformed-request", "payload-too-large", "unsupported-media-type", "quota-exceeded")


@router.post("/webhooks", **documents("create_webhook", {201: WebhookWithSecret}, PROBLEMS, headers=("Location",)))
async def create_webhook(request: Request, new: NewWebhook) -> Response:
    """Name a URL that is told when a job ends. The secret that signs what it is told is in this answer only."""
    context = context_of(request)
    await _check(new.url, context.settings.webhook_allow_private)
    try:
        webhook = await context.webhooks.create(new.url, MOST_WEBHOOKS)
    except TooMany:
        raise QuotaExceeded.of_webhooks(MOST_WEBHOOKS) from None
    body = WebhookWithSecret(id=webhook.id, url=webhook.url, created_at=webhook.created_at, secret=webhook.secret)
    return JSONResponse(body.model_dump(mode="json"), 201, {"Location": f"/webhooks/{webhook.id}"})


@router.get("/webhooks", **documents("list_webhooks", {200: WebhookList}))
async def list_webhooks(request: Request) -> Response:
    """Every webhook, newest first."""
    listed = [_shown(webhook) for webhook in await context_of(request).webhooks.every()]
    return JSONResponse(WebhookList(webhooks=tuple(listed)).model_dump(mode="json"))


@router.get("/webhooks/{webhook_id:id}", **documents("get_webhook", {200: Webhook}, ("not-found",)))
async def get_webhook(request: Request, webhook_id: str) -> Response:
    """One webhook, without its secret."""
    return JSONResponse(_shown(await _known(request, webhook_id)).model_dump(mode="json"))


@router.delete(
    "/webhooks/{webhook_id:id}", **documents("delete_webhook", {204: "It is told nothing more."}, ("not-found",))
)
async def delete_webhook(request: Request, webhook_id: str) -> Response:
    """Forget a webhook, and what it was still to be told."""
    if not await context_of(request).webhooks.delete(webhook_id):
        raise unknown_webhook(webhook_id)
    return no_content()


@router.post("/webhooks/{webhook_id:id}/test", **documents("test_webhook", {202: Delivery}, ("not-found",)))
async def test_webhook(request: Request, webhook_id: str) -> Response:
    """Send `webhook.test` now. How it went is among the deliveries."""
    webhooks, webhook = context_of(request).webhooks, await _known(request, webhook_id)
    delivery = await webhooks.test(webhook)
    return JSONResponse(_told(delivery).model_dump(mode="json"), 202)


@router.get("/webhooks/{webhook_id:id}/deliveries", **documents("list_deliveries", {200: DeliveryList}, ("not-found",)))
async def list_deliveries(request: Request, webhook_id: str) -> Response:
    """What was sent, newest first: each attempt, with the status of its answer or why there was none."""
    webhooks, webhook = context_of(request).webhooks, await _known(request, webhook_id)
    listed = [_told(delivery) for delivery in await webhooks.deliveries(webhook)]
    return JSONResponse(DeliveryList(deliveries=tuple(listed)).model_dump(mode="json"))


async def _known(request: Request, webhook_id: str) -> WebhookRecord:
    """Raises ``NotFound``."""
    webhooks: Webhooks = context_of(request).webhooks
    webhook = await webhooks.get(webhook_id)
    if webhook is None:
        raise unknown_webhook(webhook_id)
    return webhook


def unknown_webhook(webhook_id: str) -> NotFound:
    return NotFound(f"There is no webhook {webhook_id}.")


async def _check(url: str, allow_private: bool) -> None:
    """A name without an address may get one later; one that is not public is refused now. Raises ``InvalidRequest``."""
    try:
        check_url(url, allow_private)
        await resolve(url, allow_private)
    except Unreachable as error:
        if "no address" not in str(error):
            wrong = FieldError(pointer="/url", code="unreachable-url", message=str(error))
            raise InvalidRequest([wrong]) from error


def _shown(webhook: WebhookRecord) -> Webhook:
    return Webhook(id=webhook.id, url=webhook.url, created_at=webhook.created_at)


def _told(delivery: DeliveryRecord) -> Delivery:
    return Delivery(
        id=delivery.id,
        type=delivery.type,
        job=delivery.job or None,
        status=delivery.status,
        attempts=delivery.attempts,
        created_at=delivery.at,
    )
