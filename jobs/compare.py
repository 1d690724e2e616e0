"""Tells whether a generator got better: the metrics.json of two evaluations by the same judge.

python jobs/compare.py OLD/evaluation/metrics.json NEW/evaluation/metrics.json
"""

import sys

from raysound.comparison import compare, lines, read_metrics
from raysound.config import UserError

if __name__ == "__main__":
    if len(sys.argv) != 3 or {"-h", "--help"} & set(sys.argv[1:]):
        print((__doc__ or "").strip())
        sys.exit(0 if {"-h", "--help"} & set(sys.argv[1:]) else 2)
    try:
        old, new = (read_metrics(uri) for uri in sys.argv[1:])
        for line in lines(compare(old, new)):
            print(line)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
