"""`export`: a model on its way to an engine, all of it or nothing, with a record of what was proven and what not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sentei.errors import InputError, QualityError
from sentei.families.streamed import streamed_blocks
from sentei.files import check_space, write_json, write_text
from sentei.marks import replaceable
from sentei.memory import check_memory, held
from sentei.outputs import atomic_dir, atomic_output, claimed
from sentei.places import check_output
from sentei.progress import Progress, shown
from sentei.ship import ROUTES
from sentei.ship.base import Options, Route, worst_delta
from sentei.ship.compared import COMPUTED
from sentei.ship.engines import ENGINES
from sentei.ship.facts import facts_path, read_facts
from sentei.ship.parity import parity

if TYPE_CHECKING:
    from sentei.models.load import Loaded
    from sentei.ship.compared import Parity

_LOAD = {"F32": "float32", "F16": "float32", "BF16": "bfloat16"}  # what is quantised further is loaded as declared
_EXACT = {("float32", "F32"), ("bfloat16", "F32"), ("float16", "F32"), ("bfloat16", "BF16"), ("float16", "F16")}
_GRAPH_LIBRARIES = 200 << 20  # bytes of code that writes graphs
_LENGTHS, _TOKENS = (16, 128), 144  # parity after an export; `sentei parity` reads more


def export(
    model: Loaded | str | Path,
    to: str,
    out: str | Path,
    *,
    dtype: str = "auto",
    options: Mapping[str, str] | None = None,
    check: bool | None = None,
    texts: Sequence[str] | None = None,
    memory: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Writes a model for other engines, and export.json in it (or beside it, where it is a file).

    Args:
        model: a `Loaded`, or what `load` takes.
        to: a name of `ROUTES`.
        out: a directory, or a file where the route writes one.
        dtype: "auto" (what config.json declares), "F32", "F16", "BF16" or what else the route knows.
        options: what only this route knows, by name.
        check: run a quick parity check where an engine that reads the export is installed; default: without `memory`,
            as it holds the model twice.
        texts: for that check; default: the demo text.
        memory: bytes that the process may hold: the model is read and written block by block, where the route can.
        overwrite: replace what is there.
        progress: told about the parity check.

    Returns:
        What is in export.json.

    Raises:
        InputError: the route cannot hold this model (why, and what can be done), an unknown name, no place to write, or
            too little memory or disk.
        QualityError: the export was written, and the engine gives other log-probabilities than the model.
    """
    route, path, wanted = ROUTES[to], Path(out), Options(dtype, dict(options or {}))
    route.check(wanted)
    if check and memory is not None:
        raise InputError(
            "a parity check holds the model twice, whatever --memory says; export first, then sentei parity"
        )
    if route.suffix and path.suffix != route.suffix:
        raise InputError(f"{to} writes one file; got --out {path}, expected a name that ends in {route.suffix}")
    read = model if isinstance(model, str | Path) else model.model.name_or_path
    check_output(path, inputs=[read], overwrite=overwrite, ours=_is_export if route.suffix else replaceable)
    with claimed(path):
        progress = shown(progress)
        loaded = _load_within(model, route, dtype, memory, progress)
        if reason := route.refuse(loaded):
            raise InputError(f"{loaded.name} cannot be exported to {to}: {reason}")
        check_space(path, wanted.bytes_of(loaded.model), f"export to {to}")
        facts = _write(route, loaded, path, wanted, overwrite)
        if check or (check is None and streamed_blocks(loaded.model) is None and memory is None):
            _quick_parity(loaded, path, facts, texts, progress)
    return facts


def _is_export(path: Path) -> None:
    """Passes a file that has its facts beside it; raises an InputError otherwise."""
    read_facts(path)


def _load_within(
    model: Loaded | str | Path, route: Route, dtype: str, memory: int | None, progress: Progress
) -> Loaded:
    """The model to export; with a limit it is streamed, where the route writes block by block."""
    loaded = load_for(model, dtype, memory)
    if (blocks := streamed_blocks(loaded.model)) is None:
        return loaded
    size = loaded.model.dtype.itemsize
    if not route.holds:
        # a block, its file, which is mapped while it is read, and one matrix as it is grown and cast
        block = max(sum(p.numel() for p in block.parameters()) for block in blocks.blocks)
        needed = 2 * block * size + 3 * 4 * max(p.numel() for p in loaded.model.parameters())
        progress.say(f"  export: {(held() + needed) / 1e9:.2f} GB of memory, one block at a time")
        check_memory(memory, needed, f"export to {route.name}", "allow more")
        return loaded
    needed = whole_bytes(route, sum(p.numel() for p in loaded.model.parameters()), size)
    whole = f"{route.name} holds the whole model"
    progress.say(f"  export: {(held() + needed) / 1e9:.2f} GB of memory, as {whole}")
    if not isinstance(model, (str, Path)):
        raise InputError(f"{whole}, which is not in memory; load it without `memory`")
    check_memory(memory, needed, f"export to {route.name}", f"{whole}; allow more, or use --to hf or --to gguf")
    return load_for(model, dtype)


def whole_bytes(route: Route, params: int, itemsize: int) -> int:
    """What a route that holds the whole model takes: weights, the file that they are read from, and what it makes."""
    return int(params * (2 * itemsize + route.holds)) + _GRAPH_LIBRARIES


def load_for(model: Loaded | str | Path, dtype: str = "auto", memory: int | None = None) -> Loaded:
    """The model to export, on the CPU, in a dtype that loses nothing that the export keeps."""
    from sentei.families.surgery import on_cpu
    from sentei.models.load import as_loaded, load

    if isinstance(model, (str, Path)):
        return load(model, dtype=_LOAD.get(dtype, "stored"), device="cpu", memory=memory)
    loaded = as_loaded(model)
    return loaded if loaded.model.device.type == "cpu" else replace(loaded, model=on_cpu(loaded.model))


