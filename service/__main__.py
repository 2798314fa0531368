"""``python -m service``: the gateway behind the guarded protocol, which a bare ``uvicorn service.app:app`` has not.

python -m service [--host 127.0.0.1] [--port 8000]
"""

from __future__ import annotations

import argparse
import resource

from service.startup import check
from store.startup import exit_unless_ready

FILES_OF_A_CONNECTION, FILES_BESIDE = 2, 512
"""Its socket, and a file or a connection to Redis. Beside: the pool of Redis, logs, libraries."""
FAREWELL_S = 30  # a download that is not over by then goes on at another gateway, by its range


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service", description="The gateway.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    with exit_unless_ready("The gateway"):
        check()
    serve(given.host, given.port)


def serve(host: str, port: int) -> None:
    """Until SIGTERM. Its imports come after ``check``, which says what is wrong with one."""
    import uvicorn

    from service.http.protocol import guarded
    from service.operations import logs
    from service.settings import ServiceSettings

    logs.configure()
    settings = ServiceSettings()
    uvicorn.run(
        "service.app:app",
        host=host,
        port=port,
        http=guarded(connections(settings.max_connections), settings.idle_s),
        ws="none",
        server_header=False,
        access_log=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=FAREWELL_S,
    )


def connections(most: int) -> int:
    """``most``, or as many as the process may have files for. It takes as many of those as it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most * FILES_OF_A_CONNECTION + FILES_BESIDE
    files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft not in (resource.RLIM_INFINITY, hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, files), hard))
    return min(most, max(1, (files - FILES_BESIDE) // FILES_OF_A_CONNECTION))


if __name__ == "__main__":
    main()
