"""The trial of asv's eyes: does it see 5 %, and does it see nothing where nothing is?

Commits that change nothing are compared one with the next; and the last of them with two that are
slowed down on purpose, each by 5 % as computed from measured times: one kernel (``down``, of the
time of one launch), and the whole decode (every launch, by the same time each). On a GPU host, from
a checkout whose results/ has evidence of that GPU:

    PYTHONPATH=tests python -m helpers.slowdown HOUSE MACHINE JSON [COMMITS]

clones the checkout into HOUSE, puts empty commits on its last one, COMMITS (11) with it, measures
them and both planted ones by ``asv run``, and writes the trial (``slowdown_ruling``) to JSON. What
is measured already is not measured again. Exit status 0 if the trial holds, 1 if not, 2 if there
can be none.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.asv_house import ROOT, git
from helpers.slowdown_ruling import DECODE, KERNEL, SHARE, judge

from harness.contract.evidence import Damaged, read_sidecar
from harness.errors import BadInput
from harness.files import write_atomically

BENCHMARKS = "decode.Qwen3MoeDecode|kernels.CudaFamilies"

SPIN = """
// Planted: time that no one asked for.
__device__ inline void spin(int cycles) {
  const long long start = clock64();
  while (clock64() - start < cycles) {
  }
}
// In place of a take_over that is not the launch's last.
__device__ inline void only_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
"""
_TAKEN_OVER = "  let_in();\n"
# What is called again in the same launch, where the input is staged.
_EARLIER = ("  take_over();\n  const bool weighs", "  if (!a.choosing.announced) take_over();\n")
# ``down`` over tiles: its input is staged, its predecessor so has ended, nothing is multiplied yet.
_STAGED = re.compile(
    r"( down_tiled\(const DownArgs a\) \{\n(?:(?!\}).*\n)*?)"  # no line ends the kernel
    r"(  stream\.run\()"
)


def slowed(sources, what, cycles):
    """The sources by name that differ, where every launch of ``what`` spins for ``cycles``."""
    common, experts = sources["common.cuh"], sources["experts.cu"]
    head, guard, rest = common.partition("__device__ inline void take_over() {\n")
    if what == KERNEL:
        slow, found = _STAGED.subn(rf"\1  spin({cycles});\n\2", experts)
        if found != 1 or experts.count("stream.run(", experts.index(" down_tiled(")) != 1:
            raise ValueError("down runs over its tiles in another way; mend helpers/slowdown.py")
        return {"common.cuh": head + SPIN + guard + rest, "experts.cu": slow}
    if rest.count(_TAKEN_OVER) != 1 or any(experts.count(call) != 1 for call in _EARLIER):
        raise ValueError("kernels take over in another way now; mend helpers/slowdown.py")
    slow = rest.replace(_TAKEN_OVER, f"{_TAKEN_OVER}  spin({cycles});\n")
    for call in _EARLIER:
        experts = experts.replace(call, call.replace("take_over", "only_wait"))
    return {"common.cuh": head + SPIN + guard + slow, "experts.cu": experts}


def cycles_of(folder):
    """Clock cycles of 5 % of a ``down``, and of 5 % of a token for each of its launches.

    Out of the newest sidecars in ``folder`` that count.
    """
    decode = _newest(folder, "decode.Qwen3MoeDecode-depth=0")
    families = _newest(folder, "kernels.CudaFamilies-i24")
    per_us = decode["conditions"]["max_sm_clock_mhz"]
    launches = decode["ran"]["graph_nodes"]
    return {
        KERNEL: round(SHARE * families["families"][KERNEL]["us"]["median"] * per_us),
        DECODE: round(SHARE * 1000 * decode["ms_per_token"]["median"] / launches * per_us),
    }


def _newest(folder, benchmark):
    """The newest sidecar that is sealed, accepted, of a clean tree and without a planted fault."""
    paths = sorted(folder.glob(f"*-{benchmark}.evidence"))
    if not paths:
        raise BadInput(f"{folder} has no evidence of {benchmark}: run make bench on this GPU first")
    counted, why_not = [], {}
    for path in paths:
        try:
            sidecar = read_sidecar(path)
        except Damaged as damage:
            why_not[path.name] = str(damage)
            continue
        why_not[path.name] = _against(sidecar)
        if not why_not[path.name]:
            counted.append(sidecar)
    if not counted:
        told = "; ".join(f"{name}: {why}" for name, why in why_not.items())
        raise BadInput(
            f"{folder} has no evidence of {benchmark} that counts ({told}): measure anew"
        )
    return max(counted, key=lambda sidecar: sidecar.date).content


def _against(sidecar):
    """Why a sidecar counts for nothing; None if it counts."""
    if not sidecar.sealed:
        return "not sealed"
    if not sidecar.accepted:
        return "rejected by the guard"
    if sidecar.content.get("planted") is not None:
        return "with a planted fault"
    if sidecar.ran.get("dirty") is not False:
        return "of uncommitted changes"
    return None


def equal_commits(house, count):
    """The commit checked out and ``count - 1`` empty ones on top of it, oldest first.

    Of the same commit they come out the same again.
    """
    asked = int(count) if count.isdecimal() else 0
    if asked < 2:
        raise BadInput(f"{count} commits: expected 2 or more, to compare one with the next")
    head, date = git(house, "log", "-1", "--format=%H %cI").split()
    equal = [head]
    git(house, "checkout", "--quiet", "--detach", head)
    for number in range(1, asked):
        message = f"Equal to {head[:8]}, {number}"
        git(house, "commit", "--quiet", "--allow-empty", "--message", message, date=date)
        equal.append(git(house, "rev-parse", "HEAD"))
    git(house, "branch", "--force", "equal")
    git(house, "checkout", "--quiet", "--detach", head)
    return equal


def plant(house, cycles, parent):
    """Commit both slow-downs, each on top of ``parent``; their hashes.

    Of the same parent and cycles they come out the same again.
    """
    head = git(house, "rev-parse", "HEAD")
    date = git(house, "log", "-1", "--format=%cI", parent)
    kernels = house / "kernels"
    planted = {}
    for what in (KERNEL, DECODE):
        git(house, "checkout", "--quiet", "--detach", parent)
        sources = {name: (kernels / name).read_text() for name in ("common.cuh", "experts.cu")}
        for name, text in slowed(sources, what, cycles[what]).items():
            (kernels / name).write_text(text)
        message = f"Planted: {what} slower by {SHARE:.0%}, {cycles[what]} cycles a launch"
        git(house, "commit", "--quiet", "--message", message, "--", "kernels", date=date)
        planted[what] = git(house, "rev-parse", "HEAD")
        # A branch: of a shallow checkout, asv's own clone has only what a branch leads to.
        git(house, "branch", "--force", f"planted-{what.replace(' ', '-')}")
    git(house, "checkout", "--quiet", "--detach", head)
    return planted


def open_house(house, root=ROOT):
    """Clone the checkout ``root`` into ``house``, unless that is such a clone, untouched."""
    if not house.exists():
        git(root, "clone", "--quiet", str(root), str(house), check=False)
    # git would take a folder without a repository for a part of the one around it.
    if git(house, "rev-parse", "--show-toplevel", check=False) != str(house):
        raise BadInput(f"{house} is no git checkout: remove it, or name another place")
    here, there = (git(folder, "rev-parse", "HEAD") for folder in (house, root))
    if here != there:
        raise BadInput(
            f"{house} stands at {here[:8]}, {root} at {there[:8]}: remove {house}, or name another"
        )
    if git(house, "diff", "--name-only", "HEAD", "--", "kernels"):
        raise BadInput(f"{house} has uncommitted changes in kernels: remove it, or undo them")


def measure(house, machine, commits):
    """Have asv measure what is not measured; what fails is missed by the judge."""
    (house / "commits").write_text("\n".join([*commits, ""]))
    command = [sys.executable, "-m", "asv", "run", "--machine", machine, "HASHFILE:commits"]
    command += ["--skip-existing-successful", "--bench", BENCHMARKS]
    environment = {**os.environ, "MOE_HARNESS_DEPTHS": "0", "MOE_HARNESS_NUMERICS": "i24"}
    subprocess.run(command, cwd=house, env=environment, stdout=sys.stderr, check=False)


def run(house, machine, out, count="11"):
    """Try, and write what came of it; the exit status."""
    house = Path(house).resolve()
    # Of the checkout, never of the house: what is measured there must not move what is planted.
    cycles = cycles_of(ROOT / "results" / machine / "evidence")
    open_house(house)
    equal = equal_commits(house, count)
    planted = plant(house, cycles, equal[-1])
    measure(house, machine, [*equal, *planted.values()])
    trial = judge(house, machine, equal, planted, cycles)
    write_atomically(Path(out), json.dumps(trial, indent=1) + "\n")
    print(f"the trial: {trial['ruling']}; {out}")
    return 0 if trial["holds"] else 1


def _main(arguments):
    if len(arguments) not in (3, 4):
        print("slowdown: expected HOUSE MACHINE JSON [COMMITS]", file=sys.stderr)
        return 2
    try:
        return run(*arguments)
    except BadInput as error:
        print(f"slowdown: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
