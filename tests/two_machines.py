"""What test_machines.py has torchrun start: `gala-cuda`, of which rank 1 is lost by SIGKILL where LOST says what of it.

LOST is "worker", or "machine" for its torchrun as well.
"""

import os
import sys

from two_processes import kill_after

from gala_cuda.cli.main import main

STEP = 15  # its last one; checkpoints are those of steps 10 and 20

if __name__ == "__main__":
    lost, restarts = os.environ.get("LOST"), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if lost and os.environ["RANK"] == "1" and restarts == 0:
        kill_after(STEP, [os.getppid()] if lost == "machine" else [])
    if os.environ["RANK"] == "0":
        # As where its torchrun heard of the other machine's return before its own process failed: that is no restart.
        os.environ["TORCHELASTIC_RESTART_COUNT"] = "0"
    sys.exit(main())
