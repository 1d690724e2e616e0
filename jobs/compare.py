"""`raysound compare` as a script, for `ray job submit`.

python jobs/compare.py OLD/evaluation/metrics.json NEW/evaluation/metrics.json
"""

from raysound.cli import main

if __name__ == "__main__":
    main("compare")
