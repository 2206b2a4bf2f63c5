"""Make the Python environment of SGLang or of the routers: ``python -m revati.provision sglang``.

vLLM lives in Revati's own environment (``pip install 'revati[vllm]'``).  SGLang's pinned dependencies
exclude vLLM's, so it gets an environment of its own (8 GB in ``~/.cache/revati``, or where REVATI_CACHE or
REVATI_SGLANG_ENV say), made once, with uv where there is one; so do the routers (0.2 GB,
REVATI_ROUTERS_ENV).  A sweep that needs one makes it, too.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from revati.deployment.provisioning import provision
from revati.environments import REQUIREMENTS, interpreter


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=sorted(REQUIREMENTS))
    what: str = parser.parse_args(argv).what
    provision(what)
    print(interpreter(what))
    return 0


if __name__ == "__main__":
    sys.exit(main())
