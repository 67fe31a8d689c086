"""The page of a report: one file that needs no other, and the same in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from jinja2 import Environment

from clara.reports.sections import Section
from clara.reports.tables import escaped
from clara.terminal.printing import one_line

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{{ heading }}: {{ one_line(title) }}</title>
<style>
:root { color-scheme: light dark; --ground: #fff; --ink: #1f2328; --soft: #59636e; --rule: #d1d9e0;
  --link: #0b5cad; --bad: #fde8e8; --good: #e6f6e6; --note: #fff6d9; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #14181d; --ink: #e6e9ec; --soft: #a3adb8; --rule: #3a424c; --link: #7ab8ff;
    --bad: #4a2327; --good: #1d3a26; --note: #3b3213; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--ground); overflow-wrap: break-word; }
h1 { line-height: 1.2; }
h2 { margin-top: 3rem; padding-bottom: 0.2rem; border-bottom: 1px solid var(--rule); }
a { color: var(--link); }
.lead { font-size: 1.15em; max-width: 50rem; }
.reading { color: var(--soft); max-width: 50rem; }
nav ul { columns: 20rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9em; }
th, td { border-bottom: 1px solid var(--rule); padding: 0.3rem 0.6rem; text-align: left;
  overflow-wrap: break-word; max-width: 26rem; }
th { vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.short { white-space: nowrap; }
td:first-child { min-width: 11rem; }
.bad td { background: var(--bad); }
.good td { background: var(--good); }
.control td { color: var(--soft); }
.control td:first-child { padding-left: 2rem; white-space: nowrap; }
.text { min-width: 9rem; }
.prose td { vertical-align: top; overflow-wrap: anywhere; min-width: 7.5rem; }
.note { background: var(--note); padding: 0.5rem 0.8rem; }
summary { cursor: pointer; color: var(--link); }
figure { margin: 2rem 0; }
figcaption { color: var(--soft); max-width: 50rem; }
img { max-width: 100%; height: auto; }
@media (max-width: 40rem) {
  figure .wide img { max-width: none; }
  td:first-child, .control td:first-child { min-width: 8.5rem; max-width: 9rem; white-space: normal;
    overflow-wrap: anywhere; position: sticky; left: 0; background: var(--ground);
    box-shadow: inset 0 -1px var(--rule); }
  .control td:first-child { padding-left: 1.2rem; }
}
</style>
</head>
<body>
<h1>{{ heading }}</h1>
<p class="lead">{% for sentence in lead %}{{ one_line(sentence) }}
{% endfor %}</p>
{% for note in notes %}<p class="note">{{ one_line(note) }}</p>
{% endfor %}
{%- if sections %}<nav aria-label="Contents"><h2>Contents</h2>
<ul>
{% for section in sections %}<li><a href="#{{ section.anchor }}">{{ one_line(section.title) }}</a>
</li>
{% endfor %}</ul></nav>
<p class="reading">{{ reading }}</p>
{% endif %}
{%- macro shown(table) %}<div class="wide">
<table{% if table.prose %} class="prose"{% endif %}><thead><tr>
{%- for cell in table.head %}<th{% if loop.index0 >= table.figures %} class="number"{% endif %}>
{{- cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for mark, row in table.marked() %}<tr{% if mark %} class="{{ mark }}"{% endif %}>
{%- for cell in row %}<td{% if loop.index0 >= table.figures %} class="number
{%- if cell | length < 40 %} short{% endif %}"{% elif cell | length > 24 %} class="text"{% endif %}>
{{- cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endmacro %}
{%- for section in sections %}<section id="{{ section.anchor }}">
<h2>{{ one_line(section.title) }}</h2>
{% for picture in section.pictures %}<figure>
<div class="wide">
{%- if picture.dark %}<picture>
<source media="(prefers-color-scheme: dark)" srcset="{{ picture.dark }}">
{% endif %}<img src="{{ picture.source }}" alt="{{ picture.caption }}"
{%- if picture.width %} width="{{ picture.width }}"{% endif %}>
{%- if picture.dark %}</picture>{% endif %}</div>
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}
{%- for table in section.tables %}
{%- if table.title != section.title %}<h3>{{ one_line(table.title) }}</h3>
{% endif %}
{%- if table.note %}<p>{{ one_line(table.note) }}</p>
{% endif %}
{%- if table.folded %}<details><summary>Show all {{ table.rows | length }} rows</summary>
{{ shown(table) }}</details>
{% elif table.rows %}{{ shown(table) }}{% endif %}
{%- endfor %}</section>
{% endfor %}</body>
</html>
"""

READING = (
    "How to read this: figures are medians, and bars and ranges reach from the 20th to the 80th "
    "percentile. “Relative cost” is how many times as much time or memory an implementation takes "
    "as the first one of its case: the median of the ratios of all rounds. “Share of the limit” is "
    "how much of the bandwidth or of the matrix rate a call reaches that the same run measured. "
    "“Ours” is this project; the “reference way” is how the public reference implementation does "
    "the same work."
)


def pages(
    heading: str,
    title: str,
    lead: Sequence[str],
    notes: Sequence[str],
    sections: Sequence[Section],
    reading: str,
) -> dict[str, str]:
    """`report.html`, which needs no other file, and the same in Markdown as `report.md`.

    Args:
        heading: what kind of report it is.
        title: which one, beside the heading in the title of the window.
        lead: sentences at the top.
        notes: what a reader should know before any figure.
        sections: with their pictures and anchors, see `sections.filled`.
        reading: how to read the figures.
    """
    page = Environment(autoescape=True).from_string(PAGE)
    html = page.render(
        heading=heading,
        title=title,
        lead=lead,
        notes=notes,
        sections=sections,
        reading=reading,
        one_line=one_line,
    )
    parts = [f"# {heading}\n\n{escaped(' '.join(lead))}\n"]
    parts += [f"{escaped(note)}\n" for note in notes]
    parts += [f"{reading}\n"]
    for section in sections:
        parts.append(f"## {escaped(section.title)}\n")
        parts += [f"![{escaped(each.caption)}]({each.name})\n" for each in section.pictures]
        for table in section.tables:
            titled = table.title != section.title
            if not table.rows:
                parts += [f"### {escaped(table.title)}\n"] if titled else []
                parts += [table.noted()] if table.note else []
            else:
                parts += [table.markdown(3)] if titled else [table.noted() + table.markdown(0)]
    return {"report.html": html, "report.md": "\n".join(parts)}
