"""What must work in every place, with the environment of one lock and what its image or its wheel holds."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from redis import Redis
from torch import nn

from store.queue import INSPECT
from tests.install.images import KEY, TORCH_ONLY, gateway, image, import_everything, running
from tests.install.places import Place
from tests.install.wheels import install
from tests.service.uploads import model_file
from tests.workers.engine.runs import run_engine

CLIENT = """
import importlib, sys
for name in sys.argv[1:]: importlib.import_module(name)
assert "torch" not in sys.modules
"""
UPLOAD = """
import sys
from fewbit.client import Client
with Client(sys.argv[1], sys.argv[2]) as client:
    print(client.upload_model(sys.argv[3]).id)
"""
LOAD = """
import sys, torch, fewbit.runtime
x = torch.load(sys.argv[2], weights_only=True)
with torch.no_grad():
    torch.save(fewbit.runtime.load(sys.argv[1])(x), sys.argv[3])
"""


def modules(wheel: Path) -> list[str]:
    """The names of all modules in it."""
    with zipfile.ZipFile(wheel) as file:
        names = [name.removesuffix(".py") for name in file.namelist() if name.endswith(".py")]
    return sorted(name.replace("/", ".").removesuffix(".__init__") for name in names)


def the_client_sends_a_model_to_the_gateway(place: Place, wheel: Path) -> None:
    """Both import all they have; the upload is answered, and its message reaches the inspectors' queue."""
    client = install(place, "client", wheel)
    assert "quantize" in client.run("fewbit", "--help")
    client.python("-c", CLIENT, *(name for name in modules(wheel) if not name.startswith(TORCH_ONLY)))
    made, described = image(place, "gateway")
    import_everything(made)
    (place.folder / "model.pt2").write_bytes(model_file())
    with gateway(made, described) as (started, url):
        assert client.python("-c", UPLOAD, url, KEY, place.seen / "model.pt2").startswith("mdl_")
        with Redis.from_url(started.redis.url) as redis:
            assert redis.llen(INSPECT) == 1, started.log.read_text()


def the_worker_becomes_healthy(place: Place) -> None:
    """It imports all it has, its fork server converts its first model, and it announces itself."""
    made, described = image(place, "worker")
    import_everything(made, torch=True)
    with running(made, described, FEWBIT_QUEUES="small,large,inspect") as started:
        assert "Traceback" not in started.log.read_text()


def the_runtime_loads_an_artifact(place: Place, wheel: Path, folder: Path) -> None:
    """What is quantized here, in ``folder``, gives there what its reference gives here."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(4, 64)
    artifact = run_engine(folder, model, (x,), threads=1, artifacts=["pt2"]).artifact("model.pt2")
    made = install(place, "runtime", wheel)
    (place.folder / "model.pt2").write_bytes(artifact.read_bytes())
    torch.save(x, place.folder / "x.pt")
    made.python("-c", LOAD, *(place.seen / name for name in ("model.pt2", "x.pt", "y.pt")))
    with torch.no_grad():
        expected = torch.export.load(artifact).module()(x)
    torch.testing.assert_close(torch.load(place.folder / "y.pt", weights_only=True), expected, atol=0.05, rtol=0.05)
