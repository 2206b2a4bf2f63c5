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

# Both take any OpenAI-style server as a replica. Where both have a policy, it is sglang-router's.
POLICIES: dict[str, Router] = {
    "random": SGLANG_ROUTER,
    "round_robin": SGLANG_ROUTER,
    "cache_aware": SGLANG_ROUTER,
    "power_of_two": SGLANG_ROUTER,
    "consistent_hash": VLLM_ROUTER,
    "sticky_least_loaded": VLLM_ROUTER,
}
ROUTINGS = (*POLICIES, DATA_PARALLEL)


def router_options(policy: str, replica_urls: Sequence[str], host: str, port: int) -> list[str]:
    """What the policy's router is called with, behind ``python -m MODULE``."""
    return ["--policy", policy, "--worker-urls", *replica_urls, "--host", host, "--port", str(port)]
