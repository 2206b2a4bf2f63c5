"""A small sweep's parts, for tests of the search."""

from revati.deployment.metrics import METRIC_COLUMNS, Slo
from revati.search.objective import Objective
from revati.search.problem import Problem
from revati.search.trial import TrialOutput
from revati.spec import HostSpec, ModelShape

TINY = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "intermediate_size": 1024,
    "vocab_size": 1000,
}
MODEL = ModelShape("tiny", TINY)
PROBLEM = Problem(MODEL, "vllm", {"enforce_eager": True}, "h200", HostSpec("free", "free"), num_gpus=4)


def objective(**slo: float) -> Objective:
    return Objective.parse(["output_throughput_tok_per_s_per_gpu", "ttft_ms_p90"], slo, Slo())


def ok(throughput: float, ttft: float = 10.0) -> TrialOutput:
    """A trial that ran, with every metric there is."""
    metrics = dict.fromkeys(METRIC_COLUMNS, 1.0)
    metrics |= {"output_throughput_tok_per_s_per_gpu": throughput, "ttft_ms_p90": ttft}
    return TrialOutput("ok", "", 8449, 1.5, {"gpu_time_share_measured": 1.0}, metrics)
