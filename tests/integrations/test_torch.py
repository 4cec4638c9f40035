"""PyTorch: a dataset whose samples all workers share."""

import warnings
from collections import Counter, OrderedDict, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Pools

torch = pytest.importorskip("torch")

from torch.utils.data import DataLoader, Dataset, IterableDataset  # noqa: E402

from bufferpool.integrations.torch import CachedDataset  # noqa: E402

Pair = namedtuple("Pair", "image label")


@pytest.fixture
def cache(pools: Pools) -> Any:
    return pools.create("16MiB").cache("samples")


class Decoded(Dataset):  # type: ignore[misc]
    """Costly samples of different sizes: each decoding is a line in a file."""

    def __init__(self, log: Path, size: int = 40) -> None:
        self.log, self.size = log, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, Any]:
        with self.log.open("a") as log:
            log.write(f"{index}\n")
        return {"image": torch.full((3, 8 + index), float(index)), "label": index, "mask": np.arange(index + 1)}

    def decoded(self) -> Counter[str]:
        return Counter(self.log.read_text().split())


class Batched(Decoded):
    """A dataset that loads several samples together."""

    def __getitems__(self, indices: list[int]) -> list[Any]:
        with self.log.open("a") as log:
            log.write(f"batch-of-{len(indices)}\n")
        return [self[index] for index in indices]


class Fixed(Dataset):  # type: ignore[misc]
    """One sample."""

    def __init__(self, sample: Any) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.sample


# ---- samples of every kind -------------------------------------------------------------------

SAMPLES: dict[str, Any] = {
    "tensor": lambda: torch.arange(24.0).reshape(2, 3, 4),
    "scalar": lambda: torch.tensor(5),
    "empty": lambda: torch.empty(0, 3),
    "bool": lambda: torch.tensor([True, False]),
    "complex": lambda: torch.tensor([1 + 2j]),
    "bfloat16": lambda: torch.arange(7, dtype=torch.bfloat16),
    "bfloat16 scalar": lambda: torch.tensor(1.5, dtype=torch.bfloat16),
    "float8": lambda: torch.arange(7.0).to(torch.float8_e4m3fn),
    "not contiguous": lambda: torch.arange(24.0).reshape(4, 6).t()[::2],
    "expanded": lambda: torch.ones(1, 3).expand(5, 3),
    "conjugated": lambda: torch.tensor([1 + 2j]).conj(),
    "needs grad": lambda: torch.ones(3, requires_grad=True),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "array": lambda: np.arange(12.0).reshape(3, 4),
    "structured array": lambda: np.zeros(3, [("a", "i4"), ("b", "f8")]),
    "array of objects": lambda: np.array([1, "two", None], dtype=object),
    "bytes": lambda: b"jpeg",
    "str": lambda: "text",
    "none": lambda: None,
    "dict": lambda: {"x": torch.ones(3), "deep": {"y": [torch.zeros(2), 3.5]}, 7: "seven"},
    "tuple": lambda: (torch.ones(2), 3),
    "named tuple": lambda: Pair(torch.ones(2), 3),
    "ordered": lambda: OrderedDict(a=torch.ones(2)),
    "empty dict": dict,
}


def same(one: Any, other: Any) -> bool:
    """Whether two samples are equal, and of the same types."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        if one.layout != torch.strided:
            one, other = one.to_dense(), other.to_dense()
        about = [(t.dtype, t.shape, t.requires_grad) for t in (one, other)]
        return about[0] == about[1] and bool(torch.equal(one.to(torch.complex64), other.to(torch.complex64)))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and bool(np.array_equal(one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("copy", [True, False], ids=["copied", "shared"])
@pytest.mark.parametrize("kind", SAMPLES)
def test_a_sample_comes_back_as_it_was(kind: str, copy: bool, cache: Any) -> None:
    expected = SAMPLES[kind]()
    dataset = CachedDataset(Fixed(SAMPLES[kind]()), cache, version=1, copy=copy)
    assert same(dataset[0], expected), "the first time, from the dataset"
    dataset.dataset.sample = "not asked again"
    assert same(dataset[0], expected), "then from the cache"
    assert same(dataset.__getitems__([0, 0]), [expected, expected])


def test_a_copy_may_be_changed_in_place(cache: Any) -> None:
    """A transform that worked in place changed the sample for all workers, or ended the process."""
    dataset = CachedDataset(Fixed({"x": torch.ones(3), "y": np.ones(3)}), cache, version=1)
    for _ in range(3):
        sample = dataset[0]
        assert (sample["x"].sum(), sample["y"].sum()) == (3, 3)
        sample["x"].mul_(5)
        sample["y"] *= 5


def test_without_a_copy_all_have_the_same_memory(cache: Any) -> None:
    """torch.from_numpy warns of read-only arrays: in the logs of every worker."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dataset = CachedDataset(Fixed({"x": torch.ones(10_000), "y": np.ones(3)}), cache, version=1, copy=False)
        _ = dataset[0]
        first, second = dataset[0], dataset[0]
    assert first["x"].data_ptr() == second["x"].data_ptr()
    assert first["x"].data_ptr() % 8 == 0
    with pytest.raises(ValueError, match="read-only"):
        first["y"][0] = 2
    cache.clear()
    assert first["x"].sum() == 10_000, "it is kept for as long as the tensor"


