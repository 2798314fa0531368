"""``python -m workers``: one worker, which runs one job or inspection at a time.

python -m workers [--queues small,large] [--name worker]
"""

from __future__ import annotations

import argparse
import os

from store.startup import exit_unless_ready
from workers.startup import require_environment, require_queues


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m workers", description="A worker.")
    parser.add_argument("--queues", default=os.environ.get("FEWBIT_QUEUES", "small,large"))
    parser.add_argument("--name", default="worker", help="in Celery's log; FEWBIT_WORKER is the one that is announced")
    given = parser.parse_args()
    with exit_unless_ready("The worker"):
        queues = require_queues(given.queues)
        require_environment()
    serve(queues, given.name)


def serve(queues: str, name: str) -> None:
    """Work until SIGTERM. Celery is imported only after ``require_environment``, which explains a failing import."""
    from workers.celery import app

    options = ["--pool", "threads", "--concurrency", "1", "--loglevel", "INFO"]
    app.worker_main(["worker", *options, "--queues", queues, "--hostname", f"{name}@%h"])


if __name__ == "__main__":
    main()
