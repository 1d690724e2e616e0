"""`raysound pipeline` as a script, for `ray job submit`.

python jobs/pipeline.py CONFIG [key=value ...]
"""

from raysound.cli import main

if __name__ == "__main__":
    main("pipeline")
