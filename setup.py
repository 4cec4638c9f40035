"""The build of the native core; everything else about the package stands in pyproject.toml."""

import glob
import os
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class ParallelBuild(build_ext):
    """Compiles the files of an extension at the same time, one for each processor."""

    def build_extension(self, ext: Any) -> None:
        compile_one = self.compiler.compile
        workers = len(os.sched_getaffinity(0))

        def compile_all(sources: list[str], **options: Any) -> list[str]:
            with ThreadPoolExecutor(workers) as threads:
                objects = threads.map(lambda source: compile_one([source], **options), sources)
                return [name for names in objects for name in names]

        self.compiler.compile = compile_all
        try:
            super().build_extension(ext)
        finally:
            self.compiler.compile = compile_one


MACROS = [("BP_PROBES", "1")]  # the static probes, which a tool can attach to
if sysconfig.get_config_var("Py_GIL_DISABLED"):
    MACROS.append(("BP_FREE_THREADED", "1"))

setup(
    cmdclass={"build_ext": ParallelBuild},
    ext_modules=[
        Extension(
            "bufferpool._core",
            sorted(glob.glob("bufferpool/core/**/*.cpp", recursive=True)),
            depends=sorted(glob.glob("bufferpool/core/**/*.h", recursive=True)),
            include_dirs=["bufferpool/core", numpy.get_include()],
            language="c++",
            define_macros=MACROS,
            extra_compile_args=[
                "-std=c++20",
                "-O3",
                "-g0",
                "-fno-exceptions",
                "-fno-rtti",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                "-Wno-missing-field-initializers",
                "-Wno-cast-function-type",
            ],
            extra_link_args=["-s"],
        )
    ],
)
