"""Builds the native targets by calling CMake; every choice lives in CMakeLists.txt."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        root = Path(__file__).parent.resolve()
        targets = [Path(self.get_ext_fullpath(ext.name)).parent.resolve()]
        if self.editable_mode:  # the libraries beside _C belong into the source tree as well
            targets.append(root / "pydiffaccel")
        # One build folder for repeated builds, so that only what changed is compiled again.
        build = root / "build" / f"cp{sys.version_info.major}{sys.version_info.minor}"
        options = shlex.split(os.environ.get("DIFFACCEL_CMAKE_ARGS", ""))
        configure = [f"-S{root}", f"-B{build}", "-GNinja", f"-DPython_EXECUTABLE={sys.executable}", *options]
        subprocess.run(["cmake", *configure], check=True)
        subprocess.run(["cmake", "--build", str(build), "--parallel", str(os.cpu_count() or 1)], check=True)
        for target in targets:
            for stale in target.glob("*.so"):
                stale.unlink()
            subprocess.run(["cmake", "--install", str(build), "--prefix", str(target)], check=True)


setup(ext_modules=[Extension("pydiffaccel._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
