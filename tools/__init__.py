"""Programs for whoever works on the project, on a machine with an NVIDIA GPU: `make gpu-check`."""
