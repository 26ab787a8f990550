"""Decode in a process of its own, as the JSON in the first argument says; print what it took as JSON. Run by the tests beside it.

``{"store": path, "decoder": name, "options": {...}, "memory_budget": text, "y": null or list, "allowance_nbytes": null or bytes}``.
With an allowance, memory beyond that of the imports is limited to it by the operating system (RLIMIT_DATA).
"""

from __future__ import annotations

import json
import resource
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import dask
from measure import cost_here
from memory import import_ours

import daskdecode as dd


def data_nbytes() -> int:
    """Memory that counts against RLIMIT_DATA, now."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData"))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Decode once."""
    work = json.loads(sys.argv[1])
    warnings.simplefilter("ignore")
    import_ours()
    with dask.config.set(num_workers=2):
        decoder = getattr(dd, work["decoder"])(**work["options"])
        decoder.set_params(memory_budget=work["memory_budget"])
        ds = dd.open_subject(work["store"])
        plan = decoder.explain(ds, work["y"])
        if work["allowance_nbytes"]:
            limit = data_nbytes() + work["allowance_nbytes"]
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        try:
            cost = cost_here(decoder.fit, ds, work["y"])
        except MemoryError:
            print(json.dumps({"out_of_memory": True}))
            return
    found = {"scores": decoder.cv_scores_, "predicted": plan.peak_nbytes, "measured": cost.peak_nbytes, "out_of_memory": False}
    print(json.dumps(found | {"passes": plan.passes, "in_memory": plan.in_memory, "route": plan.route}))


if __name__ == "__main__":
    main()
