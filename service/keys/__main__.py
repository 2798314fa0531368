"""``python -m service.keys``: make, list, revoke and rotate API keys. For the operator: it talks to Redis itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer

from store.clients import connect
from store.settings import StoreSettings
from store.tenancy.api_keys import SCOPES, KeyRing, UnknownKey
from store.tenancy.tenants import DEFAULT_TENANT

app = typer.Typer(help="API keys. A key is shown once, when it is made.", no_args_is_help=True, add_completion=False)

Tenant = Annotated[str, typer.Option(help="Whose key it is. Things of one tenant do not exist for another.")]
Days = Annotated[float | None, typer.Option(help="When it ends, more than 0; without it, never.", min=0)]


@app.command()
def make(
    tenant: Tenant = DEFAULT_TENANT,
    scope: Annotated[str, typer.Option(help=f"{', '.join(SCOPES)}: each may what those before it may.")] = "write",
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    days: Days = None,
) -> None:
    """Make a key and print it."""
    if scope not in SCOPES:
        raise typer.BadParameter(f"A scope is one of {', '.join(SCOPES)}.")
    with ring() as keys:
        typer.echo(keys.make(tenant, scope, name, days))


@app.command("list")
def list_(tenant: Annotated[str | None, typer.Option(help="Only this one's.")] = None) -> None:
    """List keys by id, the oldest first."""
    with ring() as keys:
        for key in keys.list(tenant):
            ends = f"{datetime.fromtimestamp(key.expires_at, UTC):%Y-%m-%dT%H:%MZ}" if key.expires_at else "never"
            typer.echo(
                f"{key.id}  {key.tenant}  {key.scope}  {key.state(time.time())}  ends {ends}  {key.name}".rstrip()
            )


@app.command()
def revoke(identifier: str) -> None:
    """A key opens nothing any more, a second from now at the latest."""
    with ring() as keys:
        keys.revoke(identifier)


@app.command()
def rotate(
    identifier: str,
    grace_hours: Annotated[float, typer.Option(help="For how long the old key works too.", min=0)] = 24,
    days: Days = None,
) -> None:
    """Make a successor and print it; the old key ends after the grace period."""
    with ring() as keys:
        typer.echo(keys.rotate(identifier, grace_hours, days))


@contextmanager
def ring() -> Iterator[KeyRing]:
    """The keys of the Redis that the settings name."""
    with connect(StoreSettings()) as redis:
        try:
            yield KeyRing(redis)
        except (UnknownKey, ValueError) as error:
            typer.echo(str(error), err=True)
            raise typer.Exit(1) from error


if __name__ == "__main__":
    app()
