"""What an engine's prefix cache should find."""

from __future__ import annotations

from revati.workload import Workload


def cached_tokens(workload: Workload, block: int, left_out: int) -> list[int]:
    """Prompt tokens that one replica finds in a cache of blocks, if none of a session's turns meet.

    ``left_out``: tokens at an answer's end whose keys and values are not computed.
    """
    sharing = workload.sharing
    assert sharing is not None
    before = {after: turn for turn, after in enumerate(sharing.next_turn().tolist()) if after >= 0}
    known_prefixes: set[int] = set()
    cached = []
    for index, group in enumerate(sharing.prefix_group.tolist()):
        if (turn := before.get(index)) is not None:
            found = int(workload.prompt_tokens[turn] + workload.output_tokens[turn]) - left_out
        else:
            found = int(sharing.prefix_tokens[index]) if group in known_prefixes else 0
        known_prefixes.add(group)
        cached.append(found // block * block)
    return cached
