#!/usr/bin/env bash
# Makes the environment that `make` uses: tools/setup.sh VENV. Needs Python >= 3.10 with venv, and a C++20 compiler.
set -euo pipefail
venv=$1
python=${PYTHON:-python3}

"$python" -c 'import sys; assert sys.version_info >= (3, 10), f"Python 3.10 or newer is needed, this is {sys.version}"'
command -v c++ >/dev/null || command -v g++ >/dev/null || { echo "A C++20 compiler is needed (Debian: apt-get install g++)" >&2; exit 1; }

# GTest is optional: without it the C++ tests are left out, visibly.
if [ ! -e /usr/include/gtest/gtest.h ] && [ ! -e /usr/local/include/gtest/gtest.h ]; then
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo '== installing libgtest-dev for the C++ tests'
    { apt-get update -qq && apt-get install -y -qq libgtest-dev; } >/dev/null 2>&1 || echo 'note: libgtest-dev could not be installed; the C++ tests are left out'
  else
    echo 'note: GTest not found; the C++ tests are left out (Debian: apt-get install libgtest-dev)'
  fi
fi

echo "== making the Python environment in $venv (torch and the packages of pyproject.toml; a few minutes the first time)"
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
pip=("$venv/bin/python" -m pip install -q --disable-pip-version-check)
# A torch that is there already is kept. Else the CPU build of the tested version, unless a GPU is here.
if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
  if command -v nvidia-smi >/dev/null; then "${pip[@]}" torch; else "${pip[@]}" "torch==${TORCH_VERSION:-2.13.0}"; fi
fi
"${pip[@]}" 'setuptools>=70' wheel 'pybind11>=2.12' 'cmake>=3.24' ninja
readarray -t needs < <("$venv/bin/python" - <<'PY'
try:
    import tomllib
except ImportError:
    from pip._vendor import tomli as tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
print("\n".join(n for name in ("train", "dev") for n in extras[name] if not n.startswith("pydiffaccel")))
PY
)
# The torch that is installed stays: no requirement may replace it.
"$venv/bin/python" -m pip freeze | grep '^torch==' >"$venv/constraints.txt"
"${pip[@]}" -c "$venv/constraints.txt" "${needs[@]}"