# ---- workers ----------------------------------------------------------------------------------


def same_length(samples: list[dict[str, Any]]) -> list[tuple[int, float, int]]:
    return [(one["label"], float(one["image"].mean()), len(one["mask"])) for one in samples]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("method", "kind"), [("fork", Decoded), ("spawn", Decoded), ("fork", Batched)])
def test_workers_decode_each_sample_once(method: str, kind: Any, cache: Any, tmp_path: Path) -> None:
    """Every worker decoded, and kept, the samples that it was given, in every epoch others."""
    dataset = kind(tmp_path / "log")
    loader = DataLoader(
        CachedDataset(dataset, cache, version=1), batch_size=8, shuffle=True, num_workers=2, collate_fn=same_length,
        multiprocessing_context=method,
    )  # fmt: skip
    for _ in range(1 if method == "spawn" else 3):
        found = sorted(one for batch in loader for one in batch)
        assert found == [(n, float(n), n + 1) for n in range(len(dataset))]
    again = CachedDataset(dataset, cache, version=1)
    assert same_length([again[3]]) == [(3, 3.0, 4)]
    decoded = {key: count for key, count in dataset.decoded().items() if "batch" not in key}
    assert decoded == {str(n): 1 for n in range(len(dataset))}


def test_a_batch_loads_together_what_the_cache_does_not_have(cache: Any, tmp_path: Path) -> None:
    dataset = Batched(tmp_path / "log")
    shared = CachedDataset(dataset, cache, version=1)
    assert [one["label"] for one in shared.__getitems__([5, 2, 9])] == [5, 2, 9]
    assert [one["label"] for one in shared.__getitems__([2, 7, 5, 1])] == [2, 7, 5, 1]
    assert [one["label"] for one in shared.__getitems__([1, 8])] == [1, 8]
    assert shared.__getitems__([]) == []
    assert dataset.decoded() == {"batch-of-3": 1, "batch-of-2": 1} | {str(n): 1 for n in (1, 2, 5, 7, 8, 9)}


def test_another_version_is_decoded_again(cache: Any, tmp_path: Path) -> None:
    dataset = Decoded(tmp_path / "log")
    for version in (1, "1", 2, 1):
        assert CachedDataset(dataset, cache, version=version)[3]["label"] == 3
    assert dataset.decoded() == {"3": 3}


def test_a_transform_sees_each_sample_each_time(cache: Any, tmp_path: Path) -> None:
    dataset = CachedDataset(Decoded(tmp_path / "log"), cache, version=1, transform=lambda one: one["image"].add_(1))
    assert [float(dataset[4].mean()) for _ in range(3)] == [5, 5, 5]
    assert [float(one.mean()) for one in dataset.__getitems__([4, 4])] == [5, 5]


def test_what_has_no_index_cannot_be_kept(cache: Any) -> None:
    class Stream(IterableDataset):  # type: ignore[misc]
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(TypeError, match="index"):
        CachedDataset(Stream(), cache, version=1)
    with pytest.raises(TypeError, match="version"):
        CachedDataset(Fixed(1), cache, version=None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"cache": "a pool"}, r"pool\.cache\(name\), not in Pool"),
        ({"cache": None}, r"pool\.cache\(name\), not in NoneType"),
        ({"transform": 3}, "transform must be a function .* not 3"),
        ({"copy": "no"}, "copy must be True or False, not 'no'"),
        ({"version": 1.5}, "version must be"),
    ],
    ids=["pool", "no cache", "transform", "copy", "version"],
)
def test_a_wrong_argument_is_refused_at_once(wrong: dict[str, Any], message: str, pools: Pools) -> None:
    """A pool in place of a cache, and a transform that cannot be called, failed in the workers; copy="no" was a copy."""
    pool = pools.create("16MiB")
    if wrong.get("cache") == "a pool":
        wrong = {"cache": pool}
    with pytest.raises(TypeError, match=message):
        CachedDataset(Fixed(1), **({"cache": pool.cache("samples"), "version": 1} | wrong))


@pytest.mark.parametrize("index", [1.5, None, slice(2), torch.tensor(1.5)], ids=["float", "none", "slice", "tensor"])
def test_an_index_that_is_none_is_refused(cache: Any, index: Any) -> None:
    """1.5 was kept as sample 1, and later readers of sample 1 got what the dataset has for 1.5."""

    class Echo(Dataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            return str(index)

    dataset = CachedDataset(Echo(), cache, version=1)
    with pytest.raises(TypeError, match="index"):
        dataset[index]
    assert (dataset[1], dataset[np.int64(1)], dataset["a"], dataset[1, 2]) == ("1", "1", "a", "(1, 2)")


def test_an_index_that_does_not_exist_raises_what_the_dataset_raises(cache: Any) -> None:
    with pytest.raises(IndexError):
        CachedDataset(Bounded(), cache, version=1)[3]


class Bounded(Dataset):  # type: ignore[misc]
    def __getitem__(self, index: int) -> int:
        raise IndexError(index)
