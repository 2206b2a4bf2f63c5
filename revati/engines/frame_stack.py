"""CPython's frame stack: how many chunks of it a function's calls begin.

CPython 3.11 to 3.13 keep a thread's frames in chunks of 16 KiB, map the next chunk for a frame that does not
fit, and unmap it with that frame.  Calls that each begin a chunk cost a few µs more.  Frames are as large in
these versions but for a few words.
"""

from __future__ import annotations

import inspect
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

CHUNK_WORDS, HEADER_WORDS, FRAME_WORDS = 2048, 3, 9  # pystate.c, _PyStackChunk, _PyInterpreterFrame
SPARE_WORDS = 1000  # in a new chunk, beside the frame that begins it; else it is twice as large
# Their frames are parts of the objects.
_APART = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_ARGUMENTS = inspect.CO_VARARGS, inspect.CO_VARKEYWORDS
_OURS = str(Path(__file__).parents[1])


class FrameStack:
    """Follows a thread's calls below a function, and counts the chunks that they begin.

    Args:
        below_words: on the stack when that function is called.
        root: its code.
    """

    def __init__(self, below_words: int, root: CodeType) -> None:
        # The first chunk's first word stays free, so that it is never unmapped.
        self._free = [CHUNK_WORDS - HEADER_WORDS - 1 - below_words]  # words, by chunk
        self._root = root
        self._frames: list[tuple[int, bool]] = []  # words, and whether it began a chunk
        self.begun = 0

    def observe(self, frame: FrameType, event: str, _: Any) -> None:
        """What `sys.setprofile` calls."""
        if event == "call" and (self._frames or frame.f_code is self._root):
            self._push(frame_words(frame.f_code))
        elif event == "return" and self._frames:
            words, begins = self._frames.pop()
            if begins:
                self._free.pop()
            else:
                self._free[-1] += words

    def _push(self, words: int) -> None:
        begins = words > self._free[-1]
        if begins:
            size = CHUNK_WORDS
            while size < words + SPARE_WORDS:
                size *= 2
            self._free.append(size - HEADER_WORDS)
            self.begun += 1
        self._free[-1] -= words
        self._frames.append((words, begins))


@cache
def frame_words(code: CodeType) -> int:
    """Words that a frame takes on its thread's stack; 0 for what production does not call there."""
    if code.co_flags & _APART or code.co_filename.startswith(_OURS):
        return 0
    given = code.co_argcount + code.co_kwonlyargcount + sum(bool(code.co_flags & flag) for flag in _ARGUMENTS)
    cells = set(code.co_cellvars) - set(code.co_varnames[:given])
    return code.co_nlocals + len(cells) + len(code.co_freevars) + code.co_stacksize + FRAME_WORDS
