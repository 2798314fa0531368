# Two images from one file:
#   docker build --target gateway -t fewbit-gateway .
#   docker build --target worker  -t fewbit-worker .
# The gateway has no torch, the worker torch's CPU build: requirements/install_torch.py finds it (TORCH_INDEX, to say where).
ARG PYTHON_IMAGE=docker.io/library/python:3.11-slim

FROM ${PYTHON_IMAGE} AS base
ENV PATH=/opt/venv/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    FEWBIT_BLOBS_URL=/data/blobs TMPDIR=/scratch
RUN python -m venv /opt/venv \
    && useradd --uid 10001 --user-group --no-create-home fewbit \
    && install -d -o fewbit -g fewbit /data/blobs /scratch
WORKDIR /app

# What is installed is what the locks name, by its hash, and nothing else; our own packages run from /app. A checkout that
# only its owner can read makes files that the user fewbit cannot: hence the chmod.
FROM base AS gateway
COPY requirements/gateway.lock ./requirements/
RUN pip install --no-deps --require-hashes -r requirements/gateway.lock
COPY fewbit ./fewbit
COPY store ./store
COPY service ./service
COPY docs/reasons ./docs/reasons
RUN chmod -R a+rX /app
USER fewbit
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
CMD ["python", "-m", "service", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
ARG TORCH_INDEX
COPY requirements/torch.lock requirements/install_torch.py ./requirements/
RUN python requirements/install_torch.py
COPY requirements/worker.lock ./requirements/
RUN pip install --no-deps --require-hashes -r requirements/worker.lock
COPY fewbit ./fewbit
COPY store ./store
COPY workers ./workers
RUN chmod -R a+rX /app
ENV FEWBIT_QUEUES=small,large
USER fewbit
# Healthy: this container's worker announced itself to Redis within the last seconds.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s \
    CMD ["python", "-c", "import os, sys, redis; from store.records import worker_key; from store.settings import StoreSettings; sys.exit(not redis.Redis.from_url(StoreSettings().redis_url).exists(worker_key(os.uname().nodename)))"]
CMD ["sh", "-c", "FEWBIT_WORKER=$(uname -n) exec python -m workers"]
