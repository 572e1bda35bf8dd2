"""The page: one HTML file without scripts, fonts or pictures from elsewhere, in light and in dark."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from secrets import token_hex

from tntune.errors import OutputError
from tntune.files import write_text
from tntune.report.summary import versions

__all__ = ["check_page", "figure", "footer", "html_table", "page", "section", "write_page"]

_STYLE = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2128; --soft: #57606a; --faint: #c6ccd3;
  --band: #f4f6f8; --good: #1a7f37; --bad: #b42318; --accent: #0b5cad;
  --s0: #0b5cad; --s1: #c2410c; --s2: #0f7b53; --s3: #a1387f; --s4: #8a6a00; --s5: #1590b8; --s6: #6b46c1;
  --s7: #5b6470; --s8: #b0203a; }
@media (prefers-color-scheme: dark) { :root { --paper: #12161c; --ink: #e6eaef; --soft: #9aa5b1;
  --faint: #3b444f; --band: #1a2028; --good: #57c77b; --bad: #ff8b7e; --accent: #79b8ff;
  --s0: #79b8ff; --s1: #ff9f68; --s2: #5fd4a2; --s3: #f0a0d8; --s4: #e3c558; --s5: #6fd3f2; --s6: #b9a1ff;
  --s7: #aab4c0; --s8: #ff8ca0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 40px 28px 80px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 20px; margin: 52px 0 4px; padding-top: 14px; border-top: 1px solid var(--faint); }
h3 { font-size: 15px; margin: 26px 0 6px; }
p, li { max-width: 96ch; } p { margin: 6px 0 12px; } ul { padding-left: 20px; }
.soft, figcaption, footer { color: var(--soft); }
code { font: 13px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
nav { margin: 18px 0 0; } nav a { margin-right: 16px; white-space: nowrap; }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 12px;
  margin: 24px 0; }
.tile { background: var(--band); border-radius: 10px; padding: 12px 16px; }
.tile b { display: block; font-size: 22px; font-weight: 600; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
figure { margin: 18px 0 8px; } figcaption { font-size: 13.5px; max-width: 108ch; margin-top: 6px; }
figure svg { display: block; }
.scroll { overflow-x: auto; margin: 14px 0 6px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px 4px 0; text-align: right; white-space: nowrap; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid var(--faint); }
tr:nth-child(even) td { background: var(--band); }
.text { text-align: left; } .wrap { text-align: left; white-space: normal; min-width: 26ch; }
.good { color: var(--good); } .bad { color: var(--bad); }
details { margin: 12px 0; } summary { cursor: pointer; color: var(--accent); }
footer { margin-top: 60px; padding-top: 14px; border-top: 1px solid var(--faint); font-size: 13px; }
@media print { details { display: block; } }
"""


def page(title: str, head: str, sections: Sequence[tuple[str, str, str]], footer: str) -> str:
    """A whole page.

    Args:
        title: Plain text.
        head: HTML below the title.
        sections: ``(id, heading, HTML)`` in order; the headings make the list of contents.
        footer: HTML.

    Example:
        >>> page("a < b", "", [("one", "One", "<p>1</p>")], "")[:15]
        '<!doctype html>'
    """
    links = " ".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections)
    body = "\n".join(section(name, heading, content) for name, heading, content in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{head}\n<nav>{links}</nav>\n{body}\n<footer>{footer}</footer>\n"
        "</main>\n</body>\n</html>\n"
    )


def section(name: str, heading: str, content: str) -> str:
    """One section.

    Example:
        >>> print(section("a", "A", "<p>1</p>"))
        <section id="a"><h2>A</h2>
        <p>1</p>
        </section>
    """
    return f'<section id="{name}"><h2>{escape(heading)}</h2>\n{content}\n</section>'


def figure(svg: str, caption: str) -> str:
    """A drawing with what one sees in it; the caption is HTML.

    Example:
        >>> figure("<svg></svg>", "A line.")
        '<figure><svg></svg><figcaption>A line.</figcaption></figure>'
    """
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


def html_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, text: Sequence[int] = (0,)
) -> str:
    """A table; cells are escaped, integers get separators, booleans read holds or fails.

    Args:
        columns: Heads.
        rows: Cells.
        text: Columns of words, to the left; a long one wraps.

    Example:
        >>> made = html_table(["layer", "P"], [["a<b", 1000]])
        >>> "a&lt;b" in made, "1,000" in made
        (True, True)
    """
    classes = [' class="text"' if k in text else "" for k in range(len(columns))]
    head = "".join(f"<th{own}>{escape(column)}</th>" for own, column in zip(classes, columns, strict=True))
    body = "\n".join(
        "<tr>" + "".join(_cell(value, own) for value, own in zip(row, classes, strict=True)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def footer(command: str) -> str:
    """The command and the versions that made a page, as HTML.

    Example:
        >>> footer("tntune analyze a")[:40]
        'Made by <code>tntune analyze a</code> wi'
    """
    packages = ", ".join(f"{name} {found}" for name, found in versions().items())
    return f"Made by <code>{escape(command)}</code> with {escape(packages)}."


def check_page(file: Path, *, overwrite: bool) -> None:
    """Raise OutputError where a page cannot go there, before anything is computed.

    Example:
        >>> check_page(Path("nowhere") / "page.html", overwrite=False)
        Traceback (most recent call last):
        tntune.errors.OutputError: nowhere/page.html: the parent folder nowhere does not exist
    """
    if not file.parent.is_dir():
        raise OutputError(f"{file}: the parent folder {file.parent} does not exist")
    if file.is_dir() or file.is_symlink():
        raise OutputError(f"{file}: is a folder or a symbolic link; name a file")
    if file.exists() and not overwrite:
        raise OutputError(f"{file}: exists already; choose another name, or overwrite it (--overwrite)")


def write_page(file: Path, text: str, *, overwrite: bool = False) -> None:
    """All or nothing: the file becomes the text, or stays as it was.

    Raises:
        OutputError: Where it exists and may not be replaced, or the disk refuses.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_page(Path(folder) / "page.html", "<p>")
        ...     [path.name for path in Path(folder).iterdir()]
        ['page.html']
    """
    check_page(file, overwrite=overwrite)
    draft = file.parent / f".{file.name}.{token_hex(4)}.partial"
    try:
        write_text(draft, text)
        draft.replace(file)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{file}: cannot be written: {error.strerror or error}") from error
    finally:
        draft.unlink(missing_ok=True)


def _cell(value: object, own: str) -> str:
    """One cell: its value, and how it is set."""
    if isinstance(value, bool):
        return '<td class="good">holds</td>' if value else '<td class="bad">fails</td>'
    text = f"{value:,}" if isinstance(value, int) else str(value)
    kind = ' class="wrap"' if own and len(text) > 40 and " " in text else own
    return f"<td{kind}>{escape(text)}</td>"
