"""The command line, run in this process; bad input is one line, the right exit code, and nothing half-written."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.calling import Result, refused
from sentei import cli
from sentei.errors import InfeasibleError


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(
        "Once upon a time there was a little girl who had a red ball. She liked to play with her dog. " * 150
    )
    return path


@pytest.fixture
def profile(sentei: Callable[..., Result], stories_dir: Path, text: Path, tmp_path: Path) -> Path:
    out = tmp_path / "profile"
    args = ("--tokens", 2048, "--window", 128, "--dtype", "float32", "--out", out)
    assert sentei("measure", stories_dir, "--data", text, *args).code == 0
    return out


def test_from_measure_to_cut(
    sentei: Callable[..., Result], stories_dir: Path, profile: Path, text: Path, tmp_path: Path
) -> None:
    planned = sentei("plan", profile, "--method", "numerical", "--sparsity", 0.2, "--out", tmp_path / "plan.json")
    assert planned.code == 0 and "numerical" in planned.out and "block params 227,200 →" in planned.out
    assert all(f"\n     {block} " in planned.out for block in range(5))
    args = ("--plan", tmp_path / "plan.json", "--data", text, "--tokens", 2048, "--window", 128, "--dtype", "float32")
    cut = sentei("cut", stories_dir, *args, "--out", tmp_path / "pruned", "--format", "json")
    assert cut.code == 0 and cut.json()["block_params"] == pytest.approx(227_200 * 0.8, rel=0.005)
    assert (tmp_path / "pruned" / "model.safetensors").is_file()


def test_a_disk_that_is_too_small_is_said_before_the_work(
    sentei: Callable[..., Result],
    stories_dir: Path,
    profile: Path,
    text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = tmp_path / "plan.json"
    assert sentei("plan", profile, "--method", "random", "--sparsity", 0.2, "--out", plan).code == 0
    (pool := tmp_path / "pool.jsonl").write_text('{"prompt": "a", "completion": "b"}\n' * 2)
    monkeypatch.setattr("sentei.files.shutil.disk_usage", lambda place: SimpleNamespace(free=10_000))
    said = ("writes about 0.00 GB, the disk of", "has 0.00 GB free; free space or choose another --out")
    for verb in (
        ("cut", stories_dir, "--plan", plan, "--data", text),
        ("cut", stories_dir, "--plan", plan, "--data", text, "--memory", "64GB"),
        ("tune", stories_dir, "--data", pool),
        ("export", stories_dir, "--to", "hf"),
    ):
        result = sentei(*verb, "--out", tmp_path / "new" / "out")
        refused(result, *said, verb[0])
        assert not (tmp_path / "new").exists()


def test_a_plan_for_another_model_is_refused(
    sentei: Callable[..., Result], stories_dir: Path, profile: Path, text: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.json"
    printed = sentei("plan", profile, "--method", "random", "--sparsity", 0.2, "--out", plan, "--format", "json")
    assert printed.json() == json.loads(plan.read_text())
    plan.write_text(json.dumps({**printed.json(), "model": "0" * 64}))
    result = sentei("cut", stories_dir, "--plan", plan, "--data", text, "--out", tmp_path / "pruned")
    refused(result, "another model")
    assert not (tmp_path / "pruned").exists()


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b'{"text": "a"}\n{broken\n', "bad.jsonl:2"),
        (b"", "empty"),
        (b"\xff\xfe\x00bad", "not UTF-8"),
        (None, "does not exist"),
    ],
)
def test_bad_data_fails_before_a_model_is_loaded(
    sentei: Callable[..., Result], tmp_path: Path, content: bytes | None, word: str
) -> None:
    data = tmp_path / "bad.jsonl"
    if content is not None:
        data.write_bytes(content)
    refused(sentei("measure", tmp_path / "no-such-model", "--data", data, "--out", tmp_path / "out"), str(data), word)
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_taken_is_refused_first(sentei: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    refused(sentei("measure", "none", "--data", "none", "--out", tmp_path / "full"), "not empty", "--overwrite")
    refused(sentei("measure", "none", "--data", "none", "--out", tmp_path / "full" / "x" / "y"), "is a file")


def test_bad_plans(sentei: Callable[..., Result], profile: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "plan.json")
    refused(sentei("plan", tmp_path / "nowhere", "--sparsity", 0.2, *out), "holds no profile")
    refused(sentei("plan", profile, "--sparsity", 0.2, "--method", "numercal", *out), "did you mean 'numerical'?")
    refused(sentei("plan", profile, *out), "exactly one")
    for part in ("score", "allocation", "compensation"):  # of the preset that needs it least, too
        for method in ("auto", "structural", "random"):
            args = ("--method", method, f"--{part}", "zzz")
            refused(sentei("plan", profile, "--sparsity", 0.2, *args, *out), f"unknown {part} 'zzz'; known: ")
    refused(sentei("plan", profile, "--sparsity", 1.5, *out), "less than 1")
    refused(sentei("plan", profile, "--sparsity", 0.999, *out), "smallest legal model", code=4)
    assert not (tmp_path / "plan.json").exists()


def test_recipes_are_checked_before_anything_runs(sentei: Callable[..., Result], tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("model: m\nbudget: {sparsity: 0.2}\nprunne: {method: auto}\n")
    refused(sentei("run", recipe, "--out", tmp_path / "run"), "prunne", "did you mean 'prune'?")
    recipe.write_text("model: m\nbudget: {sparsity: 0.2}\ndata: none.txt\n")
    refused(sentei("run", recipe, "--out", tmp_path / "run"), "none.txt does not exist")
    refused(sentei("run", tmp_path / "none.yaml", "--out", tmp_path / "run"), "does not exist")
    refused(sentei("resume", tmp_path / "run"), "holds no run")
    refused(sentei("report", tmp_path / "run"), "holds no run")
    assert not (tmp_path / "run").exists()


def test_a_file_does_not_decide_that_code_runs(
    sentei: Callable[..., Result], stories_dir: Path, text: Path, tmp_path: Path
) -> None:
    recipe, run = tmp_path / "r.yaml", tmp_path / "run"
    recipe.write_text(f"model: {stories_dir}\nbudget: {{sparsity: 0.2}}\ndata: {text}\ntrust_remote_code: true\n")
    refused(sentei("run", recipe, "--out", run), "r.yaml: trust_remote_code: true", "add --trust-remote-code")
    (run / "stages").mkdir(parents=True)
    (run / "recipe.yaml").write_text(recipe.read_text())
    refused(sentei("resume", run), "recipe.yaml: trust_remote_code: true", "add --trust-remote-code")
    recipe.write_text(recipe.read_text() + "recover: {pool: none.jsonl}\n")
    trusted = sentei("run", recipe, "--out", tmp_path / "other", "--trust-remote-code")
    refused(trusted, "none.jsonl does not exist")

    task, ran = tmp_path / "task.yaml", tmp_path / "ran"
    (tmp_path / "judge.py").write_text(f"open({str(ran)!r}, 'w').close()\ndef score(prediction, row): return 1.0\n")
    (tmp_path / "rows.jsonl").write_text('{"q": "a", "a": " b"}\n' * 8)
    words = 'input: "{q}"\ntarget: "{a}"\n'
    task.write_text(f"name: t\ndata: rows.jsonl\nmetric: python:judge.py:score\n{words}")
    for verb in ("fit", "frontier"):
        refused(sentei(verb, stories_dir, "--task", task, "--out", tmp_path / verb), "the metric python:", "judge.py")
        assert not ran.exists() and not (tmp_path / verb).exists()


def test_an_unknown_method_in_a_recipe_stops_before_measuring(
    sentei: Callable[..., Result], text: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: m\nbudget: {{sparsity: 0.2}}\ndata: {text}\nprune: {{method: flapp}}\n")
    refused(sentei("run", recipe, "--out", tmp_path / "run"), "did you mean 'flap'?")
    for part in ("score", "allocation", "compensation"):
        recipe.write_text(f"model: m\nbudget: {{sparsity: 0.2}}\ndata: {text}\nprune: {{{part}: zzz}}\n")
        refused(sentei("run", recipe, "--out", tmp_path / "run"), f"unknown {part} 'zzz'")
    assert not (tmp_path / "run").exists()


def test_usage_errors_exit_with_2(sentei: Callable[..., Result]) -> None:
    for args in (["plam"], ["plan"], ["measure", "m", "--data", "x", "--out", "y", "--tokens", "many"], ["eval"]):
        result = sentei(*args)
        assert result.code == 2 and result.out == "" and "Traceback" not in result.err


def test_methods_are_explained_with_their_papers(sentei: Callable[..., Result]) -> None:
    text = sentei("methods").out
    listed = sentei("methods", "--format", "json").json()
    assert next(iter(listed)) == "schema_version"
    for method in listed["methods"]:
        assert method["name"] in text and method["paper"] in text and method["line"]
    for kind, known in (("strategies", "auto"), ("adapters", "lora+sparse")):
        assert known in [entry["name"] for entry in listed[kind]]
        for entry in listed[kind]:
            assert entry["name"] in text and entry["line"] in text


def test_doctor(sentei: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    facts = sentei("doctor", "--format", "json")
    assert facts.code == 0 and {"python", "torch", "cache", "memory", "device", "dtype", "threads"} <= set(facts.json())
    from sentei.cli import doctor

    monkeypatch.setattr(doctor, "PACKAGES", (*doctor.PACKAGES, "no_such_package"))
    missing = sentei("doctor")
    assert missing.code == 2 and "missing: no_such_package; pip install no-such-package" in missing.err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (InfeasibleError("two\nlines"), 4, "error: two lines"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "the disk is full"),
        (RuntimeError("odd"), 1, "internal: RuntimeError: odd"),
    ],
)
def test_exceptions_become_one_line(
    sentei: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, error: Exception, code: int, words: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("sentei.places.check_output", fail)
    result = sentei("measure", "m", "--data", "d", "--out", "o")
    assert result.code == code and words in result.err and len(result.err.splitlines()) == 1
    monkeypatch.setattr(sys, "argv", ["sentei", "measure", "m", "--data", "d", "--out", "o", "--debug"])
    with pytest.raises(type(error)):
        cli.main()


def test_ctrl_c_says_how_to_go_on(
    sentei: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: Path
) -> None:
    import importlib

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    engine = importlib.import_module("sentei.run")._Run
    monkeypatch.setattr(engine, "_look", lambda *_: None)  # there is no model
    monkeypatch.setattr(engine, "_stage", interrupt)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"model: m\nbudget: {{sparsity: 0.2}}\ndata: {text}\nprove: {{texts: [], tasks: []}}\n")
    result = sentei("run", recipe, "--out", tmp_path / "run")
    assert result.code == 130 and f"sentei resume {tmp_path / 'run'}" in result.err
    assert (tmp_path / "run" / "recipe.yaml").is_file()


def test_options_take_many_values() -> None:
    import typer
    from typer.testing import CliRunner

    from sentei.cli.app import ManyValues

    app, seen = typer.Typer(), {}

    @app.command(cls=ManyValues)
    def command(models: list[str], text: list[str] = [], tasks: list[str] = [], limit: int = 0) -> None:  # noqa: B006
        seen.update(models=models, text=text, tasks=tasks, limit=limit)

    args = ["dense", "pruned", "--text", "a", "b", "--tasks", "c", "d", "e", "--limit", "5"]
    assert CliRunner().invoke(app, args).exit_code == 0
    assert seen == {"models": ["dense", "pruned"], "text": ["a", "b"], "tasks": ["c", "d", "e"], "limit": 5}
    assert CliRunner().invoke(app, ["m", "--tasks", "a", "--tasks", "b"]).exit_code == 0
    assert seen["tasks"] == ["a", "b"]


def test_help_is_quick_and_needs_no_torch() -> None:
    code = "import sys; sys.argv=['sentei','--help']; from sentei.cli import main\ntry: main()\n"
    code += "except SystemExit: print('torch' in sys.modules, 'pydantic' in sys.modules)"
    started = time.monotonic()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip().endswith("False False") and "measure" in out
    assert time.monotonic() - started < 5  # 0.3 s on an idle machine


def test_version(sentei: Callable[..., Result]) -> None:
    import sentei as package

    assert sentei("--version").out.strip() == package.__version__
    assert subprocess.run([sys.executable, "-m", "sentei", "--version"], capture_output=True, check=True).stdout


def test_json_begins_with_the_schema_version_whoever_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Every verb that offers JSON prints it through one function, which puts the version first and asks for one."""
    from sentei.cli import app

    app.print_json({"model": "m", "schema_version": 3})
    assert list(json.loads(capsys.readouterr().out)) == ["schema_version", "model"]
    with pytest.raises(KeyError, match="schema_version"):
        app.print_json({"model": "m"})
    for verb in app.VERBS:
        source = Path(app.__file__).with_name(f"{verb}.py").read_text()
        if "FormatOption" in source:
            assert "print_json(" in source or "show(" in source, verb
        assert "json.dumps" not in source, verb
