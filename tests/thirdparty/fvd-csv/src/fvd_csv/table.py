import csv
from collections.abc import Mapping

import fvd


class CsvTracker(fvd.Tracker):
    """``metrics.csv``, a row a value: not every step has the same metrics."""

    def __init__(self, context: fvd.TrackerContext) -> None:
        path = context.log_dir / "metrics.csv"
        rows = list(csv.reader(path.open(newline=""))) if path.exists() else []
        self.file = path.open("w", newline="")
        self.writer = csv.writer(self.file)
        # A run that continues makes the steps after its checkpoint once more.
        self.writer.writerows(row for row in rows if int(row[0]) <= context.start_step)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.writer.writerows((step, name, value) for name, value in metrics.items())
        self.file.flush()

    def finish(self) -> None:
        self.file.close()
