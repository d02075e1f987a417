"""Pages of docs/ that are run from top to bottom, as a reader would.

    ```python   runs, in one namespace for the page; where its first line is "# NAME.py" it becomes that file instead
    ```text     directly below: what the snippet, or the commands, have printed
    ```bash     command lines of run_lib.py, run in this process

Of printed output every word must be there. A number with decimals may differ by two units of its last digit, because
processors round sums differently; whole numbers may not. Of commands, whose output is long, the lines that are shown
must be among those that are printed.
"""

import contextlib
import io
import re
import shlex
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).resolve().parent.parent / "docs"
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
UNITS = 2


class Block(NamedTuple):
    """A fenced block: its language, its text, the line of the page where that begins, and its place among all."""

    language: str
    text: str
    line: int


def blocks(page):
    """The fenced blocks of a page, in order; one that follows another with nothing between is marked by "below"."""
    text = (DOCS / page).read_text()
    found = []
    end = None
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        language = match[1]
        if language == "text":
            adjacent = end is not None and not text[end : match.start()].strip()
            language = "output" if adjacent else "prose"
        found.append(Block(language, match[2], text[: match.start(2)].count("\n") + 1))
        end = match.end()
    return found


def commands(text):
    """The arguments of each command line of a block, with continued lines joined and comments left out."""
    return [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def same(shown, printed):
    """Whether two texts have the same words, and numbers that agree."""
    words = [NUMBER.split(text) for text in (shown, printed)]
    if [" ".join(word.split()) for word in words[0]] != [" ".join(word.split()) for word in words[1]]:
        return False
    return all(map(_agree, NUMBER.findall(shown), NUMBER.findall(printed)))


def _agree(shown, printed):
    decimals, exponent = re.fullmatch(r"[+-]?\d+(?:\.(\d+))?(?:e([+-]?\d+))?", shown).groups()
    unit = 10.0 ** (int(exponent or 0) - len(decimals or ""))
    allowed = UNITS * unit * (1 + 1e-9) if decimals else 0
    return abs(float(shown) - float(printed)) <= allowed


def run_page(page, cli, flags=(), others=()):
    """Run a page in the working directory.

    Args:
        page: its name in docs/.
        cli: ``command_line.run_cli``.
        flags: added to each command: what makes it small.
        others: first words of command lines that are not run here, such as "pip".

    Returns:
        the namespace of its snippets.
    """
    names, printed, whole = {"__name__": "page"}, "", True
    for block in blocks(page):
        place = f"docs/{page}, line {block.line}"
        if block.language == "python":
            file = re.match(r"# (\w+\.py)\n", block.text)
            if file:
                Path(file[1]).write_text(block.text)
                continue
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                code = "\n" * (block.line - 1) + block.text  # so that a traceback names the line of the page
                exec(compile(code, DOCS / page, "exec"), names)  # our own text
            printed, whole = out.getvalue(), True
        elif block.language == "bash":
            printed, whole = "", False
            for words in commands(block.text):
                if words[0] in others:
                    continue
                at = next((k for k, word in enumerate(words) if word.endswith("run_lib.py")), None)
                assert at is not None, f"{place}: {words} is not run"
                outcome = cli(*words[at + 1 :], *flags)
                assert outcome.status == 0, f"{place}: {words}: {outcome.err}"
                printed += outcome.out
        elif block.language == "output":
            lines = printed.splitlines()
            fits = (
                same(block.text, printed)
                if whole
                else all(any(same(line, other) for other in lines) for line in block.text.splitlines())
            )
            assert fits, f"{place} shows\n{block.text}\nprinted was\n{printed}"
    return names
