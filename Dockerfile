# Two images from one file:
#   docker build --target gateway -t fewbit-gateway .
#   docker build --target worker  -t fewbit-worker --build-arg TORCH_INDEX=<PyTorch's index of CPU wheels> .
# The lock knows torch's CPU builds alone, and TORCH_INDEX is where they are; the gateway has no torch at all.
ARG PYTHON_IMAGE=python:3.11-slim

FROM ${PYTHON_IMAGE} AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY requirements ./requirements

# What is installed is what the locks name, by its hash, and nothing else; our own packages run from /app.
FROM build AS build-gateway
RUN pip install --no-deps --require-hashes -r requirements/gateway.lock

FROM build AS build-worker
ARG TORCH_INDEX=""
RUN pip install ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} --no-deps --require-hashes -r requirements/torch.lock
RUN pip install --no-deps --require-hashes -r requirements/worker.lock

FROM ${PYTHON_IMAGE} AS base
RUN useradd --uid 10001 --user-group --no-create-home fewbit \
    && install -d -o fewbit -g fewbit /data/blobs /scratch
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 FEWBIT_BLOBS_URL=/data/blobs TMPDIR=/scratch
WORKDIR /app
COPY fewbit ./fewbit
COPY store ./store

FROM base AS gateway
COPY --from=build-gateway /opt/venv /opt/venv
COPY service ./service
COPY docs/reasons ./docs/reasons
USER fewbit
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health/live', timeout=2)"]
CMD ["python", "-m", "service", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS worker
COPY --from=build-worker /opt/venv /opt/venv
COPY workers ./workers
ENV FEWBIT_QUEUES=small,large
USER fewbit
# Healthy: this container's worker announced itself to Redis within the last seconds.
HEALTHCHECK --interval=10s --timeout=10s --start-period=30s \
    CMD ["python", "-c", "import os, sys, redis; from store.records import worker_key; from store.settings import StoreSettings; sys.exit(not redis.Redis.from_url(StoreSettings().redis_url).exists(worker_key(os.environ['HOSTNAME'])))"]
CMD ["sh", "-c", "FEWBIT_WORKER=$HOSTNAME exec python -m workers"]
