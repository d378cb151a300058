"""Write ``requirements.txt`` anew: the newest wheels that every release takes, with their sums.

    python packaging/debian/renew_requirements.py

A package made of them is the same wherever it is built, and no wheel can be put in another's
place.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
PYTHONS = ("3.11", "3.13")
MACHINES = ("x86_64", "aarch64")
# Up to the C library of Debian 12.
GLIBC_MINOR_MAX = 36


def platform_words(machine: str) -> list[str]:
    """What wheels may be built for, as words for pip."""
    names = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC_MINOR_MAX, 16, -1)]
    return [f"--platform={name}" for name in [*names, f"manylinux2014_{machine}"]]


def find_wheels(requirements: list[str], python: str, machine: str) -> dict[str, tuple[str, str]]:
    """Version and sum of each wheel that the requirements come to, by project."""
    told = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--report=-"),
            *("--ignore-installed", "--target=unused", "--only-binary=:all:"),
            *("--implementation=cp", f"--python-version={python}"),
            *platform_words(machine),
            *requirements,
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return {
        item["metadata"]["name"].lower(): (
            item["metadata"]["version"],
            item["download_info"]["archive_info"]["hashes"]["sha256"],
        )
        for item in json.loads(told)["install"]
    }


def main() -> None:
    project = tomllib.loads((HERE.parents[1] / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["notify"]
    versions: dict[str, str] = {}
    sums: dict[str, set[str]] = {}
    for python in PYTHONS:
        for machine in MACHINES:
            # The oldest Python decides; the others must have the same versions.
            pins = [f"{name}=={version}" for name, version in versions.items()]
            for name, (version, digest) in find_wheels([*wanted, *pins], python, machine).items():
                if versions.setdefault(name, version) != version:
                    raise SystemExit(f"{name}: {versions[name]} and {version}")
                sums.setdefault(name, set()).add(digest)
    lines = ["# Written by renew_requirements.py."]
    for name in sorted(versions):
        words = [f"{name}=={versions[name]}", *(f"--hash=sha256:{x}" for x in sorted(sums[name]))]
        lines.append(" \\\n    ".join(words))
    (HERE / "requirements.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
