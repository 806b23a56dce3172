"""A fake task as a program, for tests of several processes and of killed ones: ``FAKE`` says which, tiny or seek."""

import json
import os
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[3]))

if __name__ == "__main__":
    if os.environ.get("FAKE") == "seek":
        import seek_runtime as runtime
        from seek_task import SEEK as TASK
    else:
        import tiny_runtime as runtime
        from tiny_task import LINE as TASK

    from fiducial import cli

    rank = os.environ.get("RANK", "0")
    if os.environ.get("TINY_FAILS") == rank:
        runtime.STOP[1, 0] = RuntimeError(f"rank {rank} is broken")
    if os.environ.get("TINY_DIES") == rank:
        runtime.STOP[1, 0] = lambda: os.kill(os.getpid(), signal.SIGKILL)
    code = cli.main([TASK], prog="fake")
    seen = os.environ.get("TINY_SEEN")
    if seen:
        Path(seen, f"{rank}.json").write_text(json.dumps(runtime.SEEN))
        threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
        Path(seen, f"{rank}.threads.json").write_text(json.dumps(threads))
    sys.exit(code)
