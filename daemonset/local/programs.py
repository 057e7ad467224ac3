"""How this installation's own programs are started."""

import os
from pathlib import Path


def program_env() -> dict[str, str]:
    """Variables of the mesh's own programs: they import this installation's packages."""
    here = Path(__file__).resolve().parents[2]
    kept = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG", "BCC_KERNEL_SOURCE")}
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(here), os.environ.get("PYTHONPATH")))),
        "PYTHONUNBUFFERED": "1",
    }
