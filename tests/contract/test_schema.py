"""A contract file, and what is said of one that is none."""

import re
import shlex
from pathlib import Path

import pytest

from benchmarks import decode, parity
from harness.cli import _parser, main
from harness.contract.quantities import QUANTITIES
from harness.contract.schema import problems_of, read_contract
from harness.errors import BadInput

ROOT = Path(__file__).parents[2]
CONTRACT = ROOT / "contracts" / "qwen3-moe-decode-gpu-v1.yaml"


def said(path):
    return [(problem.line, problem.what) for problem in problems_of(path)]


def spoiled(tmp_path, before, after):
    """The project's contract with one thing changed; the line that it stands in."""
    text = CONTRACT.read_text()
    assert text.count(before) >= 1
    at = text.index(before)
    path = tmp_path / CONTRACT.name
    path.write_text(text[:at] + after + text[at + len(before) :])
    return path, text[:at].count("\n") + 1


def test_the_projects_contract_is_valid():
    assert said(CONTRACT) == []
    contract = read_contract(CONTRACT)
    assert [each.ident for each in contract.criteria] == [f"AC-00{n}" for n in range(1, 9)]
    by_name = {each.ident: each for each in contract.criteria}
    assert (by_name["AC-002"].comparison, by_name["AC-002"].limit) == ("at_most", 1e-6)
    assert {each.quantity for each in contract.criteria} == set(QUANTITIES)


def test_the_thresholds_are_those_that_their_sources_give():
    limits = {each.ident: each.limit for each in read_contract(CONTRACT).criteria}
    assert limits["AC-006"] == pytest.approx(150 * 1.919e9 / 1.008e12, abs=5e-4)
    assert limits["AC-008"] == pytest.approx(330 * 1.919e9 / 4.55e12, abs=5e-4)


def test_it_names_benchmarks_that_exist_with_their_parameters():
    tracked = {f"decode.Qwen3MoeDecode depth={depth}" for depth in decode.Qwen3MoeDecode.params} | {
        f"parity.{parity.OracleAgreement.__name__}"
    }
    named = {name for each in read_contract(CONTRACT).criteria for name in each.evidence}
    assert named == tracked


def test_its_falsifiers_can_be_run():
    for falsifier in read_contract(CONTRACT).falsifiers:
        program, *arguments = shlex.split(falsifier.run)
        if program == "moe-harness":
            assert _parser().parse_args(arguments).run
        else:
            assert (program, arguments[:2]) == ("python", ["-m", "pytest"])
            assert (ROOT / arguments[2]).is_file()


def test_it_is_written_in_plain_words_for_the_command(capsys):
    assert main(["contract", "validate", str(CONTRACT)]) == 0
    assert "8 criteria, 7 falsifiers" in capsys.readouterr().out


