"""What every test stands on: eight virtual CPU devices, one compilation cache, no network, fixed seeds."""

from __future__ import annotations

import os
import random
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Set before JAX is imported, and inherited by the commands that tests start.
os.environ.update(
    JAX_PLATFORMS="cpu",
    XLA_FLAGS="--xla_force_host_platform_device_count=8",
    JAX_COMPILATION_CACHE_DIR=str(ROOT / ".jax_cache"),
    JAX_DISABLE_MOST_OPTIMIZATIONS="1",  # most of the time goes to compiling, for programs that run once
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_VERBOSITY="error",
    TOKENIZERS_PARALLELISM="false",
)

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def fixed_seeds():
    """Global generators start every test from the same state; tests that draw make their own generator."""
    random.seed(0)
    np.random.seed(0)


@pytest.fixture
def optimised():
    """Programs are compiled as in production, whose sums are rounded less than those of plain loops."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
