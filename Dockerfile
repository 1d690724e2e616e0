# What every node of a cluster runs: Ray's own image of the version in constraints.txt, and raysound's packages. torch
# brings its CUDA libraries, so that one image does for CPUs and GPUs. The code comes with each submitted job.
#   docker build -t registry.example.com/raysound:0.1.0 . && docker push registry.example.com/raysound:0.1.0
FROM rayproject/ray:2.60.0-py311-cpu
# torch.compile wants a compiler, and Ray's image has none.
RUN sudo apt-get update && sudo apt-get install -y --no-install-recommends g++ && sudo rm -rf /var/lib/apt/lists/*
# NVIDIA's runtime gives GPUs only to an image that asks for them.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# `ray status` and `ray job` in a container need it, too.
ENV RAY_AUTH_MODE=token
WORKDIR /home/ray/raysound
COPY --chown=ray:users pyproject.toml constraints.txt README.md LICENSE ./
COPY --chown=ray:users raysound raysound
RUN pip install --no-cache-dir --constraint constraints.txt .
