"""A cache of compiled kernels to be damaged and attacked, with a compiler that copies what was compiled once."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

from sparvar import kernels

COMPILER = """\
#!/bin/sh
[ "$1" = --version ] && echo 1 && exit 0
while [ $# -gt 0 ]; do
    [ "$1" = -o ] && target="$2"
    shift
done
echo compiled >> {log}
cp {library} "$target"
"""

USE = """
    import json, warnings
    import torch
    from sparvar import kernels

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.manual_seed(3)
        x = torch.randn(3, 1, 2, 64, 16)
        out = kernels.attention_stats(*x, 0.25)[0]
    status = kernels.native_status()
    print(json.dumps({
        "library": status.library, "implementation": status.implementation, "notes": status.notes,
        "reason": status.reason, "sum": out.double().sum().item(), "warned": [str(each.message) for each in caught],
    }))
"""


@dataclass(frozen=True)
class Cache:
    """A folder, and the environment of commands that use it.

    Attributes:
        compiler: takes no time: it gives the library that these tests run with, and notes that it was called.
    """

    folder: Path
    temporary: Path
    compiler: Path
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ, "SPARVAR_CACHE_DIR": str(self.folder), "SPARVAR_CXX": str(self.compiler),
            "SPARVAR_CPU_KERNELS": "native", "TMPDIR": str(self.temporary), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

    @property
    def builds(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0

    def run(self, code: str = USE) -> dict[str, object]:
        """Run kernels in a process of its own, as a user's script does; it must end well."""
        done = self.process(sys.executable, "-c", textwrap.dedent(code))
        assert done.returncode == 0, (done.returncode, done.stderr)
        found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return found

    def process(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, check=False)


def make_cache(place: Path) -> Cache:
    """An empty cache below ``place``."""
    place.mkdir(parents=True, exist_ok=True)
    library, log, compiler = place / "compiled.so", place / "builds", place / "c++"
    library.write_bytes(kernels.native_library())
    compiler.write_text(COMPILER.format(log=log, library=library))
    compiler.chmod(compiler.stat().st_mode | stat.S_IXUSR)
    temporary = place / "temporary"
    temporary.mkdir()
    return Cache(place / "cache", temporary, compiler, log)
