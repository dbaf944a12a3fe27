"""All tables in four forms, and the block of results in the README: what `adlib tables` writes.

Every form is made from the same `Table`: CSV with one row per number, Markdown, an HTML page and LaTeX. A cell of the
last three links to the record of its run, relative to the file; the CSV names the run. The same records give the same
bytes.
"""

from html import escape
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from adlib.errors import InputError
from adlib.paths import atomic_path, results_dir, root
from adlib_book import published_tables, tables
from adlib_book.tables import Table

# Best three. Colours as papers print them; bold, underline and italic say the same without colour.
HTML_STYLES = {
    1: "{\n  color: #c00000;\n  font-weight: bold;\n}",
    2: "{\n  color: #007000;\n  text-decoration: underline;\n}",
    3: "{\n  color: #0000c0;\n  font-style: italic;\n}",
}
LATEX_STYLES = {
    1: r"\color{{red}} \bfseries {}",
    2: r"\color{{green!50!black}} \underline{{{}}}",
    3: r"\color{{blue}} \itshape {}",
}
MARKDOWN_STYLES = {1: "**{}**", 2: "<u>{}</u>", 3: "*{}*"}
LONG = 40  # rows from which a LaTeX table breaks across pages
# Links of LaTeX cells: \adlibrun{run}{cell} and \adlibseed{run}{seed1}, made by the document. A table that is input
# into another document, where the way to the records is not known, prints the cell alone.
LATEX_PLAIN = r"\providecommand{\adlibrun}[2]{#2}\providecommand{\adlibseed}[2]{}"
LATEX_LINKS = (
    r"\newcommand{\adlibrun}[2]{\href{run:../runs/#1/record.json}{#2}}",
    r"\newcommand{\adlibseed}[2]{ {\scriptsize\adlibrun{#1}{#2}}}",
)
STYLESHEET = """
body { font-family: sans-serif; margin: 2em; }
table { border-collapse: collapse; }
caption { text-align: left; font-weight: bold; padding-bottom: .5em; }
th, td { padding: .25em .6em; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td a { color: inherit; text-decoration: inherit; }
td a:hover { background: #eee; }
li { color: #555; font-size: small; }
"""
# Names are data: what the forms read as their own signs is shown as it stands.
MARKDOWN_SIGNS = str.maketrans({"\\": "\\\\", "|": "\\|", "<": "&lt;", "[": "&#91;", "`": "&#96;"})
LATEX_SIGNS = str.maketrans(
    {character: f"\\{character}" for character in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "^": r"\textasciicircum{}",
        "~": r"\textasciitilde{}",
        "×": r"$\times$",
        "±": r"$\pm$",
    }
)
START, END = "<!-- results -->", "<!-- /results -->"


def build(profile: str, results=None) -> list[Table]:
    """Build all tables of a profile's records; only the coverage where there is none.

    Args:
        profile: its name.
        results: the folder that holds `runs`; default the results folder.

    Raises:
        InputError: unknown profile, or the folder does not exist.
    """
    records = tables.read(profile, results)
    group = [tables.coverage(records, profile)]
    if len(records.table) == 0:
        return group
    cells = tables.make_cells(records)
    group += [tables.headline(records, cells, profile), tables.overview(records, cells, profile)]
    group += tables.by_category_all(records, cells, profile)
    return [
        *group,
        tables.logical_structural(records, profile),
        published_tables.beside_published(records, cells, profile),
    ]


def profiles_at_hand(results=None) -> list[str]:
    """Return the profiles that have records below `results`."""
    folder = Path(results) if results else results_dir()
    return sorted({file.relative_to(folder / "runs").parts[0] for file in folder.glob("runs/*/*/*/record.json")})


def write_all(profiles: list[str] | None = None, results=None) -> list[Table]:
    """Build and write the tables of profiles (default: all at hand) and of the published numbers.

    Returns:
        the tables, in the order they were written to `<results>/tables`.
    """
    folder = Path(results) if results else results_dir()
    all_tables, names = [], profiles if profiles is not None else profiles_at_hand(folder)
    for profile in names:
        group = build(profile, folder)
        _write_text(folder / "tables" / f"{profile}_all.tex", document(group))
        all_tables += group
    group = published_tables.build()
    _write_text(folder / "tables" / "published_all.tex", document(group))
    all_tables += group
    names_now = {file.name for table in all_tables for file in write(table, folder)}
    owners = [*profiles_at_hand(folder), "published"]
    for file in (folder / "tables").iterdir():  # a table whose last record went away goes with it
        owner = max((name for name in owners if file.name.startswith(f"{name}_")), key=len, default="")
        if owner in (*names, "published") and file.name not in names_now and not file.stem.endswith("_all"):
            file.unlink()
    return all_tables


