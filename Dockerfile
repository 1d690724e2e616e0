# What every node of a cluster runs: Ray's own image of the version in constraints.txt, and raysound's packages. torch
# brings its CUDA libraries, so that one image does for CPUs and GPUs. The code comes with each submitted job.
#   docker build -t registry.example.com/raysound:0.1.0 . && docker push registry.example.com/raysound:0.1.0
FROM rayproject/ray:2.60.0-py311-cpu
WORKDIR /home/ray/raysound
COPY --chown=ray:users pyproject.toml constraints.txt README.md ./
COPY --chown=ray:users raysound raysound
RUN pip install --no-cache-dir --constraint constraints.txt .
