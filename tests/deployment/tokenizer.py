"""A model folder that a server and its benchmark client can load: configuration, and a tokenizer of words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_model(folder: Path, hf_config: dict[str, Any]) -> Path:
    """Write ``config.json``, and a tokenizer whose token i is the word ``t<i>``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(hf_config))
    words = {f"t{i}": i for i in range(hf_config["vocab_size"])}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "t0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    special = {"unk_token": "t0", "bos_token": "t1", "eos_token": "t2"}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096}
    (folder / "tokenizer_config.json").write_text(json.dumps({**kind, **special}))
    return folder
