"""What the README shows works as it stands there."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_ten_lines_of_the_readme_work(tmp_path: Path, pool_name: str) -> None:
    found = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found is not None
    code = found[1]
    assert code.count('"orders"') == 1
    program = code.replace('"orders"', repr(pool_name)) + "\npool.unlink()\n"
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    shown, last = run.stdout.splitlines()
    assert shown in code.replace("# ", "")
    assert last.endswith(" []")
    assert (tmp_path / "orders.db").stat().st_size == 8192