def _write(route: Route, loaded: Loaded, path: Path, options: Options, overwrite: bool) -> dict[str, Any]:
    if route.suffix:
        with atomic_output(path) as scratch:
            made = route.write(loaded, scratch, options)
        facts = _facts(route, loaded, path, options, made)
        write_json(facts_path(path), facts)
        return facts
    with atomic_dir(path, overwrite=overwrite) as scratch:
        made = route.write(loaded, scratch, options)
        facts = _facts(route, loaded, scratch, options, made)
        write_json(facts_path(scratch), facts)
        _tell_card(scratch, facts)
    return facts


def _facts(route: Route, loaded: Loaded, path: Path, options: Options, made: dict[str, Any]) -> dict[str, Any]:
    import sentei

    kind = str(loaded.model.dtype).removeprefix("torch.")
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    unreachable = dict(route.reach(loaded))
    return {
        "schema_version": 1,
        "sentei": sentei.__version__,
        "route": route.name,
        "model": loaded.name,
        "digest": loaded.digest,
        "revision": loaded.revision,
        "loaded": kind,
        "bytes": sum(file.stat().st_size for file in files),
        "lossless": (kind, made["dtype"]) in _EXACT,
        "padding_bytes": 0,
        "options": dict(options.values),
        **made,
        "engines": [name for name in route.engines if name not in unreachable],
        "unreachable": unreachable,
        "serve": {name: line for name, line in route.serve.items() if name not in unreachable},
        "parity": {},
        "not_run": {name: _why_not(name) for name in route.engines if name not in unreachable},
    }


def _why_not(name: str) -> str:
    """Why parity has not been run in an engine so far."""
    if name not in ENGINES:
        return "sentei cannot run this engine; the files follow its documented format"
    engine = ENGINES[name]
    if not engine.installed():
        return f"not installed: pip install {engine.package}"
    return f"run it with: sentei parity MODEL EXPORT --engine {name}"


def _quick_parity(
    loaded: Loaded, path: Path, facts: dict[str, Any], texts: Sequence[str] | None, progress: Progress
) -> None:
    runnable = [name for name in facts["engines"] if name in ENGINES and ENGINES[name].installed()]
    if not runnable:
        return  # `not_run` says which, and how to install them
    source = "given" if texts is not None else "demo"
    try:
        texts = _demo() if texts is None else texts
        if loaded.tokenizer is None:
            raise InputError("the model has no tokenizer, so there is no text to compare on")
        if facts["dtype"] not in COMPUTED:
            raise InputError(f"{facts['dtype']} rounds too much for parity; compare quality with sentei eval")
    except InputError as error:  # no fault of the export: it is written, and says why nothing was proven
        facts["not_run"] |= dict.fromkeys(runnable, f"not checked: {error}")
        write_json(facts_path(path), facts)
        return
    found = parity(
        loaded,
        path,
        engine=runnable[0],
        texts=texts,
        source=source,
        lengths=_LENGTHS,
        tokens=_TOKENS,
        progress=progress,
    )
    facts.update(record(path, found))
    if not found.passed:
        raise QualityError(f"{path} was written, but {found.verdict()}; do not serve it, and report this as a bug")


def _demo() -> list[str]:
    from sentei.data.demo import demo_texts

    return demo_texts("test")


def record(path: Path, found: Parity) -> dict[str, Any]:
    """Writes the outcome of a parity check into export.json and the card; gives the facts."""
    facts = read_facts(path)
    facts["parity"][found.engine] = found.facts()
    facts["not_run"].pop(found.engine, None)
    write_json(facts_path(path), facts)
    if path.is_dir():
        _tell_card(path, facts)
    return facts


def listing(model: Loaded | str | Path) -> list[dict[str, Any]]:
    """For this model, per route: what it writes, which engines it reaches and which not, or why it is refused."""
    loaded = load_for(model)
    rows = []
    for route in ROUTES.values():
        reason = route.refuse(loaded)
        unreachable = {} if reason else dict(route.reach(loaded))
        engines = [] if reason else [name for name in route.engines if name not in unreachable]
        rows.append(
            {
                "route": route.name,
                "line": route.line,
                "engines": {name: name in ENGINES and ENGINES[name].installed() for name in engines},
                "unreachable": unreachable,
                "refused": reason,
            }
        )
    return rows


_SERVE, _NEXT = "## How to serve", "## Limitations"


def _tell_card(directory: Path, facts: dict[str, Any]) -> None:
    """Puts how to serve and what was proven into README.md, in front of its limitations; replaces what was there."""
    path = directory / "README.md"
    text = path.read_text(encoding="utf-8") if path.exists() else f"# {facts['model']}, for {facts['route']}\n\n"
    before, _, rest = text.partition(_NEXT)
    before = before.partition(_SERVE)[0]
    lines = [_SERVE, ""]
    for name in facts["engines"]:
        command = facts["serve"].get(name)
        if command:
            lines += [f"{name}:", "", "```bash", command.format(path="DIRECTORY"), "```", ""]
    for name, values in facts["parity"].items():
        seen = f"{values['prefill']['positions']:,} tokens ({values['texts']} text) × {values['vocabulary']:,} words"
        result = "Passed" if values["passed"] else "FAILED"
        lines += [
            f"Parity in {name} {values['version']}: {result}, max |Δ log p| {worst_delta(values)} over {seen}.",
            "",
        ]
    unproven = [name for name in facts["not_run"] if not facts["parity"].get(name)]
    if unproven:
        lines += [f"Not run here: {', '.join(unproven)}.", ""]
    write_text(path, before + "\n".join(lines) + "\n" + (_NEXT + rest if rest else ""))
