"""A file of results that is whole after each case, whatever becomes of the run.

It is the one that ``--benchmark-json`` writes, without the single samples. Cases that it holds
already stay there, and are replaced where they are measured again; it has to be of the same
machine.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.case import dtype_name
from benchmarks.ceilings import Ceilings
from benchmarks.session import Run


class SavedResults:
    """A plugin of pytest: ``--results FILE``.

    What a file tells of its run is that of the first; later ones take its limits where they can.

    Raises:
        ValueError: the file is there, and of another machine, or no results at all.
    """

    def __init__(self, path: Path, run: Run) -> None:
        self.path, self.run = path.absolute(), run
        self.content: dict[str, Any] = {}
        if self.path.exists():
            try:
                self.content = json.loads(self.path.read_text(encoding="utf-8"))
                self._join()
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                raise ValueError(f"{path} holds no results of these benchmarks") from error

    def _join(self) -> None:
        before, now = self.content["machine_info"], self.run.machine()
        versions = before["versions"]
        differ = [name for name, x in now["versions"].items() if versions.get(name, x) != x]
        if before["device"] != now["device"] or differ:
            raise ValueError(f"{self.path}: was taken on another device, or with other versions")
        versions |= now["versions"]
        saved = self.content["run"]["ceilings"]
        if {dtype_name(case.dtype) for case in self.run.cases.values()} <= set(saved["gemm"]):
            self.run.limits = Ceilings(**saved)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Any:
        """Save after the last test of a case."""
        done = yield
        if nextitem is None or case_of(nextitem) != case_of(item):
            self.save(item.config, case_of(item))
        return done

    def save(self, config: pytest.Config, case: str) -> None:
        """Put a case in, in place of what was there of it; the file is never half."""
        benchmarks = config._benchmarksession  # type: ignore[attr-defined]
        rows = [one for one in benchmarks.benchmarks if one and one.group == case]
        happened = rows or any(one["group"] == case for one in self.run.skipped)
        if not happened or benchmarks.disabled:
            return
        skipped = [one for one in self.run.about()["skipped"] if one["group"] == case]
        if not self.content:
            self.content = _heading(config)
        fresh: dict[str, Any] = {"benchmarks": [x.as_dict(include_data=False) for x in rows]}
        about = self.content.setdefault("run", self.run.about() | {"skipped": []})
        about["ceilings"]["gemm"] |= self.run.about()["ceilings"]["gemm"]
        for part, key, new in (
            (self.content, "benchmarks", fresh["benchmarks"]),
            (about, "skipped", skipped),
        ):
            part[key] = [*(x for x in part[key] if x["group"] != case), *new]
        file = self.path.with_suffix(".new")
        file.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        file.replace(self.path)


def case_of(item: pytest.Item) -> str:
    """The case that a test belongs to."""
    return str(item.callspec.params["case"])  # type: ignore[attr-defined]


def _heading(config: pytest.Config) -> dict[str, Any]:
    """What pytest-benchmark says of the machine and the commit, without any row."""
    hook, benchmarks = config.hook, config._benchmarksession  # type: ignore[attr-defined]
    commit = hook.pytest_benchmark_generate_commit_info(config=config)
    hook.pytest_benchmark_update_commit_info(config=config, commit_info=commit)
    content: dict[str, Any] = hook.pytest_benchmark_generate_json(
        config=config,
        benchmarks=[],
        include_data=False,
        machine_info=benchmarks.get_machine_info(),
        commit_info=commit,
    )
    return content
