"""Steps at other depths of Python's stack, where their launches begin other numbers of its chunks.

What a chunk costs is told within one engine so: engines differ from each other in more than their frames.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

# A frame that leaves less of a new chunk gets a larger one (see `revati.engines.frame_stack`).
_LARGEST_FRAME_WORDS = 900


class StackDepth:
    """A method that a vLLM worker gains."""

    def deepen_stack(self, words: int) -> None:
        """Have so many more words on the stack below forward passes from now on; 0: as it was."""
        runner: Any = self.model_runner  # type: ignore[attr-defined]
        vars(runner).pop("execute_model", None)
        if words:
            runner.execute_model = deepened(runner.execute_model, words)


def deepened(function: Callable[..., Any], words: int) -> Callable[..., Any]:
    """A function over frames that take so many words of the stack beside their own few."""
    for _ in range(words // _LARGEST_FRAME_WORDS):
        function = _over_a_frame(function, _LARGEST_FRAME_WORDS)
    return _over_a_frame(function, words % _LARGEST_FRAME_WORDS)


def _over_a_frame(function: Callable[..., Any], words: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    code = call.__code__
    call.__code__ = code.replace(co_stacksize=code.co_stacksize + words)
    return call
