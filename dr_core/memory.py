"""Running out of memory, told apart from other errors."""

from __future__ import annotations

SIGNS = ("out of memory", "can't allocate memory", "could not create a primitive")
"""What accelerators, PyTorch's allocator for the CPU and its kernels (oneDNN) say; all in plain RuntimeErrors."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an operation failed only because it needed more memory than there was."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS)
