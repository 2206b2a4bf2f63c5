"""An engine whose code cannot be imported fails its trials at once, with the reason."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from serving import TINY

from revati.deployment.runner import ServerDiedError, TemplateClient, TemplateServer
from revati.spec import DeploymentSpec, HostSpec, ModelShape
from revati.workload import LognormalLengths, Workload

pytest.importorskip("vllm")

AT_ONCE_S = 60.0  # the client would wait 300 s for an import that goes on


def test_a_broken_engine_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken" / "torch"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text('raise ImportError("undefined symbol: ncclNever")\n')
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    spec = DeploymentSpec("vllm", ModelShape("tiny", TINY), "h200", HostSpec("h200_xeon"))
    workload = Workload.from_offline("test", num_requests=1, lengths=LognormalLengths(), seed=0)
    with TemplateServer(tmp_path / "logs") as server:
        begin = time.monotonic()
        with pytest.raises(ServerDiedError, match=r"undefined symbol: ncclNever \(.*zygote_vllm.log\)"):
            TemplateClient(server.socket_path).run(spec, workload, tmp_path / "trial")
        assert time.monotonic() - begin < AT_ONCE_S