# What stands there, what is put in its place, and what must be said of that line.
CASES = {
    "duplicate key": (
        "    quantity: layer_cosine\n",
        "    quantity: layer_cosine\n    title: again\n",
        "duplicate key 'title', first in line",
        1,
    ),
    "near miss of a key": (
        "    at_least: 0.99",
        "    at_leats: 0.99",
        "did you mean 'at_least'?",
        0,
    ),
    "near miss of a quantity": (
        "quantity: layer_cosine",
        "quantity: layer_cosin",
        "unknown quantity 'layer_cosin'; did you mean 'layer_cosine'?",
        0,
    ),
    "an unknown quantity": ("quantity: layer_cosine", "quantity: beauty", "expected layer_co", 0),
    "near miss of a falsifier": (
        "[parity, faults, stage-files]",
        "[parity, faultz, stage-files]",
        "unknown falsifier 'faultz'; did you mean 'faults'?",
        0,
    ),
    "a status by hand": (
        "    quantity: layer_cosine\n",
        "    quantity: layer_cosine\n    status: met\n",
        "a status is derived from the evidence (contract check), never written",
        1,
    ),
    "text for a number": ("at_least: 0.99", "at_least: high", "expected a number such as", 0),
    "a number in quotes": ("at_least: 0.99", 'at_least: "0.99"', "found '0.99'", 0),
    "NaN": ("at_least: 0.99", "at_least: .nan", "expected a number such as", 0),
    "a number beyond all": ("at_least: 0.99", "at_least: 1e999", "beyond any number", 0),
    "two comparisons": (
        "    at_least: 0.99\n",
        "    at_least: 0.99\n    at_most: 1\n",
        "one of at_least, above, at_most, found at_least and at_most",
        None,
    ),
    "no comparison": ("    at_least: 0.99\n", "", "at_most, found none", None),
    "two of a name": ("id: AC-002", "id: AC-001", "two of criterion 'AC-001'", None),
    "a missing key": ("    title: Everything is finite\n", "", "a criterion lacks title", None),
    "an anchor": ("title: Everything", "title: &a Everything", "an anchor or alias", 0),
    "a tag": ("title: Everything", "title: !!python/name:os.system x", "a tag (", 0),
    "another schema": ("contract/1", "contract/2", "expected 'moe-harness/contract/1'", 0),
    "another file's name": ("name: qwen3-moe", "name: qwen4-moe", "name them alike", 0),
    "a version without amendment": (
        "version: 1.0.0\nsubject",
        "version: 1.1.0\nsubject",
        "the last amendment is 1.0.0",
        0,
    ),
    "no version": ("version: 1.0.0\nsubject", "version: new\nsubject", "expected one as 1.0.0", 0),
    "no date": ("date: 2026-11-24", "date: 24.11.2026", "expected one as 2026-11-24", 0),
    "a falsifier of nothing": (
        "falsified_by: [memory]",
        "falsified_by: [parity]",
        "falsifier 'memory' stands in no criterion's falsified_by",
        None,
    ),
    "no YAML": ("criteria:", "criteria: [", "no YAML", None),
    "an empty list": ("falsified_by: [memory]", "falsified_by: []", "at least one", 0),
    "evidence twice": (
        "depth=0\n      - decode.Qwen3MoeDecode depth=512",
        "depth=512\n      - decode.Qwen3MoeDecode depth=512",
        "two of entry 'decode.Qwen3MoeDecode depth=512'",
        None,
    ),
    "a list for a criterion": ("  - id: AC-001\n", "  - [AC-001]\n  - id: AC-001\n", "is a map", 0),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_named_with_its_line(case, tmp_path, capsys):
    before, after, words, offset = CASES[case]
    path, line = spoiled(tmp_path, before, after)
    found = said(path)
    matching = [where for where, what in found if words in what]
    assert matching, found
    if offset is not None:
        assert matching[0] == line + offset
    with pytest.raises(BadInput, match=re.escape(path.name)):
        read_contract(path)
    assert main(["contract", "validate", str(path)]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == len(found)
    assert all(each.startswith(f"moe-harness: {path}") for each in lines)
    assert main(["contract", "check", str(path)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_all_that_is_wrong_is_found_in_one_go(tmp_path):
    path, _ = spoiled(tmp_path, "at_least: 0.99", "at_least: high")
    path.write_text(path.read_text().replace("quantity: non_finite", "quantity: non_finit"))
    assert len(said(path)) == 2
    with pytest.raises(BadInput, match=r"1 more; moe-harness contract validate lists them"):
        read_contract(path)


HOSTILE = {
    "empty": b"",
    "no text": b"schema: \xff\n",
    "a list": b"- 1\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "nested deeply": b"[" * 50_000,
    "large": b"#" * (2 << 20),
    "keys that are lists": b"? [a]\n: 1\n",
    "laughter": b"a: &a [x]\nb: [*a, *a]\n",
    "a control character": b"a: \x07\n",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_in_one_line(case, tmp_path, capsys):
    path = tmp_path / CONTRACT.name
    path.write_bytes(HOSTILE[case])
    assert problems_of(path)
    assert main(["contract", "check", str(path)]) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert "Traceback" not in printed.err


def test_bad_arguments(tmp_path, capsys):
    assert main(["contract", "judge"]) == 2
    assert "expected check or validate" in capsys.readouterr().err
    assert main(["contract", "validate", str(tmp_path / "none.yaml")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["contract", "check", "--results", str(tmp_path / "none")]) == 2
    assert "is no folder" in capsys.readouterr().err
