"""What an integration says if its library is not installed, or is too old."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(packages: str) -> Iterator[None]:
    """The block imports the library of an integration; ``packages``: what ``pip install`` is given for it.

    Raises ModuleNotFoundError, or ImportError for a library without a name that the block imports.
    """
    try:
        yield
    except ImportError as error:
        kind = ModuleNotFoundError if isinstance(error, ModuleNotFoundError) else ImportError
        raise kind(f"{error}: pip install {packages}", name=error.name, path=error.path) from error