def write(table: Table, results=None) -> list[Path]:
    """Write one table to `<results>/tables/<name>` as CSV, Markdown, HTML and LaTeX."""
    folder = (Path(results) if results else results_dir()) / "tables"
    texts = {
        "csv": table.data.to_csv(index=False),
        "md": markdown(table) + _markdown_notes(table),
        "html": html(table),
        "tex": latex(table),
    }
    for suffix, text in texts.items():
        _write_text(folder / f"{table.name}.{suffix}", text)
    return [folder / f"{table.name}.{suffix}" for suffix in texts]


def update_readme(table: Table, file=None) -> bool:
    """Put a table (the headline) between the two marks of the README; return whether the file changed.

    Raises:
        InputError: the marks are not there.
    """
    file = Path(file) if file else root() / "README.md"
    text = file.read_text()
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise InputError(f"{file}: expected the lines {START} and {END}; the results go between them")
    audit = "figures/92_protocol_audit.png"
    picture = (
        f"\n![Points that habits of evaluation add on the same maps]({audit})\n" if (root() / audit).is_file() else ""
    )
    block = f"{START}\n\n{markdown(table, 'results/runs')}{_markdown_notes(table)}{picture}\n{END}"
    if before + block + after == text:
        return False
    _write_text(file, before + block + after)
    return True


def _markdown_notes(table: Table) -> str:
    """The footnotes; Markdown has no colours."""
    plain = tables.BEST_THREE.replace("red (", "").replace("green (", "").replace("blue (", "").replace(")", "")
    return "".join(f"\n{note.replace(tables.BEST_THREE, plain)}\n" for note in table.footnotes)


# -- forms ------------------------------------------------------------------------------------------------------------


def markdown(table: Table, runs: str = "../runs") -> str:
    """A Markdown table; `runs` is the way from the file to the folder of runs."""

    def link(run: str, text: str) -> str:
        return f"[{text}]({runs}/{quote(run, errors='surrogateescape')}/record.json)"

    def style(text: str, rank: int) -> str:
        return MARKDOWN_STYLES.get(rank, "{}").format(text)

    frame = _printed(table, _markdown_text, link, lambda run, seed: f" {link(run, seed)}", style)
    right = [_numeric(column) for _, column in table.text.items()]
    if _has_labels(frame):
        frame, right = frame.reset_index(), [False, *right]
    rows = [frame.columns, ["---:" if r else "---" for r in right], *frame.itertuples(index=False)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def html(table: Table) -> str:
    """An HTML page with one table (class `adlib`) whose cells link to their runs, and its notes."""
    notes = "".join(f"<li>{escape(note)}</li>\n" for note in table.footnotes)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(table.title)}</title>\n'
        f"<style>{STYLESHEET}</style>\n</head>\n<body>\n{html_table(table)}\n<ul>\n{notes}</ul>\n</body>\n</html>\n"
    )


def html_table(table: Table, runs: str = "../runs") -> str:
    """The table alone, for a page or a notebook; without links where `runs` is ""."""

    def link(run: str, text: str) -> str:
        return f'<a href="{runs}/{quote(run, errors="surrogateescape")}/record.json">{text}</a>' if runs else text

    text = _printed(table, escape, link, lambda run, seed: f" {link(run, seed)}" if runs else "")
    name, named, cells = f"T_{table.name}", _has_labels(text), table.cells.to_numpy()
    head = ['      <th class="blank level0" >&nbsp;</th>'] * named
    for j, column in enumerate(text.columns):
        head.append(f'      <th id="{name}_level0_col{j}" class="col_heading level0 col{j}" >{column}</th>')
    body, ranked = [], {}  # ids of the cells of a rank
    for i, (label, *row) in enumerate(text.itertuples(name=None)):
        heading = f'      <th id="{name}_level0_row{i}" class="row_heading level0 row{i}" >{label}</th>'
        body += ["    <tr>", *[heading] * named]
        for j, cell in enumerate(row):
            body.append(f'      <td id="{name}_row{i}_col{j}" class="data row{i} col{j}" >{cell}</td>')
            if cells[i, j].rank:
                ranked.setdefault(cells[i, j].rank, []).append(f"#{name}_row{i}_col{j}")
        body.append("    </tr>")
    styles = [f"{', '.join(ids)} {HTML_STYLES[rank]}" for rank, ids in ranked.items()]
    lines = ['<style type="text/css">', *styles, "</style>", f'<table id="{name}" class="adlib">']
    lines += [f"  <caption>{escape(table.title)}</caption>", "  <thead>", "    <tr>", *head, "    </tr>", "  </thead>"]
    return "\n".join([*lines, "  <tbody>", *body, "  </tbody>", "</table>", ""])


