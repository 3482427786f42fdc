"""What libraries say on their own: users of ddx see none of it, unless they ask.

Deprecations and advice of torch, diffusers, transformers and others are for us who call them, not for whoever runs a
command. Errors still come through, and what a user has set (`python -W`, TRANSFORMERS_VERBOSITY, …) stands.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

# Each library reads its own when it is imported.
LOG_LEVELS = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}
LOGGERS = ("bitsandbytes",)  # that have no such variable


def quiet_libraries() -> None:
    """Silence the warnings of other packages than ddx, in this process and those that it starts."""
    for name, level in LOG_LEVELS.items():
        os.environ.setdefault(name, level)
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"ddx(\.|$)")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")
