"""Tests. As in the command, jsonschema makes no grammar of web addresses, which takes it two seconds.

One thread each: trainings with two threads on two cores, side by side, wait for each other without end.
"""

import os
import sys

sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
os.environ.setdefault("OMP_NUM_THREADS", "1")
