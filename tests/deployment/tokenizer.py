"""A model folder that a server and its benchmark client can load: configuration, and a tokenizer of words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_model(folder: Path, hf_config: dict[str, Any]) -> Path:
    """Write ``config.json``, and a tokenizer whose token i is the word ``t<i>``, the first three apart."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config))
    special = ("<unk>", "<s>", "</s>")  # found within words: no word may contain one
    words = {f"t{i}": i for i in range(len(special), hf_config["vocab_size"])}
    words |= {word: i for i, word in enumerate(special)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": special[0]},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    names = dict(zip(("unk_token", "bos_token", "eos_token"), special, strict=True))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps({**kind, **names}))
    return folder
