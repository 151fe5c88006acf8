"""Checks as JUnit XML, the form in which build servers take reports: a test suite for each patch, a test case for each
prompt and each gate.

A report has failures exactly where the command line ends with 3: a gate that was missed is a failure, and so is a
rewrite prompt that fails in a stack, unless a gate on ES stands in for that. Other prompts that fail are "skipped",
with what they say: neighbours that the base does not know fail as well, and a report that is always red says nothing.

Prompts are scored side by side, so only the whole has a time; the zeros are there for readers that insist on one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

from rompatch.errors import OutputError
from rompatch.patchfile.durable import atomic_write
from rompatch.workflows.gates import DRIFT, REWRITE, GateResult, relative_rise
from rompatch.workflows.stack_report import PatchCheck, StackVerified
from rompatch.workflows.verifying import Verified

if TYPE_CHECKING:
    from rompatch.verify.evaluation import PromptResult
    from rompatch.verify.metrics import Scores

_NOT_XML = re.compile("[^\t\n\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write, and the carriage return, which readers turn into another one."""

_MEASURES = ("es", "ps", "ns", "s")
_TITLES = {"loss": "loss of S in the stack", "drift": "perplexity"} | {name: name.upper() for name in _MEASURES}


def junit_report(found: Verified | StackVerified) -> bytes:
    """The report, UTF-8."""
    if isinstance(found, StackVerified):
        title = f"rompatch verify --stack: {found.name}"
        suites = [_stack_suite(check, found.gates) for check in found.checks]
        if found.drift is not None:
            suites.append(_drift_suite(found))
    else:
        title, suites = f"rompatch verify: {found.patch.label}", [_patch_suite(found)]
    root = ET.Element("testsuites", {"name": _text(title)})
    root.extend(suites)
    for name in ("tests", "failures", "errors"):
        root.set(name, str(sum(int(suite.attrib[name]) for suite in suites)))
    if isinstance(found, StackVerified):
        root.set("time", f"{found.seconds:.3f}")
    ET.indent(root)
    report: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return report + b"\n"


def write_junit(found: Verified | StackVerified, path: Path) -> None:
    """Write the report to *path*, atomically; what is there is replaced.

    Raises:
        OutputError: it cannot be written.
    """
    atomic_write(path, junit_report(found))


def check_writable(path: Path) -> None:
    """Whether a report could be written to *path*, asked before hours of scoring.

    Raises:
        OutputError: it is a folder, or its folder does not exist.
    """
    if path.is_dir() or not path.absolute().parent.is_dir():
        found = "a folder" if path.is_dir() else f"no folder {path.absolute().parent}"
        raise OutputError(
            f"The report cannot be written to {path}.",
            expected="the name of a file in a folder that exists",
            found=found,
            next_step="Make the folder, or name another file.",
        )


def _stack_suite(check: PatchCheck, gates: Sequence[GateResult]) -> ET.Element:
    own = [result for result in gates if result.patch_id == check.patch.id]
    strict = any(result.gate == REWRITE for result in own)
    properties = {"patch": check.patch.id, "suite": check.in_stack.name, "source": check.in_stack.source}
    properties |= _scores("in_stack", check.in_stack.scores)
    if check.alone is not None:
        properties |= _scores("alone", check.alone.scores) | {"loss": _number(check.loss)}
    if check.alone_run is not None:
        properties["alone_run"] = str(check.alone_run)
    lost = {change.prompt for change in check.lost}
    cases = [
        _prompt_case(check.patch.short_id, result, strict, "; it passed alone" if result.prompt in lost else "")
        for result in check.in_stack.results
    ]
    return _suite(check.patch.label, properties, [*cases, *_gate_cases(check.patch.short_id, own)])


def _patch_suite(found: Verified) -> ET.Element:
    properties = {"patch": found.patch.id, "suite": found.after.name, "source": found.after.source}
    properties |= _scores("before", found.before.scores) | _scores("after", found.after.scores)
    cases = [_prompt_case(found.patch.short_id, result, False) for result in found.after.results]
    return _suite(found.patch.label, properties, [*cases, *_gate_cases(found.patch.short_id, found.gates)])


def _drift_suite(found: StackVerified) -> ET.Element:
    drift = found.drift
    assert drift is not None
    properties = {
        "text": found.drift_text or "",
        "tokens": str(drift.tokens),
        "perplexity_before": _number(drift.perplexity_before),
        "perplexity_after": _number(drift.perplexity_after),
        "mean_kl": _number(drift.mean_kl),
        "rise": _number(relative_rise(drift)),
    }
    gates = [result for result in found.gates if result.gate == DRIFT]
    return _suite("drift of the whole model", properties, _gate_cases("drift", gates))


def _suite(name: str, properties: dict[str, str], cases: Sequence[ET.Element]) -> ET.Element:
    made = ET.Element("testsuite", {"name": _text(name), "tests": str(len(cases)), "time": "0"})
    for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        made.set(attribute, str(sum(case.find(tag) is not None for case in cases)))
    inner = ET.SubElement(made, "properties")
    for key, value in properties.items():
        ET.SubElement(inner, "property", {"name": key, "value": _text(value)})
    made.extend(cases)
    return made


def _prompt_case(owner: str, result: PromptResult, strict: bool, remark: str = "") -> ET.Element:
    prompt = result.prompt
    rival = "" if prompt.target_true is None else f" / {prompt.target_true}"
    case = _case(f"{owner}.{prompt.kind}", f"{prompt.text} [{prompt.target_new}{rival}]")
    if result.passed is None:
        ET.SubElement(case, "skipped", {"message": "its true object is not known, so it cannot be judged"})
    elif not result.passed:
        said = _what_it_says(result) + remark
        if strict and prompt.kind == REWRITE:
            _fail(case, "prompt", said)
        else:
            ET.SubElement(case, "skipped", {"message": _text(f"fails, and no gate is on it: {said}")})
    return case


def _gate_cases(owner: str, gates: Iterable[GateResult]) -> list[ET.Element]:
    """A case for each gate but the one on rewrite prompts: those have cases of their own."""
    cases = []
    for result in gates:
        if result.gate == REWRITE:
            continue
        case = _case(f"{owner}.gate", _TITLES[result.gate])
        if not result.passed:
            _fail(case, "gate", result.reason)
        cases.append(case)
    return cases


def _case(classname: str, name: str) -> ET.Element:
    return ET.Element("testcase", {"classname": f"rompatch.{classname}", "name": _text(name), "time": "0"})


def _fail(case: ET.Element, kind: str, message: str) -> None:
    failure = ET.SubElement(case, "failure", {"type": kind, "message": _text(message)})
    failure.text = _text(message)


def _what_it_says(result: PromptResult) -> str:
    prompt = result.prompt
    wanted, other = (prompt.target_new, prompt.target_true), (prompt.target_true, prompt.target_new)
    first, second = other if prompt.kind == "neighbourhood" else wanted
    return f"{first!r} trails {second!r} by {-(result.margin or 0.0):.3f} nats"


def _scores(phase: str, scores: Scores) -> dict[str, str]:
    return {f"{phase}.{name}": _number(getattr(scores, name)) for name in _MEASURES}


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.6g}"


def _text(text: str) -> str:
    """*text* with what XML cannot hold written as escapes."""
    return _NOT_XML.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)
