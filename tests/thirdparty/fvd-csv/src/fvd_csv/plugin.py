import fvd


@fvd.hookimpl
def fvd_trackers() -> list[fvd.TrackerSpec]:
    return [fvd.TrackerSpec(name="csv", target="fvd_csv.table:CsvTracker", summary="metrics.csv: step, name, value")]
