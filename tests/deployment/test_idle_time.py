"""Virtual time in which a live server has nothing to do costs next to no real time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from serving import TINY, commands

pytest.importorskip("vllm")
pytestmark = [pytest.mark.slow, pytest.mark.matrix, pytest.mark.timeout(900)]

# Two requests with an hour between them; reports how long each took, and what the hour took in real time.
CLIENT = """
import ctypes, json, sys, time, urllib.error, urllib.request
url, model, report = sys.argv[1:]
real_now = ctypes.CDLL(None).revati_real_now
real_now.restype = ctypes.c_int64
def request():
    body = {"model": model, "prompt": [1] * 100, "max_tokens": 20, "ignore_eos": True}
    headers = {"Content-Type": "application/json"}
    begin = time.monotonic()
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as response:
        assert json.load(response)["usage"]["completion_tokens"] == 20
    return time.monotonic() - begin
def first_request():
    while True:
        try: return request()
        except (urllib.error.URLError, ConnectionError): time.sleep(1)  # the server is not up yet
first_request()
before = request()
begin, real_begin = time.monotonic(), real_now()
time.sleep(3600)
silence, real = time.monotonic() - begin, real_now() - real_begin
with open(report, "w") as file:
    json.dump([before, request(), silence, real * 1e-9], file)
"""


def test_an_hour_of_silence_beside_a_live_server(tmp_path: Path) -> None:
    words, _ = commands(tmp_path, TINY, [], [])
    server = words[: words.index("--and")]
    port, model = server[server.index("--port") + 1], server[2]
    report = tmp_path / "report.json"
    client = [sys.executable, "-c", CLIENT, f"http://127.0.0.1:{port}/v1/completions", model, str(report)]
    run = [sys.executable, "-m", "revati.run", "--", *server, "--and", *client]
    finished = subprocess.run(run, capture_output=True, text=True, timeout=800, check=False)
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    before_s, after_s, silence_s, real_s = json.loads(report.read_text())
    print(f"an hour took {real_s:.2f} s; a request before it {before_s:.4f} s, after it {after_s:.4f} s")
    assert silence_s == pytest.approx(3600, abs=1e-3)
    assert real_s < 10
    assert after_s == pytest.approx(before_s, rel=0.5)
