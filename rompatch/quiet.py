"""Keep progress bars and advice of transformers and accelerate off the terminal while rompatch loads a model."""

from __future__ import annotations

import logging as standard_logging
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Errors only and no progress bars inside the block; the caller's settings come back after it."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    accelerate = standard_logging.getLogger("accelerate")
    level = accelerate.level
    logging.set_verbosity_error()
    accelerate.setLevel(standard_logging.ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        accelerate.setLevel(level)
        if bars:
            logging.enable_progress_bar()
