"""A tokenizer for emulated models: token i is a word, so that a text has as many tokens as words.

Words have three characters, and a space between them: about the length of a token of English text.
"""

from __future__ import annotations

import json
import string
from collections.abc import Iterable
from pathlib import Path
from typing import Any

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_CHARACTERS = string.ascii_lowercase + string.ascii_uppercase + string.digits
_LENGTH = 3
_LARGEST_VOCABULARY = len(_CHARACTERS) ** _LENGTH
# Token 0. Servers refuse texts that are longer than their context in the longest words; spaces count.
_UNKNOWN = "<unknown>"


def word(token_id: int) -> str:
    """The text of one token."""
    if token_id == 0:
        return _UNKNOWN
    characters = ""
    for _ in range(_LENGTH):
        token_id, digit = divmod(token_id, len(_CHARACTERS))
        characters += _CHARACTERS[digit]
    return characters


def text_of(token_ids: Iterable[int]) -> str:
    """A text that the tokenizer reads as these tokens."""
    return " ".join(map(word, token_ids))


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """Write ``TOKENIZER_FILES``, in Hugging Face's format.

    Raises:
        ValueError: there are not so many words.
    """
    if vocab_size > _LARGEST_VOCABULARY:
        raise ValueError(f"vocab_size={vocab_size}: there are {_LARGEST_VOCABULARY} words")
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word(token_id): token_id for token_id in range(vocab_size)},
            "unk_token": _UNKNOWN,
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": _UNKNOWN}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
