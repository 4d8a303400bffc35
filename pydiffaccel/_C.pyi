from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

def build_info() -> dict[str, Any]: ...
@overload
def solve_assignment(
    cost: NDArray[Any], maximize: bool, scipy_ties: bool, duals: Literal[False]
) -> tuple[int, NDArray[np.int64]]: ...
@overload
def solve_assignment(
    cost: NDArray[Any], maximize: bool, scipy_ties: bool, duals: Literal[True]
) -> tuple[int, NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]: ...
