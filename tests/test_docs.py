"""Every Python snippet of the README and the documentation runs as printed, from any folder, and prints what its comments say."""

import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

import bufferpool as bp
from tests.conftest import ROOT, SHM, new_name

OPTIONAL = (
    r"^ *(?:import|from) (dask|distributed|torch|zarr|fsspec)\b"  # libraries of integrations, which may be missing
)
UNTESTED = {"design.md", "changelog.md"}  # they have no program
LINKED = sorted(
    page.relative_to(ROOT).as_posix()
    for place in (".", "docs", "bufferpool", "examples", "benchmarks", "dashboards", "lab", "tests")
    for page in ((ROOT / place).rglob("*.md") if place != "." else ROOT.glob("*.md"))
    if "node_modules" not in page.parts
)
PAGES = [
    page
    for page in LINKED
    if page.startswith(("README.md", "docs/"))
    and "```python" in (ROOT / page).read_text()
    and Path(page).name not in UNTESTED
]


def programs_of(text: str) -> list[str]:
    """The snippets of a page: those with a main function of their own, and all others as one program, in order."""
    snippets = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    alone = [snippet for snippet in snippets if "__main__" in snippet]
    return [*alone, "\n".join(snippet for snippet in snippets if snippet not in alone)]


def promised(program: str) -> list[str]:
    """What the comments behind the program's print calls say, up to a colon."""
    return [
        line.split("  # ")[1].split(": ")[0] for line in program.splitlines() if re.match(r" *print\(.*\)  # ", line)
    ]


def test_the_pages_are_found() -> None:
    assert {"README.md", "docs/tutorial.md", "docs/how-to/engine.md", "docs/metrics.md"} <= set(PAGES)


@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_of_a_page_work(page: str, tmp_path: Path) -> None:
    """The ten lines of the README left a pool behind, and its line for metrics was an AttributeError."""
    for library in sorted(set(re.findall(OPTIONAL, (ROOT / page).read_text(), re.MULTILINE))):
        pytest.importorskip(library)
    for number, program in enumerate(programs_of((ROOT / page).read_text())):
        names = {name: new_name() for name in re.findall(r'Pool\.(?:open|create)\(\s*"(\w+)"', program)}
        for name, unique in names.items():
            program = re.sub(rf'\b(open|create|attach|Collector)\((\s*)"{name}"', rf'\1(\2"{unique}"', program)
        script = tmp_path / f"snippet{number}.py"
        script.write_text(program)
        try:
            run = subprocess.run(
                [sys.executable, script.name], cwd=tmp_path, capture_output=True, text=True, timeout=400
            )
        finally:
            left = [unique for unique in names.values() if (SHM / unique).exists()]
            for unique in left:
                (SHM / unique).unlink()
        assert run.returncode == 0, run.stderr
        assert not left, "the page leaves a pool behind"
        shown = [line for line in run.stdout.splitlines() if line]
        for line in promised(program):
            assert line in shown, f"{page} promises {line!r}; it prints {shown}"


@pytest.mark.parametrize("page", LINKED)
def test_the_files_that_a_page_names_exist(page: str) -> None:
    """Files move; the tables that say which test shows what, and the links, must follow."""
    text, folder = (ROOT / page).read_text(), (ROOT / page).parent
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    gone = [target for target in targets if target and not (folder / target).exists()]
    gone += [name for name in re.findall(r"`(tests/[\w/.]+)`", text) if not (ROOT / name).exists()]
    if page == "bufferpool/README.md":  # the table of the rooms: each file of it is named from that folder
        gone += [name for name in re.findall(r"`([\w/]+(?:\.\w+|/))`", text) if not (folder / name).exists()]
    assert not gone, f"{page} names {gone}"


@pytest.mark.parametrize("page", LINKED)
def test_the_names_that_a_page_uses_exist(page: str) -> None:
    """docs/metrics.md offered an ASGI application under a name that could not be imported."""
    text = (ROOT / page).read_text().replace("`bufferpool.integrations.", "")  # these need their libraries
    for start, owner in (("bufferpool", bp), ("pool", bp.Pool), ("space", bp.Space)):
        for dotted in re.findall(rf"`{start}\.((?:[a-z_]+\.)*[A-Za-z_]+)\(", text):
            found: object = owner
            for part in dotted.split("."):
                assert hasattr(found, part), f"{page}: {start}.{dotted}"
                found = getattr(found, part)


