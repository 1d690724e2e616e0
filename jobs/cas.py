"""`raysound cas` as a script, for `ray job submit`.

python jobs/cas.py CONFIG [key=value ...]
"""

from raysound.cli import main

if __name__ == "__main__":
    main("cas")
