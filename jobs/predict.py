"""`raysound predict` as a script, for `ray job submit`.

python jobs/predict.py CHECKPOINT FILE [FILE ...]
"""

from raysound.cli import main

if __name__ == "__main__":
    main("predict")
