"""The native core; everything else about the build stands in pyproject.toml."""

import glob

import numpy
from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "bufferpool._core",
            sorted(glob.glob("bufferpool/core/*.cpp")),
            depends=sorted(glob.glob("bufferpool/core/*.h")),
            include_dirs=[numpy.get_include()],
            language="c++",
            extra_compile_args=[
                "-std=c++20",
                "-O3",
                "-fno-exceptions",
                "-fno-rtti",
                "-fvisibility=hidden",
                "-Wall",
                "-Wextra",
                "-Wno-missing-field-initializers",
                "-Wno-cast-function-type",
            ],
        )
    ]
)
