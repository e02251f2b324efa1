"""A notebook's own lines, run from what a stage published instead of from what it was given.

A check that tables follow from predictions, and figures from tables, must not have a second copy of the code that makes
them. So it takes the notebook: every `predictions.save(x, stage, "name")` says which file holds `x`, every
`tables.save(x, stage, "name")` which table holds it. With the files in place of the values, the lines that lead from a
file to a table, or from a table to a figure, are found by following names backwards, and only they are run.
"""

import ast
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from cure import config, paths
from cure.errors import CureError

#: Calls that a replayed line must not make: they read or make what lies before the published files.
BEFORE = ("Cohort.open(", "pack.prepare(", "open_second(")
Source = Literal["tables", "predictions"]


@dataclass(frozen=True)
class Output:
    """Something that the notebook saves: where in it, under which name, and the expression that makes it."""

    at: int
    name: str
    made: ast.expr


@dataclass
class Program:
    """The statements of a stage's notebook, with files put in the place of what was saved to them.

    Attributes
    ----------
    stage : str
    lines : list of ast.stmt
        In order. Calls of `_table(name)` and `_predicted(name)` stand for files.
    tables, figures : list of Output
        What is saved by `tables.save`, and by functions that save figures (`made` is then the figure, or the call that
        saves it itself).
    origins : set of int
        Positions of the lines that made what `predictions.save` wrote: running one would run the study.
    """

    stage: str
    lines: list[ast.stmt] = field(default_factory=list)
    tables: list[Output] = field(default_factory=list)
    figures: list[Output] = field(default_factory=list)
    origins: set[int] = field(default_factory=set)

    def needed(self, output: Output, given: Iterable[str] = ()) -> set[int]:
        """Positions of the lines that an output depends on; names in `given` are known and followed no further."""
        given = set(given)
        wanted, found = loads(output.made) - given, set()
        for at in range(min(output.at, len(self.lines)) - 1, -1, -1):
            line = self.lines[at]
            defined = _stores(line)
            if defined & wanted:
                found.add(at)
                if not isinstance(line, ast.AugAssign):
                    wanted -= defined
                wanted |= loads(line) - given
        return found

    def text(self, output: Output, lines: set[int]) -> str:
        """Source of the lines and of the output, for looking at what it calls."""
        return "\n".join([*(ast.unparse(self.lines[at]) for at in sorted(lines)), ast.unparse(output.made)])

    def run(
        self, outputs: list[Output], names: dict[str, Any], given: dict[str, Any]
    ) -> Iterator[tuple[Output, Any, Exception | None]]:
        """Run what the outputs need, each line once and in order; yield each output with its value, or its error.

        Parameters
        ----------
        outputs : list of Output
        names : dict
            What the notebook starts with: its parameters.
        given : dict
            What replaces lines: `_table`, `_predicted`, and names whose lines are not run.
        """
        space = {**names, **given}
        wanted = {at for output in outputs for at in self.needed(output, given)}
        failed: dict[str, Exception] = {}
        for at in range(len(self.lines) + 1):
            for output in (one for one in outputs if one.at == at):
                yield (output, *_value(output.made, space, failed))
            if at in wanted and at < len(self.lines):
                line = self.lines[at]
                broken = [failed[name] for name in loads(line) if name in failed]
                try:
                    if broken:
                        raise broken[0]
                    exec(compile(ast.Module([line], []), f"<{self.stage}>", "exec"), space)  # noqa: S102
                except Exception as error:
                    failed |= dict.fromkeys(_stores(line), error)
                else:
                    for name in _stores(line):
                        failed.pop(name, None)


def _value(made: ast.expr, space: dict, failed: dict[str, Exception]) -> tuple[Any, Exception | None]:
    if broken := [failed[name] for name in loads(made) if name in failed]:
        return None, broken[0]
    try:
        return eval(compile(ast.Expression(made), "<output>", "eval"), space), None  # noqa: S307
    except Exception as error:
        return None, error


def program(stage: str, source: Source) -> Program:
    """Read a stage's notebook and put files in the place of what it saves.

    Parameters
    ----------
    stage : str
    source : {"tables", "predictions"}
        tables: saved tables are read back, which is what figures are replayed from. predictions: only predictions are,
        and tables are made from them.

    Raises
    ------
    CureError
        If the notebook is missing or not valid.
    """
    path = paths.root() / "notebooks" / f"{config.STAGES[stage]}_{stage}.ipynb"
    if not path.is_file():
        raise CureError(f"notebooks/{path.name} is missing: `git checkout notebooks` brings it back")
    try:
        cells = json.loads(path.read_text())["cells"]
        parsed = [
            statement
            for cell in cells
            if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", [])
            for statement in ast.parse("".join(cell["source"])).body
        ]
    except (ValueError, KeyError, SyntaxError) as error:
        raise CureError(f"notebooks/{path.name} is not a valid notebook: {error}") from error
    made = Program(stage)
    places = _Places(made, source)
    for statement in parsed:
        places.take(statement)
    return made


