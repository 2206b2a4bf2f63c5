"""``python -m tests.doubles.fleet FOLDER``: answers trials with its process id, or as their seed says."""

import os
import sys
import time

from revati.deployment.wire import TrialRequest, TrialResult

LAST, DIES, SLOW = 1, 2, 3


def main() -> None:
    for line in sys.stdin.buffer:
        seed = TrialRequest.from_line(line).spec.seed
        if seed == DIES:
            os._exit(9)
        if seed == SLOW:
            time.sleep(60)
        result = TrialResult("failed" if seed == LAST else "ok", str(os.getpid()))
        sys.stdout.buffer.write(result.to_line())
        sys.stdout.buffer.flush()
        if seed == LAST:
            return


if __name__ == "__main__":
    main()
