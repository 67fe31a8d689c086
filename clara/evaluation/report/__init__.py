"""Reports of evaluations: one page, Markdown, CSV and pictures from folders of runs."""
