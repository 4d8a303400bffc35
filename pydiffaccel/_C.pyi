from typing import Any

import numpy as np
from numpy.typing import NDArray

def build_info() -> dict[str, Any]: ...
def solve_assignment(cost: NDArray[np.float64], maximize: bool) -> tuple[int, NDArray[np.int64]]: ...
