"""What launches are priced as, and which are refused."""

from __future__ import annotations

import re

import pytest

from revati import paths
from revati.interception.core import LaunchKey, LaunchType
from revati.interception.gpu import load_gpu
from revati.timing import KernelTimer
from revati.timing.attach import LaunchPricing, UnreadProductError
from tests.doubles.core import ResolverCore
from tests.timing.database import LLAMA7B

# Of SGLang's FP8, of weights alone in FP8, of operands in int8.
UNREAD = (
    "void cutlass::device_kernel<cutlass::gemm::kernel::GemmUniversal<x> >(x)",
    "void marlin::Marlin<x>(x)",
    "void cutlass::Kernel2<cutlass::gemm::kernel::DefaultGemmWithVisitor<x> >(x)",
)


@pytest.fixture
def core() -> ResolverCore:
    return ResolverCore()


@pytest.fixture
def pricing(core: ResolverCore) -> LaunchPricing:
    timer = KernelTimer(paths.kernel_db_dir(), "h200", LLAMA7B)
    return LaunchPricing(core, timer, load_gpu("h200"))  # type: ignore[arg-type]


def launch(name: str, kind: int) -> LaunchKey:
    key = LaunchKey(name=name.encode(), type=kind)
    key.grid[:], key.block[:] = (132, 1, 1), (384, 1, 1)
    key.m, key.n, key.k, key.batch = 256, 6144, 4096, 1
    return key


def test_products_are_priced_by_their_types(core: ResolverCore, pricing: LaunchPricing) -> None:
    bf16 = core.price(launch("bf16>bf16:TN", LaunchType.GEMM))
    fp8 = core.price(launch("f8e4m3>bf16:TN", LaunchType.GEMM))
    assert 0 < fp8.duration_ns < bf16.duration_ns
    pricing.set_batch([1], [100])


@pytest.mark.parametrize("name", UNREAD)
def test_a_product_of_unknown_size_is_refused_by_name(
    core: ResolverCore, pricing: LaunchPricing, name: str
) -> None:
    core.price(launch(name, LaunchType.KERNEL))
    with pytest.raises(UnreadProductError, match=re.escape(name.removeprefix("void ")[:20])):
        pricing.refuse_unread()
    with pytest.raises(UnreadProductError, match="known: cuBLAS's"):
        pricing.set_batch([1], [100])
