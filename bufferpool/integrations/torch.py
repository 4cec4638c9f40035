"""PyTorch: samples that all workers of all data loaders share.

``CachedDataset(dataset, pool.cache("train"), version=1)`` takes the place of a map-style dataset. A sample is loaded once for
all processes, kept in shared memory under the pool's budget, and evicted when others are worth more. Tensors and arrays in a
sample lie there without a copy; so does every buffer that pickle protocol 5 can take out of band.
"""

import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bufferpool.integrations.extras import needs
from bufferpool.objects.cache import Cache, Key
from bufferpool.units import flag_of

with needs("'bufferpool[torch]'"):
    import torch
    from torch.utils.data import Dataset, IterableDataset

_AS_INTEGERS = {1: np.uint8, 2: np.int16, 4: np.int32, 8: np.int64}
"""The integer type as which the items of a tensor are kept if numpy does not have their type, by the size of an item."""


class _Tensor:
    """A tensor in the cache: an array over the same memory, and the tensor's type if numpy does not have it."""

    __slots__ = ("array", "dtype")

    def __init__(self, array: npt.NDArray[Any], dtype: str | None) -> None:
        self.array, self.dtype = array, dtype

    def __reduce__(self) -> tuple[Any, ...]:
        return _Tensor, (self.array, self.dtype)

    def tensor(self, copied: bool) -> torch.Tensor:
        """The tensor: one of its own, or one over the array's memory, which it keeps alive (DLPack)."""
        found = torch.from_numpy(self.array.copy()) if copied else _over(self.array)
        return found if self.dtype is None else found.view(getattr(torch, self.dtype))


def _over(array: npt.NDArray[Any]) -> torch.Tensor:
    """A tensor over the memory of a read-only array. torch.from_numpy warns about such an array, once a process; DLPack does not."""
    try:
        return torch.from_dlpack(array)
    except BufferError:  # this version of torch does not take read-only memory by DLPack
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.from_numpy(array)


class CachedDataset(Dataset[Any]):  # type: ignore[misc]  # torch is not type-checked here
    """A map-style dataset whose samples are loaded once for all processes, and kept in ``cache``.

    ``version`` says which code makes the samples: change it together with the code. Give each dataset a cache of its
    own: a sample is known by its index, so two datasets in one cache would get each other's. Samples are tensors, arrays, numbers, str, bytes, and dicts, lists, tuples and named
    tuples of them, of any size; other objects are kept pickled.

    ``copy``: whether a sample's tensors and arrays are private, so that a transform may change them in place. Without a copy they
    are shared memory, and read-only: a write to an array raises ValueError, and a write to a tensor ends the process, because
    torch knows no read-only tensors. So use ``copy=False`` if samples are only read, as by torch's collate functions. Samples of
    less than 32 KiB (8 KiB in a pool of less than 32 MiB) share a block of the pool's memory with others, and are copied in any case.

    Samples with random augmentations must not be cached: wrap the dataset that decodes, and augment in
    ``transform(sample)``, which is called each time with the cached sample (use copies, if it works in place).
    """

    def __init__(
        self, dataset: Dataset[Any], cache: Cache, *, version: int | str, copy: bool = True,
        transform: Callable[[Any], Any] | None = None,
    ) -> None:  # fmt: skip
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise TypeError(f"a sample is kept by its index, and {type(dataset).__name__} has no samples by index")
        if not isinstance(version, int | str):
            raise TypeError(f"version must be an integer or a string, not {type(version).__name__}")
        if not isinstance(cache, Cache):
            raise TypeError(f"samples are kept in a cache, pool.cache(name), not in {type(cache).__name__}")
        if transform is not None and not callable(transform):
            raise TypeError(f"transform must be a function of a sample, or None, not {transform!r:.100}")
        self.dataset, self.cache, self.transform = dataset, cache, transform
        self._version, self._copy = version, flag_of(copy, "copy")

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """The sample, loaded by this process only if no other one has loaded it or does so now."""
        found = self.cache.get_or_load(self._key(index), lambda _: _kept(self.dataset[index]))
        return self._sample(found)

    def __getitems__(self, indices: Sequence[Any]) -> list[Any]:
        """Several samples, as data loaders ask for the samples of a batch.

        A dataset that has ``__getitems__`` loads those together that the cache does not have.
        """
        many = getattr(self.dataset, "__getitems__", None)
        if many is None:
            return [self[index] for index in indices]
        found = [self.cache.get(self._key(index), _ABSENT) for index in indices]
        absent = [n for n, one in enumerate(found) if one is _ABSENT]
        if len(absent) == 1:
            return [
                self[index] if one is _ABSENT else self._sample(one) for index, one in zip(indices, found, strict=True)
            ]
        loaded = many([indices[n] for n in absent]) if absent else []
        for n, sample in zip(absent, loaded, strict=True):
            found[n] = _kept(sample)
            self.cache.put(self._key(indices[n]), found[n])
        return [self._sample(one) for one in found]

    def _key(self, index: Any) -> Key:
        if isinstance(index, str | bytes | tuple):
            return (self._version, index)
        try:
            return (self._version, int(operator.index(index)))
        except TypeError:  # int() would take 1.5 for 1, and keep its sample under that index
            raise TypeError(
                f"a sample is kept by its index, which is an integer, str, bytes or a tuple, not {type(index).__name__}"
            ) from None

    def _sample(self, kept: Any) -> Any:
        sample = _restored(kept, self._copy)
        return sample if self.transform is None else self.transform(sample)


_ABSENT = object()


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The same dicts, lists, tuples and named tuples, with other leaves."""
    kind = type(value)
    if kind is dict:
        return {key: _mapped(one, change) for key, one in value.items()}
    if kind is list or kind is tuple:
        return kind(_mapped(one, change) for one in value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return kind(*(_mapped(one, change) for one in value))
    return change(value)


def _kept(sample: Any) -> tuple[Any]:
    """The sample as the cache keeps it: plain tensors of this machine's memory as arrays, all else as it is.

    In a tuple, because the cache gives bytes back as a memoryview, but not those in a tuple.
    """
    return (_mapped(sample, _kept_leaf),)


def _kept_leaf(value: Any) -> Any:
    if (
        type(value) is not torch.Tensor
        or value.layout != torch.strided
        or value.device.type != "cpu"
        or value.requires_grad
    ):
        return value
    if value.is_quantized or value.is_conj() or value.is_neg():
        return value
    tensor = value.contiguous()
    try:
        return _Tensor(tensor.numpy(), None)
    except TypeError:  # such as bfloat16, which numpy does not have
        items = _AS_INTEGERS.get(tensor.element_size())
        if items is None:
            return value
        integers = getattr(torch, np.dtype(items).name)
        return _Tensor(tensor.view(integers).numpy(), str(tensor.dtype).removeprefix("torch."))


def _restored(kept: tuple[Any], copied: bool) -> Any:
    """The sample; ``copied``: with tensors and arrays of its own."""

    def leaf(value: Any) -> Any:
        if type(value) is _Tensor:
            return value.tensor(copied)
        return value.copy() if copied and type(value) is np.ndarray else value

    return _mapped(kept[0], leaf)
