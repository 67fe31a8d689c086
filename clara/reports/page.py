"""The page of a report: one file that needs no other."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>CLaRa benchmarks: {{ one_line(report.title) }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  color: #1f2328; background: #fff; }
h1 { line-height: 1.2; }
h2 { margin-top: 3rem; padding-bottom: 0.2rem; border-bottom: 1px solid #ccc; }
a { color: #0b5cad; }
.lead { font-size: 1.15em; max-width: 50rem; }
.reading { color: #555; max-width: 50rem; }
nav ul { columns: 20rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9em; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.7rem; text-align: left;
  overflow-wrap: break-word; max-width: 26rem; }
th { vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.short { white-space: nowrap; }
td:first-child { min-width: 11rem; }
.bad td { background: #fde8e8; }
.good td { background: #e6f6e6; }
.note { background: #fff6d9; padding: 0.5rem 0.8rem; }
summary { cursor: pointer; color: #0b5cad; }
figure { margin: 2rem 0; }
figcaption { color: #555; }
img { max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>CLaRa benchmarks</h1>
<p class="lead">{% for sentence in report.lead %}{{ one_line(sentence) }}
{% endfor %}</p>
{% for note in report.notes %}<p class="note">{{ one_line(note) }}</p>
{% endfor %}
{%- if sections %}<nav aria-label="Contents"><h2>Contents</h2>
<ul>
{% for section in sections %}<li><a href="#{{ section.anchor }}">{{ one_line(section.title) }}</a>
</li>
{% endfor %}</ul></nav>
<p class="reading">{{ reading }}</p>
{% endif %}
{%- macro shown(table) %}<div class="wide"><table><thead><tr>
{%- for cell in table.head %}<th{% if loop.index0 >= table.figures %} class="number"{% endif %}>
{{- cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for mark, row in table.marked() %}<tr{% if mark %} class="{{ mark }}"{% endif %}>
{%- for cell in row %}<td{% if loop.index0 >= table.figures %} class="number
{%- if cell | length < 40 %} short{% endif %}"{% endif %}>
{{- cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endmacro %}
{%- for section in sections %}<section id="{{ section.anchor }}">
<h2>{{ one_line(section.title) }}</h2>
{% for picture in section.pictures %}<figure>
<img src="{{ picture.source }}" alt="{{ picture.caption }}">
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
