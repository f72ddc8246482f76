"""What can happen to a run; after each it is gone on with, and ends as if nothing had happened."""

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.job import PHASES, SETTINGS, Fault, write_config
from tests.faults.runs import LATEST, Run, demand, how_to_resume, same, two_processes

MANIFEST = "checkpoint_manifest.json"


@dataclass
class Place:
    """Where scenarios play: an unbroken run to compare with, and room for broken ones."""

    root: Path
    config: Path
    whole: Path
    dice: random.Random
    seconds: float
    torn: int = 0

    @classmethod
    def make(cls, root: Path, seed: int) -> "Place":
        """Train the unbroken run."""
        config = write_config(root, SETTINGS)
        start = time.monotonic()
        run = Run(config, root / "whole")
        demand(run.wait() == 0, "the unbroken run fails", run.log)
        seconds = time.monotonic() - start
        return cls(root, config, root / "whole", random.Random(seed), seconds)

    def folder(self) -> Path:
        """A new run's folder."""
        self.torn += 1
        return self.root / f"torn-{self.torn}"

    def fault(self, signum: int, phases: list[str]) -> Fault:
        """A fault at random; delays are short beside the run, and many hit what comes next."""
        phase = self.dice.choice(phases)
        often = {"rollout": 5, "update": 20, "evaluation": 4, "last save": 1}
        nth = self.dice.randint(1, often.get(phase, 9))
        return Fault(signum, phase, nth, self.dice.choice([0.0, 0.02, 0.1]) * self.dice.random())


def finish(place: Place, folder: Path, *words: str) -> Path:
    """Go on with a torn run to its end, and compare; its output."""
    run = Run(place.config, folder, *(words or how_to_resume(folder)))
    demand(run.wait() == 0, "it cannot be gone on with", run.log)
    same(folder, place.whole)
    return run.log


def killed(place: Place) -> str:
    """SIGKILL, up to three times in one run."""
    folder, faults = place.folder(), []
    words: tuple[str, ...] = ()
    for _ in range(place.dice.randint(1, 3)):
        fault = place.fault(signal.SIGKILL, list(PHASES))
        run = Run(place.config, folder, *words, fault=fault)
        status = run.wait()
        demand(status in (0, -signal.SIGKILL), f"it ended with {status}, not killed", run.log)
        words = how_to_resume(folder)
        faults.append(fault.phase if status else "none")
    finish(place, folder)
    return "+".join(faults)


def signalled(place: Place) -> str:
    """SIGTERM or SIGHUP: a checkpoint, a message and the status of the convention."""
    folder, signum = place.folder(), place.dice.choice([signal.SIGTERM, signal.SIGHUP])
    # Without checkpoints of its own: all that is there is what the signal left.
    fault = place.fault(signum, ["rollout", "update", "evaluation"])
    run = Run(place.config, folder, "--save_strategy", "no", fault=fault)
    status = run.wait()
    said = run.log.read_text()
    if status == 128 + signum:
        demand(f"{signum.name}: ended at step " in said, "it does not say what it did", run.log)
        if "nothing was trained on yet" not in said:
            demand(how_to_resume(folder) == LATEST, "there is no checkpoint", run.log)
    else:  # before or after training there is nothing to save
        demand(status in (0, -signum), f"it ended with {status}", run.log)
    finish(place, folder)
    return f"{signum.name} in {fault.phase}: {status}"


def damaged(place: Place) -> str:
    """A file of the newest checkpoint is damaged or missing."""
    folder, dice = place.folder(), place.dice
    shutil.copytree(place.whole, folder)
    newest = dice.randint(2, SETTINGS["max_steps"])
    for path in folder.glob("checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > newest:
            shutil.rmtree(path)
    checkpoint = folder / f"checkpoint-{newest}"
    file = dice.choice(sorted(path for path in checkpoint.iterdir() if path.stat().st_size > 8))
    kind = dice.choice(sorted(DAMAGES))
    DAMAGES[kind](file, dice)
    named = Run(place.config, folder, "--resume_from_checkpoint", str(checkpoint))
    demand(named.wait() == 2, "a damaged checkpoint is not refused", named.log)
    message = f"{checkpoint} is no complete checkpoint: {file.name} "
    said = named.log.read_text()
    demand(message in said and "Traceback" not in said, f"it does not say {message}", named.log)
    log = finish(place, folder, *LATEST)
    message = f"{checkpoint} is skipped: {file.name} "
    demand(message in log.read_text(), f"it does not say {message}", log)
    return f"{kind} {file.name}"


def _cut(file: Path, dice: random.Random) -> None:
    file.write_bytes(file.read_bytes()[: dice.randrange(file.stat().st_size)])


def _zero(file: Path, dice: random.Random) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _flip(file: Path, dice: random.Random) -> None:
    data = bytearray(file.read_bytes())
    place = dice.randrange(len(data))
    # In the manifest's own text a flipped bit is sure to be one only where it breaks it.
    place = 0 if file.name == MANIFEST else place
    data[place] ^= 1 << dice.randrange(7)
    file.write_bytes(data)


def _missing(file: Path, dice: random.Random) -> None:
    file.unlink()


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "cut": _cut,
    "zeroed": _zero,
    "flipped": _flip,
    "missing": _missing,
}


