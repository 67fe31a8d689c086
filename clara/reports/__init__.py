"""Results of benchmarks, and the report that `clara bench report` makes of them."""
