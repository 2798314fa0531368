"""The command line, as a process of its own: what it prints and the exit code it leaves to a pipeline."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.fewbit.example import report as example_report
from tests.fewbit.scripted import Answer, Scripted, as_json, problem
from tests.fewbit.test_client import DONE, JOB, MODEL, artifact, events


def fewbit(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fewbit.cli import app; app()", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "100"} | env, check=False, timeout=60
    )


def report_answer(**changes: Any) -> Answer:
    return Answer(200, example_report(**changes).model_dump_json().encode(), {"Content-Type": "application/json"})


def test_quantize_goes_from_file_to_artifacts(server: Scripted, tmp_path: Path) -> None:
    (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04")
    content = b"an int8 model"
    listed = example_report().artifacts[0].model_dump()
    server.plays(
        as_json(MODEL, 201),
        as_json(MODEL),
        as_json(JOB, 202),
        events(("1-0", "done", {"status": "succeeded"})),
        as_json(DONE),
        report_answer(artifacts=[listed]),
        artifact(content),
        Answer(200, content),
    )
    out = tmp_path / "out"
    ran = fewbit(
        "quantize", str(tmp_path / "net.pt2"), "--exclude", "classifier", "--out", str(out), FEWBIT_URL=server.url
    )
    assert ran.returncode == 0, ran.stderr
    assert "PASS" in ran.stdout
    assert (out / "net.int8.ts.pt").read_bytes() == content
    spec = json.loads(server.received[2].body)
    assert spec == {"model": "mdl_1", "method": "dynamic", "layers": [{"match": "classifier", "quantize": False}]}


def test_a_failed_verdict_is_exit_code_1(server: Scripted) -> None:
    server.plays(report_answer(verdict="fail"))
    assert fewbit("report", "job_1", FEWBIT_URL=server.url, FEWBIT_KEY="k").returncode == 1
    assert server.received[0].headers["authorization"] == "Bearer k"


def test_a_problem_is_exit_code_2_and_no_traceback(server: Scripted) -> None:
    server.plays(problem("unauthorized", 401, "The key is not known."))
    ran = fewbit("report", "job_1", FEWBIT_URL=server.url)
    assert ran.returncode == 2
    assert "The key is not known." in ran.stderr
    assert "What to do: Send `Authorization: Bearer <key>`" in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    "url", ["http://host:abc", "localhost:8000", "127.0.0.1:8000", "ftp://host", "http://", "http://host:0",
            "http://host:99999", "http://[::1", "nonsense"],
)  # fmt: skip
def test_an_invalid_address_is_exit_code_2_at_once(url: str) -> None:
    started = time.monotonic()
    ran = fewbit("jobs", "--url", url)
    assert (ran.returncode, "Traceback" in ran.stderr) == (2, False), ran.stderr
    assert url in ran.stderr
    assert "What to do: Write it like http://127.0.0.1:8000" in ran.stderr
    assert time.monotonic() - started < 20  # patience is 30 s


@pytest.mark.parametrize("key", ["se\ncret", "secr\u00e9t", "se cret", "sec\x1bret", "secret\u2026"])
def test_a_malformed_key_is_exit_code_2_and_not_shown(server: Scripted, key: str) -> None:
    ran = fewbit("jobs", FEWBIT_URL=server.url, FEWBIT_KEY=key)
    assert (ran.returncode, "Traceback" in ran.stderr) == (2, False), ran.stderr
    assert "The API key is malformed" in ran.stderr
    assert not any(part in ran.stderr + ran.stdout for part in ("secr", "cret", "sec\x1b"))
    assert server.received == []


def test_a_crash_is_exit_code_2_not_a_verdict(server: Scripted) -> None:
    server.plays(as_json({"verdict": "pass"}))
    ran = fewbit("report", "job_1", FEWBIT_URL=server.url)
    assert ran.returncode == 2
    assert "ValidationError" in ran.stderr


def test_white_space_around_a_key_is_ignored(server: Scripted) -> None:
    server.plays(as_json({"jobs": []}))
    assert fewbit("jobs", FEWBIT_URL=server.url, FEWBIT_KEY=" k\r\n").returncode == 0
    assert server.received[0].headers["authorization"] == "Bearer k"


def test_a_report_that_cannot_be_written_is_exit_code_2_in_one_line(server: Scripted, tmp_path: Path) -> None:
    for face in ("terminal", "html"):
        server.plays(report_answer())
        nowhere = str(tmp_path / "nowhere" / "r.md")
        ran = fewbit("report", "job_1", "--out", nowhere, "--format", face, FEWBIT_URL=server.url)
        assert ran.returncode == 2
        assert ran.stderr.count("\n") == 1
        assert f"{nowhere}: No such file or directory. What to do:" in ran.stderr


def test_json_is_the_report_and_nothing_else(server: Scripted) -> None:
    server.plays(report_answer())
    ran = fewbit("report", "job_1", "--json", FEWBIT_URL=server.url)
    assert json.loads(ran.stdout) == json.loads(example_report().model_dump_json())


@pytest.mark.parametrize("command", ["models", "jobs"])
def test_lists_show_models_and_jobs(server: Scripted, command: str) -> None:
    answers = {"models": {"models": [MODEL | {"name": "net.pt2"}]}, "jobs": {"jobs": [DONE]}}
    server.plays(as_json(answers[command]))
    ran = fewbit(command, FEWBIT_URL=server.url)
    assert {"models": "net.pt2", "jobs": "succeeded"}[command] in ran.stdout


def test_a_missing_file_is_exit_code_2() -> None:
    assert fewbit("quantize", "nowhere.pt2").returncode == 2


@pytest.mark.parametrize(
    ("face", "begins"), [("markdown", "### "), ("html", "<!doctype html>"), ("json", "{"), ("terminal", "\n PASS")]
)
def test_a_report_is_written_in_the_given_format_to_the_given_file(
    server: Scripted, tmp_path: Path, face: str, begins: str
) -> None:
    server.plays(report_answer(), report_answer())
    printed = fewbit("report", "job_1", "--format", face, FEWBIT_URL=server.url)
    assert printed.stdout.startswith(begins), printed.stderr
    saved = fewbit("report", "job_1", "--format", face, "--out", str(tmp_path / "report"), FEWBIT_URL=server.url)
    assert (saved.returncode, saved.stdout) == (0, "")
    assert (tmp_path / "report").read_text() == printed.stdout
    if face in ("markdown", "html"):
        assert f"{server.url}/reasons/excluded-by-user" in printed.stdout
