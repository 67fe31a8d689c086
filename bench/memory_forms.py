"""The forms of memory that benchmarks put beside each other."""

FORMS = {
    "learned": "learnt rows, final states",
    "spans": "W · final state + span mean",
    "averages": "span means alone (W = 0)",
}
"""What tables call them. "averages" is memory form "spans" whose connector is held at zero."""
