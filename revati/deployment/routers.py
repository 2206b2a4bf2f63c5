"""Ways to hand requests to replicas: the policies of two routers, and vLLM's own data parallelism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from revati.spec import DATA_PARALLEL


@dataclass(frozen=True, slots=True)
class Router:
    """A router program from PyPI."""

    package: str
    version: str
    module: str  # its ``python -m``


SGLANG_ROUTER = Router("sglang-router", "0.3.2", "sglang_router.launch_router")
VLLM_ROUTER = Router("vllm-router", "0.1.17", "vllm_router.launch_router")


@dataclass(frozen=True, slots=True)
class Policy:
    """A router's policy by the router's own name."""

    router: Router
    name: str


# Both routers take any OpenAI-style server as a replica. sglang-router has whichever policy works there:
# it counts the requests that a replica is working on only under cache_aware, so that its power_of_two
# compares zeros, which is random (smg-project/smg#2146 is the fix of a later version).
POLICIES: dict[str, Policy] = {
    "random": Policy(SGLANG_ROUTER, "random"),
    "round_robin": Policy(SGLANG_ROUTER, "round_robin"),
    "cache_aware": Policy(SGLANG_ROUTER, "cache_aware"),
    "power_of_two": Policy(VLLM_ROUTER, "power_of_two"),
    "consistent_hash": Policy(VLLM_ROUTER, "consistent_hash"),
    "sticky_least_loaded": Policy(VLLM_ROUTER, "sticky_least_loaded"),
    "sglang_power_of_two": Policy(SGLANG_ROUTER, "power_of_two"),
}
ROUTINGS = (*POLICIES, DATA_PARALLEL)


def router_arguments(routing: str, replica_urls: Sequence[str], host: str, port: int) -> list[str]:
    """What Python is called with to start the router of a routing."""
    policy = POLICIES[routing]
    options = ["--policy", policy.name, "--worker-urls", *replica_urls, "--host", host, "--port", str(port)]
    return ["-m", policy.router.module, *options]
