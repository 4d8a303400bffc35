"""Rebuild pydiffaccel/data/digits.npz byte for byte from scikit-learn's copy of the UCI optical digits.

``python tools/build_digits.py`` writes the file; with ``--check`` it only compares, and exits with 1 where they differ.
"""

from __future__ import annotations

import argparse
import io
import sys
import zipfile
from pathlib import Path

import numpy as np

TARGET = Path(__file__).resolve().parent.parent / "pydiffaccel" / "data" / "digits.npz"
SOURCE = (
    "Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, https://doi.org/10.24432/C50P49, "
    "test part (1,797 images of 8 x 8 pixels, values 0 to 16), as in sklearn.datasets.load_digits"
)
LICENCE = "CC BY 4.0, https://creativecommons.org/licenses/by/4.0/; E. Alpaydin and C. Kaynak, 1998"


def digits_npz() -> bytes:
    """The file's bytes: stored, not compressed, with fixed times, so that no library version changes them."""
    from sklearn.datasets import load_digits  # type: ignore[import-untyped,unused-ignore]

    digits = load_digits()
    arrays = {
        "images": digits.images.astype(np.uint8),
        "labels": digits.target.astype(np.uint8),
        "max_value": np.array(16, np.uint8),
        "source": np.array(SOURCE),
        "licence": np.array(LICENCE),
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system = 3
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, member.getvalue())
    return out.getvalue()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    content = digits_npz()
    if parser.parse_args().check:
        same = TARGET.is_file() and TARGET.read_bytes() == content
        print(f"{TARGET.name} is {'as built' if same else 'different from what this script builds'}")
        return 0 if same else 1
    TARGET.write_bytes(content)
    print(f"wrote {TARGET.name}, {len(content):,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
