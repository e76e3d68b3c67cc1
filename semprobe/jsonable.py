"""Values as JSON has them."""

from __future__ import annotations

import math
from typing import Any


def jsonable(value: Any) -> Any:
    """Plain values, arrays as lists; NaN and infinity become None, since JSON has none.

    Examples
    --------
    >>> jsonable({"f1": float("nan"), "latents": (1, 2)})
    {'f1': None, 'latents': [1, 2]}
    """
    if isinstance(value, dict):
        return {str(key): jsonable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(one) for one in value]
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return jsonable(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
