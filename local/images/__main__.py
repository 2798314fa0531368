"""``make images``: build both images, run ``docker-compose.yml`` as it is, and check what it does.

Docker or Podman, whichever works here. Base images come from their registry; where that cannot be reached, Debian
stands in for them (``stand_in``), and the output says so. Exit status 0 says that everything held. Containers, volumes
and networks are gone afterwards; the images stay, so that the next time is quick.
"""

from __future__ import annotations

import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path

from fewbit.errors import FewbitError
from local import demo, digits
from local.images import checks, stand_in
from local.images.composed import Composed
from local.images.engine import Engine, EngineError, choose

TARGETS = ("gateway", "worker")
BUILD_S = 1800.0
STOOD_IN = """
!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!
!! STAND-IN: no registry of images can be reached from here. Debian 12, made by
!! debootstrap, takes the place of {names}.
!! What follows holds for our layers and docker-compose.yml, not for those base images.
!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!"""


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="fewbit-images-") as folder:
            build_and_check(Path(folder))
    except (EngineError, FewbitError, checks.Failed, RuntimeError) as error:
        print(f"\nFAILED: {error}\n{time.monotonic() - began:.0f} s. Nothing is left running.", flush=True)
        return 1
    print(f"\nEverything held. {time.monotonic() - began:.0f} s. Nothing is left running.")
    return 0


def build_and_check(folder: Path) -> None:
    """Raises ``EngineError`` or ``checks.Failed``."""
    engine = choose()
    print(f"Engine: {engine.name}, {' '.join(engine.compose)}", flush=True)
    began = time.monotonic()
    with stand_in.provided(engine) as stood_in:
        print(f"Base images: {', '.join(stand_in.base_images())}, {time.monotonic() - began:.0f} s", flush=True)
        if stood_in:
            print(STOOD_IN.format(names=" and of ".join(stood_in)), flush=True)
        engine = engine.fitted(stand_in.base_images()[0])
        build(engine, stand_in.pip_options(folder) if stood_in else [])
        checks.print_found("The images", checks.check_contents(engine))
        check_composed(engine, folder)


def build(engine: Engine, lent: list[str]) -> None:
    """Both targets of the Dockerfile, under the names that ``docker-compose.yml`` has for them. ``--format docker``:
    OCI's own format has no health checks. ``chroot`` and the host's network: builds need no container of their own."""
    podman = ["--format", "docker", "--isolation", "chroot", "--network", "host", *lent]
    options = podman if engine.name == "podman" else []
    for target in TARGETS:
        with checks.headed(f"Building fewbit-{target}"):
            engine("build", *options, "--target", target, "--tag", f"fewbit-{target}", ".", timeout=BUILD_S)


def check_composed(engine: Engine, folder: Path) -> None:
    """All that needs the service running. Raises ``EngineError`` or ``checks.Failed``."""
    print("\nA model to send", flush=True)
    trained = demo.train("mlp", folder)
    test = digits.save_test_npz(folder / "test.npz")
    began = time.monotonic()
    with Composed(engine, secrets.token_hex(24)) as service:
        print(f"\nRunning docker-compose.yml: ready after {time.monotonic() - began:.1f} s", flush=True)
        show = checks.print_found
        show("The containers are shut in", checks.check_shut_in(service))
        show("Health", checks.check_health(service))
        show("Redis", checks.check_redis(service))
        show("The sandbox, in a container", checks.check_sandbox(service))
        show("A model through it", checks.check_job(service, trained, test, folder))
        show("The wheel", checks.check_wheel(service, trained, test, folder / "wheel"))
        show("A restart in the middle of a job", checks.check_restart(service, folder))
        show("What does not start says why", checks.check_refusals(service, folder / "nothing"))
        show("The logs", checks.check_logs(service))


if __name__ == "__main__":
    sys.exit(main())