def full_disk(place: Place) -> str:
    """The disk fills up while the run goes on, and is given more room afterwards."""
    folder = place.folder()
    folder.mkdir()
    checkpoint = sum(path.stat().st_size for path in (place.whole / "checkpoint-2").iterdir())
    room = int(checkpoint * place.dice.uniform(0.2, 4))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        return _files_limited(place, folder)
    try:
        run = Run(place.config, folder)
        demand(run.wait() == 2, "it goes on with a full disk", run.log)
        demand("No space left on device" in run.log.read_text(), "it does not say why", run.log)
        subprocess.run(["mount", "-o", "remount,size=1G", str(folder)], check=True)
        words = how_to_resume(folder)
        finish(place, folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)
    return f"room for {room / checkpoint:.1f} checkpoints, then {words[0]}"


def _files_limited(place: Place, folder: Path) -> str:
    """As near to it as one comes without the right to mount: files may not grow beyond a size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(path.stat().st_size for path in (place.whole / "checkpoint-2").iterdir())
    limit = place.dice.randrange(largest // 2, largest)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        run = Run(place.config, folder)
        status = run.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    demand(status == 2, "it goes on without its checkpoint", run.log)
    demand("could not be written" in run.log.read_text(), "it does not say why", run.log)
    finish(place, folder)
    return f"files of at most {limit} bytes"


def second_run(place: Place) -> str:
    """A second run in the folder of a running one is refused, and changes nothing."""
    folder = place.folder()
    first = Run(place.config, folder)
    while first.running() and not any(folder.glob(f"checkpoint-*/{MANIFEST}")):
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGSTOP)  # so that it is sure to be running still
    seen = sorted(path for path in folder.rglob("*"))
    words = place.dice.choice([(), ("--overwrite_output_dir",), LATEST])
    log = first.log.rename(first.log.with_name("first.log"))
    second = Run(place.config, folder, *words)
    status = second.wait()
    demand(status == 2, f"a second run ends with {status}", second.log)
    message = f"{folder} is in use by another run (process {first.pid} on "
    demand(message in second.log.read_text(), f"it does not say {message}", second.log)
    demand(sorted(folder.rglob("*")) == seen, "a second run removed or added files", second.log)
    ends_well = place.dice.random() < 0.5
    os.kill(first.pid, signal.SIGCONT if ends_well else signal.SIGKILL)
    status = first.wait()
    demand(status == (0 if ends_well else -signal.SIGKILL), f"the first ends with {status}", log)
    if ends_well:
        same(folder, place.whole)
    else:
        finish(place, folder)
    return f"{' '.join(words) or 'new'}; the first {'ends' if ends_well else 'is killed'}"


def one_of_two(place: Place) -> str:
    """One process of two is killed, or told to end; both end, and both go on."""
    whole, folder = place.root / "whole-of-two", place.folder()
    # The rollout of one process is that of two halves.
    words = ("--per_device_train_batch_size", "4", "--per_device_eval_batch_size", "4")
    if not whole.exists():
        status = two_processes(place.config, whole, *words)
        demand(status == 0, "two processes fail", whole.with_name("whole-of-two.log"))
    signum = place.dice.choice([signal.SIGKILL, signal.SIGTERM])
    fault = place.fault(signum, ["rollout", "update", "evaluation", "save"])
    fault.rank = place.dice.randint(0, 1)
    log = folder.with_name(folder.name + ".log")
    status = two_processes(place.config, folder, *words, fault=fault)
    cause = "SIGKILL" if signum == signal.SIGKILL else "SIGTERM: ended at step "
    demand(status == 0 or cause in log.read_text(), f"it does not say {cause}", log)
    again = two_processes(place.config, folder, *words, *how_to_resume(folder))
    demand(again == 0, "two processes cannot go on", log)
    same(folder, whole)
    return f"{signum.name} to rank {fault.rank} in {fault.phase}: {status}"


QUICK = {
    "killed": killed,
    "signalled": signalled,
    "damaged": damaged,
    "full disk": full_disk,
    "second run": second_run,
}
ALL = {**QUICK, "one of two": one_of_two}