def latex(table: Table) -> str:
    """A LaTeX tabular (longtable where it is long), for a document that loads booktabs, xcolor and longtable.

    Cells link to their runs where the document defines the commands of `LATEX_LINKS`.
    """
    text = _printed(
        table,
        _latex_text,
        lambda run, text: rf"\adlibrun{{{_latex_link(run)}}}{{{text}}}",
        lambda run, seed: rf"\adlibseed{{{_latex_link(run)}}}{{{seed}}}",
    )
    named, cells = _has_labels(text), table.cells.to_numpy()
    alignment = ["l"] * named
    for j in range(len(text.columns)):
        longest = table.text.iloc[:, j].str.len().max() if len(text) else 0
        alignment.append("p{5cm}" if longest > 40 else "r" if _numeric(table.text.iloc[:, j]) else "l")
    head = [r"\toprule", _latex_row(["", *text.columns] if named else text.columns), r"\midrule"]
    rows = []
    for (label, *row), ranked in zip(text.itertuples(name=None), cells, strict=True):
        styled = [LATEX_STYLES.get(cell.rank, "{}").format(shown) for cell, shown in zip(ranked, row, strict=True)]
        rows.append(_latex_row([*[label] * named, *styled]))
    environment = "longtable" if len(text) > LONG else "tabular"
    if environment == "longtable":
        title, more = _latex_text(table.title), rf"\multicolumn{{{len(alignment)}}}{{r}}{{Continued on next page}} \\"
        head = [rf"\caption{{{title}}} \\", *head, r"\endfirsthead", rf"\caption[]{{{title}}} \\", *head, r"\endhead"]
        rows = [r"\midrule", more, r"\midrule", r"\endfoot", r"\bottomrule", r"\endlastfoot", *rows]
    else:
        rows.append(r"\bottomrule")
    lines = [rf"\begin{{{environment}}}{{{''.join(alignment)}}}", *head, *rows, rf"\end{{{environment}}}", ""]
    body = "\n".join(lines)
    linked = any(cell.runs for cell in cells.flat)
    return f"{LATEX_PLAIN}\n{body}" if linked else body


def document(all_tables: list[Table]) -> str:
    """A LaTeX document that inputs the given tables, for `pdflatex` in the folder of the tables.

    Its links open the records beside that folder.
    """
    lines = [
        r"\documentclass{article}",
        r"\usepackage[utf8]{inputenc}",
        r"\usepackage{booktabs,xcolor,graphicx,longtable}",
        r"\usepackage[landscape,margin=1.5cm]{geometry}",
        r"\usepackage[hidelinks]{hyperref}",
        *LATEX_LINKS,
        r"\begin{document}",
    ]
    for table in all_tables:
        if len(table.text) > LONG:
            lines += [r"{\scriptsize\setlength{\tabcolsep}{3pt}", rf"\input{{{table.name}.tex}}", "}", ""]
        else:
            lines += [
                r"\begin{table}[p]\centering",
                rf"\caption{{{_latex_text(table.title)}}}",
                rf"\resizebox{{\ifdim\width>\linewidth\linewidth\else\width\fi}}{{!}}{{\input{{{table.name}.tex}}}}",
                *(rf"\par\smallskip{{\footnotesize {_latex_text(note)}}}" for note in table.footnotes),
                r"\end{table}",
                r"\clearpage",
            ]
    return "\n".join([*lines, r"\end{document}", ""])


# -- helpers ----------------------------------------------------------------------------------------------------------


def _printed(table: Table, escape, link, further, style=lambda text, rank: text) -> pd.DataFrame:
    """The cells, rows and columns of a table in one form.

    Args:
        escape: text -> text of the form.
        link: (run, text) -> the text of a cell as a link to its first run; further: (run, seed) -> one to another seed.
        style: (text, rank) -> text that shows the rank, where no stylesheet does.
    """

    def printed(cell: tables.Cell) -> str:
        text = escape(cell.text)
        first, *rest = cell.runs if text and cell.runs else [""]
        text = style(link(first, text) if first else text, cell.rank)
        return text + "".join(further(run, run.rpartition("-")[2]) for run in rest)

    frame = table.cells.map(printed).rename(columns=escape)
    return frame.rename(index=escape) if _has_labels(frame) else frame


def _has_labels(frame: pd.DataFrame) -> bool:
    """Tell whether rows have names of their own, which are printed."""
    return not isinstance(frame.index, pd.RangeIndex)


def _numeric(column: pd.Series) -> bool:
    """Tell whether a printed column holds numbers (and marks): it is aligned to the right."""
    return bool(column.map(lambda cell: cell == "" or cell[0].isdigit() or cell[0] in "+-–×").all())


def _markdown_text(cell: str) -> str:
    return " ".join(cell.splitlines()).translate(MARKDOWN_SIGNS)


def _latex_text(text: str) -> str:
    return " ".join(text.splitlines()).translate(LATEX_SIGNS)


def _latex_row(cells) -> str:
    return " & ".join(cells) + r" \\"


def _latex_link(run: str) -> str:
    """Mask the signs that would end a command; what LaTeX cannot mask in an address is written as in one."""
    run = "".join(quote(sign) if sign in "\\{}^\n" else sign for sign in run)
    return run.replace("#", "\\#").replace("%", "\\%")


def _write_text(file: Path, text: str) -> None:
    with atomic_path(file) as temporary:
        # A name may hold bytes that are no text.
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