# Of other programs: the kernel, C++, Python's and other libraries, servers, Prometheus and OpenTelemetry.
FOREIGN = re.findall(
    r"\w+",
    """
    IORING_REGISTER_RING_FDS MADV_COLLAPSE MCL_CURRENT MCL_FUTURE folio_wait_bit_common io_schedule io_uring_cqe io_uring_params io_uring_sqe
    percpu_rwsem_wait request_wait_answer rpc_wait_bit_killable pthread_mutex_clocklock seq_cst try_lock_for PyArray_SetBaseObject
    shared_memory to_thread default_collate filesystem_spec open_zarr full_page_writes shared_buffers sqlite3_column_int64
    PROMETHEUS_MULTIPROC_DIR post_worker_init worker_process_init basic_auth json_parser password_file scrape_duration_seconds
    scrape_timeout time_total tls_config use_start_time_metric BUFFERPOOL_DIRECTORY FSSPEC_BUFFERPOOL_BUDGET SHARDS_adj
    """,
)
HISTORY = ("docs/decisions/", "CHANGELOG.md")  # they tell of what has been replaced


def prose_and_code(path: Path) -> tuple[list[str], str]:
    """The comments and docstrings of a source file, and the rest of it."""
    text = path.read_text()
    if path.suffix in (".h", ".cpp"):
        comment = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
        return comment.findall(text), comment.sub(" ", text)
    prose, code, last = [], [], tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        statement = token.type == tokenize.STRING and last in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        (prose if statement or token.type == tokenize.COMMENT else code).append(token.string)
        if token.type not in (tokenize.NL, tokenize.COMMENT):
            last = token.type
    return prose, " ".join(code)


def names_in(prose: str) -> set[str]:
    """The words of a text that have an underscore in them, as names of the code have."""
    return {word for word in re.findall(r"[A-Za-z_]{2,}\w*", prose) if "_" in word.strip("_")}


@pytest.fixture(scope="module")
def sources() -> dict[Path, tuple[list[str], str]]:
    """The prose and the code of each source file."""
    rooms = ("bufferpool", "tests", "examples", "benchmarks", "lab", "tools", "dashboards")
    paths = [
        path for room in rooms for path in (ROOT / room).rglob("*.*") if path.suffix in (".py", ".pyi", ".h", ".cpp")
    ]
    return {path: prose_and_code(path) for path in [*paths, ROOT / "setup.py"] if path != Path(__file__)}


@pytest.fixture(scope="module")
def known(sources: dict[Path, tuple[list[str], str]]) -> set[str]:
    """The words that stand in the code, but not those of its comments and docstrings; names of files and metrics."""
    settings = [ROOT / "Makefile", ROOT / "pyproject.toml", *(ROOT / "dashboards").glob("*.*")]
    text = " ".join(
        [*(code for _, code in sources.values()), *map(str, sources), *(path.read_text() for path in settings)]
    )
    metrics = re.findall(r"`(\w+)`", (ROOT / "docs" / "metrics.md").read_text().partition("## What there is")[2])
    return {*re.findall(r"\w+", text), *metrics, *FOREIGN}  # tests/prometheus/test_metrics.py compares the metrics


def test_the_names_of_the_code_in_the_documents_exist(known: set[str]) -> None:
    """The design named ``set_data`` and ``clean_only`` long after the code had other names for them."""
    pages = [
        path
        for path in ROOT.rglob("*.md")
        if not {"node_modules", "build", ".venv"} & set(path.relative_to(ROOT).parts)
    ]
    assert len(pages) > 60
    gone = {}
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        spans = [span for span in re.findall(r"`([^`\n]+)`", text) if "/" not in span]
        names = names_in(" ".join(spans)) - known
        if names and not str(page.relative_to(ROOT)).startswith(HISTORY):
            gone[str(page.relative_to(ROOT))] = names
    assert gone == {}


def test_the_names_of_the_code_in_comments_exist(sources: dict[Path, tuple[list[str], str]], known: set[str]) -> None:
    """A comment that names what has been renamed sends its reader on a search in vain, and no compiler reads it."""
    gone = {str(path.relative_to(ROOT)): names_in(" ".join(prose)) - known for path, (prose, _) in sources.items()}
    # The usage of the explorer and of other programs names their arguments in capital letters.
    gone = {path: {name for name in names if not name.isupper()} for path, names in gone.items()}
    assert {path: names for path, names in gone.items() if names} == {}


def test_each_promise_names_its_tests():
    """A row of the table without a test, or with one that was renamed, promises what nothing shows."""
    rows = re.findall(
        r"^\| (?!promise|---)(.+) \| (.+) \|$", (ROOT / "docs" / "guarantees.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 40
    for promise, shown_by in rows:
        named = re.findall(r"`((?:tests/)?(?:\w+/)*\w+\.py)`", shown_by)
        places = [
            ROOT / name if name.startswith("tests/") else next(ROOT.glob(f"tests/**/{name}"), ROOT / name)
            for name in named
        ]
        assert named or "`tests/" in shown_by or "make " in shown_by, promise
        assert [place for place in places if not place.exists()] == []
