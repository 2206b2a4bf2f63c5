"""The HTTP client, and the real routers in virtual time, with servers that only pretend to be engines."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from revati.deployment.domain_run import Commands
from revati.deployment.fleet import free_port
from revati.deployment.http_servers import HttpClient, open_session, wait_until_healthy
from revati.deployment.provisioning import provision_missing
from revati.deployment.routers import router_arguments
from revati.engines.base import Request, RequestOutput
from revati.engines.tokenizer import text_of, word
from revati.environments import ROUTERS, interpreter
from revati.virtual_time.domain import Domain

ROOT = Path(__file__).parents[2]
# asyncio rounds its waits up to whole milliseconds; a whole number might be one more, by the clock's float.
MS_PER_TOKEN, TOKEN_S = 9.5, 0.01
SERVER = [sys.executable, "-m", "tests.doubles.openai_server"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    port = free_port()
    server = subprocess.Popen([*SERVER, str(port), "1"], cwd=ROOT)
    yield f"http://127.0.0.1:{port}"
    server.kill()
    server.wait()


def complete(url: str, request: Request) -> list[RequestOutput]:
    async def run() -> list[RequestOutput]:
        async with open_session() as session:
            await wait_until_healthy(session, url)
            return [output async for output in HttpClient(session, url).complete("m", request)]

    return asyncio.run(run())


def test_tokens_are_counted_also_when_some_come_together(url: str) -> None:
    request = Request(7, [1, 2, 3], 5, session=4)
    outputs = complete(url, request)
    assert [output.new_tokens for output in outputs] == [1, 2, 1, 1, 0]
    assert [output.finished for output in outputs] == [False] * 4 + [True]
    assert {output.index for output in outputs} == {7}
    assert outputs[-1].cached_tokens == 0
    assert complete(url, request)[-1].cached_tokens == 3
    served = json.loads(subprocess.check_output(["curl", "-s", f"{url}/served"]))
    assert served[-1] == {"prompt": text_of([1, 2, 3]), "session": "session-4"}


def test_refusals_and_other_tokenizers_are_errors(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for prompt, message in (
        ("refuse", "HTTP status 400"),
        ("miscount me", "counted 1 tokens in a prompt of 2"),
    ):
        monkeypatch.setattr("revati.deployment.http_servers.text_of", lambda ids, prompt=prompt: prompt)
        with pytest.raises(RuntimeError, match=message):
            complete(url, Request(0, [1, 2], 1))


def test_words_stand_for_tokens() -> None:
    words = [word(token_id) for token_id in range(50_000)]
    assert len(set(words)) == len(words)
    assert {len(text) for text in words[1:]} == {3}
    assert text_of([1, 61, 62]) == "baa 9aa aba"
    # vLLM refuses texts longer than its context in tokens of the longest word.
    assert len(text_of([1] * 4096)) < 4096 * max(map(len, words))


# A client in the domain: [at_s, prompt token ids, output tokens, session] each; prints what came of them.
CLIENT = """
import asyncio, json, sys, time
from revati.deployment.http_servers import HttpClient, open_session, wait_until_healthy
from revati.engines.base import Request
entry, workers, requests = sys.argv[1], sys.argv[2].split(","), json.loads(sys.argv[3])
async def send(client, at_s, prompt, tokens, session):
    await asyncio.sleep(at_s)
    begin = time.monotonic()
    outputs = [o async for o in client.complete("m", Request(0, prompt, tokens, session))]
    return [time.monotonic() - begin, outputs[-1].cached_tokens]
async def main():
    async with open_session() as http:
        for url in workers: await wait_until_healthy(http, url)
        client = HttpClient(http, entry)
        while True:
            try:
                if json.loads(await client.get("/readiness"))["healthy_workers"] == len(workers): break
            except Exception: pass
            await asyncio.sleep(0.1)
        results = await asyncio.gather(*(send(client, *request) for request in requests))
        served = [json.loads(await HttpClient(http, url).get("/served")) for url in workers]
        straight = await send(HttpClient(http, workers[0]), *requests[0])
        print(json.dumps({"results": results, "served": served, "straight_s": straight[0]}))
asyncio.run(main())
"""


def route(routing: str, requests: list[Any], slow: bool = False) -> dict[str, Any]:
    """Send requests to three servers through the routing's router; the last one may be very slow."""
    provision_missing([ROUTERS])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ports, entry = [free_port() for _ in range(3)], free_port()
    urls = [f"http://127.0.0.1:{port}" for port in ports]
    router = [str(interpreter(ROUTERS)), *router_arguments(routing, urls, "127.0.0.1", entry)]
    with Domain.create() as domain, tempfile.TemporaryFile() as log:
        commands = Commands(domain)
        for port in ports:
            speed = MS_PER_TOKEN * (50 if slow and port == ports[-1] else 1)
            commands.start([*SERVER, str(port), str(speed)], environment, log)
        commands.start([*router, "--prometheus-port", str(free_port())], os.environ, log)
        arguments = [f"http://127.0.0.1:{entry}", ",".join(urls), json.dumps(requests)]
        client = domain.start(
            [sys.executable, "-c", CLIENT, *arguments], env=environment, stdout=subprocess.PIPE, text=True
        )
        try:
            output, _ = client.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            output = domain.describe()
        log.seek(0)
        assert client.returncode == 0, (domain.ended, output, log.read())
        found: dict[str, Any] = json.loads(output)
        return found


def counts(found: dict[str, Any]) -> list[int]:
    return [len(served) for served in found["served"]]


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["random", "power_of_two"])  # each router
def test_a_router_costs_no_virtual_time(routing: str) -> None:
    found = route(routing, [[0.5 * i, [i, i], 10, i] for i in range(12)])
    assert sum(counts(found)) == 12
    assert found["straight_s"] == pytest.approx(9 * TOKEN_S, abs=1e-4)  # two tokens come together
    times_s = [seconds for seconds, _ in found["results"]]
    assert times_s == pytest.approx([found["straight_s"]] * 12, abs=1e-4)


@pytest.mark.slow
def test_round_robin_takes_turns_and_cache_aware_comes_back() -> None:
    apart = [[0.5 * i, [i // 4, 7], 4, None] for i in range(12)]  # each prompt four times
    assert counts(route("round_robin", apart)) == [4, 4, 4]
    assert [cached for _, cached in route("cache_aware", apart)["results"]] == [0, 2, 2, 2] * 3


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["consistent_hash", "sticky_least_loaded"])
def test_a_session_stays_where_it_is(routing: str) -> None:
    found = route(routing, [[0.5 * i, [i], 4, i % 4] for i in range(16)])
    homes = [{one["session"] for one in served} for served in found["served"]]
    assert sum(map(len, homes)) == len(set.union(*homes)) == 4


@pytest.mark.slow
def test_power_of_two_spares_a_slow_replica_where_requests_are_counted() -> None:
    together = [[0.02 * i, [i], 20, None] for i in range(60)]
    # Of 60 requests 20 if load does not matter; else as many as others have, some 6, and a few.
    assert counts(route("power_of_two", together, slow=True))[-1] <= 11
    assert counts(route("sglang_power_of_two", together, slow=True))[-1] > 8
