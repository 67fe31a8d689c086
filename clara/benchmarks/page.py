"""The page of a report."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>CLaRa benchmarks: {{ one_line(report.title) }}</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-size: 0.9em; }
th, td { border-bottom: 1px solid #ddd; padding: 0.3rem 0.7rem; text-align: left; }
th { vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
.bad td { background: #fde8e8; }
.good td { background: #e6f6e6; }
.note { background: #fff6d9; padding: 0.5rem 0.8rem; }
figure { margin: 2rem 0; }
figcaption { color: #555; }
img { max-width: 100%; height: auto; }
</style>
</head>
<body>
<h1>CLaRa benchmarks</h1>
<p>{{ one_line(report.title) }}</p>
{% for note in report.notes %}<p class="note">{{ one_line(note) }}</p>
{% endfor %}
{%- macro shown(table) %}<h2>{{ one_line(table.title) }}</h2>
{% if table.note %}<p>{{ one_line(table.note) }}</p>
{% endif %}<div class="wide"><table><thead><tr>
{%- for cell in table.head %}<th{% if loop.index0 >= table.figures %} class="number"{% endif %}>
{{- cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for mark, row in table.marked() %}<tr{% if mark %} class="{{ mark }}"{% endif %}>
{%- for cell in row %}<td{% if loop.index0 >= table.figures %} class="number"{% endif %}>
{{- cell }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>
{% endmacro %}
{%- for table in report.summary %}{{ shown(table) }}{% endfor %}
{%- for name, caption in pictures %}<figure><img src="{{ name }}" alt="{{ caption }}">
<figcaption>{{ caption }}</figcaption></figure>
{% endfor %}
{%- for table in report.details %}{{ shown(table) }}{% endfor -%}
</body>
</html>
"""
