"""Our own load generator, a process of the deployment's domain: it sends the workload and keeps the times.

usage: python -m revati.deployment.load REQUEST_FILE RESULT_FILE

REQUEST_FILE holds a `TrialRequest`, RESULT_FILE will hold a `TrialResult`, a line of JSON each.
"""

from __future__ import annotations

import asyncio
import sys
import time
import traceback
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pyarrow.parquet as pq

from revati.deployment.http_servers import HttpServers, open_session
from revati.deployment.inprocess import NS_PER_S, RequestRecord, seconds_since
from revati.deployment.prompts import Turns, make_requests
from revati.deployment.results import requests_table, too_weak
from revati.deployment.wire import TrialRequest, TrialResult
from revati.engines.base import InfeasibleError, Request, Server
from revati.engines.common import deployment_costs
from revati.engines.warm import engine_module
from revati.timing.estimate import PROVENANCES
from revati.virtual_time.host import IDLE_STEP, HostCosts
from revati.virtual_time.host_table import name_for
from revati.workload import Workload

_TIMER_S = 2e-3  # asyncio's timers end up to a millisecond late


class LoadGenerator:
    """Sends requests when they arrive, whatever came of others; a session's next turn after its answer.

    Args:
        costs: says how late the target's clients send (phase ``arrival``).
    """

    def __init__(self, server: Server, workload: Workload, costs: HostCosts) -> None:
        self._server, self._turns, self._costs = server, Turns(workload), costs
        self.records = [RequestRecord(float(arrival_s)) for arrival_s in workload.arrival_s]
        self._start_s = time.monotonic()

    async def serve(self, requests: Sequence[Request]) -> list[RequestRecord]:
        """Run until every request has finished; returns records in the order of ``requests``."""
        running = []
        for index in self._turns.first:
            await self._until(self.records[index].arrival_s)
            running.append(asyncio.create_task(self._converse(index, requests)))
        await asyncio.gather(*running)
        return self.records

    async def _converse(self, index: int, requests: Sequence[Request]) -> None:
        await self._follow(requests[index], self.records[index])
        while turn := self._turns.after(index):
            record = self.records[turn.index]
            record.arrival_s = self.records[index].token_times_s[-1] + turn.think_s
            await self._until(record.arrival_s)
            index = turn.index
            await self._follow(requests[index], record)

    async def _until(self, arrival_s: float) -> None:
        """Wait for an arrival, as exactly as the target's timers are."""
        lateness_ns = self._costs.phase_ns("arrival", IDLE_STEP)
        assert lateness_ns is not None, "arrival has no cost without running it"
        if arrival_s <= self._now_s():
            return
        moment_s = arrival_s + lateness_ns / NS_PER_S
        if (left_s := moment_s - self._now_s() - _TIMER_S) > 0:
            await asyncio.sleep(left_s)
        if (left_s := moment_s - self._now_s()) > 0:
            await asyncio.to_thread(time.sleep, left_s)

    async def _follow(self, request: Request, record: RequestRecord) -> None:
        record.submitted_s = self._now_s()
        async for output in self._server.generate(request):
            now_s = self._now_s()
            record.token_times_s.extend([now_s] * output.new_tokens)
            if output.cached_tokens is not None:
                record.cached_tokens = output.cached_tokens
            if output.queued_s and output.scheduled_s:
                record.queued_s = seconds_since(self._start_s, output.queued_s)
                record.scheduled_s = seconds_since(self._start_s, output.scheduled_s)

    def _now_s(self) -> float:
        return seconds_since(self._start_s, time.monotonic())


@asynccontextmanager
async def open_server(request: TrialRequest) -> AsyncIterator[Server]:
    """The trial's engine: servers that run already, or one that is started and ended here."""
    engine, spec = engine_module(request.spec.engine), request.spec
    if request.replica_urls:
        async with open_session() as session:
            yield HttpServers(session, engine, spec, request.replica_urls, request.entry_url)
        return
    server = engine.serve(spec, request.out_dir)
    try:
        yield server
    finally:
        server.close()


async def run(request: TrialRequest) -> TrialResult:
    spec, log_path = request.spec, request.out_dir / "trial.log"
    workload = Workload.from_trace(request.workload_path)
    async with open_server(request) as server:
        await server.warm_up()
        requests = make_requests(workload, spec.model.vocab_size, spec.seed)
        costs = deployment_costs(spec, name_for(spec.host.name, spec.engine))
        records = await LoadGenerator(server, workload, costs).serve(requests)
        columns = await server.usage(request.out_dir)
    requests_path = request.out_dir / "requests.parquet"
    pq.write_table(requests_table(records, workload), requests_path)
    shares = {name: columns[f"gpu_time_share_{name}"] for name in PROVENANCES}
    if refusal := too_weak(spec.timing_require, shares):
        return TrialResult("infeasible", refusal, log_path=log_path)
    return TrialResult(
        status="ok",
        kv_cache_blocks=server.kv_cache_blocks,
        provenance=columns,
        requests_path=requests_path,
        log_path=log_path,
    )


def main() -> None:
    request = TrialRequest.from_line(Path(sys.argv[1]).read_bytes())
    log_path = request.out_dir / "trial.log"
    try:
        result = asyncio.run(run(request))
    except InfeasibleError as error:
        result = TrialResult("infeasible", str(error), log_path=log_path)
    except Exception as error:
        traceback.print_exc()
        result = TrialResult("failed", f"{type(error).__name__}: {error}", log_path=log_path)
    Path(sys.argv[2]).write_bytes(result.to_line())


if __name__ == "__main__":
    main()
