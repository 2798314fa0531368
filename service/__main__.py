"""``python -m service``: the gateway behind the guarded protocol, which a bare ``uvicorn service.app:app`` has not.

python -m service [--host 127.0.0.1] [--port 8000]
"""

from __future__ import annotations

import argparse

import uvicorn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m service", description="The gateway.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    uvicorn.run(
        "service.app:app",
        host=given.host,
        port=given.port,
        http="service.protocol:GuardedProtocol",
        ws="none",
        server_header=False,
        access_log=False,
        timeout_keep_alive=15,
    )


if __name__ == "__main__":
    main()
