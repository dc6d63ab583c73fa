"""The figures as text: a line for each job as it ends, and a Markdown table for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench.jobs import Job
from bench.timing import NO_AIM, Aim, Failed, Figures, median_wall

BEGIN, END = "<!-- bench: begin -->", "<!-- bench: end -->"
"""What stands between these two lines of a file is replaced by the table."""

_MARKDOWN_HEADINGS = (
    "job",
    "what",
    "qcow2c",
    "qemu-img",
    "at its best",
    "with",
    "ratio",
    "to its best",
    "least..most",
    "cpu",
    "memory",
    "size",
    "aim",
    "met",
)
_TEXT_HEADING = (
    f"{'job':20} {'qcow2c':>9} {'qemu-img':>9} {'best':>9} {'ratio':>6} {'to best':>7} (least..most) {'cpu':>5}"
)


@dataclass(frozen=True)
class Row:
    """A job and its figures, or why there are none."""

    name: str
    job: Job
    result: Figures | Failed


def heading() -> str:
    return f"{_TEXT_HEADING}  size, aim, notes"


def seconds(value: float) -> str:
    """Return a time with three digits or so, and its unit."""
    if value >= 0.9995:
        return f"{value:.1f} s" if value >= 9.995 else f"{value:.2f} s"
    if value >= 0.9995e-3:
        return f"{value * 1e3:.0f} ms" if value >= 9.95e-3 else f"{value * 1e3:.1f} ms"
    return f"{value * 1e6:.2f} us"


def line(row: Row) -> str:
    """Return a job's line."""
    if isinstance(row.result, Failed):
        return f"{row.name:20} failed: {row.result}"
    cells = _cells(row.name, row.job, row.result)
    text = (
        f"{row.name:20} {cells['qcow2c']:>9} {cells['qemu-img']:>9} {cells['at its best']:>9} "
        f"{cells['ratio']:>6} {cells['to its best']:>7} ({cells['least..most']}) {cells['cpu']:>5}"
    )
    met = {"yes": "", "no": " MISSED", "": ""}[cells["met"]]
    notes = [
        cells["size"] and f"size {cells['size']}",
        cells["memory"],
        cells["aim"] and f"aim {cells['aim']}{met}",
        cells["with"],
        row.result.note,
    ]
    return "  ".join([text, ", ".join(note for note in notes if note)]).rstrip()


def markdown(rows: Sequence[Row], command: str, facts: Mapping[str, str]) -> str:
    """Return the table, with the command that made it and the machine."""
    lines = [f"Made by `{command}`.", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items()]
    lines += ["", _table_line(_MARKDOWN_HEADINGS), _table_line(["---"] * len(_MARKDOWN_HEADINGS))]
    for row in rows:
        if isinstance(row.result, Failed):
            cells = dict.fromkeys(_MARKDOWN_HEADINGS, "") | {"job": row.name, "what": row.job.what, "qcow2c": "failed"}
        else:
            cells = _cells(row.name, row.job, row.result)
            cells["what"] += f" ({row.result.note})" if row.result.note else ""
            cells["with"] = f"`{cells['with']}`" if cells["with"] else ""
            cells["met"] = cells["met"].replace("no", "**no**")
        lines.append(_table_line([cells[name] for name in _MARKDOWN_HEADINGS]))
    return "\n".join(lines) + "\n"


def write(file: Path, text: str) -> None:
    """Put the table between the marks of a file; a file without them becomes the table."""
    old = file.read_text(encoding="utf-8") if file.exists() else ""
    before, begin, rest = old.partition(BEGIN)
    _, end, after = rest.partition(END)
    new = f"{before}{BEGIN}\n{text}{END}{after}" if begin and end else text
    file.write_text(new, encoding="utf-8")


def _cells(name: str, job: Job, figures: Figures) -> dict[str, str]:
    to_best = figures.best_ratios()
    return {
        "job": name,
        "what": job.what,
        "qcow2c": seconds(median_wall(figures.ours)),
        "qemu-img": seconds(median_wall(figures.default)),
        "at its best": seconds(median_wall(figures.best)) if figures.best else "",
        "with": figures.flags,
        "ratio": f"{median(figures.ratios()):.2f}",
        "to its best": f"{median(to_best):.2f}",
        "least..most": f"{min(to_best):.2f}..{max(to_best):.2f}",
        "cpu": f"{figures.cpu_ratio():.2f}",
        "memory": f"{figures.memory() >> 20} MiB" if figures.memory() else "",
        "size": f"{figures.sizes[0] / figures.sizes[1]:.3f}" if figures.sizes else "",
        "aim": _aim(job.aim),
        "met": "" if job.aim == NO_AIM else "yes" if job.aim.met_by(figures) else "no",
    }


def _aim(aim: Aim) -> str:
    words = [] if aim.ratio is None else [f"{aim.ratio:g}"]
    return " and ".join([*words, *([] if aim.seconds is None else [seconds(aim.seconds)])])


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
