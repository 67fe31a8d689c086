"""The file of results that runs with several backbones add to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bench.backbones import RANDOM, Backbone
from bench.device import release
from bench.printing import measurement_line
from bench.recording import Recorder
from clara.reports.results import Measurement, ResultsError, read_results


class Recording(Recorder):
    """A recorder that tells of each measurement, and knows backbones apart."""

    def start(
        self, environment: Mapping[str, Any], backbone: str, add: bool, device: torch.device
    ) -> None:
        """Begin a file, or go on with one of the same machine and code.

        What it has of this backbone is measured again.
        """
        self.results.environment = {**environment, "backbones": []}
        if add and self._take_on(backbone):
            return
        self.measure_ceilings(device)
        release(device)

    def _take_on(self, backbone: str) -> bool:
        assert self.path is not None
        try:
            earlier = read_results(self.path)
        except ResultsError:
            return False
        ours, theirs = (dict(each.environment) for each in (self.results, earlier))
        known = theirs.pop("backbones", [])
        if {**ours, "backbones": [], "date": ""} != {**theirs, "backbones": [], "date": ""}:
            return False
        names = {backbone, RANDOM + backbone}
        again = tuple(f"{name}{end}" for name in names for end in (",", ":", " "))

        def kept(text: str) -> bool:
            return not f"{text} ".startswith(again)

        earlier.environment["backbones"] = [each for each in known if kept(each)]
        earlier.measurements = [
            each for each in earlier.measurements if kept(str(each.parameters["backbone"]))
        ]
        earlier.promises = [each for each in earlier.promises if kept(each.what)]
        self.results = earlier
        return True

    def describe(self, backbone: Backbone) -> None:
        self.results.environment["backbones"].append(f"{backbone.name}: {backbone.weights}")
        self.save()

    def add(self, measurement: Measurement) -> Measurement:
        super().add(measurement)
        print(measurement_line(measurement), flush=True)
        return measurement
