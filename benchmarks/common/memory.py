"""Memory of this process alone."""

import re
from pathlib import Path


def megabytes(field: str = "VmHWM") -> float:
    """A memory field of this process, by default its peak.

    Not ``ru_maxrss``: a child's begins with what its parent had when it was started.
    """
    status = Path("/proc/self/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1000 if found else float("nan")