def output(name: str, text: str) -> Output:
    """An output that no cell of the notebook saves by itself, as the source of an expression."""
    return Output(0, name, ast.parse(text, mode="eval").body)


class _Places(ast.NodeTransformer):
    """Takes one statement after the other, and replaces what has been saved by a call that reads the file."""

    def __init__(self, made: Program, source: Source) -> None:
        self.made, self.source = made, source
        self.saved: dict[str, str] = {}  # expression, as ast.dump says it -> name of the predictions that hold it

    def take(self, statement: ast.stmt) -> None:
        at = len(self.made.lines)
        call = statement.value if isinstance(statement, ast.Expr) else None
        if isinstance(call, ast.Call) and _called(call) == "predictions.save":
            value = call.args[0]
            root = min(loads(value), default="")
            self.made.origins |= {i for i, line in enumerate(self.made.lines) if root in _stores(line)}
            self.saved[ast.dump(value)] = _text(call.args[2])
            return
        alone = call.args[0] if isinstance(call, ast.Call) and _called(call) == "tables.save" else None
        changed = self.visit(statement)
        if isinstance(alone, ast.Name):  # saved in passing: from here on the name is the table
            if self.source == "tables":
                line = ast.Assign([ast.Name(alone.id, ast.Store())], changed.value)
                self.made.lines.append(ast.fix_missing_locations(ast.copy_location(line, changed)))
            return
        call = changed.value if isinstance(changed, ast.Expr) else None
        if isinstance(call, ast.Call) and _saves_figure(call):
            self.made.figures.append(_figure(at, call))
        self.made.lines.append(ast.fix_missing_locations(changed))
        for name in _stores(changed):
            self.saved.pop(ast.dump(ast.Name(name, ast.Load())), None)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        name = _called(node)
        if name == "predictions.load":
            return _read("_predicted", _text(node.args[1]))
        if name == "tables.save":
            made = self.visit(node.args[0])
            self.made.tables.append(Output(len(self.made.lines), _text(node.args[2]), made))
            return _read("_table", _text(node.args[2])) if self.source == "tables" else made
        return self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._saved(node)

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        found = self._saved(node)
        return self.generic_visit(node) if found is node else found

    def _saved(self, node: ast.expr) -> ast.expr:
        name = self.saved.get(ast.dump(node))
        return node if name is None else _read("_predicted", name)


def _read(function: str, name: str) -> ast.Call:
    call = ast.Call(ast.Name(function, ast.Load()), [ast.Constant(name)], [])
    return ast.fix_missing_locations(ast.copy_location(call, ast.Constant(name, lineno=1, col_offset=0)))


def _called(call: ast.Call) -> str:
    return ast.unparse(call.func)


def _text(node: ast.expr) -> str:
    return str(node.value) if isinstance(node, ast.Constant) else ast.unparse(node)


def _saves_figure(call: ast.Call) -> bool:
    """Whether a call saves figures of the stage: `plots.save(...)`, or a function `save...` that is given `stage`."""
    last = _called(call).rsplit(".", 1)[-1]
    return last.startswith("save") and any(isinstance(arg, ast.Name) and arg.id == "stage" for arg in call.args)


def _figure(at: int, call: ast.Call) -> Output:
    if _called(call) == "plots.save":
        return Output(at, _text(call.args[2]), call.args[0])
    # A function that draws and saves by itself: it is given another folder, and captions, which are no part of the
    # picture, become empty: they may say what only the cohort knows.
    arguments: list[ast.expr] = []
    for arg in call.args:
        if isinstance(arg, ast.Name) and arg.id == "stage":
            arg = ast.Name("_folder", ast.Load())
        arguments.append(ast.Constant("") if isinstance(arg, ast.JoinedStr) else arg)
    named = [arg.value for arg in call.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    made = ast.Call(call.func, arguments, call.keywords)
    return Output(at, named[0] if named else "*", ast.fix_missing_locations(ast.copy_location(made, call)))


def loads(node: ast.AST) -> set[str]:
    """Names that a statement or an expression reads."""
    found = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
        found.add(node.target.id)
    return found


def _stores(line: ast.stmt) -> set[str]:
    """Names that a statement binds at the top level."""
    if isinstance(line, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0] for alias in line.names}
    if isinstance(line, ast.Assign):
        targets: Iterable[ast.expr] = line.targets
    elif isinstance(line, ast.AugAssign | ast.AnnAssign):
        targets = [line.target]
    else:
        targets = []
    return {n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)}
